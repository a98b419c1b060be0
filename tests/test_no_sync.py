"""A training step reads no value, so it never waits for a GPU: it runs on tensors with a shape and nothing else."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from fine_tune.data.tokens import Batch
from fine_tune.methods.method import SHARES
from fine_tune.models import attention, linear
from fine_tune.models.encoder import WordEmbeddings
from fine_tune.training.loop import Named, train
from fine_tune.training.optim import NonFiniteGuard
from tests.built import METHODS, distillation, make_tokens


def without_values(batch: Batch, mode: FakeTensorMode) -> Batch:
    """Return a batch of the same shapes without values."""

    def hollow(thing: object) -> dict[str, torch.Tensor]:
        return {f.name: mode.from_tensor(getattr(thing, f.name)) for f in fields(thing) if f.type is torch.Tensor}

    return replace(batch, watched=True, layout=replace(batch.layout, **hollow(batch.layout)), **hollow(batch))


def step(name: str, pad_loss: str, mu: float, read: bool = False) -> None:
    """Do two steps of a method without values; with `read` look at one."""
    tokens, chosen = make_tokens(), np.arange(4)
    batch = tokens.batch(chosen, distillation(name, pad_loss, mu=mu).layout(tokens.lengths(chosen), chosen, 1))
    with FakeTensorMode() as mode:
        hollow, what = without_values(batch, mode), distillation(name, pad_loss, mu=mu)
        guard = NonFiniteGuard(what.optimizers)

        def log(step: int, losses: Named, lrs: dict[str, float], shown: Named) -> None:
            assert {"grad_norm"} <= shown.keys()
            assert (SHARES in shown) == (mu > 0)
            if read:
                losses["loss"].item()

        steps, batches = range(1, 3), iter([hollow] * 2)
        train(steps, 1, batches, what.train(), what.optimizers, guard, log, lambda step, vectors: None)


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ONE_DNN", False)
    monkeypatch.setattr(attention, "on_cpu", lambda rows: False)
    monkeypatch.setattr(WordEmbeddings, "forward", nn.Embedding.forward)


CASES = [(name, pad_loss, 9) for name in METHODS for pad_loss in ("all", "masked")]
CASES += [("lad", "all", 0), ("pkd", "all", 0)]  # without a hidden loss a method is its gates, or nothing


@pytest.mark.parametrize(("name", "pad_loss", "mu"), CASES)
def test_a_step_reads_no_value(name: str, pad_loss: str, mu: float) -> None:
    """Without padding or with some rows missing; which rows are sampled is decided before the step."""
    step(name, pad_loss, mu)


def test_one_that_reads_is_found() -> None:
    with pytest.raises(DataDependentOutputException):
        step("lad", "all", 9, read=True)


def moved(module: nn.Module, device: torch.device) -> None:
    """Move a module without values; its own `to` cannot."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            part._parameters[name] = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = buffer.to(device)


@pytest.mark.parametrize("name", [name for name in METHODS if "alp" not in name])  # slices want a real GPU
@pytest.mark.parametrize("flags", [("cuda:0", "cuda:1", "cuda:2"), ("cuda:0", "cpu", "cuda:1")])
def test_teacher_student_and_gates_live_where_they_are_told(
    name: str, flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Devices that are not here: without values there is no need of them, and mixing two in one operation fails.

    Batches without padding, since of their layout everything is read.
    """
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor)
    tokens, chosen = make_tokens(), np.arange(4)
    batch = tokens.batch(chosen, distillation(name, "masked").layout(tokens.lengths(chosen), chosen, 1))
    with FakeTensorMode() as mode, torch.no_grad():
        hollow, what = without_values(batch, mode), distillation(name, "masked")
        devices = [torch.device(flag) for flag in flags]
        what.teacher_device, what.device, what.method_device = devices
        for part, device in zip((what.teacher, what.student, what.method), devices, strict=True):
            moved(part, device)
        output = what(hollow)
    assert output.loss.device == devices[1]
    assert {value.device for value in output.losses.values()} == {devices[1]}


def test_a_part_in_the_wrong_place_is_found() -> None:
    tokens, chosen = make_tokens(), np.arange(4)
    batch = tokens.batch(chosen, distillation("lad", "all").layout(tokens.lengths(chosen), chosen, 1))
    with FakeTensorMode() as mode, torch.no_grad():
        hollow, what = without_values(batch, mode), distillation("lad", "all")
        for part, name in ((what.teacher, "cpu"), (what.student, "cpu"), (what.method, "cuda:0")):
            moved(part, torch.device(name))
        with pytest.raises(RuntimeError, match="same device|different devices"):
            what(hollow)
