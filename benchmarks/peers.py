"""What a step costs beside the loop that one would write instead: Hugging Face's Trainer with dynamic padding.

`python benchmarks/peers.py` takes some minutes, with --tiny seconds; it needs the package accelerate, as the Trainer
does. Both do the same work on the same examples, in processes of their own that take turns, a few steps at a time.
"""

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import Dataset  # noqa: E402
from transformers import (  # noqa: E402
    BertConfig,
    BertForSequenceClassification,
    BertTokenizerFast,
    DataCollatorWithPadding,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks import common  # noqa: E402
from benchmarks.common import BASE, TINY, Job, Shape, Watch, Worker  # noqa: E402
from benchmarks.speed import our_fine_tune  # noqa: E402
from tests import tiny  # noqa: E402

MINILM = replace(BASE, layers=6, students=3, d_model=384, d_ff=1536, batch_size=32)
WORK = ("fine-tuning", "logits only", "PKD, padding without weight")
OURS = {WORK[1]: {"mu": 0.0}, WORK[2]: {"method": "pkd", "pad_loss": "masked"}}
STEPS = 3  # of one turn
T, SOFT, HARD, MU = 20.0, 0.7, 0.3, 500.0


class Examples(Dataset):
    """The examples of `shape`, from the first of a turn on, as the collator takes them."""

    def __init__(self, shape: Shape, first: int) -> None:
        self.tokens, self.first = shape.tokens(), first

    def __len__(self) -> int:
        return 4096

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = (self.first + index) % 4096
        ids = self.tokens.ids[self.tokens.offsets[index] : self.tokens.offsets[index + 1]]
        types = [int(position >= self.tokens.first_segment[index]) for position in range(len(ids))]
        return {"input_ids": ids.tolist(), "token_type_ids": types, "label": int(self.tokens.labels[index])}


class Distilling(Trainer):
    """The Trainer with a loss of teacher's logits and, where mu is not 0, of its hidden states."""

    def __init__(self, teacher: nn.Module, mu: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.teacher, self.mu = teacher, mu

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        """Return hard_weight CE + soft_weight T^2 KL + mu / N sum of the masked means of squared differences."""
        labels = inputs.pop("labels")
        hidden = self.mu > 0
        with torch.no_grad():
            told = self.teacher(**inputs, output_hidden_states=hidden)
        said = model(**inputs, output_hidden_states=hidden)
        soft = F.kl_div(
            F.log_softmax(said.logits / T, 1), F.log_softmax(told.logits / T, 1), reduction="batchmean", log_target=True
        )
        loss = HARD * F.cross_entropy(said.logits, labels) + SOFT * T**2 * soft
        if hidden:
            mask = inputs["attention_mask"]
            students = len(said.hidden_states) - 1
            skip = (len(told.hidden_states) - 1) // students
            for i in range(1, students + 1):
                apart = (told.hidden_states[i * skip] - said.hidden_states[i]).square().mean(2)
                loss = loss + self.mu / students * ((apart * mask).sum(1) / mask.sum(1)).mean()
        return loss


class Clock(TrainerCallback):
    """Adds up the CPU seconds of steps."""

    def __init__(self) -> None:
        self.taken: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """Start."""
        self.started = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop."""
        self.taken.append(time.process_time() - self.started)


def plain(shape: Shape, layers: int, dropout: float) -> BertForSequenceClassification:
    """Return the library's own classifier."""
    config = BertConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.d_model,
        num_hidden_layers=layers,
        num_attention_heads=shape.heads,
        intermediate_size=shape.d_ff,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(layers)
    return BertForSequenceClassification(config)


def peer(shape: Shape, work: str, folder: Path, dropout: float, watch: Watch) -> Job:
    """Do `work` with the Trainer."""
    teacher, fine_tuning = plain(shape, shape.layers, dropout), work == WORK[0]
    model = teacher if fine_tuning else plain(shape, shape.students, dropout)
    collate = DataCollatorWithPadding(BertTokenizerFast.from_pretrained(folder / "bert"))
    clock = Clock()

    def step(number: int) -> float:
        arguments = TrainingArguments(
            folder / "out",
            max_steps=STEPS,
            per_device_train_batch_size=shape.batch_size,
            learning_rate=1e-4,
            weight_decay=0.01,
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            train_sampling_strategy="sequential",
        )
        same = {"model": model, "args": arguments, "data_collator": collate, "callbacks": [clock]}
        same["train_dataset"] = Examples(shape, (number - 1) * STEPS * shape.batch_size)
        made = Trainer(**same) if fine_tuning else Distilling(teacher.eval(), MU * (work == WORK[2]), **same)
        clock.taken.clear()
        made.train()
        return sum(clock.taken)

    return Job(step)


def ours(shape: Shape, work: str, folder: Path, dropout: float, watch: Watch) -> Job:
    """Do `work` with the package's own loop."""
    if work == WORK[0]:
        job = our_fine_tune(shape, dropout, watch)
    else:
        job = common.our_distil(shape, OURS[work], dropout, watch)

    def step(number: int) -> float:
        started = time.process_time()
        for each in range((number - 1) * STEPS + 1, number * STEPS + 1):
            job.step(each)
        return time.process_time() - started

    return Job(step)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help=f"turns of {STEPS} steps of each")
    parser.add_argument("--tiny", action="store_true", help="a tiny model")
    flags = parser.parse_args()
    shape = TINY if flags.tiny else MINILM
    common.heading("Peers", shape)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tiny.make_bert(folder / "bert")
        for work in WORK:
            with (
                Worker(partial(peer, shape, work, folder), 1) as theirs,
                Worker(partial(ours, shape, work, folder), 1) as own,
            ):
                turns = [
                    [worker.ask("step", number)["flops"] / STEPS for worker in (theirs, own)]
                    for number in range(1, flags.pairs + 2)
                ]
            turns = turns[1:]  # the first also sets things up
            before, after = zip(*turns, strict=True)
            ratio = statistics.median(theirs / own for theirs, own in turns)
            rows.append([work, common.milliseconds(before), common.milliseconds(after), f"{ratio:.2f}"])
    common.table("CPU time of a step | Trainer, ms | ours, ms | times faster", rows)


if __name__ == "__main__":
    main()
