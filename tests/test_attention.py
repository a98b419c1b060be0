"""Attention from example to example and in one grid."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from fine_tune.models import attention, precision
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


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("mode", ["fp32", "bf16"])
def test_a_grid_with_dropout_is_the_librarys(name: str, heads: int, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the last bit, gradients and the next draw included."""
    layout = LAYOUTS[name]
    sizes = (len(layout), len(layout.token_rows), len(layout.token_rows))
    dtype = precision.AUTOCAST.get(mode, torch.float32)
    query, key, value = (torch.randn(size, 24, dtype=dtype).requires_grad_() for size in sizes)
    weights = torch.randn(len(layout), 24, dtype=dtype)

    def ours() -> torch.Tensor:
        monkeypatch.setattr(attention, "CALLS", math.inf)
        return attention.attend(query, key, value, layout, layout, heads, 0.4)

    def known() -> torch.Tensor:
        grids = (layout.pad_input(query), layout.pad_tokens(key), layout.pad_tokens(value))
        parts = (grid.unflatten(2, (heads, -1)).transpose(1, 2) for grid in grids)
        mixed = F.scaled_dot_product_attention(*parts, layout.attention_mask, 0.4)
        return layout.unpad_input(mixed.transpose(1, 2).flatten(2))

    def found(way: Callable[[], torch.Tensor], seed: int) -> list[torch.Tensor]:
        torch.manual_seed(seed)
        with precision.autocast(mode, [CPU]):
            mixed = way()
        return [mixed, *torch.autograd.grad(mixed, (query, key, value), weights), torch.rand(2)]

    assert all(map(torch.equal, found(ours, 1), found(known, 1)))
    assert not any(map(torch.equal, found(ours, 1), found(known, 2)))
