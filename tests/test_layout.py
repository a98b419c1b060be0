"""Which rows a batch has and what they weigh, against loops over examples and positions."""

from itertools import combinations, pairwise, product

import numpy as np
import pytest
import torch
from torch import nn

from fine_tune.data.layout import Layout, arrange, filled, full, packed, sampled

S, D = 7, 4
LENGTHS = np.array([3, 7, 5])
B = len(LENGTHS)
LAYOUTS = {
    "full": full(LENGTHS, S),
    "packed": packed(LENGTHS, S),
    "sampled": sampled(LENGTHS, S, 2, [(42, 1, 10), (42, 1, 11), (42, 1, 12)]),
}

SHAPED = LAYOUTS | {"full, few shapes": full(LENGTHS, S, True), "packed, few shapes": packed(LENGTHS, S, True)}


def plane(seed: int) -> torch.Tensor:
    """Return a (B, S, D) array."""
    return torch.randn(B, S, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rows(planes: torch.Tensor, layout: Layout) -> torch.Tensor:
    return planes[layout.batch_index, layout.position_ids]


def there(layout: Layout) -> list[list[int]]:
    """Return for each example the positions that the layout holds."""
    return [[int(p) for e, p in zip(layout.batch_index, layout.position_ids, strict=True) if e == b] for b in range(B)]


def omega(name: str, b: int, s: int) -> float:
    """How often position s of example b counts, from the definition."""
    if name != "sampled" or s < LENGTHS[b]:
        return 1.0
    padding = S - LENGTHS[b]
    return padding / min(2, padding)


def test_which_positions_are_there() -> None:
    everything = [list(range(S))] * B
    real = [list(range(n)) for n in LENGTHS]
    assert there(LAYOUTS["full"]) == everything
    assert there(LAYOUTS["packed"]) == real
    for found, known, length in zip(there(LAYOUTS["sampled"]), real, LENGTHS, strict=True):
        assert found[:length] == known
        assert len(set(found)) == len(found) == length + min(2, S - length)  # all where there are no more than 2
        assert found == sorted(found)


def test_batches_have_few_shapes() -> None:
    """The longest counts as a multiple of 16 or as S, all together as one of 128 or as many as that allows."""
    shapes, generator = set(), np.random.default_rng(0)
    for _ in range(300):
        lengths = generator.lognormal(np.log(27), 0.45, 32).astype(np.int64).clip(8, 100)
        held = filled(lengths, 100)
        assert (held >= lengths).all()
        assert held.max() == min(100, -(-lengths.max() // 16) * 16)
        assert held.sum() == min(-(-held.sum() // 128) * 128, 32 * held.max())
        assert held.sum() < lengths.sum() + 16 + 128
        shapes.add((held.sum(), held.max()))
    assert len(shapes) < 25
    assert filled(np.array([3, 7, 5]), 7).tolist() == [7, 7, 7]
    assert filled(np.full(8, 16), 128).tolist() == [16] * 8


@pytest.mark.parametrize("name", LAYOUTS)
def test_mean(name: str) -> None:
    layout, values = LAYOUTS[name], plane(1)
    means = []
    for b, positions in enumerate(there(layout)):
        total = sum(omega(name, b, s) for s in positions)
        means.append(sum(omega(name, b, s) * values[b, s] for s in positions) / total)
    torch.testing.assert_close(layout.mean(rows(values, layout)), sum(means) / B)


@pytest.mark.parametrize("name", LAYOUTS)
def test_gate_statistics(name: str) -> None:
    """LayerNorm over the plane [S, D] with mean and variance over the positions that are there, by their weights."""
    layout, values = LAYOUTS[name], plane(2)
    norm = nn.LayerNorm([S, D]).double()
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    found = layout.normalise(rows(values, layout), norm)
    row = 0
    for b, positions in enumerate(there(layout)):
        weights = torch.tensor([omega(name, b, s) for s in positions], dtype=torch.float64)
        cells = values[b, positions]
        mean = (weights[:, None] * cells).sum() / (weights.sum() * D)
        variance = (weights[:, None] * (cells - mean) ** 2).sum() / (weights.sum() * D)
        expected = (cells - mean) / torch.sqrt(variance + 1e-5) * norm.weight[positions] + norm.bias[positions]
        torch.testing.assert_close(found[row : row + len(positions)], expected)
        row += len(positions)


def test_a_norm_of_one_row_needs_no_neighbours() -> None:
    norm = nn.LayerNorm(D).double()
    for layout in LAYOUTS.values():
        values = rows(plane(3), layout)
        torch.testing.assert_close(layout.normalise(values, norm), norm(values))


def test_the_sample_is_the_whole_in_expectation() -> None:
    """Averaged over every draw that there can be, each as likely, the sampled mean is that of all positions."""
    values, lengths = plane(4), np.array([3, 5])
    means = []
    for draw in product(combinations(range(3, S), 2), combinations(range(5, S), 1)):
        present = np.arange(S) < lengths[:, None]
        for row, drawn in zip(present, draw, strict=True):
            row[list(drawn)] = True
        layout = arrange(present, lengths, np.array([4 / 2, 2 / 1]), lengths)
        means.append(layout.mean(rows(values, layout)))
    expected = full(lengths, S).mean(values[:2].reshape(-1, D))
    torch.testing.assert_close(torch.stack(means).mean(0), expected)
    assert not torch.allclose(packed(lengths, S).mean(rows(values, packed(lengths, S))), expected)


def test_every_padding_position_is_drawn_equally_often() -> None:
    draws = 3000
    layout = sampled(np.full(draws, 3), S, 1, ((1, 1, row) for row in range(draws)))
    counts = np.bincount(layout.position_ids[layout.position_ids >= 3], minlength=S)[3:]
    assert counts.sum() == draws
    assert abs(counts - draws / 4).max() < 5 * np.sqrt(draws * 3 / 16)  # five standard deviations


def test_the_draw_depends_on_the_key_alone() -> None:
    keys = [(42, 1, row) for row in range(B)]
    together = there(sampled(LENGTHS, S, 1, keys))
    alone = [sampled(LENGTHS[row : row + 1], S, 1, keys[row : row + 1]).position_ids.tolist() for row in range(B)]
    assert together == alone
    others = [there(sampled(LENGTHS, S, 1, [(42, step, row) for row in range(B)])) for step in range(2, 12)]
    assert any(other != together for other in others)


@pytest.mark.parametrize("name", LAYOUTS)
def test_grids_and_rows(name: str) -> None:
    layout, values = LAYOUTS[name], plane(5)
    grid = layout.pad_input(rows(values, layout))
    real = layout.pad_tokens(layout.select_tokens(rows(values, layout)))
    assert real.shape[1] == LENGTHS.max()
    for b, positions in enumerate(there(layout)):
        assert torch.equal(grid[b, : len(positions)], values[b, positions])
        assert not grid[b, len(positions) :].any()
        assert torch.equal(real[b, : LENGTHS[b]], values[b, : LENGTHS[b]])
        assert layout.attention_mask[b, 0, 0].tolist() == [s < LENGTHS[b] for s in range(real.shape[1])]
    assert torch.equal(layout.unpad_input(grid), rows(values, layout))
    assert torch.equal(rows(values, layout)[layout.cls_rows], values[:, 0])
    torch.testing.assert_close(layout.cls.mean(values[:, 0]), values[:, 0].mean(0))


@pytest.mark.parametrize("cls_only", [False, True])
@pytest.mark.parametrize("name", SHAPED)
def test_stretches(name: str, cls_only: bool) -> None:
    """Every row attends to the tokens of its own example and to nothing else; rows that fill up are in the second."""
    layout = SHAPED[name]
    asked = layout.cls if cls_only else layout
    assert asked.cu_seqlens_q.dtype == layout.cu_seqlens_k.dtype == torch.int32
    bounds = zip(asked.cu_seqlens_q.tolist(), layout.cu_seqlens_k.tolist(), strict=True)
    pairs = [(range(q, r), range(k, m)) for (q, k), (r, m) in pairwise(bounds)]
    assert len(pairs) == 2 * B
    for b in range(B):
        (queries, keys), (nobody, filling) = pairs[2 * b : 2 * b + 2]
        assert [int(asked.batch_index[row]) for row in queries] == [b] * asked.row_counts[b]
        read = [layout.token_rows[key] for key in keys]
        assert [(int(layout.batch_index[row]), int(layout.position_ids[row])) for row in read] == [
            (b, s) for s in range(LENGTHS[b])
        ]
        assert not nobody
        assert not layout.is_token[list(filling)].any()
    assert [row for queries, _ in pairs for row in queries] == list(range(len(asked)))
    assert [key for _, keys in pairs for key in keys] == list(range(len(layout.token_rows)))
