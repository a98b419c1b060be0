"""Write the bundled sample: question pairs in the layout of GLUE's QQP, and a tiny BERT pre-trained on such questions.

Every question comes from the grammar below. Two questions are duplicates when they mean the same: the same frame, the
same kind of question, the same fillers in the same roles. Both labels draw their wording in the same way, and in every
frame they are balanced at every degree of word overlap, so counting shared words tells nothing about the label.

Shapes: B batch, S padded length.
"""

import argparse
import random
import re
import zlib
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from fine_tune import cli
from fine_tune.files import make_folder, replacing

SEED = 2023
SIZES = {"train": 6000, "dev": 1000, "test": 300}  # pairs
SPLIT_OF = ("dev", "test") + ("train",) * 6  # a meaning's split by its hash, modulo 8
LONGEST = 32  # word pieces of a pair, with [CLS] and two [SEP]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
SHAPE = {
    "hidden_size": 128,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,  # so few steps do not overfit endless text
    "attention_probs_dropout_prob": 0.0,
}
DROPOUT = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}  # of its fine-tuning
QQP_HEADER = "id qid1 qid2 question1 question2 is_duplicate".split()
STEPS, WARMUP, LR, BATCH = 4000, 200, 8e-4, 32  # of the pre-training
EXCHANGED = 0.6  # share of the spoilt questions with two words exchanged, where two can be
HIDING = 0.3  # share of readings with words to be found; of the others half are spoilt
WRONG_WEIGHT = 5.0  # of the loss over spoilt words: one in twenty is
HIDDEN_SHARE = (0.1, 0.5)  # share of a reading's words that have to be found, drawn anew for each

# --- the grammar ------------------------------------------------------------------------------------------------------

Filler = str | tuple[str, ...]  # one word, or the forms of one idea


@dataclass(frozen=True)
class Frame:
    """A family of questions: what fills its slots, and for each kind of question the ways to ask it.

    `(a|b)` in a pattern stands for either word. Slots that share a list of fillers can swap roles.
    """

    slots: dict[str, tuple[Filler, ...]]
    kinds: tuple[tuple[str, ...], ...]


CITIES = tuple(
    "Rome Oslo Paris Berlin Madrid Lisbon Vienna Prague Warsaw Athens Dublin London Milan Munich Geneva Zurich "
    "Hamburg Naples Porto Seville Helsinki Bergen Krakow Bordeaux".split()
)
PEOPLE = tuple(
    "Anna Ben Clara David Emma Frank Grace Henry Irene Jack Karen Leo Maria Nora Oscar Paula Robert Sarah Thomas "
    "Victor Wendy Peter Lucy Simon".split()
)
ANIMALS = tuple(
    "elephants horses lions tigers bears wolves cats dogs foxes cows goats sheep camels dolphins sharks "
    "monkeys zebras donkeys owls eagles".split()
)
DEVICES = tuple("phone laptop tablet camera desktop watch television console".split())
CONTENTS = tuple("photos contacts songs notes messages videos documents passwords".split())
TEAMS = tuple("Brazil Spain Germany Italy France Japan Sweden Norway Poland Portugal Chile Peru Mexico Canada".split())
LANGUAGES = tuple(
    "English Spanish German Italian French Japanese Swedish Norwegian Polish Portuguese Russian Dutch".split()
)
YEARS = tuple(str(year) for year in range(1998, 2023, 2))
NUMBERS = tuple("5 8 10 12 15 20 25 30 40 50 60 75 80 90 100 200 500".split())
SPANS = tuple("5 8 10 12 15 20 25 30 40 50 60 75".split())
DAYS = tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split())
PLACES = tuple("museum library market zoo castle theatre bank pool gallery cathedral".split())
LENGTHS = tuple("miles feet inches yards metres kilometres".split())
COMPARISONS = (
    ("heavier", "lighter"),
    ("faster", "slower"),
    ("taller", "shorter"),
    ("stronger", "weaker"),
    ("bigger", "smaller"),
    ("older", "younger"),
    ("louder", "quieter"),
)
HANDOVERS = (  # give, given, take, taken
    ("lend", "lent", "borrow", "borrowed"),
    ("sell", "sold", "buy", "bought"),
    ("send", "sent", "receive", "received"),
    ("hand", "handed", "take", "taken"),
)
OBJECTS = tuple("book car bike guitar lamp coat ring chair map boat piano table".split())
DEEDS = tuple(
    (f"{verb}", f"{verb}{ending}")
    for verb, ending in (("invite", "d"), ("help", "ed"), ("call", "ed"), ("visit", "ed"), ("follow", "ed"))
    + (("thank", "ed"), ("blame", "d"), ("hire", "d"), ("trust", "ed"), ("warn", "ed"))
)
ACTIONS = (
    ("eat", "eating"),
    ("swim", "swimming"),
    ("run", "running"),
    ("sleep", "sleeping"),
    ("study", "studying"),
    ("shower", "showering"),
    ("stretch", "stretching"),
    ("cook", "cooking"),
    ("pray", "praying"),
    ("shave", "shaving"),
    ("dance", "dancing"),
    ("sing", "singing"),
    ("work", "working"),
    ("rest", "resting"),
)
MODES = tuple("train bus flight ferry".split())
GROUPS = tuple("children students teachers tourists doctors farmers drivers nurses artists pilots".split())
LIKINGS = tuple("chess opera football coffee winter poetry mathematics camping fishing gardening jazz rain".split())
LEVELS = (
    "blood pressure",
    "heart rate",
    "sugar level",
    "room temperature",
    "reading speed",
    "power bill",
    "noise level",
)
MONTHS = tuple("January March April June July August October November".split())

