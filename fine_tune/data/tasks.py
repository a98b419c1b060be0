"""The tasks: where the files of each lie, what their columns mean, how it is scored and what is handed in.

GLUE's are a table here. A folder of one's own with a task.json, as `python -m fine_tune.add_task` writes it, is a task
like any other.
"""

import math
import re
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fine_tune.core.errors import UserError
from fine_tune.core.files import read_json

CLASS_METRICS = ("accuracy", "f1_score", "macro_f1", "matthews")
SCORE_METRICS = ("pearson", "spearman")


@dataclass(frozen=True)
class Split:
    """One file of a task; columns are 0-based, `pair` is None for single sentences, `label` is None without labels."""

    files: tuple[str, ...]  # relative to the data folder, the first that exists is read
    columns: int
    text: int
    pair: int | None = None
    label: int | None = None
    header: bool = True
    upload: str = ""  # name of the leaderboard's file, without .tsv


@dataclass(frozen=True)
class TaskSpec:
    """A task; `labels` are listed by id as they stand in the files, and are empty for regression.

    The first of `metrics` is the one by which a checkpoint is chosen; `limits` are the lowest and the highest score.
    """

    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: dict[str, Split]
    limits: tuple[float, float] = (-math.inf, math.inf)

    @property
    def num_class(self) -> int:
        """Width of the classifier's output: one per label, 1 for regression."""
        return len(self.labels) or 1

    @property
    def reads_pairs(self) -> bool:
        """Whether an example is two texts."""
        return self.splits["train"].pair is not None

    def labelled(self) -> list[str]:
        """Return the splits that can be trained on or evaluated."""
        return [name for name, split in self.splits.items() if split.label is not None]

    def dev(self) -> str:
        """Return the split on which models are chosen and compared: dev, of several the first."""
        return next(name for name in self.labelled() if name != "train")


def usual(folder: str, columns: int, text: int, pair: int | None, label: int, test: Split) -> dict[str, Split]:
    """Return the splits of a task whose train and dev files share one layout."""
    splits = {name: Split((f"{folder}/{name}.tsv",), columns, text, pair, label) for name in ("train", "dev")}
    return splits | {"test": test}


def pairs(folder: str) -> dict[str, Split]:
    """Return the splits of the tasks laid out as index, text, pair, label (QNLI, RTE, WNLI)."""
    return usual(folder, 4, 1, 2, 3, Split((f"{folder}/test.tsv",), 3, 1, 2, upload=folder))


BINARY = ("0", "1")
ENTAILMENT = ("not_entailment", "entailment")  # the authors' order, the reverse of Hugging Face's

TASKS = {
    "qqp": TaskSpec(
        BINARY,
        ("accuracy", "f1_score"),
        usual("QQP", 6, 3, 4, 5, Split(("QQP/test.tsv",), 3, 1, 2, upload="QQP")),
    ),
    "mnli": TaskSpec(
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        {
            "train": Split(("MNLI/train.tsv",), 12, 8, 9, 11),
            "dev_matched": Split(("MNLI/dev_matched.tsv",), 16, 8, 9, 15),
            "dev_mismatched": Split(("MNLI/dev_mismatched.tsv",), 16, 8, 9, 15),
            "test_matched": Split(("MNLI/test_matched.tsv",), 10, 8, 9, upload="MNLI-m"),
            "test_mismatched": Split(("MNLI/test_mismatched.tsv",), 10, 8, 9, upload="MNLI-mm"),
            "ax": Split(("AX/test.tsv", "AX/AX.tsv", "AX.tsv"), 3, 1, 2, upload="AX"),
        },
    ),
    "qnli": TaskSpec(ENTAILMENT, ("accuracy",), pairs("QNLI")),
    "rte": TaskSpec(ENTAILMENT, ("accuracy",), pairs("RTE")),
    "mrpc": TaskSpec(
        BINARY,
        ("accuracy", "f1_score"),
        usual("MRPC", 5, 3, 4, 0, Split(("MRPC/test.tsv",), 5, 3, 4, upload="MRPC")),
    ),
    "sst2": TaskSpec(
        BINARY,
        ("accuracy",),
        usual("SST-2", 2, 0, None, 1, Split(("SST-2/test.tsv",), 2, 1, upload="SST-2")),
    ),
    "cola": TaskSpec(
        BINARY,
        ("matthews",),
        {
            "train": Split(("CoLA/train.tsv",), 4, 3, label=1, header=False),
            "dev": Split(("CoLA/dev.tsv",), 4, 3, label=1, header=False),
            "test": Split(("CoLA/test.tsv",), 2, 1, upload="CoLA"),
        },
    ),
    "stsb": TaskSpec(
        (),
        ("pearson", "spearman"),
        usual("STS-B", 10, 7, 8, 9, Split(("STS-B/test.tsv",), 9, 7, 8, upload="STS-B")),
        limits=(0, 5),
    ),
    "wnli": TaskSpec(BINARY, ("accuracy",), pairs("WNLI")),
}


