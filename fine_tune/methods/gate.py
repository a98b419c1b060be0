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
        # Made from the seed alone, so it is W_0 in a resumed run, too.
        self.register_buffer("start", self.linear.weight.detach().clone(), persistent=False)

    def forward(self, below: torch.Tensor, above: torch.Tensor, layout: Layout) -> torch.Tensor:
        """Mix `below` and `above`, both (R, D), into (R, D)."""
        return layout.normalise(torch.lerp(below, above, self.opening(below)), self.layernorm)

    def opening(self, below: torch.Tensor) -> torch.Tensor:
        """Return g (R, D) for `below` (R, D)."""
        return torch.sigmoid(self.linear(below).to(below.dtype))

    def describe(self, number: int, opening: torch.Tensor, layout: Layout) -> dict[str, torch.Tensor]:
        """Return what to log of gate `number`: mean and standard deviation of its opening (R, D), and its drift.

        The drift is |W - W_0| / |W_0|.
        """
        mean = layout.mean(opening.mean(1))
        return {
            f"gate/opening/{number}": mean,
            f"gate/spread/{number}": layout.mean((opening - mean).square().mean(1)).sqrt(),
            f"gate/drift/{number}": (self.linear.weight - self.start).norm() / self.start.norm(),
        }


def chain_shares(openings: list[torch.Tensor], layout: Layout) -> torch.Tensor:
    """Return how much of t_1 .. t_k is in a_k, (k,): the mean of g_j prod (1 - g_m), m = j + 1 .. k.

    `openings` are g_1 .. g_k, each (R, D) or (R, 1); g_1 is 1, for a_1 = t_1. LayerNorms between gates are left out.
    """
    rest, shares = torch.ones_like(openings[0]), []
    for opening in reversed(openings):
        shares.append(layout.mean((opening * rest).mean(1)))
        rest = (1 - opening) * rest
    return torch.stack(shares[::-1])
