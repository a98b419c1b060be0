"""--dry_run: a few real steps in memory, and what they say of the run: time, memory, disk, weight of each loss."""

import statistics
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import chain, count, islice
from typing import NamedTuple

import torch

from fine_tune.core import interrupt
from fine_tune.data.tokens import Batch
from fine_tune.training import distributed
from fine_tune.training.graphs import learner
from fine_tune.training.loop import Named, train
from fine_tune.training.optim import NonFiniteGuard
from fine_tune.training.summary import disk_needs, duration, memory_words, peak_memory, reset_peak_memory
from fine_tune.training.task import Task, TaskOutput

SECONDS, STEPS = 8.0, 50  # steps are taken until the first or the second is reached, but at least two


class Term(NamedTuple):
    """A summand of the loss, and its gradient in the student's parameters."""

    loss: float
    gradient: list[torch.Tensor]


def dry_run(config: Namespace, task: Task, batches: Iterator[Batch]) -> None:
    """Print what to expect of the run of `task`, on standard output; nothing is written."""
    learns = learner(task.train())  # first, since layouts depend on it
    first = list(islice(batches, config.accum_step))
    terms = gradients(task, first)
    lines = weights(terms, getattr(config, "mu", 0.0)) if len(terms) > 1 else []
    del terms  # before memory is measured
    reset_peak_memory(task.gpus)
    taken = seconds(config, task, learns, chain(first, batches))
    each = statistics.median(taken[1:])  # the first step also sets things up
    if distributed.is_main_process():
        needs, peak = disk_needs(config, task), memory_words(peak_memory(task.gpus))
        print(f"a step: {each * 1e3:.0f} ms (median of {len(taken) - 1}, after a first one); memory: {peak}")
        whole = duration(each * config.total_step)
        print(f"the run: {config.total_step} steps in {whole}, without what saving and evaluating take")
        print(f"disk: {needs.words()} in all at most")
        for line in lines:
            print(line)
        print("nothing was written")


def seconds(
    config: Namespace, task: Task, learns: Callable[[Batch], TaskOutput], batches: Iterator[Batch]
) -> list[float]:
    """Do steps of training in memory, by what `learns` the task; return the seconds of each."""
    guard, times = NonFiniteGuard(task.optimizers, task.scaler), [time.perf_counter()]

    def steps() -> Iterator[int]:
        for step in count(1):
            enough = distributed.all_gather(times[-1] - times[:2][-1] > SECONDS or step > STEPS)
            if step > 2 and enough[0]:  # all ranks do as the first
                return
            yield step

    def log(step: int, losses: Named, lrs: dict[str, float], shown: Named) -> None:
        losses["loss"].item()  # waits for a GPU
        times.append(time.perf_counter())

    def save(step: int, vectors: Named) -> None:
        guard.raise_if_tripped()
        interrupt.poll()

    train(steps(), config.accum_step, batches, learns, task.optimizers, guard, log, save)
    return [after - before for before, after in zip(times, times[1:], strict=False)]


def gradients(task: Task, batches: list[Batch]) -> dict[str, Term]:
    """Return the summands of a step's loss over its micro-batches, by name, each with its own gradient."""
    parameters = [p for p in task.trainable_modules["model"].parameters() if p.requires_grad]
    found: dict[str, Term] = {}
    for batch in batches:
        with torch.compiler.set_stance("force_eager"):  # what is compiled has one backward pass only
            terms = task.terms(batch)
        for name, term in terms.items():
            before = found.get(name, Term(0.0, [torch.zeros_like(p) for p in parameters]))
            part = term / len(batches)
            own = before.gradient
            if part.requires_grad:
                own = torch.autograd.grad(part, parameters, retain_graph=True, materialize_grads=True)
                own = [old + new for old, new in zip(before.gradient, own, strict=True)]
            found[name] = Term(before.loss + part.item(), own)
    return found


def length(gradient: list[torch.Tensor]) -> float:
    """Return the norm of a gradient over all parameters."""
    return torch.stack([part.norm() for part in gradient]).norm().item()


def weights(terms: dict[str, Term], mu: float) -> list[str]:
    """Return a table of how much each term makes of the loss and of the student's gradient, and what mu would even out.

    The share of a gradient is its norm's part of the sum of the terms' norms.
    """
    loss = sum(term.loss for term in terms.values()) or 1.0
    norms = {name: length(term.gradient) for name, term in terms.items()}
    whole = sum(norms.values()) or 1.0
    lines = ["at the start:       of the loss  of the student's gradient  its norm"]
    for name, term in terms.items():
        lines.append(f"  {name:<16}{term.loss / loss:>13.1%}{norms[name] / whole:>27.1%}{norms[name]:>10.4g}")
    hidden = norms.get("hidden", 0.0)
    if hidden:
        others = [term.gradient for name, term in terms.items() if name != "hidden"]
        even = mu * length([sum(parts) for parts in zip(*others, strict=True)]) / hidden
        lines.append(f"hidden states and labels with soft targets would pull alike at --mu {even:.3g} (now {mu:g})")
    return lines
