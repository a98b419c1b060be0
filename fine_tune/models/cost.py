"""What a classifier costs: its parameters, the operations and the time of a forward pass.

Shapes: B batch, S max_seq_len, D hidden size, C classes.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from fine_tune.data.layout import full
from fine_tune.data.tokens import Batch
from fine_tune.models.bert import BertClassifier, empty_encoder

ROUNDS = 5  # of which the median is taken, after one to warm up


def params_words(number: int) -> str:
    """Return a number of parameters as millions or thousands."""
    return f"{number / 1e6:.1f} M" if number >= 1e6 else f"{number / 1e3:.1f} k"


@dataclass(frozen=True)
class Cost:
    """Parameters, and GFLOPs (two a multiply-add) of a forward pass of one text at max_seq_len.

    gflops: of the linear layers; attention_gflops: of the products between positions, which not every count includes.
    """

    params: int
    params_without_embeddings: int
    gflops: float
    attention_gflops: float


def cost(sizes: dict[str, Any], num_class: int, seq_len: int) -> Cost:
    """Count what a classifier of an encoder's `sizes` costs, without making its weights."""
    return counted(tuple(sizes.items()), num_class, seq_len)


@cache  # most runs of a report are alike
def counted(sizes: tuple[tuple[str, Any], ...], num_class: int, seq_len: int) -> Cost:
    """Count what `cost` returns."""
    with torch.device("meta"):
        model = BertClassifier(empty_encoder(dict(sizes)), num_class, 0.0).eval()
        batch = full_batch(1, seq_len).to(torch.device("meta"))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.linear_layer(model.encoder(batch, cls_only=False)[0])
    by_operation = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for name, count in by_operation.items() if "bmm" in name or "attention" in name)
    params = sum(parameter.numel() for parameter in model.parameters())
    embeddings = sum(parameter.numel() for parameter in model.encoder.embeddings.parameters())
    total = counter.get_total_flops()
    return Cost(params, params - embeddings, (total - attention) / 1e9, attention / 1e9)


def milliseconds(
    models: dict[str, dict[str, Any]], num_class: int, seq_len: int, batch_sizes: tuple[int, ...], device: torch.device
) -> dict[str, dict[int, float]]:
    """Return the median milliseconds of a forward pass by model and batch size, for encoders of the sizes `models`.

    All texts are seq_len long, and the models take turns, so that what else the machine does meets all of them.
    """
    built = {
        name: BertClassifier(empty_encoder(sizes), num_class, 0.0).eval().to(device) for name, sizes in models.items()
    }
    found: dict[str, dict[int, float]] = {name: {} for name in models}
    for size in batch_sizes:
        batch = full_batch(size, seq_len).to(device)
        taken: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(1 + ROUNDS):
            for name, model in built.items():
                taken[name].append(seconds(lambda model=model, batch=batch: model(batch, cls_only=True), device))
        for name, times in taken.items():
            found[name][size] = statistics.median(times[1:]) * 1e3
    return found


def full_batch(size: int, seq_len: int) -> Batch:
    """Return a batch (B, S) of texts without padding; which word pieces they hold makes no difference."""
    layout = full(np.full(size, seq_len), seq_len)
    ids = torch.ones(size * seq_len, dtype=torch.int64)
    return Batch(ids, torch.zeros_like(ids), torch.zeros(size, dtype=torch.int64), layout, np.arange(size))


@torch.inference_mode()
def seconds(do: Callable[[], Any], device: torch.device) -> float:
    """Return how long a call takes, until the device has done it."""
    start = time.perf_counter()
    do()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start
