"""Evaluation of a run's checkpoints, and the prediction file that is handed in.

Shapes: n examples of the split, C classes.
"""

import time
from argparse import Namespace
from contextlib import closing
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fine_tune.cli.evaluations import (
    Evaluation,
    Row,
    best,
    evaluation_path,
    logits_path,
    read_evaluation,
    scored,
)
from fine_tune.cli.runs import checkpoint_steps, is_finished, last_written, log_folder, own_folder
from fine_tune.core.errors import UserError
from fine_tune.core.files import atomic_write, sha256, waiting_lock, write_json
from fine_tune.core.memory import needs_memory
from fine_tune.data.logits import read_logits, write_logits
from fine_tune.data.tasks import TaskSpec, task_spec
from fine_tune.models.bert import BertClassifier
from fine_tune.training import checkpoint, distributed
from fine_tune.training.log import EventFile, print0
from fine_tune.training.saved_run import load_run
from fine_tune.training.scoring import leaderboard_values, measure, predict, prediction_file, scores
from fine_tune.training.similarity import draw_similarity

STOPPED = "what was evaluated before is saved; the same command does the rest"


@needs_memory("in evaluation; what was scored stays")
def evaluate(flags: Namespace) -> None:
    """Score every checkpoint from --ckpt on, ascending, and report on the console, in tensorboard and as JSON.

    What was scored before, by weights and data that have not changed, is not computed again without --again.
    """
    folder = own_folder(flags)
    finished = is_finished(folder, flags.run_config)
    steps = [step for step in checkpoint_steps(folder) if step >= flags.ckpt]
    if not steps:
        raise UserError(f"--ckpt {flags.ckpt}: {folder} holds no model-<step>.pt from that step on")
    started = last_written(folder / "config.json")
    model, tokens = load_run(flags)
    facts = cache(partial(split_facts, flags, tokens.labels, finished))  # once, but not before the first batch
    log = log_folder(folder)
    found, before, every = [], [], []
    # In a folder of its own: a reader of tensorboard follows one file of a folder at a time, here training's.
    with closing(EventFile(log / "eval")) as events:
        for step in steps:
            path = folder / f"model-{step}.pt"
            look = partial(known_row, flags, path, step, tokens.labels)
            digest, row = distributed.all_gather(distributed.on_main_process(look))[0]
            if row:
                before.append(row)
                every.append(step)
            elif load_if_there(model, path):
                clock = time.perf_counter()
                logits = predict(model, tokens, flags.batch_size, path, STOPPED)
                how = circumstances(model, digest, time.perf_counter() - clock)
                keep = partial(record, flags, started, events, step, logits, tokens.labels, how, facts())
                found.append(distributed.on_main_process(keep))  # None elsewhere
                every.append(step)
        if flags.layers and every:
            distributed.on_main_process(partial(draw_similarity, flags, model, tokens, events, every))
    if not every:
        raise UserError(f"--experiment {flags.experiment}: all checkpoints in {folder} have gone meanwhile")
    if not found:
        distributed.on_main_process(partial(keep_rows, flags, started, [], facts()))
    if distributed.is_main_process():
        print_result(flags, found, before, facts())
    print0(f"written: {evaluation_path(folder, flags.dataset)}; tensorboard --logdir {log.parent}")


def split_facts(flags: Namespace, labels: np.ndarray, finished: bool) -> dict[str, Any]:
    """Return what the evaluation file says once: of the split its rows, checksum and majority class, and `finished`."""
    spec = task_spec(flags)
    # For regression the mean, a constant too: no correlation is defined, and nan says so.
    constant = np.bincount(labels).argmax() if spec.labels else labels.mean()
    majority = measure(spec.metrics, labels, np.full(len(labels), constant))
    return {"rows": len(labels), "data_sha256": flags.data_sha256, "majority": majority, "finished": finished}


def known_row(flags: Namespace, path: Path, step: int, labels: np.ndarray) -> tuple[str, Row | None]:
    """Return the checksum of a checkpoint, "" if it has gone, and its row if these weights were scored on this split.

    Without its logits, or one of the scores, a row is as good as none, and --again asks for none.
    """
    try:
        digest = sha256(path)
    except UserError:
        if path.exists():
            raise
        return "", None
    saved = evaluation_path(path.parent, flags.dataset)
    old = read_evaluation(saved) if saved.is_file() and not flags.again else Evaluation([], {})
    rows = old.rows if old.facts.get("data_sha256") == flags.data_sha256 else []
    wanted = {"eval_loss", *task_spec(flags).metrics}
    same = (row for row in rows if row["step"] == step and row.get("sha256") == digest and wanted <= row.keys())
    row = next(same, None)
    kept = logits_path(path.parent, flags.dataset, step)
    return digest, row if read_logits(kept, flags.run_config.num_class, len(labels)) is not None else None


def circumstances(model: BertClassifier, digest: str, seconds: float) -> Row:
    """Return the facts of how a checkpoint was scored."""
    device = model.linear_layer.weight.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"sha256": digest, "seconds": round(seconds, 3), "device": name, "threads": torch.get_num_threads()}


def load_if_there(model: BertClassifier, path: Path) -> bool:
    """Load a checkpoint; tell whether it is still there, after a note if not: a run beside this may keep only some."""
    try:
        checkpoint.load_weights(model, path)
    except UserError:
        if path.exists():
            raise
    there = all(distributed.all_gather(path.exists()))
    if not there:
        print0(f"note: {path} has gone meanwhile and is left out")
    return there


