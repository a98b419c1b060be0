"""How long the forward passes of a report's models take.

Shapes: B batch, S max_seq_len.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from fine_tune.data.layout import full
from fine_tune.data.tokens import Batch
from fine_tune.models.bert import BertClassifier, empty_encoder
from fine_tune.reporting.analysis import BATCH_SIZES, Model, Report
from fine_tune.reporting.collect import Collection, Run

ROUNDS = 5  # of which the median is taken, after one to warm up


def measure(report: Report, collection: Collection, device: torch.device) -> None:
    """Time teachers and groups in turns, each size of an encoder once, and put the milliseconds into `report`."""
    lines: list[tuple[Model, Run]] = list(zip(report.teachers, collection.teachers.values(), strict=True))
    lines += [(group, collection.groups[group.name][0]) for group in report.groups]
    known = [(line, str(run.config.encoder), run) for line, run in lines if hasattr(run.config, "encoder")]
    sized = {key: run.config.encoder for _, key, run in known}
    config = lines[0][1].config
    times = milliseconds(sized, config.num_class, config.max_seq_len, BATCH_SIZES, device)
    for line, key, _ in known:
        line.milliseconds = times[key]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    threads = torch.get_num_threads()
    report.measured_on = f"{where}, {threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"


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
