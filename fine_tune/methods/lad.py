"""LAD: gates carry every teacher layer up to the one that a student layer learns (Lin, Chen, Kao 2023, section 3)."""

import torch
from torch import nn

from fine_tune.gates import Gate
from fine_tune.layout import Layout
from fine_tune.methods import Method, Pairs


class Lad(Method):
    """Target of s_i: a_{i * skip}, where a_1 = t_1 and a_k = gate_k(a_{k-1}, t_k)."""

    def __init__(self, layers: int, students: int, plane: tuple[int, ...]) -> None:
        super().__init__()
        self.skip = layers // students
        self.gates = nn.ModuleDict({str(index): Gate(*plane) for index in range(1, layers)})

    def forward(self, teacher: list[torch.Tensor], student: list[torch.Tensor], layout: Layout) -> Pairs:
        """Pair every student layer with the knowledge aggregated up to its share of the teacher."""
        carried = [teacher[0]]
        for gate, above in zip(self.gates.values(), teacher[1:], strict=True):
            carried.append(gate(carried[-1], above, layout))
        return list(zip(carried[self.skip - 1 :: self.skip], student, strict=True))
