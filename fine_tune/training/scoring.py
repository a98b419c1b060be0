"""What a model says of a split, and how it scores: after training, and beside it with --eval_step.

Shapes: n examples of the split, C classes.
"""

import math
from argparse import Namespace
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fine_tune.core import interrupt
from fine_tune.core.errors import NotFinite
from fine_tune.data.layout import packed
from fine_tune.data.tasks import TaskSpec, task_spec
from fine_tune.data.tokens import Tokens, by_length
from fine_tune.methods.losses import hard_loss
from fine_tune.models.bert import BertClassifier
from fine_tune.training import distributed
from fine_tune.training.log import Log, print0, progress
from fine_tune.training.task import Task


def correlation(of: Any, labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return a correlation coefficient, nan where it is not defined (constant or too few values)."""
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return math.nan
    return float(of(labels, predictions).statistic)


def measure(names: Iterable[str], labels: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """Return metrics by name, of labels (n,) and predictions (n,)."""
    from scipy import stats  # here: these take seconds to import, and a run that is not scored needs neither
    from sklearn import metrics

    functions = {
        "accuracy": metrics.accuracy_score,
        "f1_score": partial(metrics.f1_score, zero_division=0),
        "macro_f1": partial(metrics.f1_score, average="macro", zero_division=0),
        "matthews": metrics.matthews_corrcoef,
        "pearson": partial(correlation, stats.pearsonr),
        "spearman": partial(correlation, stats.spearmanr),
    }
    return {name: float(functions[name](labels, predictions)) for name in names}


def predict(
    model: BertClassifier, tokens: Tokens, batch_size: int, path: Path, stopped: str = "nothing was written"
) -> np.ndarray:
    """Return the logits (n, C) of all examples in their order, by the model of the checkpoint `path`.

    Raises NotFinite naming `path` when a logit is none; `stopped` is what a signal leaves behind.
    """
    with progress(len(tokens), 0, "ex") as bar:
        bar.set_description(path.stem)
        logits = compute_logits(model, tokens, batch_size, bar.update)
    if logits is None:
        interrupt.poll(stopped)
    if not np.isfinite(logits).all():
        raise NotFinite(f"{path}: gives logits that are not finite, so nothing is written; use an earlier checkpoint")
    return logits


@torch.inference_mode()
def compute_logits(
    model: BertClassifier, tokens: Tokens, batch_size: int, done: Callable[[int], Any]
) -> np.ndarray | None:
    """Return the logits (n, C) of all examples in their order, None if a signal came meanwhile.

    Batches hold examples of similar length; `done` hears how many each had. The model is in eval mode afterwards.
    """
    model.eval()
    device = model.linear_layer.weight.device
    logits = np.zeros((len(tokens), model.linear_layer.out_features), np.float32)
    for number, chosen in enumerate(by_length(tokens.lengths(), batch_size)):
        if number % distributed.WORLD_SIZE == distributed.RANK:
            lengths = tokens.lengths(chosen)
            batch = tokens.batch(chosen, packed(lengths, lengths.max())).to(device)
            logits[chosen] = model(batch, cls_only=True)[0].cpu().numpy()
        done(len(chosen))
        # Once a round of the ranks: asking after every batch would let them work one at a time only.
        if number % distributed.WORLD_SIZE == 0 and distributed.interrupted():
            return None
    return distributed.all_reduce_sum(logits)  # each row is one rank's, and zero in the others


def scores(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the task's metrics and eval_loss = mean CE (MSE for regression) of logits (n, C) against labels (n,)."""
    predictions = logits.argmax(1) if spec.labels else logits[:, 0]
    loss = hard_loss(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    return measure(spec.metrics, labels, predictions) | {"eval_loss": loss}


def score_if_due(config: Namespace, task: Task, tokens: Tokens, log: Log, step: int) -> None:
    """Score the model on `tokens`, the split of --eval_dataset, after a step that --eval_step says, or the last one.

    Nothing random is drawn and nothing learned, so no number of the run changes. Raises NotFinite when a logit is none.
    """
    if step % config.eval_step and step != config.total_step:
        return
    model = task.trainable_modules["model"]
    logits = compute_logits(model, tokens, config.batch_size // config.accum_step, lambda count: None)
    task.train()
    name = f"{config.task}/{config.eval_dataset}"
    if logits is None:  # what has come is heeded once the step is saved
        print0(f"note: the evaluation after step {step} was left out")
        return
    if not np.isfinite(logits).all():
        raise NotFinite(f"step {step}: the logits on {config.eval_dataset} are not finite; what was saved before stays")
    found = scores(task_spec(config), logits, tokens.labels)
    log.write(step, {f"{name}/{metric}": value for metric, value in found.items()})
    said = ", ".join(f"{metric} {value:.4f}" for metric, value in found.items())
    print0(f"step {step}: {config.eval_dataset} {said}")


def leaderboard_values(spec: TaskSpec, logits: np.ndarray) -> list[str]:
    """Return what the leaderboard wants for logits (n, C): labels, or scores within their limits, three decimals."""
    if spec.labels:
        return [spec.labels[index] for index in logits.argmax(1)]
    return [f"{score:.3f}" for score in logits[:, 0].clip(*spec.limits)]


def prediction_file(values: list[str]) -> bytes:
    """Return what the leaderboard wants in a file: one line per value, numbered from 0, below a header."""
    lines = (f"{index}\t{value}\n" for index, value in enumerate(values))
    return ("index\tprediction\n" + "".join(lines)).encode()
