"""--precision fp16: the loss scale against PyTorch's own, steps that overflow, a resume; on the CPU, as far as it goes.

`scaled_steps` and `check_an_overflow` take a device: tests/test_gpu.py calls them with a GPU.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fine_tune.core.errors import NotFinite, UserError
from fine_tune.data.tokens import Batch
from fine_tune.distil import Distillation
from fine_tune.models import precision
from fine_tune.training import optim
from fine_tune.training.loop import train
from fine_tune.training.optim import LossScaler, NonFiniteGuard
from fine_tune.training.task import TaskOutput
from tests import golden, tiny
from tests.built import CPU, distillation, make_tokens
from tests.interruptions import before_update, difference, flags_of, in_child


def scaled_steps(
    scaler: LossScaler | None, steps: Iterable[int], overflow: Iterable[int] = (), broken: Iterable[int] = ()
) -> tuple[Distillation, NonFiniteGuard]:
    """Train LAD in fp32 on the device of the scaler; gradients overflow in the steps `overflow`, losses in `broken`."""
    device = scaler.scale.device if scaler else CPU
    task, tokens, chosen = distillation("lad", "all", device=device), make_tokens(), np.arange(4)
    task.scaler = scaler
    for group in task.optimizers.values():
        group.max_norm = 0.5  # below what the gradients have
    batch, steps = tokens.batch(chosen, task.layout(tokens.lengths(chosen), chosen, 1)), list(steps)
    now = iter(steps)

    def forward(batch: Batch) -> TaskOutput:
        output, step = task(batch), next(now)
        if step in broken:
            return TaskOutput(output.loss, output.losses | {"loss": output.loss * torch.nan}, *output[2:])
        # A loss that is finite while its gradient is not.
        return TaskOutput(output.loss * (torch.inf if step in overflow else 1), *output[1:])

    guard = NonFiniteGuard(task.optimizers, scaler)
    more = (lambda *of_a_step: None, lambda step, vectors: None)
    train(steps, 1, iter([batch] * len(steps)), forward, task.optimizers, guard, *more)
    return task, guard


def weights(task: Distillation) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in task.named_parameters()}


def scaler_on(device: torch.device) -> LossScaler:
    scaler = LossScaler()
    scaler(torch.zeros((), device=device))
    return scaler


def check_an_overflow(device: torch.device) -> None:
    """Steps 2 and 3 overflow: they leave weights, gates and AdamW's averages alone, and only they do."""
    scaler, other = scaler_on(device), scaler_on(device)
    task, guard = scaled_steps(scaler, range(1, 5), overflow=(2, 3))
    guard.raise_if_tripped()
    assert scaler.scale.device == device
    assert scaler.state_dict() == {"scale": 2.0**14, "clean_steps": 1}
    known = scaled_steps(other, (1, 4))[0]
    moved = weights(distillation("lad", "all"))
    for name, value in weights(task).items():
        torch.testing.assert_close(value, weights(known)[name], rtol=1e-4, atol=1e-6)
        assert name.startswith("teacher.") or not torch.equal(value.cpu(), moved[name]), name
    for group in task.optimizers.values():
        assert {state["step"].item() for state in group.optimizer.state.values()} == {2}


def test_an_overflow() -> None:
    check_an_overflow(CPU)


def test_the_scale_moves_as_pytorchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "GROWTH_INTERVAL", 3)
    theirs, ours = torch.amp.GradScaler("cpu", growth_interval=3), LossScaler()
    parameter = nn.Parameter(torch.ones(2))
    sgd = torch.optim.SGD([parameter], lr=0.0)
    overflows = np.random.default_rng(0).random(200) < 0.25
    seen = set()
    for overflow in [*overflows, *[False] * 400]:  # at the end up to the largest power of two in fp32
        theirs.scale(parameter.sum()).backward()
        parameter.grad.mul_(torch.inf if overflow else 1)
        theirs.step(sgd), theirs.update(), sgd.zero_grad()
        ours.update(torch.tensor(bool(overflow)))
        assert ours.scale.item() == theirs.get_scale()
        seen.add(ours.scale.item())
    assert len(seen) > 10
    assert ours.scale == 2.0**127


