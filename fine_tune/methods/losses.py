"""The three losses of task-specific distillation. Shapes: B batch, C classes, R rows, D hidden size, P pairs."""

import torch
import torch.nn.functional as F

from fine_tune.data.layout import Layout


def hard_loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return CE(logits (B, C), label ids (B,)), or the MSE when C is 1 and labels are scores: a scalar."""
    if logits.shape[1] == 1:
        return F.mse_loss(logits.squeeze(1), labels)
    return F.cross_entropy(logits, labels)


def soft_loss(logits: torch.Tensor, teacher_logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return T^2 * KL(softmax(z_t / T) || softmax(z_s / T)), summed over classes, mean over the batch: a scalar.

    Both logits are (B, C); with C = 1 (regression) it is their MSE, without temperature. T^2 keeps the gradient's size
    independent of T (Hinton et al. 2015, section 2.1).
    """
    if logits.shape[1] == 1:
        return F.mse_loss(logits, teacher_logits)
    student = F.log_softmax(logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def layer_losses(pairs: list[tuple[torch.Tensor, torch.Tensor]], layout: Layout) -> torch.Tensor:
    """Return the mean squared difference of each of P (target, student state) pairs of (R, D): (P,).

    Targets are not detached: gates, and the student through ALP's attention, learn here.
    """
    return torch.stack([layout.mean((target - state).square().mean(1)) for target, state in pairs])
