"""What a run trains: modules, their optimizers, and the loss of a batch; the loop and the files know no more of it.

Shapes: B batch.
"""

from argparse import Namespace
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from fine_tune.data.layout import Layout
from fine_tune.data.tokens import Batch
from fine_tune.training.optim import LossScaler, OptimizerGroup


class TaskOutput(NamedTuple):
    """The scalar to minimise; by name the scalars on the progress line, the vectors to save beside the checkpoints,
    and what else to log of a watched batch, scalars and matrices.
    """

    loss: torch.Tensor
    losses: dict[str, torch.Tensor]
    vectors: dict[str, torch.Tensor]
    shown: dict[str, torch.Tensor]


class Task(nn.Module):
    """The parent of teacher fine-tuning and student distillation.

    `trainable_modules` go by their names in the checkpoint files, `optimizers` by the name under which their learning
    rate is logged; `scaler` is that of --precision fp16; `tag` begins the names of all that is logged; `about` are
    lines on it for the start of a run. It computes on `devices`; its layouts have `few_shapes` where they can have
    them and that is wanted.
    """

    tag: str
    about: tuple[str, ...] = ()
    devices: list[torch.device]
    can_have_few_shapes = True
    few_shapes = False
    trainable_modules: dict[str, nn.Module]
    optimizers: dict[str, OptimizerGroup]

    def __init__(self, config: Namespace) -> None:
        super().__init__()
        self.config, self.scaler = config, LossScaler() if config.precision == "fp16" else None

    @property
    def gpus(self) -> list[int]:
        """The numbers of the GPUs that it computes on: only these may be asked, for CUDA starts where it is asked."""
        return sorted({parameter.device.index for parameter in self.parameters() if parameter.is_cuda})

    def forward(self, batch: Batch) -> TaskOutput:
        """Return the losses of a batch."""
        raise NotImplementedError

    def terms(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Return the scalars whose sum is the loss of a batch, by name."""
        return {"loss": self(batch).loss}

    def layout(self, lengths: np.ndarray, chosen: np.ndarray, step: int) -> Layout:
        """Return the rows in which step `step` reads the examples `chosen` (B,) of `lengths` (B,) tokens."""
        raise NotImplementedError