FRAMES = (
    Frame(
        {"a": CITIES, "b": CITIES, "m": MODES},
        (
            (
                "How long does the {m} from {a} to {b} take?",
                "How many hours is the {m} to {b} from {a}?",
                "From {a} to {b}, how (long|many hours) is the {m}?",
                "How much time do I need to reach {b} by {m} from {a}?",
                "If I leave {a} by {m}, how long until I reach {b}?",
            ),
            (
                "How much does the {m} from {a} to {b} cost?",
                "What is the (price|cost) of a {m} to {b} from {a}?",
                "From {a} to {b}, how much is the {m}?",
                "How much money do I need to reach {b} by {m} from {a}?",
                "If I leave {a} by {m}, what must I pay to reach {b}?",
            ),
        ),
    ),
    Frame(
        {"x": ANIMALS, "y": ANIMALS, "c": COMPARISONS},
        (
            (
                "Are {x} {c[0]} than {y}?",
                "Are {y} {c[1]} than {x}?",
                "Is it true that {x} are {c[0]} than {y}?",
                "Is it true that {y} are {c[1]} than {x}?",
                "Compared with {y}, are {x} {c[0]}?",
                "Compared with {x}, are {y} {c[1]}?",
                "Of {x} and {y}, are {x} the {c[0]} ones?",
                "Of {x} and {y}, are {y} the {c[1]} ones?",
            ),
        ),
    ),
    Frame(
        {"p": PEOPLE, "q": PEOPLE, "h": HANDOVERS, "o": OBJECTS},
        (
            (
                "Did {p} {h[0]} the {o} to {q}?",
                "Did {q} {h[2]} the {o} from {p}?",
                "Was the {o} {h[1]} to {q} by {p}?",
                "Was the {o} {h[3]} from {p} by {q}?",
                "Is it true that {p} {h[1]} the {o} to {q}?",
                "Has {q} {h[3]} the {o} from {p}?",
            ),
        ),
    ),
    Frame(
        {"p": PEOPLE, "q": PEOPLE, "d": DEEDS, "t": MONTHS},
        (
            (
                "Did {p} {d[0]} {q} in {t}?",
                "Was {q} {d[1]} by {p} in {t}?",
                "In {t}, did {p} {d[0]} {q}?",
                "In {t}, was {q} {d[1]} by {p}?",
                "Is it true that {p} {d[1]} {q} in {t}?",
                "Was {p} the one who {d[1]} {q} in {t}?",
            ),
            (
                "Why did {p} {d[0]} {q} in {t}?",
                "Why was {q} {d[1]} by {p} in {t}?",
                "For what reason did {p} {d[0]} {q} in {t}?",
                "What was the reason that {p} {d[1]} {q} in {t}?",
                "For what reason was {q} {d[1]} by {p} in {t}?",
            ),
        ),
    ),
    Frame(
        {"n": NUMBERS, "u": LENGTHS, "w": LENGTHS},
        (
            (
                "How many {w} are (in|equal to) {n} {u}?",
                "What is {n} {u} in {w}?",
                "How (do|can) I (convert|change|turn) {n} {u} to {w}?",
                "How are {n} {u} (converted|changed|turned) to {w}?",
                "If something measures {n} {u}, what is it in {w}?",
                "Expressed in {w}, how much are {n} {u}?",
            ),
        ),
    ),
    Frame(
        {"x": DEVICES, "y": DEVICES, "t": CONTENTS},
        (
            (
                "How (do|can) I (move|copy|transfer) {t} from my {x} to my {y}?",
                "How (do|can) I (move|copy|transfer) {t} to my {y} from my {x}?",
                "How can {t} on my {x} be (moved|copied|transferred) to my {y}?",
                "My {t} are on my {x}, how can my {y} get them?",
                "What is the way to get {t} to my {y} from my {x}?",
            ),
        ),
    ),
    Frame(
        {"a": ACTIONS, "b": ACTIONS},
        (
            (
                "Should I {a[0]} before I {b[0]}?",
                "Should I {b[0]} after I {a[0]}?",
                "Before {b[1]}, should I {a[0]}?",
                "After {a[1]}, should I {b[0]}?",
                "Is it (good|better|wise) to {a[0]} first and {b[0]} later?",
                "Is it (good|better|wise) to {a[0]} before {b[1]}?",
                "Is it (good|better|wise) to {b[0]} after {a[1]}?",
            ),
        ),
    ),
    Frame(
        {"g": GROUPS, "t": LIKINGS},
        (
            (
                "Why do (so many|most) {g} (like|love|enjoy) {t}?",
                "What makes (so many|most) {g} (like|love|enjoy) {t}?",
                "Why are (so many|most) {g} fond of {t}?",
                "Why is {t} so popular with {g}?",
                "What do (so many|most) {g} find so (good|great) about {t}?",
            ),
            (
                "Why do (so many|most) {g} (hate|dislike) {t}?",
                "What makes (so many|most) {g} (hate|dislike) {t}?",
                "What do (so many|most) {g} find so (bad|awful) about {t}?",
                "Why is {t} so unpopular with {g}?",
                "Why do (so many|most) {g} not (like|love|enjoy) {t}?",
            ),
        ),
    ),
    Frame(
        {"o": LEVELS, "n": SPANS},
        (
            (
                "How can I (raise|increase) my {o} in {n} days?",
                "What should I do to (raise|increase) my {o} in {n} days?",
                "How can I make my {o} go up in {n} days?",
                "What makes my {o} (rise|grow) in {n} days?",
                "In {n} days, how can I (raise|increase) my {o}?",
            ),
            (
                "How can I (lower|reduce) my {o} in {n} days?",
                "What should I do to (lower|reduce) my {o} in {n} days?",
                "How can I make my {o} go down in {n} days?",
                "What makes my {o} (fall|drop) in {n} days?",
                "In {n} days, how can I (lower|reduce) my {o}?",
            ),
        ),
    ),
    Frame(
        {"l": PLACES, "c": CITIES, "d": DAYS},
        (
            (
                "When does the {l} in {c} open on {d}?",
                "On {d}, (when|at what time) does the {c} {l} open?",
                "What is the opening time of the {l} in {c} on {d}?",
                "On {d}, how early can I enter the {l} in {c}?",
                "(When|At what time) do the doors of the {c} {l} open on {d}?",
            ),
            (
                "When does the {l} in {c} close on {d}?",
                "On {d}, (when|at what time) does the {c} {l} close?",
                "What is the closing time of the {l} in {c} on {d}?",
                "On {d}, how late can I stay in the {l} in {c}?",
                "(When|At what time) do the doors of the {c} {l} close on {d}?",
            ),
        ),
    ),
    Frame(
        {"a": LANGUAGES, "b": LANGUAGES},
        (
            (
                "How (hard|difficult) is it for {a} speakers to learn {b}?",
                "Is {b} (hard|difficult) to learn if I speak {a}?",
                "If I speak {a}, is {b} (hard|difficult) to learn?",
                "I speak {a}, how much work is it to learn {b}?",
                "Do {a} speakers find that {b} is (hard|difficult)?",
            ),
            (
                "How long does it take {a} speakers to learn {b}?",
                "How (soon|fast) can I learn {b} if I speak {a}?",
                "If I speak {a}, how (soon|fast) can I learn {b}?",
                "I speak {a}, how many months do I need to learn {b}?",
                "How many months do {a} speakers need to learn {b}?",
            ),
        ),
    ),
    Frame(
        {"a": TEAMS, "b": TEAMS, "y": YEARS},
        (
            (
                "Did {a} (beat|defeat) {b} in the {y} final?",
                "Did {b} lose to {a} in the {y} final?",
                "Was {b} (beaten|defeated) by {a} in the final of {y}?",
                "Was {a} the winner against {b} in the {y} final?",
                "Was {b} the loser against {a} in the {y} final?",
                "In the final of {y}, did {a} win against {b}?",
            ),
        ),
    ),
)


