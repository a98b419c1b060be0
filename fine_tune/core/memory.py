"""Sizes in words, what libraries keep of the memory that is freed, and what to do when memory does not suffice."""

import ctypes
import os
from argparse import Namespace
from collections.abc import Callable
from functools import wraps
from typing import Any

from fine_tune.core.errors import OutOfMemory, Stop

SIGNS = (  # in the words of CUDA, cuBLAS, PyTorch, C++ and the system
    *("out of memory", "alloc_failed", "not enough memory", "can't allocate memory", "bad_alloc"),
    *("cannot allocate memory", "storage size calculation overflowed"),
)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**25  # bytes of a block that glibc may keep; by itself it, too, goes up to this
KERNELS = 128  # a step in which all lengths are alike takes 44 of each hidden size


def prepare() -> None:
    """Let the C library keep freed blocks up to LARGEST, and oneDNN KERNELS at most; must come before torch computes.

    Every training step asks for the same hundreds of MiB: given back in between, they come as new pages, a fault each.
    oneDNN would keep 1024 kernels, each for one shape of a product, most of them for shapes that never come again.
    glibc's own variables, and ONEDNN_PRIMITIVE_CACHE_CAPACITY, have the last word.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))
    users = any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ)
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # which other C libraries than glibc lack
    if mallopt and not users:
        mallopt(M_MMAP_THRESHOLD, LARGEST)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def give_back() -> None:
    """Let the C library give back after all what is freed; what comes next costs its page faults again."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim:
        malloc_trim(0)


def size_words(count: float) -> str:
    """Return a number of bytes with three digits, in the unit in which it is at least 1."""
    power = next(power for power in (3, 2, 1, 0) if count >= 1024**power or not power)
    value = count / 1024**power
    return (f"{value:.3g}" if value < 1000 else f"{value:,.0f}") + " " + ("B", "KiB", "MiB", "GiB")[power]


def needs_memory(doing: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a function of flags: a full memory, of the CPU or a GPU, becomes OutOfMemory with the cures that apply.

    `doing` says what was being done.
    """

    def decorate(work: Callable[..., None]) -> Callable[..., None]:
        @wraps(work)
        def guarded(flags: Namespace, *more: Any) -> None:
            try:
                work(flags, *more)
            except Exception as error:
                if not is_memory(error):
                    raise
                raise OutOfMemory(f"out of memory {doing}; {', or '.join(cures(flags))}") from error

        return guarded

    return decorate


def is_memory(error: BaseException | None) -> bool:
    """Tell whether an error is about memory that does not suffice, or was raised from one, or while one was handled.

    Who reads a file that may be damaged takes any error of a library for a sign of that.
    """
    if error is None:
        return False
    said = "" if isinstance(error, Stop) else str(error).lower()
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return isinstance(error, MemoryError) or any(sign in said for sign in SIGNS) or is_memory(before)


def cures(flags: Namespace) -> list[str]:
    """Return what makes a run of these flags need less memory."""
    given, found = vars(flags), []
    if "accum_step" in given:
        halved = 2 * flags.accum_step
        if flags.batch_size % halved == 0:
            change = "other numbers" if given.get("dropout") else "numbers change by rounding"
            found.append(f"--accum_step {halved} ({change})")
        if given.get("pad_loss", "masked") != "masked":
            found.append("--pad_loss masked (other numbers)")
        if given.get("precision") == "fp32" and flags.device_id >= 0:
            found.append("--precision bf16 (other numbers)")
        if given.get("compile") and flags.device_id >= 0:
            found.append("no --compile (numbers change by rounding)")
    if given.get("batch_size", 1) > 1:
        found.append("a smaller --batch_size" + (" (other numbers)" if "accum_step" in given else ""))
    return found or ["a machine with more memory"]
