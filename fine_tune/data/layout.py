"""Which rows a batch has: row r is position `position_ids[r]` of example `batch_index[r]`.

Hidden states are arrays of rows, and most of a network treats every row alike. What happens between the rows of one
example (attention, the gates' LayerNorm) or weighs them (the mean of a loss) asks the layout, so that padding can be
left out, or sampled, without anybody else knowing. `pad_input` and `unpad_input` are named as in flash-attn.

Shapes: B examples, S padded length, R rows, N rows that hold a token (no padding) among them, Q = max_rows, K =
max_seqlen, D hidden size.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F

LONGEST, TOGETHER = 16, 128  # of `filled`


@dataclass(frozen=True)
class Layout:
    """Rows of B examples, one example after the other, each from its position 0 on, its tokens before its padding.

    batch_index, position_ids (R,): the example and position of a row. weight (R,): how much it counts in a mean; all
    sum to 1. token_rows (N,): the rows that hold a token, as is_token (N,) says; those of which it says otherwise only
    fill up. cls_rows (B,): each example's row of position 0, its [CLS]. row_counts, token_counts (B,): how many rows,
    and how many of token_rows, each example has. whole: whether all S positions of each are there, and count alike.
    """

    batch_index: torch.Tensor
    position_ids: torch.Tensor
    weight: torch.Tensor
    token_rows: torch.Tensor
    is_token: torch.Tensor
    cls_rows: torch.Tensor
    seq_len: int
    row_counts: list[int]
    token_counts: list[int]
    whole: bool

    def to(self, device: torch.device) -> "Layout":
        """Return the layout on `device`: itself, with all that it has worked out, if it is there."""
        if self.cls_rows.device == device:
            return self
        tensors = [field.name for field in fields(self) if field.type is torch.Tensor]
        return replace(self, **{name: moved(getattr(self, name), device) for name in tensors})

    def __len__(self) -> int:
        return len(self.batch_index)

    @property
    def batch(self) -> int:
        """Number of examples B."""
        return len(self.cls_rows)

    @cached_property
    def max_rows(self) -> int:
        """Most rows of one example."""
        return max(self.row_counts)

    @cached_property
    def max_seqlen(self) -> int:
        """Most tokens of one example."""
        return max(self.token_counts)

    @cached_property
    def cls(self) -> "Layout":
        """Position 0 of every example alone, (B,) rows of equal weight."""
        every = torch.arange(self.batch, device=self.cls_rows.device)
        weight, is_token = self.weight.new_full((self.batch,), 1 / self.batch), torch.ones_like(every).bool()
        ones = [1] * self.batch
        return Layout(every, torch.zeros_like(every), weight, every, is_token, every, 1, ones, ones, True)

    # --- between rows and one line per example, where attention works ---

    @cached_property
    def row_indices(self) -> torch.Tensor:
        """Where every row lies in a (B * Q) grid, (R,)."""
        start = self.cls_rows.index_select(0, self.batch_index)
        return self.batch_index * self.max_rows + torch.arange(len(self), device=self.cls_rows.device) - start

    @cached_property
    def token_indices(self) -> torch.Tensor:
        """Where each of `token_rows` lies in a (B * K) grid, (N,)."""
        example, position = (index.index_select(0, self.token_rows) for index in (self.batch_index, self.position_ids))
        return example * self.max_seqlen + position

    @cached_property
    def attention_mask(self) -> torch.Tensor:
        """Which cells of that grid hold a token, (B, 1, 1, K) as attention over (B, heads, Q, K) wants it."""
        mask = torch.zeros(self.batch * self.max_seqlen, dtype=torch.bool, device=self.cls_rows.device)
        return mask.index_copy(0, self.token_indices, self.is_token).view(self.batch, 1, 1, -1)

    @cached_property
    def attention_bias(self) -> torch.Tensor:
        """The same as what is added to the scores, (B, 1, 1, K): 0 for a token, -inf for none."""
        return torch.zeros_like(self.attention_mask, dtype=torch.float).masked_fill(~self.attention_mask, -torch.inf)

    def select_tokens(self, rows: torch.Tensor) -> torch.Tensor:
        """Return those of (R, D) rows that `token_rows` names, (N, D)."""
        return rows if len(self.token_rows) == len(self) else rows.index_select(0, self.token_rows)

    def select_cls(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the (B, D) rows of [CLS] of (R, D) rows."""
        return rows.index_select(0, self.cls_rows)

    def pad_input(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (R, D) rows as (B, Q, D), zero where an example has fewer."""
        return pad_input(rows, self.row_indices, self.batch, self.max_rows)

    def pad_tokens(self, rows: torch.Tensor) -> torch.Tensor:
        """Return (N, D) rows of `token_rows` as (B, K, D), zero where an example has fewer."""
        return pad_input(rows, self.token_indices, self.batch, self.max_seqlen)

    def unpad_input(self, grid: torch.Tensor) -> torch.Tensor:
        """Return the (R, D) rows of a (B, Q, D) grid."""
        flat = grid.flatten(0, 1)
        return flat if len(flat) == len(self) else flat.index_select(0, self.row_indices)

    # --- where attention needs no grid: two stretches for each example, the second of what only fills up ---

    @cached_property
    def cu_seqlens_q(self) -> torch.Tensor:
        """Where the rows of the stretches begin, and after the last, (2 B + 1,) int32; the second ones are empty."""
        bounds = F.pad(self.cls_rows, (0, 1), value=len(self))
        return torch.stack([bounds, bounds], 1).flatten()[1:].int()

    @cached_property
    def cu_seqlens_k(self) -> torch.Tensor:
        """Where among `token_rows` the tokens of the stretches begin, and after the last, (2 B + 1,) int32."""
        example = self.batch_index.index_select(0, self.token_rows)
        kinds = torch.stack([self.is_token, ~self.is_token], 1).long()
        counts = kinds.new_zeros(self.batch, 2).index_add(0, example, kinds)
        return F.pad(counts.flatten().cumsum(0), (1, 0)).int()

    # --- over rows ---

    def mean(self, per_row: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean of (R, ...) values over the rows."""
        return (per_row.movedim(0, -1) * self.weight.to(per_row.dtype)).sum(-1)

    def normalise(self, rows: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
        """Apply `norm` of shape [S, D] to each example's plane as one whole, or of shape [D] to each row.

        Where positions of the plane are missing, mean and variance are the weighted ones of the rows that are there.
        """
        if len(norm.normalized_shape) == 1:
            return norm(rows)
        if self.whole:  # the library's fused kernel
            return norm(rows.view(self.batch, self.seq_len, -1)).view_as(rows)
        centred = rows - self.example_mean(rows.mean(1)).unsqueeze(1)
        variance = self.example_mean(centred.square().mean(1))
        scaled = centred * (variance + norm.eps).rsqrt().unsqueeze(1)
        return scaled * norm.weight.index_select(0, self.position_ids) + norm.bias.index_select(0, self.position_ids)

    def example_mean(self, per_row: torch.Tensor) -> torch.Tensor:
        """Return for each row the weighted mean of (R,) values over its own example, (R,)."""
        share = self.weight.to(per_row.dtype) * self.batch  # sums to 1 over an example
        means = per_row.new_zeros(self.batch).index_add(0, self.batch_index, share * per_row)
        return means.index_select(0, self.batch_index)


def moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return `tensor` on `device`; nothing waits for a copy to a GPU."""
    if device.type != "cuda":
        return tensor.to(device)  # waits, or it would be read before it is there
    return staged(tensor).to(device, non_blocking=True)


def staged(tensor: torch.Tensor) -> torch.Tensor:
    """Return `tensor` in memory from which a GPU takes it by itself."""
    return tensor.pin_memory() if tensor.device.type == "cpu" else tensor


def pad_input(rows: torch.Tensor, indices: torch.Tensor, batch: int, seqlen: int) -> torch.Tensor:
    """Return (X, D) rows as (B, seqlen, D), row x at indices[x] of B * seqlen."""
    if len(rows) == batch * seqlen:
        return rows.view(batch, seqlen, -1)
    return rows.new_zeros(batch * seqlen, rows.shape[1]).index_copy(0, indices, rows).view(batch, seqlen, -1)


# --- the layouts there are; `lengths` (B,) count the examples' tokens -----------------------------------------------


def full(lengths: np.ndarray, seq_len: int, few_shapes: bool = False) -> Layout:
    """All S positions of every example, each of the same weight: the contract."""
    every = np.ones((len(lengths), seq_len), bool)
    return arrange(every, lengths, np.ones(len(lengths)), filled(lengths, seq_len) if few_shapes else lengths)


def packed(lengths: np.ndarray, seq_len: int, few_shapes: bool = False) -> Layout:
    """Tokens only; an example's mean is over these, and every example has the same weight.

    With `few_shapes` some padding, which counts nothing.
    """
    held = filled(lengths, seq_len) if few_shapes else lengths
    return arrange(np.arange(seq_len) < held[:, None], lengths, np.zeros(len(lengths)), held)


def sampled(lengths: np.ndarray, seq_len: int, count: int, keys: Iterable[tuple[int, ...]]) -> Layout:
    """All tokens and `count` padding positions of each example, or all where there are no more.

    They are drawn without replacement, from nothing but the example's own key of `keys` (B,), and each stands for
    n_pad / count of them: every mean is the mean of `full` in expectation.
    """
    present = np.arange(seq_len) < lengths[:, None]
    for row, length, key in zip(present, lengths, keys, strict=True):
        padding = seq_len - length
        row[length + np.random.default_rng(key).choice(padding, min(count, padding), replace=False)] = True
    stands_for = (seq_len - lengths) / np.maximum(1, present.sum(1) - lengths)
    return arrange(present, lengths, stands_for, lengths)


def filled(lengths: np.ndarray, seq_len: int) -> np.ndarray:
    """Return how many positions (B,) of each example to take for tokens, so that batches have few shapes.

    No fewer than `lengths`: the most is a multiple of LONGEST, and all together are one of TOGETHER, where that fits.
    """
    longest = min(seq_len, -(-lengths.max() // LONGEST) * LONGEST)
    held = lengths.copy()
    held[lengths.argmax()] = longest
    room = longest - held
    missing = -held.sum() % TOGETHER
    return held + (missing - (room.cumsum() - room)).clip(0, room)


def arrange(present: np.ndarray, lengths: np.ndarray, stands_for: np.ndarray, held: np.ndarray) -> Layout:
    """Return the layout of the positions `present` (B, S), where a padding row counts `stands_for` (B,) times.

    The first `held` (B,) positions of an example are its `token_rows`.
    """
    batch_index, position_ids = np.nonzero(present)
    is_token = position_ids < lengths[batch_index]
    weight = np.where(is_token, 1.0, stands_for[batch_index])
    weight /= np.bincount(batch_index, weight)[batch_index] * len(lengths)
    counts = present.sum(1)
    token_rows, cls_rows = np.flatnonzero(position_ids < held[batch_index]), np.cumsum(counts) - counts
    arrays = (batch_index, position_ids, weight, token_rows, is_token[token_rows], cls_rows)
    whole = bool(present.all() and (weight == weight[0]).all())
    return Layout(*map(torch.from_numpy, arrays), present.shape[1], counts.tolist(), held.tolist(), whole)
