"""Write the bundled sample: question pairs in the layout of GLUE's QQP, and a tiny BERT pre-trained on such questions.

Every question comes from the grammar below. Two questions are duplicates when they ask the same, in two wordings. Most
others share all their content words and differ in who or what plays which role (from Rome to Oslo, from Oslo to Rome),
so that counting shared words says little. The BERT is pre-trained as the original is: on words to be restored, and on
whether a second question belongs to the first. It reads the train split's questions in all wordings, and no label.
"""

import random
import re
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from fine_tune.cli import flags, parser
from fine_tune.core.files import atomic_write, make_folder

SEED = 2023
PAIRS = {"train": 6000, "dev": 1000, "test": 300}
SPLIT_OF = ("dev", "test", *["train"] * 6)  # a question's split by the hash of what it names
SHARE_OTHER = 0.3  # of the pairs that are no duplicates, those that name one other thing; the rest swap two roles
STEPS, WARMUP, LR, BATCH = 4000, 150, 1e-3, 64  # of the pre-training
FOREIGN = 0.2  # share of second questions that do not belong to the first
WHOLE = 0.7  # share of readings in which one question is asked for all that fills its slots, else MASKED of all words
MASKED, HIDDEN, EXCHANGED = 0.2, 0.4, 0.3  # of the words asked for, these are hidden and exchanged; the rest is left
SHAPE = {
    "hidden_size": 64,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,  # endless text is not learned by heart
    "attention_probs_dropout_prob": 0.0,
}
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]

CITIES = "Rome Oslo Paris Berlin Madrid Vienna Prague Lisbon Dublin Athens Warsaw Zurich".split()
PEOPLE = "Anna Peter Maria Tom Lucy Jack Emma Paul Nina Oscar Julia Felix".split()
ANIMALS = "horses bears lions wolves goats foxes camels zebras tigers otters badgers moose".split()
TRAVEL = "train bus flight ferry".split()
GIFTS = "book guitar coat lamp ring map".split()
DEEDS = ["call called", "visit visited", "thank thanked", "hire hired", "help helped", "follow followed"]
QUALITIES = "faster stronger heavier taller smarter older".split()

NAMES = {name.lower() for name in CITIES + PEOPLE + ANIMALS}

# Each frame: its slots, of which the first two can swap roles, and its wordings.
FRAMES = (
    (
        (CITIES, CITIES, TRAVEL),
        (
            "How long does the {2} from {0} to {1} take?",
            "How many hours is the {2} to {1} from {0}?",
            "From {0} to {1}, what is the duration of the {2}?",
            "What time do I need to get to {1} by {2} from {0}?",
        ),
    ),
    (
        (PEOPLE, PEOPLE, GIFTS),
        (
            "Did {0} give the {2} to {1}?",
            "Was the {2} given to {1} by {0}?",
            "Is it true that {0} gave {1} the {2}?",
            "Did {1} get the {2} from {0}?",
        ),
    ),
    (
        (ANIMALS, ANIMALS, QUALITIES),
        (
            "Are {0} {2} than {1}?",
            "Is it true that {0} are {2} than {1}?",
            "Compared to {1}, are {0} {2}?",
            "Would you say that {0} are the {2} ones and not {1}?",
        ),
    ),
    (
        (PEOPLE, PEOPLE, DEEDS),
        (
            "Why did {0} {2[0]} {1}?",
            "Why was {1} {2[1]} by {0}?",
            "What is the reason that {0} {2[1]} {1}?",
            "For what reason did {0} {2[0]} {1}?",
        ),
    ),
)


