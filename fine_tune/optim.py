"""What is trained together: modules, their AdamW, its linear schedule, and what is clipped as one."""

import torch
from torch import nn


def warm_up_factor(done: int, warmup_step: int, total_step: int) -> float:
    """Return the factor of the learning rate after `done` steps: 0 to 1 over the warm-up, then to 0 at total_step."""
    if done < warmup_step:
        return done / warmup_step
    return max(0, total_step - done) / max(1, total_step - warmup_step)


class Learner:
    """Modules trained by one AdamW (Loshchilov & Hutter 2019); each module's gradient is clipped on its own.

    Biases and LayerNorm weights are not decayed.
    """

    def __init__(
        self,
        modules: list[nn.Module],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_norm: float,
        warmup_step: int,
        total_step: int,
    ) -> None:
        self.clipped_together = [list(module.parameters()) for module in modules]
        self.lr, self.max_norm, self.warmup_step, self.total_step = lr, max_norm, warmup_step, total_step
        named = [pair for module in modules for pair in module.named_parameters()]
        groups = [
            {"params": [p for name, p in named if decays(name)], "weight_decay": weight_decay},
            {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)

    def step(self, number: int) -> float:
        """Clip, update and clear the gradients as step `number`, counted from 1; return the learning rate used."""
        for parameters in self.clipped_together:
            nn.utils.clip_grad_norm_(parameters, self.max_norm)
        lr = self.lr * warm_up_factor(number - 1, self.warmup_step, self.total_step)  # so the first step runs at lr 0
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()
        return lr


def decays(name: str) -> bool:
    """Tell whether weight decay applies to the parameter `name`."""
    return "bias" not in name and "layernorm" not in name.lower()
