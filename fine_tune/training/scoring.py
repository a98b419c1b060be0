"""The logits that a saved run gives on examples, and how they are scored.

Shapes: n examples, C classes.
"""

import math
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from sklearn import metrics

from fine_tune.cli.runs import own_folder
from fine_tune.core import interrupt
from fine_tune.core.errors import NotFinite, UserError
from fine_tune.data.layout import packed
from fine_tune.data.tasks import TaskSpec, task_spec
from fine_tune.data.tokens import Tokens, by_length
from fine_tune.methods.losses import hard_loss
from fine_tune.models.bert import BertClassifier, empty_classifier, run_tokenizer
from fine_tune.models.precision import choose_threads
from fine_tune.training import distributed
from fine_tune.training.log import progress
from fine_tune.training.run import load_split


def correlation(of: Any, labels: np.ndarray, predictions: np.ndarray) -> float:
    """Return a correlation coefficient, nan where it is not defined (constant or too few values)."""
    if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predictions) == 0:
        return math.nan
    return float(of(labels, predictions).statistic)


METRICS = {
    "accuracy": metrics.accuracy_score,
    "f1_score": partial(metrics.f1_score, zero_division=0),
    "macro_f1": partial(metrics.f1_score, average="macro", zero_division=0),
    "matthews": metrics.matthews_corrcoef,
    "pearson": partial(correlation, stats.pearsonr),
    "spearman": partial(correlation, stats.spearmanr),
}


@torch.inference_mode()
def predict(model: BertClassifier, tokens: Tokens, batch_size: int, path: Path) -> np.ndarray:
    """Return the logits (n, C) of all examples in their order, by the model of the checkpoint `path`.

    Batches hold examples of similar length. Raises NotFinite naming `path` when a logit is none.
    """
    model.eval()
    device = model.linear_layer.weight.device
    logits = np.zeros((len(tokens), model.linear_layer.out_features), np.float32)
    with progress(len(tokens), 0, "ex") as bar:
        bar.set_description(path.stem)
        for number, chosen in enumerate(by_length(tokens.lengths(), batch_size)):
            if number % distributed.WORLD_SIZE == distributed.RANK:
                lengths = tokens.lengths(chosen)
                batch = tokens.batch(chosen, packed(lengths, lengths.max())).to(device)
                logits[chosen] = model(batch, cls_only=True)[0].cpu().numpy()
            bar.update(len(chosen))
            # Once a round of the ranks: asking after every batch would let them work one at a time only.
            if number % distributed.WORLD_SIZE == 0 and distributed.interrupted():
                interrupt.poll("what was evaluated before is saved; the same command does the rest")
    logits = distributed.all_reduce_sum(logits)  # each row is one rank's, and zero in the others
    if not np.isfinite(logits).all():
        raise NotFinite(f"{path}: gives logits that are not finite, so nothing is written; use an earlier checkpoint")
    return logits


def scores(spec: TaskSpec, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the task's metrics and eval_loss = mean CE (MSE for regression) of logits (n, C) against labels (n,)."""
    predictions = logits.argmax(1) if spec.labels else logits[:, 0]
    loss = hard_loss(torch.from_numpy(logits), torch.from_numpy(labels)).item()
    return {name: float(METRICS[name](labels, predictions)) for name in spec.metrics} | {"eval_loss": loss}


def load_run(flags: Namespace) -> tuple[BertClassifier, Tokens]:
    """Return an empty model of the run's shape on its device, and the split that `flags` name."""
    model, tokenizer = load_model(flags)
    return model, load_split(flags, tokenizer)[0]


def load_model(flags: Namespace) -> tuple[BertClassifier, Any]:
    """Return an empty model of the run's shape on its device, and the run's tokenizer; set `flags.max_seq_len`."""
    config, folder, source = flags.run_config, own_folder(flags), f"--experiment {flags.experiment}"
    if flags.device_id is None:
        flags.device_id = config.device_id
    device = distributed.select_devices(flags)["device_id"]
    model = empty_classifier(config, source).to(device)
    choose_threads(model.encoder.config.hidden_size)
    tokenizer = run_tokenizer(config, folder, model.encoder.config.vocab_size, source)
    expected = task_spec(flags).num_class
    if config.num_class != expected:
        raise UserError(f"{source}: has {config.num_class} classes, but --task {flags.task} needs {expected}")
    flags.max_seq_len = config.max_seq_len
    return model, tokenizer


def leaderboard_values(spec: TaskSpec, logits: np.ndarray) -> list[str]:
    """Return what the leaderboard wants for logits (n, C): labels, or scores within their limits, three decimals."""
    if spec.labels:
        return [spec.labels[index] for index in logits.argmax(1)]
    return [f"{score:.3f}" for score in logits[:, 0].clip(*spec.limits)]


def prediction_file(values: list[str]) -> bytes:
    """Return what the leaderboard wants in a file: one line per value, numbered from 0, below a header."""
    lines = (f"{index}\t{value}\n" for index, value in enumerate(values))
    return ("index\tprediction\n" + "".join(lines)).encode()
