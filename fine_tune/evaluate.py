"""Evaluation of a run's checkpoints, and the prediction file that is handed in.

Shapes: n examples of the split, C classes.
"""

import math
from argparse import Namespace
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from fine_tune.cli.runs import last_written, log_folder, own_folder
from fine_tune.core.errors import UserError
from fine_tune.core.files import atomic_write, read_json, waiting_lock, write_json
from fine_tune.data.tasks import TASKS, TaskSpec
from fine_tune.data.tokens import Tokens
from fine_tune.models.bert import BertClassifier, empty_classifier, run_tokenizer
from fine_tune.models.precision import choose_threads
from fine_tune.training import checkpoint, distributed
from fine_tune.training.log import open_writer, print0
from fine_tune.training.run import load_split
from fine_tune.training.scoring import predict, scores
from fine_tune.training.similarity import draw_similarity


def load_run(flags: Namespace) -> tuple[BertClassifier, Tokens]:
    """Return an empty model of the run's shape on its device, and the split that `flags` name."""
    config, folder, source = flags.run_config, own_folder(flags), f"--experiment {flags.experiment}"
    if flags.device_id is None:
        flags.device_id = config.device_id
    device = distributed.select_devices(flags)["device_id"]
    model = empty_classifier(config, source).to(device)
    choose_threads(model.encoder.config.hidden_size)
    tokenizer = run_tokenizer(config, folder, model.encoder.config.vocab_size, source)
    expected = TASKS[flags.task].num_class
    if config.num_class != expected:
        raise UserError(f"{source}: has {config.num_class} classes, but --task {flags.task} needs {expected}")
    flags.max_seq_len = config.max_seq_len
    return model, load_split(flags, tokenizer)[0]


def evaluate(flags: Namespace) -> None:
    """Score every checkpoint from --ckpt on, ascending, and report on the console, in tensorboard and as JSON."""
    folder = own_folder(flags)
    steps = [step for step in checkpoint.steps(folder) if step >= flags.ckpt]
    if not steps:
        raise UserError(f"--ckpt {flags.ckpt}: {folder} holds no model-<step>.pt from that step on")
    started = last_written(folder / "config.json")
    model, tokens = load_run(flags)
    log = log_folder(folder)
    found = []
    with ExitStack() as opened:
        # In a folder of its own: a reader of tensorboard follows one file of a folder at a time, here training's.
        writer = distributed.on_main_process(lambda: opened.enter_context(open_writer(log / "eval")))
        for step in steps:
            path = folder / f"model-{step}.pt"
            if load_if_there(model, path):
                logits = predict(model, tokens, flags.batch_size, path)
                keep = partial(record, flags, started, writer, step, logits, tokens.labels)
                found.append(distributed.on_main_process(keep))
        if flags.layers and found:
            draw = partial(draw_similarity, flags, model, tokens, writer, [row["step"] for row in found])
            distributed.on_main_process(draw)
    if not found:
        raise UserError(f"--experiment {flags.experiment}: all checkpoints in {folder} have gone meanwhile")
    if distributed.is_main_process():
        print(table(found))
    print0(f"written: {folder / f'eval-{flags.dataset}.json'}; tensorboard --logdir {log.parent}")


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
    flags: Namespace, started: int, writer: SummaryWriter, step: int, logits: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Score the logits of checkpoint `step`, and put the scores into tensorboard and beside the checkpoints.

    Raises UserError when the run's config.json is no longer the one written when `started`.
    """
    folder = own_folder(flags)
    row = {"step": step} | scores(TASKS[flags.task], logits, labels)
    with waiting_lock(folder.with_name(f".{folder.name}.eval.lock")):
        if last_written(folder / "config.json") != started:
            raise UserError(f"{folder}: is another run by now, so step {step} is not recorded; give the command again")
        save_scores(folder / f"eval-{flags.dataset}.json", [row])
    for name in row.keys() - {"step"}:
        writer.add_scalar(f"{flags.task}/{flags.dataset}/{name}", row[name], step)
    return row


def best(rows: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return step and value of the best checkpoint per metric: the highest, for eval_loss the lowest, ties earliest."""
    result = {}
    for name in [name for name in rows[0] if name != "step"]:
        sign = -1 if name == "eval_loss" else 1
        known = [row for row in rows if not math.isnan(row[name])]
        if known:
            row = max(known, key=lambda row: (sign * row[name], -row["step"]))
            result[name] = {"step": row["step"], "value": row[name]}
    return result


def save_scores(path: Path, rows: list[dict[str, float]]) -> None:
    """Merge `rows` by step into the evaluation file at `path`."""
    old = read_json(path).get("checkpoints", []) if path.is_file() else []
    known = {row["step"]: {name: math.nan if value is None else value for name, value in row.items()} for row in old}
    merged = [row for _, row in sorted((known | {row["step"]: row for row in rows}).items())]
    written = [{name: None if value != value else value for name, value in row.items()} for row in merged]  # nan
    write_json(path, {"checkpoints": written, "best": best(merged)})


def table(rows: list[dict[str, float]]) -> str:
    """Return the scores as text, one line a checkpoint, the best value of each column marked with *."""
    winners = best(rows)
    lines = ["".join(f"{name:>12}" for name in rows[0])]
    for row in rows:
        cells = [f"{row['step']:>12}"]
        for name, value in row.items():
            if name != "step":
                star = "*" if winners.get(name, {}).get("step") == row["step"] else " "
                cells.append(f"{value:>11.4f}{star}")
        lines.append("".join(cells))
    return "\n".join(lines) + "\n* best"


def write_predictions(flags: Namespace) -> None:
    """Write the predictions of one checkpoint in the leaderboard's form: index, TAB, prediction."""
    folder = own_folder(flags)
    model, tokens = load_run(flags)
    model_path = folder / f"model-{flags.ckpt}.pt"
    checkpoint.load_weights(model, model_path)
    spec = TASKS[flags.task]
    logits = predict(model, tokens, flags.batch_size, model_path)
    path = folder / f"{upload_name(spec, flags.dataset)}.tsv"
    distributed.on_main_process(lambda: write_tsv(path, leaderboard_values(spec, logits)))


def write_tsv(path: Path, values: list[str]) -> None:
    """Write one line per value, numbered from 0, below a header."""
    with atomic_write(path) as file:
        lines = (f"{index}\t{value}\n" for index, value in enumerate(values))
        file.write(("index\tprediction\n" + "".join(lines)).encode())
    print0(f"written: {path} ({len(values)} predictions)")


def upload_name(spec: TaskSpec, dataset: str) -> str:
    """Return the leaderboard's name of a split's file; splits that are not handed in add their name to the folder's."""
    split = spec.splits[dataset]
    return split.upload or f"{Path(split.files[0]).parent}-{dataset}"


def leaderboard_values(spec: TaskSpec, logits: np.ndarray) -> list[str]:
    """Return what the leaderboard wants for logits (n, C): labels, or scores clipped to 0..5 with three decimals."""
    if spec.labels:
        return [spec.labels[index] for index in logits.argmax(1)]
    return [f"{score:.3f}" for score in logits[:, 0].clip(0, 5)]
