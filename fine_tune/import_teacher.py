"""Make a teacher of a BertForSequenceClassification that was fine-tuned elsewhere: a run with the checkpoint 0."""

from argparse import Namespace
from collections.abc import Iterator, Sequence

from fine_tune.cli import checks, flags, parser
from fine_tune.cli.runs import own_folder
from fine_tune.data.tasks import task_spec

EXAMPLE = """python -m fine_tune.import_teacher --from textattack/bert-base-uncased-QQP --experiment hub_teacher \\
    --task qqp --labels 0,1"""


def groups() -> list[flags.FlagGroup]:
    """Return all flags of this script."""
    own = [
        flags.Flag("from", flags.pretrained, "fine-tuned classifier: hub name or local folder"),
        flags.Flag("labels", flags.names, "what its outputs 0, 1, ... mean", falls_back="by their names"),
        flags.Flag("max_seq_len", flags.integer(8), "longest input in word pieces, as it was fine-tuned", "128"),
        flags.Flag("batch_size", flags.integer(1), "examples at a time; changes no result", "32"),
    ]
    return [flags.experiment(device="-1"), ("classifier", own), flags.paths()]


@checks.needs("task", "labels")
def right_labels(given: Namespace) -> Iterator[str]:
    """Every label of the task is named once."""
    labels = task_spec(given).labels
    if given.labels and sorted(given.labels) != sorted(labels):
        wanted = f"{', '.join(labels)}, in the order of its outputs" if labels else "none, for its labels are scores"
        yield f"--labels {','.join(given.labels)}: --task {given.task} has {wanted}"


@checks.needs("experiment", "model", "task", "experiment_dir")
def new_run(given: Namespace) -> Iterator[str]:
    """No run is written over."""
    folder = own_folder(given)
    if (folder / "config.json").exists():
        yield f"--experiment {given.experiment}: {folder} is a run already; choose another name"


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, then import."""
    rules = (checks.known_task, checks.dev_split, right_labels, new_run)
    given = parser.parse(__doc__, groups(), rules, EXAMPLE, argv)
    from fine_tune.training.exchange import import_teacher  # after the flags: importing torch takes seconds

    import_teacher(given)


if __name__ == "__main__":
    parser.run_script(main)
