"""What a distillation method is: the target that each student layer learns, given both models' hidden states.

Shapes: R rows of a batch, D hidden size, L teacher layers, N student layers.
"""

import torch
from torch import nn

from fine_tune.data.layout import Layout

Hiddens = list[torch.Tensor]  # of one model, by layer
Pairs = list[tuple[torch.Tensor, torch.Tensor]]  # (target, student state)
Vectors = dict[str, torch.Tensor]


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