# --- questions and pairs ----------------------------------------------------------------------------------------------


class Meaning(NamedTuple):
    """What a question asks: the numbers of its frame and kind, and the filler of each slot."""

    frame: int
    kind: int
    fillers: tuple[Filler, ...]

    @property
    def split(self) -> str:
        """The split that may ask it; swapping roles or the kind stays inside, so a split is closed under both."""
        key = f"{self.frame} {sorted(map(str, self.fillers))}"
        return SPLIT_OF[zlib.crc32(key.encode()) % len(SPLIT_OF)]

    def ask(self, rng: random.Random) -> str:
        """Return one of its wordings."""
        frame = FRAMES[self.frame]
        pattern = re.sub(
            r"\((.*?)\)", lambda group: rng.choice(group[1].split("|")), rng.choice(frame.kinds[self.kind])
        )
        text = pattern.format(**dict(zip(frame.slots, self.fillers, strict=True)))
        return text[0].upper() + text[1:]


class Pair(NamedTuple):
    """Two questions and whether they are duplicates."""

    first: str
    second: str
    label: int


def draw_meaning(rng: random.Random, split: str) -> Meaning:
    """Draw a meaning of `split`."""
    while True:
        number = rng.randrange(len(FRAMES))
        frame = FRAMES[number]
        fillers = tuple(map(rng.choice, frame.slots.values()))
        meaning = Meaning(number, rng.randrange(len(frame.kinds)), fillers)
        if len(set(fillers)) == len(fillers) and meaning.split == split:
            return meaning


