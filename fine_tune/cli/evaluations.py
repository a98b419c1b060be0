"""Evaluations on disk: what eval-<dataset>.json says of a run's checkpoints, and which of them is the best."""

import math
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from fine_tune.cli.runs import COUNT, PROJECT_ROOT, own_folder
from fine_tune.core.errors import UserError
from fine_tune.core.files import read_json, sha256
from fine_tune.core.shapes import Shape
from fine_tune.data.tasks import task_spec

Row = dict[str, Any]  # of a checkpoint: its step, its scores by metric, and the facts of how they were found
NOT_SCORES = {"step", "sha256", "predicted", "seconds", "device", "threads"}
SCORE: Shape = (float, None)  # null where it is not defined
ROW: Shape = {"step": COUNT, "sha256": str, "predicted": [COUNT], "seconds": float, "device": str, "threads": COUNT}
EVALUATION: Shape = {
    "checkpoints": [ROW | {str: SCORE}],
    "majority": {str: SCORE},
    "rows": COUNT,
    "data_sha256": str,
    "finished": bool,
}
BEST = "best"  # the value of --ckpt that leaves the choice to the evaluation


class Evaluation(NamedTuple):
    """The checkpoints scored, by step, and the facts of the split; files of older versions have no facts."""

    rows: list[Row]
    facts: dict[str, Any]


def evaluation_path(folder: Path, dataset: str) -> Path:
    """Return the file of the scores on a split."""
    return folder / f"eval-{dataset}.json"


def logits_path(folder: Path, dataset: str, step: int) -> Path:
    """Return the file of the logits (n, C) that a checkpoint gives on a split."""
    return folder / f"logits-{dataset}-{step}.npy"


def read_evaluation(path: Path) -> Evaluation:
    """Read the file at `path`, none of whose scores is null any more but nan; raises UserError naming it."""
    try:
        content = read_json(path, EVALUATION)
        rows = content.pop("checkpoints", [])
        if not all("step" in row for row in rows):
            raise UserError(f"{path}: a row of its checkpoints lacks the step")
    except UserError as error:
        raise UserError(f"{error}; delete it and evaluate again") from error
    content.pop("best", None)
    known = [{name: math.nan if value is None else value for name, value in row.items()} for row in rows]
    return Evaluation([*{row["step"]: row for row in known}.values()], content)


def scored(row: Row) -> list[str]:
    """Return the names of the scores in a row."""
    return [name for name in row if name not in NOT_SCORES]


def best(rows: list[Row]) -> dict[str, dict[str, float]]:
    """Return step and value of the best checkpoint per metric: the highest, for eval_loss the lowest, ties earliest."""
    result = {}
    for name in dict.fromkeys(name for row in rows for name in scored(row)):
        sign = -1 if name == "eval_loss" else 1
        known = [row for row in rows if not math.isnan(row.get(name, math.nan))]
        if known:
            row = max(known, key=lambda row: (sign * row[name], -row["step"]))
            result[name] = {"step": row["step"], "value": row[name]}
    return result


def evaluation_command(flags: Namespace, experiment: str, model: str, dataset: str) -> str:
    """Return the command that scores the checkpoints of a run, in the folders of `flags` where these are not the usual.

    It stands in errors and reports as the cure of what is missing.
    """
    words = f"python run_fine_tune_eval.py --experiment {experiment} --task {flags.task} --dataset {dataset}"
    usual = {
        "data_dir": PROJECT_ROOT / "data" / "fine_tune",
        "experiment_dir": PROJECT_ROOT / "data" / "fine_tune_experiment",
    }
    others = [f" --{name} {getattr(flags, name)}" for name, path in usual.items() if getattr(flags, name) != str(path)]
    return words + (f" --model {model}" if model != "bert" else "") + "".join(others)


class Choice(NamedTuple):
    """The checkpoint that `--ckpt best` takes, and in words why."""

    step: int
    reason: str


def best_checkpoint(flags: Namespace) -> Choice:
    """Choose the best checkpoint of the run that `flags` name by the task's first metric on its (first) dev split.

    Raises UserError, with the cure, when the run was not evaluated there, or when the best checkpoint is no longer the
    one that was.
    """
    dataset = task_spec(flags).dev()
    folder = own_folder(flags)
    path = evaluation_path(folder, dataset)
    metric = task_spec(flags).metrics[0]
    cure = evaluation_command(flags, flags.experiment, flags.model, dataset)
    if not path.is_file():
        raise UserError(f"--ckpt best: {path} does not exist; it comes from {cure}")
    rows = read_evaluation(path).rows
    winner = best(rows).get(metric)
    if winner is None:
        raise UserError(f"--ckpt best: {path} knows no checkpoint's {metric}; give a step")
    step = winner["step"]
    [digest] = [row.get("sha256") for row in rows if row["step"] == step]
    model = folder / f"model-{step}.pt"
    if not model.is_file():
        raise UserError(f"--ckpt best: step {step} has the best {metric} in {path}, but {model} has gone; give a step")
    if digest not in (None, sha256(model)):
        raise UserError(f"--ckpt best: {model} is another file than the one scored in {path}; score it by {cure}")
    of = f"best of {len(rows)} evaluated checkpoints" if len(rows) > 1 else "the only evaluated checkpoint"
    return Choice(step, f"--ckpt best: step {step}, {metric} {winner['value']:.4f} on {dataset}, {of}")