def test_a_scaled_step_is_one_without() -> None:
    """Clipping, averages and updates see the gradients themselves: a power of two changes nothing but denormals."""
    one, two = (scaled_steps(scaler, range(1, 5))[0] for scaler in (None, LossScaler()))
    for name, value in weights(two).items():
        torch.testing.assert_close(value, weights(one)[name], rtol=1e-6, atol=1e-7)


def test_a_scale_without_end_and_a_loss_that_is_not_finite_stop_the_run() -> None:
    for step, kind in ((17, {"overflow": range(1, 20)}), (3, {"broken": [3]})):
        scaler = LossScaler()
        task, guard = scaled_steps(scaler, range(1, 20), **kind)
        with pytest.raises(NotFinite, match=rf"^step {step} at lr .*; try .*, or --precision fp32$") as caught:
            guard.raise_if_tripped()
        assert ("gradient norm of the gates" in str(caught.value)) == (step == 17)
        for group in task.optimizers.values():
            taken = {state["step"].item() for state in group.optimizer.state.values()}
            assert taken == {0 if step == 17 else 2}
    scaled_steps(LossScaler(), range(1, 17), overflow=range(1, 17))[1].raise_if_tripped()  # 1 is small enough


# --- whole runs; fp16 is there on a CPU, but slow, so only these tests take it ----------------------------------------


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "unsupported_reason", lambda precision, device: "")


@pytest.mark.parametrize("name", ["lad", "lad-masked", "alp-kd-hidden", "pkd"])
def test_the_losses_stay_near_the_golden_ones(golden_root: Path, name: str, on_cpu: None) -> None:
    """10 bits of mantissa; steps that overflow are left out, so they are compared at a scale at which none does."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LossScaler, "__init__", start_at(2.0**6))
        found = golden.student_losses(golden_root, name, experiment=f"{name}-fp16", precision="fp16")
    assert found == pytest.approx(golden.read(name), rel=0.01)
    assert found != pytest.approx(golden.read(name), rel=1e-6)


def start_at(scale: float) -> object:
    """Return an __init__ of a LossScaler that begins with another scale."""
    known = LossScaler.__init__

    def start(scaler: LossScaler) -> None:
        known(scaler)
        scaler.scale = torch.tensor(scale)

    return start


def test_a_killed_run_ends_bit_equal(root: Path, on_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scale grows until a step overflows, before and after the kill; without its state the end is another one."""
    monkeypatch.setattr(optim, "GROWTH_INTERVAL", 2)
    script, flags = flags_of(root, "lad", "whole")
    flags |= {"precision": "fp16"}
    update, overflows = LossScaler.update, []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            LossScaler, "update", lambda s, overflow: (overflows.append(bool(overflow)), update(s, overflow))[1]
        )
        tiny.run_script(script, **flags)
    assert 0 < sum(overflows[:5]) < 5 and 0 < sum(overflows[5:]) < 7, overflows
    for name, undo in (("broken", []), ("forgetful", [(LossScaler, "load_state_dict", lambda scaler, state: None)])):
        flags["experiment_dir"] = flags_of(root, "lad", name)[1]["experiment_dir"]
        assert in_child(lambda: tiny.run_script(script, **flags), before_update(8))[0] == -9
        status, said = in_child(lambda: tiny.run_script(script, **flags), *undo)
        assert status == 0, said
        assert (difference(root / "whole", root / name) == []) == (name == "broken")


@pytest.mark.parametrize(
    ("capability", "mode", "use"),
    [((6, 0), "fp16", "fp32"), ((7, 5), "bf16", "fp16 or fp32"), ((7, 0), "tf32", "fp16 or fp32"), ((7, 0), "fp16", "")]
    + [((9, 0), mode, "") for mode in ("tf32", "bf16", "fp16")],
)
def test_what_an_old_gpu_is_told(
    capability: tuple[int, int], mode: str, use: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Old")
    reason = precision.unsupported_reason(mode, torch.device("cuda:1"))
    assert reason == (f"GPU 1 (Old) is too old for it; use {use}" if use else "")


def test_refused_on_a_cpu(root: Path) -> None:
    for script, flags in (("run_pkd_distill", tiny.student_flags(root)), ("run_fine_tune", tiny.teacher_flags(root))):
        with pytest.raises(
            UserError, match=r"^--precision fp16: is a mode of NVIDIA GPUs, and a device flag names the CPU"
        ):
            tiny.run_script(script, **flags | {"precision": "fp16", "experiment": "new"})
    assert not list((root / "runs").glob("new*"))
