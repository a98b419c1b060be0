"""BERT-PKD: patient knowledge distillation (Sun et al., EMNLP 2019), as the authors of LAD compare with it.

All positions, states not normalised, last layer included.
"""

import torch

from fine_tune.data.layout import Layout
from fine_tune.methods.method import SHARES, Hiddens, Method, Pairs, Vectors, one_hot


class Pkd(Method):
    """Target of s_i: the teacher's layer `numbers[i - 1]`, by default t_{i * skip}."""

    def __init__(self, layers: int, students: int, layer_map: str = "even") -> None:
        super().__init__()
        self.numbers = mapped(layers, students, layer_map)

    def forward(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> tuple[Pairs, Vectors]:
        """Pair every student layer with its layer of the teacher."""
        pairs = zip((teacher_hiddens[number - 1] for number in self.numbers), student_hiddens, strict=True)
        return dict(enumerate(pairs, 1)), {}

    def watch(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> Vectors:
        """Return the shares: all of a target is one teacher layer."""
        return {SHARES: torch.stack([one_hot(number, teacher_hiddens) for number in self.numbers])}


def mapped(layers: int, students: int, layer_map: str) -> list[int]:
    """Return the number of the teacher layer that each student layer learns.

    `even` is PKD's own, one per share of the teacher. The others are null maps to hold a method against: `last` the
    last N layers, `reverse` the even ones upside down, `top` the last layer for all.
    """
    skip = layers // students
    even = list(range(skip, layers + 1, skip))
    maps = {
        "even": even,
        "last": list(range(layers - students + 1, layers + 1)),
        "reverse": even[::-1],
        "top": [layers] * students,
    }
    return maps[layer_map]