# --- tasks of one's own -----------------------------------------------------------------------------------------------

TASK_FILE = "task.json"


def task_spec(flags: Namespace) -> TaskSpec:
    """Return the task that --task names: GLUE's by the table, one's own by `<data_dir>/<task>/task.json`."""
    return TASKS.get(flags.task) or read_task(Path(flags.data_dir) / flags.task)


def own_tasks(data_dir: Path) -> list[str]:
    """Return the names of the tasks that have a task.json below `data_dir`."""
    return sorted(path.parent.name for path in data_dir.glob(f"*/{TASK_FILE}"))


def own_splits(name: str, texts: int, labelled: dict[str, bool]) -> dict[str, Split]:
    """Return the splits of a task of one's own: text, pair if there is one, label; without labels index, text, pair."""
    splits = {}
    for split, has_label in labelled.items():
        first = 0 if has_label else 1
        pair = first + 1 if texts == 2 else None
        splits[split] = Split((f"{name}/{split}.tsv",), texts + 1, first, pair, texts if has_label else None)
    return splits


def read_task(folder: Path) -> TaskSpec:
    """Read the task.json in `folder`; raises UserError naming it and the first thing in it that is wrong."""
    path = folder / TASK_FILE
    saved = read_json(path)
    problem = next(task_problems(saved), None)
    if problem:
        raise UserError(f"{path}: {problem}")
    labelled = {name: split["labelled"] for name, split in saved["splits"].items()}
    splits = own_splits(folder.name, saved["texts"], labelled)
    return TaskSpec(tuple(saved["labels"]), tuple(saved["metrics"]), splits)


def task_problems(saved: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with the content of a task.json."""
    labels, metrics, splits = saved.get("labels"), saved.get("metrics"), saved.get("splits")
    if not is_names(labels) or len(labels) == 1:
        yield '"labels" must list at least two different words by id, or nothing for regression'
        return
    if not is_names(metrics) or not metrics:
        yield '"metrics" must list names of metrics'
        return
    yield from metric_problems(labels, metrics)
    if type(saved.get("texts")) is not int or saved["texts"] not in (1, 2):
        yield '"texts" must be 1 or 2, the number of texts of an example'
    if not isinstance(splits, dict) or not all(map(is_split, splits, splits.values())):
        yield '"splits" must be an object of splits by plain names, each with "labelled" true or false'
    elif not all(splits.get(name, {}).get("labelled") for name in ("train", "dev")):
        yield '"splits" must have a train and a dev that are labelled'


def is_names(value: Any) -> bool:
    """Tell whether `value` is a list of different words, each of which can stand in a line of a TSV file."""
    words = isinstance(value, list) and all(isinstance(word, str) and word == one_line(word) != "" for word in value)
    return words and len(set(value)) == len(value)


def is_split(name: str, split: Any) -> bool:
    """Tell whether an entry of task.json's "splits" can be used."""
    plain = re.fullmatch(r"[A-Za-z0-9_-]+", name) is not None
    return plain and isinstance(split, dict) and isinstance(split.get("labelled"), bool)


def metric_problems(labels: list[str], metrics: list[str]) -> Iterator[str]:
    """Yield what is wrong with scoring a task of these labels, none for regression, by `metrics`."""
    known = CLASS_METRICS if labels else SCORE_METRICS
    for name in metrics:
        if name not in known:
            kind = f"{len(labels)} labels" if labels else "regression"
            yield f"metric {name!r}: a task of {kind} has {', '.join(known)}"
        elif name == "f1_score" and len(labels) > 2:
            yield f"metric {name!r}: is that of label 1 of two, but there are {len(labels)}; take macro_f1"


def one_line(text: str) -> str:
    """Return `text` with a blank for every character that ends a field or a line of a TSV file."""
    return re.sub(r"[\t\n\r]", " ", text)