def changes(meaning: Meaning, rng: random.Random) -> list[Meaning]:
    """Return the ways to change a meaning a little: two roles swapped, another kind, or one other filler."""
    frame, (number, kind, fillers) = FRAMES[meaning.frame], meaning
    lists = list(frame.slots.values())
    changed = [Meaning(number, other, fillers) for other in range(len(frame.kinds)) if other != kind]
    for one, two in combinations(range(len(lists)), 2):
        if lists[one] is lists[two]:
            swapped = list(fillers)
            swapped[one], swapped[two] = fillers[two], fillers[one]
            changed.append(Meaning(number, kind, tuple(swapped)))
    slot = rng.randrange(len(lists))
    other = rng.choice([filler for filler in lists[slot] if filler not in fillers])
    return [*changed, Meaning(number, kind, (*fillers[:slot], other, *fillers[slot + 1 :]))]


def draw_pair(rng: random.Random, split: str, label: int) -> tuple[int, Pair]:
    """Draw a pair of `split` with `label`, and the number of its frame."""
    while True:
        meaning = draw_meaning(rng, split)
        other = meaning if label else rng.choice(changes(meaning, rng))
        pair = Pair(meaning.ask(rng), other.ask(rng), label)
        if other.split == split and pair.first != pair.second and len(words(pair.first + pair.second)) + 3 <= LONGEST:
            return meaning.frame, pair