class Question(NamedTuple):
    """What is asked: the number of a frame, and what fills its slots."""

    frame: int
    fillers: tuple[str, ...]

    @property
    def split(self) -> str:
        """The split that may ask it; swapped roles stay in the same one."""
        return SPLIT_OF[zlib.crc32(f"{self.frame} {sorted(self.fillers)}".encode()) % len(SPLIT_OF)]

    def wordings(self, rng: random.Random) -> list[str]:
        """Return two different wordings of it."""
        fillers = [filler.split() if " " in filler else filler for filler in self.fillers]
        texts = [pattern.format(*fillers) for pattern in rng.sample(FRAMES[self.frame][1], 2)]
        return [text[0].upper() + text[1:] for text in texts]

    def swapped(self) -> "Question":
        """Return the question with the first two roles swapped."""
        first, second, third = self.fillers
        return Question(self.frame, (second, first, third))

    def altered(self) -> list["Question"]:
        """Return the questions of the same split that name one other thing."""
        found = []
        for slot, words in enumerate(FRAMES[self.frame][0]):
            for word in set(words) - set(self.fillers):
                found.append(Question(self.frame, (*self.fillers[:slot], word, *self.fillers[slot + 1 :])))
        return [question for question in sorted(found) if question.split == self.split]


def draw(rng: random.Random, split: str) -> Question:
    """Draw a question of `split`."""
    while True:
        frame = rng.randrange(len(FRAMES))
        question = Question(frame, tuple(map(rng.choice, FRAMES[frame][0])))
        if question.fillers[0] != question.fillers[1] and question.split == split:
            return question


def draw_pair(rng: random.Random, split: str) -> tuple[str, str, int]:
    """Draw two wordings and whether they ask the same (1) or not (0)."""
    question, label = draw(rng, split), rng.randrange(2)
    first, second = question.wordings(rng)
    if not label:
        others = question.altered() if rng.random() < SHARE_OTHER else []
        second = (rng.choice(others) if others else question.swapped()).wordings(rng)[1]
    return first, second, label


def make_pairs(split: str) -> list[tuple[str, str, int]]:
    """Return the different pairs of `split`."""
    rng, pairs = random.Random(f"{SEED} {split}"), {}
    while len(pairs) < PAIRS[split]:
        first, second, label = draw_pair(rng, split)
        pairs[first, second] = label
    return [(first, second, label) for (first, second), label in pairs.items()]


