"""The training loop of every run: it knows neither methods nor files."""

from collections.abc import Callable, Iterator
from itertools import islice

import torch

from fine_tune.data import Batch
from fine_tune.optim import NonFiniteGuard, OptimizerGroup

Named = dict[str, torch.Tensor]


def train(
    steps: range,
    accum_step: int,
    batches: Iterator[Batch],
    losses_of: Callable[[Batch], tuple[torch.Tensor, Named]],
    groups: dict[str, OptimizerGroup],
    guard: NonFiniteGuard,
    log: Callable[[int, Named, dict[str, float]], None],
    save: Callable[[int, Named], None],
) -> None:
    """Run the optimiser steps `steps`, each over `accum_step` micro-batches.

    `losses_of` returns the scalar to minimise and what is to be seen of it: scalars are logged, vectors are saved
    beside the checkpoints, both as the mean over the step's micro-batches. `groups` are named as their learning
    rate is logged; `guard` leaves their updates out from the first value on that is not finite, and `log` and `save`
    report it.
    """
    for step in steps:
        shown: Named = {}
        for batch in islice(batches, accum_step):
            loss, named = losses_of(batch)
            (loss / accum_step).backward()  # one backward pass, whatever the loss is made of
            for name, value in named.items():  # stays on the device: .item() here would wait for the GPU
                shown[name] = shown.get(name, 0) + value.detach() / accum_step
        norms = {f"gradient of {name}": group.clip() for name, group in groups.items()}
        found_inf = guard.found_inf(step, {name: value for name, value in shown.items() if value.ndim == 0} | norms)
        rates = {name: group.step(step, found_inf) for name, group in groups.items()}
        log(step, shown, rates)
        save(step, shown)