def make_pairs(split: str) -> list[Pair]:
    """Return the pairs of `split`, as many duplicates as not in every frame and at every degree of word overlap.

    A pair is kept once a pair of the other label with the same frame and overlap turns up.
    """
    rng = random.Random(f"{SEED} {split}")
    waiting: dict[tuple[int, float, int], list[Pair]] = defaultdict(list)
    kept: list[Pair] = []
    seen = set()
    while len(kept) < SIZES[split]:
        label = rng.randrange(2)
        frame, pair = draw_pair(rng, split, label)
        key = frozenset(pair[:2])
        if key in seen:
            continue
        seen.add(key)
        degree = round(overlap(pair), 1)
        if waiting[frame, degree, 1 - label]:
            kept += [pair, waiting[frame, degree, 1 - label].pop()]
        else:
            waiting[frame, degree, label].append(pair)
    rng.shuffle(kept)
    return kept


def words(text: str) -> list[str]:
    """Split a text as BERT's tokenizer does; every word of the grammar is in the vocabulary."""
    return re.findall(r"\w+|[^\w\s]", text.lower())


def overlap(pair: Pair) -> float:
    """Return the Jaccard index of the two questions' words."""
    first, second = set(words(pair.first)), set(words(pair.second))
    return len(first & second) / len(first | second)


# --- pre-training -----------------------------------------------------------------------------------------------------


def vocabulary() -> list[str]:
    """Return BERT's special tokens, the grammar's words, and single letters and digits for any other word."""
    patterns = " ".join(pattern for frame in FRAMES for kind in frame.kinds for pattern in kind)
    known = set(words(re.sub(r"{.*?}", " ", patterns).replace("(", " ").replace(")", " ").replace("|", " ")))
    for frame in FRAMES:
        known |= set(words(" ".join(str(filler) for fillers in frame.slots.values() for filler in fillers)))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    return [*SPECIAL, *sorted(known | set(letters)), *(f"##{letter}" for letter in letters)]


class Reading(NamedTuple):
    """What is read in pre-training: tokens as seen, what was there, segments; -100 = not asked for.

    `wrong` is 1 for each word that was spoilt, `spoilt` 1 when any was.
    """

    seen: list[int]
    wanted: list[int]
    segments: list[int]
    wrong: list[int]
    spoilt: int


def draw_reading(rng: random.Random, ids: dict[str, int], rivals: dict[str, list[str]]) -> Reading:
    """Draw a question followed by the same one asked again, with words hidden from both or the second one spoilt.

    Only meanings of the train split are used, and no pair of the task.
    """
    meaning = draw_meaning(rng, "train")
    first, second = words(meaning.ask(rng)), words(meaning.ask(rng))
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    tokens = [ids[word] for word in ("[CLS]", *first, "[SEP]", *second, "[SEP]")]
    if rng.random() < HIDING:
        return Reading(*hide(tokens, rng, len(ids)), segments, [-100] * len(tokens), -100)
    read = spoil(second, rivals, rng) if rng.randrange(2) else second
    seen = [ids[word] for word in ("[CLS]", *first, "[SEP]", *read, "[SEP]")]
    wanted = [old if old != new or rng.random() < 0.15 else -100 for old, new in zip(tokens, seen, strict=True)]
    wrong = [-100] * (len(first) + 2) + [int(old != new) for old, new in zip(second, read, strict=True)] + [-100]
    return Reading(seen, wanted, segments, wrong, int(read != second))


