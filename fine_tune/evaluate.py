"""Evaluation of a run's checkpoints, and the prediction file that is handed in."""

import math
from argparse import Namespace
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn import metrics
from torch.utils.tensorboard import SummaryWriter

from fine_tune import checkpoint, data, distributed, interrupt, models
from fine_tune.config import data_file, log_folder, read_run, run_folder
from fine_tune.data import Tokens
from fine_tune.errors import UserError
from fine_tune.files import read_json, replacing, write_json
from fine_tune.layout import packed
from fine_tune.log import progress, say, writer
from fine_tune.losses import hard_loss
from fine_tune.tasks import TASKS, Task

METRICS = {
    "accuracy": lambda labels, guesses: metrics.accuracy_score(labels, guesses),
    "f1_score": lambda labels, guesses: metrics.f1_score(labels, guesses, zero_division=0),
    "matthews": lambda labels, guesses: metrics.matthews_corrcoef(labels, guesses),
    "pearson": lambda labels, guesses: correlation(stats.pearsonr, labels, guesses),
    "spearman": lambda labels, guesses: correlation(stats.spearmanr, labels, guesses),
}


def correlation(of: Any, labels: np.ndarray, guesses: np.ndarray) -> float:
    """Return a correlation coefficient, nan where it is not defined (constant or too few values)."""
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(guesses) == 0:
        return math.nan
    return float(of(labels, guesses).statistic)


@torch.inference_mode()
def predict(model: models.BertClassifier, tokens: Tokens, batch_size: int, what: str) -> np.ndarray:
    """Return the logits (n, C) of all examples in their order; batches hold examples of similar length."""
    model.eval()
    device = model.linear_layer.weight.device
    logits = np.zeros((len(tokens), model.linear_layer.out_features), np.float32)
    with progress(len(tokens), 0, "ex") as shown:
        shown.set_description(what)
        for number, chosen in enumerate(data.by_length(tokens.lengths(), batch_size)):
            if number % distributed.WORLD_SIZE == distributed.RANK:
                lengths = tokens.lengths(chosen)
                batch = tokens.batch(chosen, packed(lengths, lengths.max())).to(device)
                logits[chosen] = model(batch, cls_only=True)[0].cpu().numpy()
            shown.update(len(chosen))
            # Once a round of the ranks: asking after every batch would let them work one at a time only.
            if number % distributed.WORLD_SIZE == 0 and distributed.interrupted():
                interrupt.poll("what was evaluated before is saved; the same command does the rest")
    return distributed.all_reduce_sum(logits)  # each row is one rank's, and zero in the others


def scores(task: Task, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the task's metrics and eval_loss = mean CE (MSE for regression) of logits (n, C) against labels (n,)."""
    guesses = logits.argmax(1) if task.labels else logits[:, 0]
    loss = hard_loss(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    return {name: float(METRICS[name](labels, guesses)) for name in task.metrics} | {"eval_loss": loss}


def open_run(flags: Namespace) -> tuple[Path, models.BertClassifier, Tokens]:
    """Return the run's folder, an empty model of its shape on the device, and the split that `flags` name."""
    folder = run_folder(flags, flags.experiment, flags.model)
    saved = read_run("experiment", folder, flags.task)
    place = Namespace(device_id=saved.device_id if flags.device_id is None else flags.device_id)
    [device] = distributed.select_devices(place, "device_id")
    source = f"--experiment {flags.experiment}"
    model = models.empty_classifier(saved, source).to(device)
    tokenizer = models.run_tokenizer(saved, folder, model.encoder.config.vocab_size, source)
    task = TASKS[flags.task]
    if saved.num_class != task.num_class:
        raise UserError(f"{source}: has {saved.num_class} classes, but --task {flags.task} needs {task.num_class}")
    split = task.splits[flags.dataset]
    cache = Path(flags.experiment_dir) / "cache"
    what = (data_file(flags, split), task, split, tokenizer, saved.max_seq_len, cache)
    return folder, model, distributed.main_process_first(lambda: data.load(*what))


def evaluate(flags: Namespace) -> None:
    """Score every checkpoint from --ckpt on, ascending, and report on the console, in tensorboard and as JSON."""
    folder = run_folder(flags, flags.experiment, flags.model)
    steps = [step for step in checkpoint.steps(folder) if step >= flags.ckpt]
    if not steps:
        raise UserError(f"--ckpt {flags.ckpt}: {folder} holds no model-<step>.pt from that step on")
    folder, model, tokens = open_run(flags)
    found = []
    with ExitStack() as open_files:
        board = distributed.on_main_process(lambda: open_files.enter_context(writer(log_folder(folder))))
        for step in steps:
            checkpoint.load_weights(model, folder / f"model-{step}.pt")
            logits = predict(model, tokens, flags.batch_size, f"step {step}")
            found.append(
                distributed.on_main_process(partial(record, flags, folder, board, step, logits, tokens.labels))
            )
    if distributed.is_main_process():
        print(table(found))
    say(f"written: {folder / f'eval-{flags.dataset}.json'}; tensorboard --logdir {log_folder(folder).parent}")


def record(
    flags: Namespace, folder: Path, board: SummaryWriter, step: int, logits: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Score the logits of checkpoint `step`, and put the scores into tensorboard and beside the checkpoints."""
    values = scores(TASKS[flags.task], logits, labels)
    for name, value in values.items():
        board.add_scalar(f"{flags.task}/{flags.dataset}/{name}", value, step)
    row = {"step": step} | values
    save_scores(folder / f"eval-{flags.dataset}.json", [row])
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


def generate(flags: Namespace) -> None:
    """Write the predictions of one checkpoint in the leaderboard's form: index, TAB, prediction."""
    folder, model, tokens = open_run(flags)
    checkpoint.load_weights(model, folder / f"model-{flags.ckpt}.pt")
    task = TASKS[flags.task]
    logits = predict(model, tokens, flags.batch_size, f"step {flags.ckpt}")
    target = folder / f"{upload_name(task, flags.dataset)}.tsv"
    distributed.on_main_process(lambda: write_answers(target, answers(task, logits)))


def write_answers(target: Path, values: list[str]) -> None:
    """Write one line per answer, numbered from 0, below a header."""
    with replacing(target) as file:
        lines = (f"{index}\t{value}\n" for index, value in enumerate(values))
        file.write(("index\tprediction\n" + "".join(lines)).encode())
    say(f"written: {target} ({len(values)} predictions)")


def upload_name(task: Task, dataset: str) -> str:
    """Return the leaderboard's name of a split's file; splits that are not handed in add their name to the folder's."""
    split = task.splits[dataset]
    return split.upload or f"{Path(split.files[0]).parent}-{dataset}"


def answers(task: Task, logits: np.ndarray) -> list[str]:
    """Return what the leaderboard wants for logits (n, C): labels, or scores clipped to 0..5 with three decimals."""
    if task.labels:
        return [task.labels[index] for index in logits.argmax(1)]
    return [f"{score:.3f}" for score in logits[:, 0].clip(0, 5)]
