"""Attention from example to example and in one grid."""

import math

import pytest
import torch

from fine_tune.models import attention
from fine_tune.models.precision import autocast
from tests.built import CPU
from tests.test_encoder import LAYOUTS


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 2**-5)])
def test_both_ways_are_one(
    name: str, dropout: float, precision: str, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Draw the same random numbers, and leave as many to the next; only the order of summation differs."""
    layout = LAYOUTS[name]
    generator = torch.Generator().manual_seed(0)
    sizes = (len(layout), len(layout.token_rows), len(layout.token_rows))
    parts = [torch.randn(size, 24, generator=generator).requires_grad_() for size in sizes]
    weights = torch.randn(len(layout), 24, generator=generator)

    def found(calls: float, seed: int) -> list[torch.Tensor]:
        monkeypatch.setattr(attention, "CALLS", calls)
        torch.manual_seed(seed)
        with autocast(precision, [CPU]):
            mixed = attention.attend(*(part * 1.0 for part in parts), layout, layout, 3, dropout)
        gradients = torch.autograd.grad((mixed.float() * weights).sum(), parts)
        return [mixed, *gradients, torch.rand(2)]

    one, other, another = found(0, 1), found(math.inf, 1), found(0, 2)
    assert attention.padding_cost(layout, layout, 24) > 0
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert dropout == 0 or not torch.allclose(one[0], another[0], atol=0.1)
