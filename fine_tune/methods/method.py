"""What a distillation method is: the target that each student layer learns, given both models' hidden states.

Shapes: R rows of a batch, D hidden size, L teacher layers, N student layers.
"""

import torch
import torch.nn.functional as F
from torch import nn

from fine_tune.data.layout import Layout

Hiddens = list[torch.Tensor]  # of one model, by layer
Pairs = dict[int, tuple[torch.Tensor, torch.Tensor]]  # (target, student state) by the student layer's number
Vectors = dict[str, torch.Tensor]
SHARES = "share_map"  # the name of the (N, L) matrix among what `Method.watch` returns


class Method(nn.Module):
    """A method returns (target, student state) pairs; all that tells the methods apart is the target.

    `gates` are its trainable parts, by the index in their file's name. With `cls_only` it is handed position 0 of every
    example instead of all S.
    """

    cls_only = False

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleDict()

    def forward(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> tuple[Pairs, Vectors]:
        """Pair student states with their targets, and return by name the vectors to save beside the checkpoints.

        All states are (R, D) rows of `layout`: `teacher_hiddens` t_1 .. t_L, `student_hiddens` s_1 .. s_N.
        """
        raise NotImplementedError

    def watch(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> Vectors:
        """Return by name what to log of the states that `forward` takes: scalars, and SHARES (N, L).

        Cell (i, j) of SHARES is how much of t_j is in the target of s_i: a row sums to 1, or is 0 where s_i has none.
        Called without gradient, and only in steps that are logged.
        """
        return {}


def one_hot(number: int, teacher_hiddens: Hiddens) -> torch.Tensor:
    """Return the shares (L,) of a target that is the teacher's layer `number`."""
    return torch.eye(len(teacher_hiddens), device=teacher_hiddens[0].device).unbind()[number - 1]


def share_rows(rows: dict[int, torch.Tensor], students: int, layers: int) -> torch.Tensor:
    """Return the shares (N, L) of which `rows` holds the first few of a row each, by the student layer's number."""
    nothing = torch.zeros_like(next(iter(rows.values())))
    every = (rows.get(number, nothing) for number in range(1, students + 1))
    return torch.stack([F.pad(row, (0, layers - len(row))) for row in every])
