"""The training loop of every run: it knows neither methods nor files."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

import torch

from fine_tune.data.tokens import Batch
from fine_tune.training.optim import NonFiniteGuard, OptimizerGroup
from fine_tune.training.task import TaskOutput

Named = dict[str, torch.Tensor]


def train(
    steps: Iterable[int],
    accum_step: int,
    batches: Iterator[Batch],
    task: Callable[[Batch], TaskOutput],
    optimizers: dict[str, OptimizerGroup],
    guard: NonFiniteGuard,
    log: Callable[[int, Named, dict[str, float], Named], None],
    save: Callable[[int, Named], None],
) -> None:
    """Run the optimiser steps `steps`, each over `accum_step` micro-batches of `task`.

    What is logged and saved is the mean over the step's micro-batches. `optimizers` are named as their learning rate is
    logged; `guard` leaves their updates out from the first value on that is not finite, and `log` and `save` report it.
    `log` is handed the losses, the learning rates, and what else there is to show.
    """
    for step in steps:
        losses, vectors, shown = {}, {}, {}
        for batch in islice(batches, accum_step):
            output = task(batch)
            guard.scaled(output.loss / accum_step).backward()  # one backward pass, whatever the loss is made of
            add_mean(losses, output.losses, accum_step)
            add_mean(vectors, output.vectors, accum_step)
            add_mean(shown, output.shown, accum_step)
        norms = {name: group.clip(guard.scale) for name, group in optimizers.items()}
        found_inf = guard.found_inf(step, losses, norms)
        lrs = {name: group.step(step, found_inf) for name, group in optimizers.items()}
        log(step, losses, lrs, shown | {name.replace("lr", "grad_norm"): norm for name, norm in norms.items()})
        save(step, vectors)


def add_mean(total: Named, values: Named, count: int) -> None:
    """Add `values` / `count` to `total`, on their device: .item() here would wait for the GPU."""
    for name, value in values.items():
        total[name] = total.get(name, 0) + value.detach() / count
