"""Make the zip that the GLUE leaderboard takes: its eleven files, from the checkpoints of your runs."""

from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from fine_tune.cli import checks, flags, parser
from fine_tune.cli.evaluations import best_checkpoint
from fine_tune.cli.runs import own_folder, read_run
from fine_tune.core.errors import UserError
from fine_tune.data.tasks import TASKS

EXAMPLE = "python -m fine_tune.submission LAD_soft_1_42:best LAD_rte:1155 --out submission.zip"


def run_and_step(text: str) -> tuple[str, int | str]:
    """Read the name of a run and its checkpoint."""
    name, _, step = text.partition(":")
    try:
        return flags.plain_name(name), flags.step_or_best(step)
    except ValueError:
        raise ValueError("must be a run and its checkpoint, as in LAD_soft_1_42:best or LAD_soft_1_42:56850") from None


def groups() -> list[flags.FlagGroup]:
    """Return all flags of this script."""
    what = "RUN:STEP or RUN:best; each for the tasks that it was trained on"
    _, shared = flags.experiment(device="-1")
    own = [
        flags.Flag("runs", run_and_step, what, positional=True),
        flags.Flag("out", flags.path, "file to write"),
        *(flag for flag in shared if flag.name in ("model", "device_id")),
        flags.Flag("batch_size", flags.integer(1), "examples at a time; changes no result", "32"),
    ]
    return [("submission", own), flags.paths()]


@checks.needs("out")
def zip_name(given: Namespace) -> Iterator[str]:
    """The leaderboard takes a zip, and none is written over."""
    if not given.out.endswith(".zip"):
        yield f"--out {given.out}: must end in .zip"
    elif Path(given.out).exists():
        yield f"--out {given.out}: exists already; remove it or give another name"


@checks.needs("runs", "model", "data_dir", "experiment_dir")
def chosen_runs(given: Namespace) -> Iterator[str]:
    """Every run is there and no task has two; what is to be predicted becomes `given.chosen`, flags by task."""
    given.chosen = {}
    for name, step in given.runs:
        flags_of = {task: Namespace(**vars(given), experiment=name, task=task, ckpt=step, choice="") for task in TASKS}
        there = {task: found for task, found in flags_of.items() if (own_folder(found) / "config.json").is_file()}
        if not there:
            yield f"RUNS {name}: no folder {name}_{given.model}_<task> of a GLUE task in {given.experiment_dir}"
        for task, found in there.items():
            if task in given.chosen:
                yield f"RUNS {name}: {task} is {given.chosen[task].experiment}'s already; name one run of each task"
            given.chosen[task] = found
            yield from run_problems(found)


def run_problems(found: Namespace) -> Iterator[str]:
    """Yield what is wrong with predicting by one run; its step and config become known."""
    try:
        found.run_config = read_run("experiment", own_folder(found), found)
        if found.ckpt == "best":
            found.ckpt, found.choice = best_checkpoint(found)
    except UserError as error:
        yield f"RUNS {found.experiment}: {error}"
        return
    if not (own_folder(found) / f"model-{found.ckpt}.pt").is_file():
        yield f"RUNS {found.experiment}: {own_folder(found) / f'model-{found.ckpt}.pt'} does not exist"
    for dataset, split in TASKS[found.task].splits.items():
        if split.upload:
            yield from checks.split_problems(found, dataset, [dataset], "--dataset")


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, then predict and zip."""
    given = parser.parse(__doc__, groups(), (zip_name, chosen_runs), EXAMPLE, argv)
    from fine_tune.training.leaderboard import submit  # after the flags: importing torch takes seconds

    submit(given)


if __name__ == "__main__":
    parser.run_script(main)
