"""LAD-NO: no overlap between the student layers' shares of the teacher, no chain of gates.

Lin, Chen, Kao, Sensors 2023, 23(3):1483, section 5.4.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fine_tune.data.layout import Layout
from fine_tune.methods.gate import Gate
from fine_tune.methods.method import SHARES, Hiddens, Method, Pairs, Vectors, share_rows


class LadNo(Method):
    """Target of s_i: gate_i(t_{i * skip - 1}, t_{i * skip}). Gate i's file has index i - 1."""

    def __init__(self, layers: int, students: int, seq_len: int, d_model: int) -> None:
        super().__init__()
        self.skip = layers // students
        self.gates = nn.ModuleDict({str(index): Gate(seq_len, d_model) for index in range(students)})

    def forward(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> tuple[Pairs, Vectors]:
        """Pair every student layer with the mix of the top two layers of its share of the teacher."""
        below, above = teacher_hiddens[self.skip - 2 :: self.skip], teacher_hiddens[self.skip - 1 :: self.skip]
        layers = zip(self.gates.values(), below, above, student_hiddens, strict=True)
        pairs = ((gate(lower, upper, layout), state) for gate, lower, upper, state in layers)
        return dict(enumerate(pairs, 1)), {}

    def watch(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> Vectors:
        """Return what the gates have to show, and the shares."""
        gates = zip(self.gates.values(), teacher_hiddens[self.skip - 2 :: self.skip], strict=True)
        shown, rows = {}, {}
        for number, (gate, below) in enumerate(gates, 1):
            shown |= gate.describe(number, gate.opening(below), layout)
            share = shown[f"gate/opening/{number}"]
            rows[number] = F.pad(torch.stack([1 - share, share]), (number * self.skip - 2, 0))
        return shown | {SHARES: share_rows(rows, len(student_hiddens), len(teacher_hiddens))}
