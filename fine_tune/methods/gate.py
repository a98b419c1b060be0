"""The gate of LAD (Lin, Chen, Kao, Sensors 2023, 23(3):1483, section 3): a learned mix of two teacher layers.

Shapes: R rows of a batch, D hidden size.
"""

import torch
from torch import nn

from fine_tune.data.layout import Layout
from fine_tune.models.linear import Linear


class Gate(nn.Module):
    """g = sigmoid(W below + b); LayerNorm(g * above + (1 - g) * below).

    `plane` is what the LayerNorm spans: [S, D], statistics and affine over the whole plane of an example, or [D].
    W (D, D) starts Xavier-uniform, b as nn.Linear's default. A plain nn.Module: a PreTrainedModel would start it anew.
    """

    def __init__(self, *plane: int) -> None:
        super().__init__()
        self.linear = Linear(plane[-1], plane[-1])
        nn.init.xavier_uniform_(self.linear.weight)
        self.layernorm = nn.LayerNorm(plane)

    def forward(self, below: torch.Tensor, above: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Mix `below` and `above`, both (R, D), into (R, D)."""
        opening = torch.sigmoid(self.linear(below).to(below.dtype))
        return layout.normalise(torch.lerp(below, above, opening), self.layernorm)
