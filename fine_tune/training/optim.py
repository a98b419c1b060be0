"""AdamW for a group of modules, its linear schedule, what is clipped as one; when not to update; the scale of fp16."""

import math
from argparse import Namespace
from itertools import chain, islice

import torch
from torch import nn

from fine_tune.core.errors import NotFinite
from fine_tune.models.encoder import WordEmbeddings

HIGH = 0.1  # a peak learning rate at which AdamW ruins a BERT
GROWTH_INTERVAL = 2000  # steps without an overflow after which the scale of fp16 is doubled


def warmup_factor(done: int, warmup_step: int, total_step: int) -> float:
    """Return the factor of the learning rate after `done` steps: 0 to 1 over the warm-up, then to 0 at total_step."""
    if done < warmup_step:
        return done / warmup_step
    return max(0, total_step - done) / max(1, total_step - warmup_step)


class OptimizerGroup:
    """Modules trained by one AdamW (Loshchilov & Hutter 2019); each module's gradient is clipped on its own.

    `name` says in messages whose they are; `peak_lr` is the learning rate at the end of the warm-up. Biases and
    LayerNorm weights are not decayed.
    """

    def __init__(
        self,
        name: str,
        modules: list[nn.Module],
        peak_lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        max_norm: float,
        warmup_step: int,
        total_step: int,
    ) -> None:
        self.name = name
        self.clipped_together = [list(module.parameters()) for module in modules]
        self.device = self.clipped_together[0][0].device
        self.peak_lr, self.max_norm, self.warmup_step, self.total_step = peak_lr, max_norm, warmup_step, total_step
        parts = chain.from_iterable(module.modules() for module in modules)
        self.tables = [part for part in parts if isinstance(part, WordEmbeddings)]
        named = [pair for module in modules for pair in module.named_parameters()]
        groups = [
            {"params": [p for name, p in named if decays(name)], "weight_decay": weight_decay},
            {"params": [p for name, p in named if not decays(name)], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=betas, eps=eps, fused=True)

    def clip(self, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Clip the gradients, and return their norm before that, a scalar: the largest, where several are clipped.

        Gradients that are `scale` times too large are judged by what they are without it; `step` divides by it.
        """
        scale = scale if scale is None else scale.to(self.device)
        self.optimizer.grad_scale = scale  # how a fused optimiser is told by a gradient scaler
        grouped = [[p.grad for p in parameters if p.grad is not None] for parameters in self.clipped_together]
        grouped = [gradients for gradients in grouped if gradients]
        if not grouped:
            return torch.zeros((), device=self.device)
        each = iter(torch._foreach_norm(list(chain(*grouped))))  # on a GPU a few kernels for all that there are
        norms = torch.stack([torch.linalg.vector_norm(torch.stack(list(islice(each, len(one))))) for one in grouped])
        norms = norms if scale is None else norms / scale
        factors = (self.max_norm / (norms + 1e-6)).clamp(max=1)  # as nn.utils.clip_grad_norm_ has it
        for gradients, factor in zip(grouped, factors, strict=True):
            torch._foreach_mul_(gradients, factor)
        return norms.max()  # which passes nan on

    def lr(self, step: int) -> float:
        """Return the learning rate of `step`, counted from 1; the first step runs at 0."""
        return self.peak_lr * warmup_factor(step - 1, self.warmup_step, self.total_step)

    def step(self, step: int, found_inf: torch.Tensor) -> float:
        """Update and clear the gradients as `step`, counted from 1; return the learning rate used.

        Where the scalar `found_inf` is 1, the update is left out on the device itself, so nothing waits for its value.
        """
        self.optimizer.found_inf = found_inf.to(self.device)  # as grad_scale
        lr = self.lr(step)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        for table in self.tables:
            table.keep_gradient()
        self.optimizer.zero_grad()
        return lr


class LossScaler:
    """A factor on the loss that keeps fp16 gradients from vanishing (Micikevicius et al., ICLR 2018, section 3.2).

    As torch.amp.GradScaler's, it is halved when a gradient overflows and doubled after GROWTH_INTERVAL steps without.
    That class lets each optimiser skip on its own; here student and gates are one step.
    """

    def __init__(self) -> None:
        self.scale = torch.tensor(2.0**16)
        self.clean_steps = torch.zeros((), dtype=torch.long)  # since the scale changed

    def __call__(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the loss times the scale, which then lives on the device of the loss."""
        self.scale, self.clean_steps = self.scale.to(loss.device), self.clean_steps.to(loss.device)
        return loss * self.scale

    def update(self, overflow: torch.Tensor) -> torch.Tensor:
        """Take whether a step's gradients did `overflow`; tell, on the device, whether the scale is now below 1.

        That is no matter of fp16 any more: then even the gradients themselves are beyond 65504.
        """
        clean = torch.where(overflow, 0, self.clean_steps + 1)
        grows = clean == GROWTH_INTERVAL
        larger = torch.where(grows, (2 * self.scale).clamp(max=2.0**127), self.scale)
        self.scale = torch.where(overflow, self.scale / 2, larger)
        self.clean_steps = torch.where(grows, 0, clean)
        return self.scale < 1

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what a resume needs."""
        return {"scale": self.scale, "clean_steps": self.clean_steps}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what `state_dict` returned."""
        self.scale, self.clean_steps = state["scale"], state["clean_steps"]


class NonFiniteGuard:
    """Watches what must be finite, from the first bad step on says to skip every update, and reports that step.

    With a `scaler` gradients may overflow: such a step alone is skipped. Everything stays on the device of the watched
    values until `raise_if_tripped`.
    """

    def __init__(self, groups: dict[str, OptimizerGroup], scaler: LossScaler | None = None) -> None:
        self.groups, self.scaler = groups, scaler
        self.step = torch.zeros((), dtype=torch.long)  # 0 while all is well
        self.values = torch.zeros(0)
        self.names: list[str] = []

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the scalar whose backward pass gives the gradients, `scale` times too large."""
        return self.scaler(loss) if self.scaler else loss

    @property
    def scale(self) -> torch.Tensor | None:
        """The scale of the gradients, a scalar; None where there is none."""
        return self.scaler.scale if self.scaler else None

    def found_inf(self, step: int, losses: dict[str, torch.Tensor], norms: dict[str, torch.Tensor]) -> torch.Tensor:
        """Take the scalars of a step, `norms` of the gradients by the names of their groups.

        Return 1.0 if one of them is not finite, or an earlier step was bad, else 0.0. The gradients' `scale` may be
        another one afterwards.
        """
        watched = losses | norms
        device = next(iter(watched.values())).device
        values = torch.stack([value.detach().to(device) for value in watched.values()])
        known, before = self.step.to(device), self.values if self.names else torch.zeros_like(values)
        finite = values.isfinite()
        skipped = bad_now = ~finite.all()
        if self.scaler:
            bad_now = ~finite[: len(losses)].all() | self.scaler.update(skipped)
        self.values = torch.where(known > 0, before, values)
        self.step = torch.where((known == 0) & bad_now, step, known)
        self.names = list(watched)
        return ((self.step > 0) | skipped).float()

    def raise_if_tripped(self) -> None:
        """Raise NotFinite naming the first bad step and what was not finite in it; waits for the device."""
        step = int(self.step)
        if step:
            words = {name: f"gradient norm of the {group.name}" for name, group in self.groups.items()}
            named = zip(self.names, self.values.tolist(), strict=True)
            bad = [f"{words.get(name, name)} {value}" for name, value in named if not math.isfinite(value)]
            at = ", ".join(f"{name} {group.lr(step):g}" for name, group in self.groups.items())
            learned = step > 1 and any(group.lr(step - 1) > 0 for group in self.groups.values())
            loss = "--mu, --softmax_temp and " if "student" in (group.name for group in self.groups.values()) else ""
            start = f"nothing had been learned yet: look at {loss}the model that it starts from"
            cure = ("try a lower rate" if learned else start) + (", or --precision fp32" if self.scaler else "")
            raise NotFinite(f"step {step} at {at}: {', '.join(bad)}; what was saved before stays; {cure}")


def decays(name: str) -> bool:
    """Tell whether weight decay applies to the parameter `name`."""
    return "bias" not in name and "layernorm" not in name.lower()


def optimizer_group(config: Namespace, name: str, modules: list[nn.Module], prefix: str = "") -> OptimizerGroup:
    """Return the group of `modules`, called `name`, that the flags with `prefix` describe."""
    flag = {key.removeprefix(prefix): value for key, value in vars(config).items() if key.startswith(prefix)}
    same = {key: flag[key] for key in ("eps", "weight_decay", "max_norm", "warmup_step", "total_step")}
    return OptimizerGroup(name, modules, peak_lr=flag["lr"], betas=(flag["beta1"], flag["beta2"]), **same)
