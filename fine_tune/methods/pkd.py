"""BERT-PKD: patient knowledge distillation (Sun et al., EMNLP 2019), as the authors of LAD compare with it.

All positions, states not normalised, last layer included.
"""

import torch

from fine_tune.data.layout import Layout
from fine_tune.methods.method import SHARES, Hiddens, Method, Pairs, Vectors, one_hot


class Pkd(Method):
    """Target of s_i: t_{i * skip}."""

    def __init__(self, layers: int, students: int) -> None:
        super().__init__()
        self.skip = layers // students

    def forward(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> tuple[Pairs, Vectors]:
        """Pair every student layer with the top layer of its share of the teacher."""
        pairs = zip(teacher_hiddens[self.skip - 1 :: self.skip], student_hiddens, strict=True)
        return dict(enumerate(pairs, 1)), {}

    def watch(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> Vectors:
        """Return the shares: all of a target is one teacher layer."""
        numbers = range(self.skip, len(teacher_hiddens) + 1, self.skip)
        return {SHARES: torch.stack([one_hot(number, teacher_hiddens) for number in numbers])}
