"""The GLUE table: where each task's files lie, what their columns mean, how it is scored and what is handed in."""

from dataclasses import dataclass


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
    """A GLUE task; `labels` are listed by id as they stand in the files, and are empty for the regression task."""

    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    splits: dict[str, Split]

    @property
    def num_class(self) -> int:
        """Width of the classifier's output: one per label, 1 for regression."""
        return len(self.labels) or 1

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
    ),
    "wnli": TaskSpec(BINARY, ("accuracy",), pairs("WNLI")),
}
