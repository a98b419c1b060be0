"""LAD-NO: no overlap between the student layers' shares of the teacher, no chain of gates.

Lin, Chen, Kao, Sensors 2023, 23(3):1483, section 5.4.
"""

from torch import nn

from fine_tune.data.layout import Layout
from fine_tune.methods.gate import Gate
from fine_tune.methods.method import Hiddens, Method, Pairs, Vectors


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
        return [(gate(lower, upper, layout), state) for gate, lower, upper, state in layers], {}
