"""Linear layers whose fp32 products oneDNN takes on a CPU: those of a forward pass with AVX2, all with AVX-512.

PyTorch gives fp32 products to its BLAS, Intel's MKL, which leaves AVX-512 unused on other makers' CPUs and needs the
bias written into the result beforehand. oneDNN is part of PyTorch, too; small matrices it takes more slowly, and with
AVX2 alone those of gradients. Only the order of summation differs.

Shapes: R rows, D inputs, O outputs.
"""

from typing import Any

import torch
from torch import nn


def has_one_dnn(*capabilities: str) -> bool:
    """Tell whether the CPU is one of these to PyTorch, and oneDNN's operator there, which another PyTorch may lack."""
    known = torch.backends.cpu.get_cpu_capability() in capabilities
    return known and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


ONE_DNN, ONE_DNN_GRADIENTS = has_one_dnn("AVX2", "AVX512"), has_one_dnn("AVX512")
SMALLEST = 2**15  # entries of a matrix below which oneDNN's calls cost more than it gains


class Linear(nn.Linear):
    """nn.Linear for (R, D) rows."""

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows W^T + b, (R, O)."""
        worth_it = self.weight.numel() >= SMALLEST
        ours = ONE_DNN and worth_it and rows.device.type == "cpu" and rows.dtype == torch.float32
        if not ours or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return super().forward(rows)
        arguments = (rows, self.weight, self.bias)
        return Product.apply(*arguments) if torch.is_grad_enabled() else product(*arguments)


class Product(torch.autograd.Function):
    """rows W^T + b by oneDNN, forward and backward."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Take (R, D), (O, D) and (O,); return (R, O)."""
        ctx.save_for_backward(rows, weight)
        return product(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Take the gradient (R, O) of the result; return those of rows, weight and bias that are needed."""
        (rows, weight), needed = ctx.saved_tensors, ctx.needs_input_grad
        gradient = gradient.contiguous()
        multiply = product if ONE_DNN_GRADIENTS else nn.functional.linear
        return (
            multiply(gradient, weight.t()) if needed[0] else None,
            multiply(gradient.t(), rows.t()) if needed[1] else None,
            gradient.sum(0) if needed[2] else None,
        )


def product(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return left right^T + bias for (R, D), (O, D) and (O,): the operator that torch.compile uses for this."""
    return torch.ops.mkldnn._linear_pointwise(left, right, bias, "none", [], "")