def words(text: str) -> list[str]:
    """Split a text as BERT's tokenizer does."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def vocabulary() -> list[str]:
    """Return BERT's special tokens, the grammar's words, and single letters and digits for any other word."""
    patterns = [re.sub("{.*?}", " ", pattern) for _, wordings in FRAMES for pattern in wordings]
    fillers = [filler for slots, _ in FRAMES for slot in slots for filler in slot]
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return [*SPECIAL, *sorted(set(words(" ".join(patterns + fillers))) | set(letters)), *(f"##{c}" for c in letters)]


def rivals() -> dict[str, list[str]]:
    """Return for each word that fills a slot those that could stand there instead."""
    found: dict[str, list[str]] = {}
    for slots, _ in FRAMES:
        for slot in slots:
            for forms in zip(*(words(filler) for filler in slot), strict=True):
                for word in forms:
                    found.setdefault(word, []).extend(form for form in forms if form != word)
    return found


# --- pre-training -----------------------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """Tokens as seen, segments, what was there where it is asked for (else -100), and whether the second is foreign."""

    seen: list[int]
    segments: list[int]
    wanted: list[int]
    foreign: int


def draw_reading(rng: random.Random, ids: dict[str, int], instead: dict[str, list[str]]) -> Reading:
    """Draw a question followed by another wording of it with words asked for, or by some other question."""
    first, second = (words(text) for text in draw(rng, "train").wordings(rng))
    foreign = int(rng.random() < FOREIGN)
    if foreign:
        second = words(draw(rng, "train").wordings(rng)[0])
    sides = [["[CLS]", *first, "[SEP]"], [*second, "[SEP]"]]
    seen, wanted = sides[0] + sides[1], [-100] * (len(first) + len(second) + 3)
    if not foreign:
        side = rng.randrange(2)
        span = range(len(sides[0])) if side == 0 else range(len(sides[0]), len(seen))
        names = [place for place in span if seen[place] in NAMES]
        whole = rng.random() < WHOLE
        asked = (
            [p for p in span if seen[p] in instead] if whole else [p for p, word in enumerate(seen) if word[0] != "["]
        )
        for place in asked:
            if whole or rng.random() < MASKED:
                wanted[place] = ids[seen[place]]
        fate = rng.random()  # of both names together: one alone could be told from the other question without its role
        if whole and HIDDEN < fate < HIDDEN + EXCHANGED:
            seen[names[0]], seen[names[1]] = seen[names[1]], seen[names[0]]
        for place in (p for p, number in enumerate(wanted) if number >= 0):
            own = fate if whole and place in names else rng.random()
            if own < HIDDEN:
                seen[place] = "[MASK]"
            elif own < HIDDEN + EXCHANGED and not (whole and place in names):
                seen[place] = rng.choice(instead.get(seen[place], [seen[place]]))
    segments = [0] * len(sides[0]) + [1] * len(sides[1])
    return Reading([ids[word] for word in seen], segments, wanted, foreign)


def pretrain(names: list[str]) -> Any:
    """Return a BertModel trained on masked words and foreign sentences (Devlin et al. 2019, section 3.1)."""
    import torch
    import torch.nn.functional as F
    from transformers import BertConfig, BertForPreTraining

    torch.set_num_threads(1)  # so that it comes out the same on every machine with these versions
    torch.manual_seed(SEED)
    rng, instead, ids = random.Random(SEED), rivals(), {word: number for number, word in enumerate(names)}
    model = BertForPreTraining(BertConfig(vocab_size=len(names), **SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=0.01, fused=True)
    for step in range(1, STEPS + 1):
        readings = [draw_reading(rng, ids, instead) for _ in range(BATCH)]
        longest = max(len(reading.seen) for reading in readings)
        seen, segments, wanted = (
            torch.tensor([row + [fill] * (longest - len(row)) for row in rows])
            for rows, fill in zip(list(zip(*readings, strict=True))[:3], (0, 0, -100), strict=True)
        )
        output = model(input_ids=seen, token_type_ids=segments, attention_mask=(seen > 0).long())
        foreign = torch.tensor([reading.foreign for reading in readings])
        loss = F.cross_entropy(output.prediction_logits.flatten(0, 1), wanted.flatten())
        loss = loss + F.cross_entropy(output.seq_relationship_logits, foreign)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(step / WARMUP, (STEPS + 1 - step) / STEPS)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"pre-training: step {step} of {STEPS}, loss {loss.item():.3f}", flush=True)
    model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.1  # for fine-tuning
    return model.bert


# --- writing ----------------------------------------------------------------------------------------------------------


def write_pairs(folder: Path, split: str) -> None:
    """Write a split as QQP's file of that name."""
    labelled = split != "test"
    lines = ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate" if labelled else "id\tquestion1\tquestion2"]
    for number, (first, second, label) in enumerate(make_pairs(split)):
        ids = f"{number}\t{2 * number}\t{2 * number + 1}" if labelled else str(number)
        lines.append(f"{ids}\t{first}\t{second}" + (f"\t{label}" if labelled else ""))
    with atomic_write(folder / f"{split}.tsv") as file:
        file.write(("\n".join(lines) + "\n").encode())


def write_bert(folder: Path) -> None:
    """Write the pre-trained BERT and its vocabulary as a local model folder."""
    from transformers import BertTokenizer

    names = vocabulary()
    pretrain(names).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # the library makes it readable by its owner alone
    with atomic_write(folder / "vocab.txt") as file:
        file.write(("\n".join(names) + "\n").encode())
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)


def main() -> None:
    """Write the sample."""
    out = flags.Flag("out", flags.path, "folder to write QQP/ and bert/ into")
    given = parser.parse(__doc__, [("sample", [out])], (), "python -m scripts.make_sample --out data/sample")
    for part in ("QQP", "bert"):
        make_folder(Path(given.out) / part)
    for split in PAIRS:
        write_pairs(Path(given.out) / "QQP", split)
    write_bert(Path(given.out) / "bert")


if __name__ == "__main__":
    parser.run_script(main)
