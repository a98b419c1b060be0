"""CUDA graphs: the kernels of a forward and of a backward pass, captured once for each shape of batches.

A BERT is a thousand small kernels, and to start one takes the CPU longer than a fast GPU needs for most of them.
A graph starts all at once.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from fine_tune.data.layout import staged
from fine_tune.data.tokens import Batch
from fine_tune.models.precision import AUTOCAST, rounded_weights
from fine_tune.training import distributed
from fine_tune.training.task import Task, TaskOutput

MOST = 64  # graphs: each takes time to capture, and memory


def learner(task: Task) -> Callable[[Batch], TaskOutput]:
    """Return what computes a batch of `task` in training: itself, a rank's part of it, or graphs with --compile."""
    if distributed.WORLD_SIZE > 1:
        return distributed.DistributedTask(task, task.config.accum_step)
    return captured(task) if task.config.compile else task


def captured(task: Task) -> Callable[[Batch], TaskOutput]:
    """Return `task` by graphs, or itself where that cannot be: it must be on one GPU, and its batches of few shapes."""
    on_one_gpu = len(set(task.devices)) == 1 and task.devices[0].type == "cuda"
    task.few_shapes = on_one_gpu and task.can_have_few_shapes
    return CapturedTask(task) if task.few_shapes else task


class CapturedTask:
    """A task whose passes are graphs: what is called and differentiated is the same, and so are the numbers.

    A call's results hold until the next one. A batch of a further shape is computed without a graph when MOST have one.
    """

    def __init__(self, task: Task) -> None:
        self.task, self.leaves, self.captured = task, Leaves(task), {}
        self.pool = torch.cuda.graph_pool_handle()  # of all graphs: no two are at work at a time
        self.needed: list[tuple[nn.Parameter, torch.Tensor]] = []  # with where the graphs leave the gradients
        self.device = task.devices[0]
        self.stream = torch.cuda.Stream(self.device)  # on which is captured
        self.anchor = torch.zeros((), device=self.device, requires_grad=True)  # makes a loss differentiable

    def __call__(self, batch: Batch) -> TaskOutput:
        """Return the task's losses of a batch."""
        layout = batch.layout
        sizes = (layout.batch, len(layout), len(layout.token_rows), layout.max_rows, layout.max_seqlen)
        shape = (*sizes, layout.whole, batch.watched)
        if shape not in self.captured and len(self.captured) == MOST:
            return self.task(batch)
        if shape not in self.captured:
            with torch.cuda.device(self.device):
                self.captured[shape] = Passes(self, batch)
        passes = self.captured[shape]
        passes.take(batch)
        output = passes.output
        return TaskOutput(Replay.apply(self.anchor, passes), output.losses, output.vectors, output.shown)


class Leaves:
    """What gradients are of: a task's trainable parameters, but those of its BERT that `autocast` rounds as rounded.

    These are rounded all at once, not one by one. The numbers are the same.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.named = {name: p for name, p in task.named_parameters() if p.requires_grad}
        names = {id(p): name for name, p in self.named.items()}
        self.exact = rounded_weights(task.trainable_modules["model"].encoder, task.config.precision)
        self.rounded = {names[id(p)]: nn.Parameter(p.detach().to(AUTOCAST[task.config.precision])) for p in self.exact}

    def compute(self, batch: Batch) -> TaskOutput:
        """Return the task's losses of a batch by the weights of now."""
        with torch.no_grad():
            copy(list(self.rounded.values()), self.exact)
        return functional_call(self.task, self.rounded, (batch,))

    def gradients(self, loss: torch.Tensor, scale: torch.Tensor | None = None) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of every trainable parameter, None where it has none."""
        leaves = [self.rounded.get(name, p) for name, p in self.named.items()]
        return torch.autograd.grad(loss, leaves, scale, allow_unused=True)


class Passes:
    """The two graphs of a shape of batches, and the batch that they read."""

    def __init__(self, owner: CapturedTask, batch: Batch) -> None:
        self.owner = owner
        self.batch = batch.to(owner.device)
        with torch.random.fork_rng(devices=[owner.device]):  # a capture draws nothing that a run could miss
            owner.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(owner.stream):  # what is set up at the first use must not be captured
                gradients = owner.leaves.gradients(owner.leaves.compute(self.batch).loss)
            torch.cuda.current_stream().wait_stream(owner.stream)
        if not owner.needed:
            pairs = zip(owner.leaves.named.values(), gradients, strict=True)
            owner.needed = [(p, torch.zeros_like(p)) for p, gradient in pairs if gradient is not None]
        del gradients
        self.batch = replace(self.batch, layout=replace(self.batch.layout))  # without what was worked out outside
        self.scale = torch.ones((), device=owner.device)
        self.forward, self.backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.forward, owner.pool, owner.stream):
            output = owner.leaves.compute(self.batch)
        with torch.cuda.graph(self.backward, owner.pool, owner.stream):
            gradients = owner.leaves.gradients(output.loss, self.scale)
            copy([kept for _, kept in owner.needed], [gradient for gradient in gradients if gradient is not None])
        self.output = TaskOutput(output.loss.detach(), *(detached(named) for named in output[1:]))

    def take(self, batch: Batch) -> None:
        """Copy a batch to where the graphs read it."""
        for mine, theirs in ((self.batch, batch), (self.batch.layout, batch.layout)):
            for name in (field.name for field in fields(mine) if field.type is torch.Tensor):
                getattr(mine, name).copy_(staged(getattr(theirs, name)), non_blocking=True)


class Replay(torch.autograd.Function):
    """The loss of the batch that `passes` has taken; its backward pass adds to the gradients."""

    @staticmethod
    def forward(ctx: Any, anchor: torch.Tensor, passes: Passes) -> torch.Tensor:
        """Return the loss, a scalar."""
        ctx.passes = passes
        passes.forward.replay()
        return passes.output.loss.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[None, None]:
        """Take the gradient of the loss, a scalar."""
        passes, needed = ctx.passes, ctx.passes.owner.needed
        passes.scale.copy_(gradient)
        before = [(kept, p.grad.clone() if p.grad is kept else p.grad) for p, kept in needed if p.grad is not None]
        passes.backward.replay()
        for parameter, kept in needed:
            parameter.grad = kept
        if before:
            torch._foreach_add_(*map(list, zip(*before, strict=True)))
        return None, None


def copy(into: list[torch.Tensor], tensors: list[torch.Tensor]) -> None:
    """Copy tensors into others, those of one type by a few kernels."""
    for dtype in {tensor.dtype for tensor in tensors}:
        chosen = [(one, tensor) for one, tensor in zip(into, tensors, strict=True) if tensor.dtype == dtype]
        torch._foreach_copy_(*map(list, zip(*chosen, strict=True)))


def detached(named: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return named tensors without what made them."""
    return {name: tensor.detach() for name, tensor in named.items()}
