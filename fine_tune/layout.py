"""Which row of a hidden-state array is which position: B examples of S positions each, as (B * S, D) rows.

Methods and losses see rows only, and leave to the layout what needs to know where an example begins and ends.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Layout:
    """Rows of `batch` examples, `seq_len` consecutive rows each, every row with weight 1."""

    batch: int
    seq_len: int

    def rows(self, hiddens: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
        """Return each (B, >= S, D) array as (B * S, D) rows of its first S positions."""
        return [hidden[:, : self.seq_len].reshape(self.batch * self.seq_len, -1) for hidden in hiddens]

    def mean(self, per_row: torch.Tensor) -> torch.Tensor:
        """Return the mean of (R, ...) values over the rows."""
        return per_row.mean(0)

    def normalise(self, rows: torch.Tensor, norm: torch.nn.LayerNorm) -> torch.Tensor:
        """Apply `norm` to each example's plane [S, D] as one whole (or to each row, if `norm` has shape [D])."""
        planes = rows.view(self.batch, self.seq_len, -1)
        return F.layer_norm(planes, norm.normalized_shape, norm.weight, norm.bias, norm.eps).view_as(rows)