def record(
    flags: Namespace,
    started: int,
    events: EventFile,
    step: int,
    logits: np.ndarray,
    labels: np.ndarray,
    how: Row,
    facts: dict[str, Any],
) -> Row:
    """Score the logits of checkpoint `step`; put the scores into tensorboard, and with the logits beside it.

    Raises UserError when the run's config.json is no longer the one written when `started`.
    """
    spec = task_spec(flags)
    values = scores(spec, logits, labels)
    counts = {"predicted": np.bincount(logits.argmax(1), minlength=spec.num_class).tolist()} if spec.labels else {}
    row = {"step": step} | values | counts | how
    keep_rows(flags, started, [row], facts, {step: logits})
    events.scalars(step, {f"{flags.task}/{flags.dataset}/{name}": value for name, value in values.items()})
    return row


def keep_rows(
    flags: Namespace, started: int, rows: list[Row], facts: dict[str, Any], logits: dict[int, np.ndarray] | None = None
) -> None:
    """Write logits by step and merge rows into the evaluation file, while no other evaluation does.

    Raises UserError when the run's config.json is no longer the one written when `started`.
    """
    folder = own_folder(flags)
    with waiting_lock(folder.with_name(f".{folder.name}.eval.lock")):
        if last_written(folder / "config.json") != started:
            what = f"step {rows[0]['step']}" if rows else "its evaluation"
            raise UserError(f"{folder}: is another run by now, so {what} is not recorded; give the command again")
        for step, values in (logits or {}).items():  # first: the row vouches for them
            write_logits(logits_path(folder, flags.dataset, step), values)
        save_scores(evaluation_path(folder, flags.dataset), rows, facts)


def save_scores(path: Path, rows: list[Row], facts: dict[str, Any] | None = None) -> None:
    """Merge `rows` by step into the evaluation file at `path`; rows of other data than `facts` say are dropped."""
    facts = facts or {}
    old = read_evaluation(path) if path.is_file() else Evaluation([], {})
    digest = old.facts.get("data_sha256")
    if digest not in (None, facts.get("data_sha256")):
        print0(f"note: {path} was about other data, {digest[:12]}...; what it said is dropped")
        old = Evaluation([], {})
    known = {row["step"]: row for row in [*old.rows, *rows]}
    merged = [row for _, row in sorted(known.items())]
    written = [without_nan(row) for row in merged]
    majority = {"majority": without_nan(facts["majority"])} if facts else {}
    write_json(path, {"checkpoints": written, "best": best(merged)} | old.facts | facts | majority)


def without_nan(values: dict[str, Any]) -> dict[str, Any]:
    """Return `values` with None for nan, which JSON does not know."""
    return {name: None if value != value else value for name, value in values.items()}


def print_result(flags: Namespace, found: list[Row], before: list[Row], facts: dict[str, Any]) -> None:
    """Print the table of all rows, and notes of what was known before and of a run that still trains."""
    print(table(sorted([*found, *before], key=lambda row: row["step"]), facts["majority"], task_spec(flags).labels))
    if before:
        steps = ", ".join(str(row["step"]) for row in before)
        print0(f"note: not scored again, for neither weights nor data have changed (--again does): step {steps}")
    if not facts["finished"]:
        print0("note: the run has not come to its last step: unfinished; evaluate again when it has")


def table(rows: list[Row], majority: dict[str, float] | None = None, labels: tuple[str, ...] = ()) -> str:
    """Return the scores as text: the majority class, then a line for each checkpoint, the best of a column with *.

    A checkpoint that predicts one of the `labels` alone is no result, and says so.
    """
    winners, names = best(rows), [name for name in scored(rows[0]) if all(name in row for row in rows)]
    lines = ["".join(f"{name:>12}" for name in ["step", *names])]
    if majority:
        cells = (f"{majority[name]:>11.4f} " if name in majority else f"{'-':>11} " for name in names)
        lines.append((f"{'majority':>12}" + "".join(cells)).rstrip())
    for row in rows:
        cells = [f"{row['step']:>12}"]
        for name in names:
            star = "*" if winners.get(name, {}).get("step") == row["step"] else " "
            cells.append(f"{row[name]:>11.4f}{star}")
        only = sole_prediction(row, labels)
        lines.append("".join(cells) + (f" every prediction is {only}" if only else ""))
    return "\n".join(lines) + "\n* best"


def sole_prediction(row: Row, labels: tuple[str, ...]) -> str:
    """Return the label that a checkpoint always predicts, "" if there are several or it is not known."""
    there = [label for label, count in zip(labels, row.get("predicted", ()), strict=False) if count]
    return there[0] if len(there) == 1 else ""


@needs_memory("in prediction; nothing was written")
def write_predictions(flags: Namespace) -> None:
    """Write the predictions of one checkpoint in the leaderboard's form: index, TAB, prediction."""
    folder = own_folder(flags)
    if flags.choice:
        print0(flags.choice)
    model, tokens = load_run(flags)
    model_path = folder / f"model-{flags.ckpt}.pt"
    checkpoint.load_weights(model, model_path)
    spec = task_spec(flags)
    logits = predict(model, tokens, flags.batch_size, model_path)
    path = folder / f"{upload_name(spec, flags.dataset)}.tsv"
    distributed.on_main_process(lambda: write_tsv(path, leaderboard_values(spec, logits)))


def write_tsv(path: Path, values: list[str]) -> None:
    """Write one line per value, numbered from 0, below a header."""
    with atomic_write(path) as file:
        file.write(prediction_file(values))
    print0(f"written: {path} ({len(values)} predictions)")


def upload_name(spec: TaskSpec, dataset: str) -> str:
    """Return the leaderboard's name of a split's file; splits that are not handed in add their name to the folder's."""
    split = spec.splits[dataset]
    return split.upload or f"{Path(split.files[0]).parent}-{dataset}"
