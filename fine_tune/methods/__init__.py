"""What a distillation method is: the target that each student layer learns, given both models' hidden states."""

import torch
from torch import nn

from fine_tune.layout import Layout

Pairs = list[tuple[torch.Tensor, torch.Tensor]]


class Method(nn.Module):
    """A method returns (target, student state) pairs; all that tells the methods apart is the target.

    `gates` are its trainable parts, by the index in their file's name. `shown` are named vectors of the last forward
    pass, saved beside the checkpoints. With `cls_only` it is handed position 0 of every example instead of all S.
    """

    cls_only = False

    def __init__(self) -> None:
        super().__init__()
        self.gates = nn.ModuleDict()
        self.shown: dict[str, torch.Tensor] = {}

    def forward(self, teacher: list[torch.Tensor], student: list[torch.Tensor], layout: Layout) -> Pairs:
        """Pair the N student states with their targets, all (R, D) rows of `layout`; `teacher` holds t_1 .. t_L."""
        raise NotImplementedError