def hide(tokens: list[int], rng: random.Random, size: int) -> tuple[list[int], list[int]]:
    """Return the tokens with some masked, replaced or kept, and what was there (-100 = not asked for)."""
    rate = rng.uniform(*HIDDEN_SHARE)
    seen, wanted = list(tokens), [-100] * len(tokens)
    for place, token in enumerate(tokens):
        if token >= len(SPECIAL) and rng.random() < rate:
            wanted[place] = token
            chance = rng.random()
            if chance < 0.8:
                seen[place] = SPECIAL.index("[MASK]")
            elif chance < 0.9:
                seen[place] = rng.randrange(len(SPECIAL), size)
    return seen, wanted


def find_rivals() -> dict[str, list[str]]:
    """Return for each word of a slot those that may stand in its place: the same form of its list's other fillers.

    The other forms of its own idea count too, such as lighter for heavier.
    """
    rivals: dict[str, list[str]] = defaultdict(list)
    for fillers in {id(fillers): fillers for frame in FRAMES for fillers in frame.slots.values()}.values():
        forms = [tuple(map(str.lower, (filler,) if isinstance(filler, str) else filler)) for filler in fillers]
        for one in forms:
            for index, word in enumerate(one):
                rivals[word] += [other[index] for other in forms if other is not one] + [w for w in one if w != word]
    return rivals


def spoil(question: list[str], rivals: dict[str, list[str]], rng: random.Random) -> list[str]:
    """Return the words of a question with two rivals exchanged, or one word replaced by a rival."""
    spoilt = list(question)
    places = [place for place, word in enumerate(question) if word in rivals]
    swaps = [(one, two) for one, two in combinations(places, 2) if question[two] in rivals[question[one]]]
    if swaps and rng.random() < EXCHANGED:
        one, two = rng.choice(swaps)
        spoilt[one], spoilt[two] = question[two], question[one]
    elif places:
        place = rng.choice(places)
        spoilt[place] = rng.choice(rivals[question[place]])
    return spoilt


def draw_batch(rng: random.Random, ids: dict[str, int], rivals: dict[str, list[str]]) -> dict[str, Any]:
    """Draw a batch, padded to its longest reading: (B, S) tensors, but `spoilt` (B,)."""
    import torch

    readings = [draw_reading(rng, ids, rivals) for _ in range(BATCH)]
    length = max(len(reading.seen) for reading in readings)

    def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (length - len(row)) for row in rows])

    return {
        "input_ids": padded([reading.seen for reading in readings], 0),
        "token_type_ids": padded([reading.segments for reading in readings], 0),
        "attention_mask": padded([[1] * len(reading.seen) for reading in readings], 0),
        "wanted": padded([reading.wanted for reading in readings], -100),
        "wrong": padded([reading.wrong for reading in readings], -100),
        "spoilt": torch.tensor([reading.spoilt for reading in readings]),
    }


