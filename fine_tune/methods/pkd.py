"""BERT-PKD: patient knowledge distillation (Sun et al., EMNLP 2019), as the authors of LAD compare with it.

All positions, states not normalised, last layer included.
"""

from fine_tune.data.layout import Layout
from fine_tune.methods.method import Hiddens, Method, Pairs, Vectors


class Pkd(Method):
    """Target of s_i: t_{i * skip}."""

    def __init__(self, layers: int, students: int) -> None:
        super().__init__()
        self.skip = layers // students

    def forward(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> tuple[Pairs, Vectors]:
        """Pair every student layer with the top layer of its share of the teacher."""
        return list(zip(teacher_hiddens[self.skip - 1 :: self.skip], student_hiddens, strict=True)), {}
