"""The zip for the GLUE leaderboard: eleven files at its top level, each with a row for every test example."""

import zipfile
from argparse import Namespace
from pathlib import Path

from fine_tune.cli.runs import data_file, own_folder
from fine_tune.core.errors import UserError
from fine_tune.core.files import atomic_write
from fine_tune.core.memory import needs_memory
from fine_tune.data.archives import ROWS
from fine_tune.data.tasks import TASKS, TaskSpec
from fine_tune.data.tsv import read_examples
from fine_tune.training import checkpoint
from fine_tune.training.log import print0
from fine_tune.training.run import load_split
from fine_tune.training.saved_run import load_model
from fine_tune.training.scoring import leaderboard_values, predict, prediction_file


@needs_memory("in prediction; nothing was written")
def submit(flags: Namespace) -> None:
    """Predict every test split of the runs in `flags.chosen`, by task, and write the zip with all eleven files.

    A task without a run gets a file that says the same everywhere, and is named: the leaderboard takes no zip without.
    """
    for task, run in flags.chosen.items():
        check_rows(run, TASKS[task])
    lines = []
    with atomic_write(Path(flags.out)) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for task, spec in TASKS.items():
            found = predicted(flags.chosen[task], spec) if task in flags.chosen else placeholders(task, spec)
            for dataset, values in found.items():
                name = f"{spec.splits[dataset].upload}.tsv"
                content = prediction_file(values)
                archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)  # no date: the same every time
                run = flags.chosen.get(task)
                origin = f"{run.experiment}, step {run.ckpt}" if run else f"placeholder: every row is {values[0]}"
                lines.append(f"{name:<11}{len(values):>8} rows  {origin}")
    print("\n".join(lines))
    missing = [task for task in TASKS if task not in flags.chosen]
    if missing:
        print0(f"note: {', '.join(missing)}: no run was given, so their files are placeholders and their scores too")
    print0(f"written: {flags.out}")


def predicted(run: Namespace, spec: TaskSpec) -> dict[str, list[str]]:
    """Return the values of every split to hand in, by a run's checkpoint."""
    if run.choice:
        print0(f"{run.task}: {run.choice}")
    model, tokenizer = load_model(run)
    path = own_folder(run) / f"model-{run.ckpt}.pt"
    checkpoint.load_weights(model, path)
    result = {}
    for run.dataset in (name for name, split in spec.splits.items() if split.upload):
        tokens, _ = load_split(run, tokenizer)
        result[run.dataset] = leaderboard_values(spec, predict(model, tokens, run.batch_size, path))
    return result


def placeholders(task: str, spec: TaskSpec) -> dict[str, list[str]]:
    """Return as many equal values as each split to hand in has rows."""
    value = spec.labels[0] if spec.labels else "0.000"
    return {name: [value] * ROWS[task][name] for name, split in spec.splits.items() if split.upload}


def check_rows(run: Namespace, spec: TaskSpec) -> None:
    """Raise UserError when a split to hand in has not a row for every example that the leaderboard knows."""
    for dataset, split in spec.splits.items():
        if not split.upload:
            continue
        rows, expected = len(read_examples(data_file(run, split), spec, split)), ROWS[run.task][dataset]
        if rows != expected:
            had = f"--data_dir: {run.task} {dataset} has {rows} rows instead of the leaderboard's {expected}"
            raise UserError(f"{had}; is it GLUE's? python -m fine_tune.download --task {run.task} --check")
