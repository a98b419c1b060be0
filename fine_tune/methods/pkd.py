"""BERT-PKD: patient knowledge distillation (Sun et al., EMNLP 2019), as the authors of LAD compare with it.

All positions, states not normalised, last layer included.
"""

import torch

from fine_tune.layout import Layout
from fine_tune.methods import Method, Pairs


class Pkd(Method):
    """Target of s_i: t_{i * skip}."""

    def __init__(self, layers: int, students: int) -> None:
        super().__init__()
        self.skip = layers // students

    def forward(self, teacher: list[torch.Tensor], student: list[torch.Tensor], layout: Layout) -> Pairs:
        """Pair every student layer with the top layer of its share of the teacher."""
        return list(zip(teacher[self.skip - 1 :: self.skip], student, strict=True))
