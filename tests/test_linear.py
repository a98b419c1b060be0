"""Our linear layer against the same products in double precision."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fine_tune.models import linear
from tests.processes import ROOT


@pytest.fixture(params=[3, 1, 0], ids=["onednn", "forward", "blas"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let oneDNN make this many of a layer's three products; the operator is the same on any CPU, fast or not."""
    monkeypatch.setattr(linear, "ONE_DNN", request.param > 0)
    monkeypatch.setattr(linear, "ONE_DNN_GRADIENTS", request.param > 1)
    monkeypatch.setattr(linear, "SMALLEST", 0)
    return request.param


@pytest.mark.parametrize("shape", [(1, 3, 2), (7, 16, 48), (33, 768, 3072), (130, 3072, 768)])
def test_result_and_gradients(path: int, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    original = linear.product
    monkeypatch.setattr(linear, "product", lambda *args: used.append(1) or original(*args))
    torch.manual_seed(0)
    rows, layer = torch.randn(shape[:2], requires_grad=True), linear.Linear(*shape[1:])
    double = nn.Linear(*shape[1:]).double()
    double.load_state_dict(layer.state_dict())
    wide = rows.detach().double().requires_grad_()
    gradient = torch.randn(shape[0], shape[2])
    found, known = layer(rows), double(wide)
    found.backward(gradient)
    known.backward(gradient.double())
    for one, other in (
        (found, known),
        (rows.grad, wide.grad),
        (layer.weight.grad, double.weight.grad),
        (layer.bias.grad, double.bias.grad),
    ):
        # fp32 sums of up to 3072 products of size 1
        torch.testing.assert_close(one, other.float(), rtol=1e-4, atol=1e-5 * other.abs().max().item())
    assert len(used) == path


@pytest.mark.parametrize(
    ("cpu", "found"), [("avx512", "True True"), ("avx2", "True False"), ("default", "False False")]
)
def test_what_one_dnn_takes_on_which_cpu(cpu: str, found: str) -> None:
    """PyTorch does as if the CPU could do no more than the variable says."""
    program = "from fine_tune.models import linear; print(linear.ONE_DNN, linear.ONE_DNN_GRADIENTS)"
    known = torch.cpu.get_capabilities()
    if not known.get("avx2") or (cpu == "avx512" and not known.get("avx512_f")):
        pytest.skip(f"this CPU is no {cpu}")
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=os.environ | {"ATEN_CPU_CAPABILITY": cpu},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == found


def test_without_the_operator_the_layer_is_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PyTorch to come may not have it; this one does."""
    known = torch.backends.cpu.get_cpu_capability()
    assert linear.has_one_dnn(known)
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    assert not linear.has_one_dnn(known)
    monkeypatch.setattr(linear, "ONE_DNN", linear.has_one_dnn(known))
    layer, rows = linear.Linear(4, 3), torch.randn(5, 4)
    assert torch.equal(layer(rows), nn.functional.linear(rows, layer.weight, layer.bias))


@pytest.mark.parametrize(("inputs", "uses"), [(128, 0), (256, 1)])
def test_small_matrices_are_left_to_blas(inputs: int, uses: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "ONE_DNN", True)
    used = []
    original = linear.product
    monkeypatch.setattr(linear, "product", lambda *args: used.append(1) or original(*args))
    linear.Linear(inputs, 128)(torch.randn(5, inputs))
    assert len(used) == uses


@pytest.mark.parametrize("path", [3], indirect=True)
def test_only_what_is_needed_is_computed(path: int, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    original = linear.product
    monkeypatch.setattr(linear, "product", lambda *args: used.append(1) or original(*args))
    layer = linear.Linear(4, 3)
    layer(torch.randn(5, 4)).sum().backward()  # an expanded gradient, and none for the rows
    assert len(used) == 2
    torch.testing.assert_close(layer.bias.grad, torch.full((3,), 5.0))
    with torch.no_grad():
        rows = torch.randn(5, 4)
        torch.testing.assert_close(layer(rows), nn.functional.linear(rows, layer.weight, layer.bias))
        assert not layer(rows).requires_grad
    assert len(used) == 4
    layer.requires_grad_(False)
    assert not layer(torch.randn(5, 4)).requires_grad