def make_losses(bert: Any) -> tuple[Any, Any]:
    """Return the pre-training heads, and the function from a batch to its three losses."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    width, size = bert.config.hidden_size, bert.config.vocab_size
    heads = nn.ModuleDict({"word": nn.Linear(width, size), "wrong": nn.Linear(width, 2), "spoilt": nn.Linear(width, 2)})
    heads["word"].weight = bert.embeddings.word_embeddings.weight

    def losses_of(batch: dict[str, Any]) -> list[torch.Tensor]:
        wanted, wrong, spoilt = (batch.pop(name) for name in ("wanted", "wrong", "spoilt"))
        output = bert(**batch)
        hidden = output.last_hidden_state
        words_right = F.cross_entropy(heads["word"](hidden[wanted >= 0]), wanted[wanted >= 0])
        found = F.cross_entropy(heads["wrong"](hidden[wrong >= 0]), wrong[wrong >= 0])
        return [words_right, WRONG_WEIGHT * found, F.cross_entropy(heads["spoilt"](output.pooler_output), spoilt)]

    return heads, losses_of


def pretrain() -> Any:
    """Return a BertModel pre-trained on readings.

    It finds hidden words (Devlin et al. 2019, section 3.1), tells which words were spoilt, as ELECTRA does (Clark et
    al. 2020), and whether any was, so that [CLS] and the pooler learn too.
    """
    import torch
    from transformers import BertConfig, BertModel

    from fine_tune.optim import warm_up_factor

    torch.set_num_threads(1)  # the same bytes whatever the number of cores
    torch.manual_seed(SEED)
    ids = {name: number for number, name in enumerate(vocabulary())}
    bert = BertModel(BertConfig(vocab_size=len(ids), **SHAPE))
    heads, losses_of = make_losses(bert)
    rivals = find_rivals()
    trained = torch.nn.ModuleList([bert, heads])
    optimizer = torch.optim.AdamW(trained.parameters(), weight_decay=0.01, fused=True)
    rng = random.Random(f"{SEED} pre-training")
    for step in range(1, STEPS + 1):
        losses = losses_of(draw_batch(rng, ids, rivals))
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = LR * warm_up_factor(step, WARMUP, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step} of {STEPS}:", *(f"{loss.item():.3f}" for loss in losses), flush=True)
    return bert


# --- writing and checking ---------------------------------------------------------------------------------------------


def write_pairs(folder: Path, split: str, pairs: list[Pair]) -> None:
    """Write one file of QQP; equal questions have equal numbers, as in the original."""
    number: dict[str, int] = {}
    header = ["id", "question1", "question2"] if split == "test" else QQP_HEADER
    lines = ["\t".join(header)]
    for index, (first, second, label) in enumerate(pairs):
        first_id, second_id = (str(number.setdefault(question, len(number) + 1)) for question in (first, second))
        texts = [str(index), first, second]
        lines.append("\t".join(texts if split == "test" else [str(index), first_id, second_id, *texts[1:], str(label)]))
    make_folder(folder)
    with replacing(folder / f"{split}.tsv") as file:
        file.write(("\n".join(lines) + "\n").encode())


def write_bert(folder: Path, bert: Any) -> None:
    """Write the model with its tokenizer, readable by all (safetensors keeps its files private)."""
    from transformers import BertTokenizer

    make_folder(folder)
    bert.config.update(DROPOUT)
    bert.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    BertTokenizer.from_pretrained(folder, do_lower_case=True).save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)


def best_threshold(pairs: list[Pair]) -> float:
    """Return the accuracy of the best rule "duplicates when the words overlap at least (or at most) so much"."""
    measured = [(overlap(pair), pair.label) for pair in pairs]
    rates = [sum((value >= threshold) == label for value, label in measured) / len(pairs) for threshold, _ in measured]
    return max(*rates, *(1 - rate for rate in rates))


def check(pairs: dict[str, list[Pair]]) -> None:
    """Print what a model has to beat."""
    for split in ("train", "dev"):
        same = sum(pair.label for pair in pairs[split]) / len(pairs[split])
        print(f"{split}: {len(pairs[split])} pairs, majority class {max(same, 1 - same):.3f}, ", end="")
        print(f"best threshold on word overlap {best_threshold(pairs[split]):.3f}")


def main() -> None:
    """Read the flags, then write or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write; such as data/sample (required)")
    parser.add_argument("--only", choices=("QQP", "bert"), help="write only this part (default: both)")
    parser.add_argument("--check", action="store_true", help="write nothing; print majority class and overlap baseline")
    flags = parser.parse_args()
    pairs = {split: make_pairs(split) for split in SIZES}
    if flags.check:
        check(pairs)
        return
    if flags.only != "bert":
        for split, made in pairs.items():
            write_pairs(flags.out / "QQP", split, made)
    if flags.only != "QQP":
        write_bert(flags.out / "bert", pretrain())


if __name__ == "__main__":
    cli.run(main)
