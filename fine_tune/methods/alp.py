"""ALP-KD: every student layer learns an attention-weighted mix of teacher layers (Passban et al., AAAI 2021)."""

import math

import torch
import torch.nn.functional as F

from fine_tune.data.layout import Layout
from fine_tune.methods.method import SHARES, Hiddens, Method, Pairs, Vectors, share_rows
from fine_tune.models.precision import no_autocast


class Alp(Method):
    """Target of s_i: sum_l w_l t_l with w = softmax_l(<t_l, s_i> / sqrt(D)), at each position on its own.

    `limits` holds for each student layer the number of teacher layers that it attends to, from the first on. Gradient
    flows into the student through the weights, too.
    """

    def __init__(self, limits: list[int], cls_only: bool = False) -> None:
        super().__init__()
        self.limits, self.cls_only = limits, cls_only

    def forward(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> tuple[Pairs, Vectors]:
        """Pair every student layer with its mix; attn-<i> is the mean attention of layer i + 1 over the rows, (L,)."""
        keys = torch.stack(teacher_hiddens, dim=1)  # (R, L, D)
        pairs, vectors = {}, {}
        for number, (state, limit) in enumerate(zip(student_hiddens, self.limits, strict=True), 1):
            target, weights = mix(keys[:, :limit], state)
            pairs[number] = (target, state)
            attention = layout.mean(weights.detach())
            vectors[f"attn-{number - 1}"] = F.pad(attention, (0, len(teacher_hiddens) - limit))
        return pairs, vectors

    def watch(self, teacher_hiddens: Hiddens, student_hiddens: Hiddens, layout: Layout) -> Vectors:
        """Return the attention as shares, its entropy / log L and its centre, the mean number of a teacher layer."""
        keys, layers = torch.stack(teacher_hiddens, dim=1), len(teacher_hiddens)
        numbers = torch.arange(1, layers + 1, device=keys.device, dtype=keys.dtype)
        shown, rows = {}, {}
        for number, (state, limit) in enumerate(zip(student_hiddens, self.limits, strict=True), 1):
            weights = mix(keys[:, :limit], state)[1]
            entropy = layout.mean(torch.special.entr(weights).sum(1))
            rows[number] = layout.mean(weights)
            shown[f"attn/entropy/{number}"] = entropy / math.log(max(layers, 2))  # of one layer it is 0
            shown[f"attn/centre/{number}"] = (rows[number] * numbers[:limit]).sum()
        return shown | {SHARES: share_rows(rows, len(student_hiddens), layers)}


def mix(keys: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what a student state (R, D) attends to among teacher states (R, L, D), and with which weights (R, L)."""
    with no_autocast(state.device):  # a target is a matter of the loss
        scores = torch.einsum("rld,rd->rl", keys, state) / state.shape[1] ** 0.5
        weights = scores.softmax(dim=1)  # subtracts the maximum, so large hidden states do not overflow
        return torch.einsum("rl,rld->rd", weights, keys), weights


def alp(alp_exp: str, layers: int, students: int) -> Alp:
    """Return ALP-KD as --alp_exp names it: on [CLS], at all positions, or with l <= i * skip only (v2)."""
    if alp_exp == "alp-kd-hidden-v2":
        return Alp([i * (layers // students) for i in range(1, students + 1)])
    return Alp([layers] * students, cls_only=alp_exp == "alp-kd")
