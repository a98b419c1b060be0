"""How numbers are computed: --precision, --compile, threads; what stays fp32; whether they are finite."""

import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from fine_tune.core import threads
from fine_tune.core.errors import UserError
from fine_tune.models.encoder import Bert

SMALL = 64  # hidden size up to which a second thread costs a busy machine more than it gains on an idle one
OLDEST = {"tf32": (8, 0), "bf16": (8, 0), "fp16": (7, 0)}  # compute capability of the first tensor cores for it
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(config: Namespace, devices: list[torch.device]) -> None:
    """Switch on what --precision and --compile ask for; raises UserError when one of `devices` cannot do it."""
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError("--compile: needs a C++ compiler such as g++, and none was found; install one or leave it out")
    if config.precision != "fp32":
        for device in devices:
            reason = unsupported_reason(config.precision, device)
            if reason:
                raise UserError(f"--precision {config.precision}: {reason}")
    torch.backends.cuda.matmul.allow_tf32 = config.precision != "fp32"  # what bf16 and fp16 leave is no sharper
    torch.backends.cuda.enable_cudnn_sdp(False)  # its attention takes 0.1 s for every new shape of a batch


def choose_threads(hidden_size: int) -> None:
    """Compute with one thread where the model is SMALL, unless the user has set their number."""
    if hidden_size <= SMALL and not threads.GIVEN:
        torch.set_num_threads(1)


def unsupported_reason(precision: str, device: torch.device) -> str:
    """Return why `device` cannot work in `precision`, "" if it can."""
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        if capability >= OLDEST[precision]:
            return ""
        others = "".join(f"{other} or " for other, oldest in OLDEST.items() if capability >= oldest)
        return f"GPU {device.index} ({torch.cuda.get_device_name(device)}) is too old for it; use {others}fp32"
    if precision in ("tf32", "fp16"):
        return "is a mode of NVIDIA GPUs, and a device flag names the CPU (-1); use fp32 or bf16"
    known = torch.cpu.get_capabilities()
    if not any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return "this CPU has no bf16 arithmetic (avx512_bf16, amx_bf16), so it would be slower than fp32; use fp32"
    return ""


@contextmanager
def autocast(precision: str, devices: list[torch.device]) -> Iterator[None]:
    """Inside, matrix products on `devices` are in bf16 or fp16 if `precision` says so; sums and norms stay in fp32."""
    with ExitStack() as stack:
        if precision in AUTOCAST:
            for kind in {device.type for device in devices}:
                stack.enter_context(torch.autocast(kind, AUTOCAST[precision]))
        yield


def keep_rounded(bert: Bert, precision: str) -> None:
    """Keep the weights of a frozen encoder for matrix products as `autocast` would round them in every step."""
    for weight in rounded_weights(bert, precision):
        weight.data = weight.data.to(AUTOCAST[precision])


def rounded_weights(bert: Bert, precision: str) -> list[nn.Parameter]:
    """Return the weights of an encoder that `autocast` rounds: those of its linear layers, or none."""
    layers = [part for part in bert.modules() if isinstance(part, nn.Linear)]
    return [parameter for layer in layers for parameter in layer.parameters() if precision in AUTOCAST]


def no_autocast(device: torch.device) -> torch.autocast:
    """Return a context in which `autocast` has no effect on `device`."""
    return torch.autocast(device.type, enabled=False)


def compile_rows(bert: Bert) -> None:
    """Compile what a layer does to each row on its own; attention is the same for all rows of an example.

    The number of rows stays open: one compilation serves all. On a CPU products are faster as they are, so that
    compiling what is nothing else would cost.
    """
    for layer in bert.encoder.layer:
        layer.transform = torch.compile(layer.transform, dynamic=True)
        attention = layer.attention.self
        if attention.query.weight.is_cuda:
            attention.project = torch.compile(attention.project, dynamic=True)


def compile_gates(gates: nn.ModuleDict) -> None:
    """Compile gates in place; on a CPU their products are faster as they are."""
    for gate in gates.values():
        if gate.linear.weight.is_cuda:
            gate.compile(dynamic=True)


def first_non_finite(modules: dict[str, nn.Module]) -> str:
    """Return the name of the first parameter that holds something else than finite numbers, "" if there is none."""
    named = ((f"{name}: {key}", p) for name, module in modules.items() for key, p in module.named_parameters())
    return next((key for key, parameter in named if not parameter.isfinite().all()), "")
