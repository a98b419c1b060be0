"""How numbers are computed: --precision and --compile. Parameters, optimisers, losses and statistics stay in fp32."""

import os
import shutil
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from transformers import BertModel

from fine_tune.errors import UserError

AMPERE = (8, 0)  # the first generation of NVIDIA GPUs with TF32 and bf16


def prepare(config: Namespace, places: list[torch.device]) -> None:
    """Switch on what --precision and --compile ask for; raises UserError when one of `places` cannot do it."""
    if config.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        raise UserError("--compile: needs a C++ compiler such as g++, and none was found; install one or leave it out")
    if config.precision != "fp32":
        for place in places:
            reason = lacks(config.precision, place)
            if reason:
                raise UserError(f"--precision {config.precision}: {reason}")
    torch.backends.cuda.matmul.allow_tf32 = config.precision != "fp32"  # what bf16 leaves in fp32 is no sharper


def lacks(precision: str, place: torch.device) -> str:
    """Return why `place` cannot work in `precision`, "" if it can."""
    if place.type == "cuda":
        if torch.cuda.get_device_capability(place) < AMPERE:
            return f"GPU {place.index} ({torch.cuda.get_device_name(place)}) is too old for it; use fp32"
        return ""
    if precision == "tf32":
        return "is a mode of NVIDIA GPUs, and a device flag names the CPU (-1); use fp32 or bf16"
    known = torch.cpu.get_capabilities()
    if not any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")):
        return "this CPU has no bf16 arithmetic (avx512_bf16, amx_bf16), so it would be slower than fp32; use fp32"
    return ""


@contextmanager
def mixed(precision: str, places: list[torch.device]) -> Iterator[None]:
    """Inside, matrix products on `places` are taken in bf16 if `precision` says so; sums and norms stay in fp32."""
    with ExitStack() as stack:
        if precision == "bf16":
            for kind in {place.type for place in places}:
                stack.enter_context(torch.autocast(kind, torch.bfloat16))
        yield


def full_precision(place: torch.device) -> torch.autocast:
    """Return a context in which `mixed` has no effect on `place`."""
    return torch.autocast(place.type, enabled=False)


def compile_rows(bert: BertModel) -> None:
    """Compile, in place, what a layer does to each row on its own; attention has a fused kernel already.

    In place leaves the names of the parameters as they are. The number of rows stays open: one compilation serves all.
    """
    for layer in bert.encoder.layer:
        for part in (layer.attention.output, layer.intermediate, layer.output):
            part.compile(dynamic=True)
