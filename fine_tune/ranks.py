"""One run in several processes, as torchrun starts them, each with a device of its own; they are counted as ranks.

Without torchrun there is one rank, and nothing here does anything. With it, every micro-batch is split over the ranks,
the first of them alone writes, prints and decides, and the others follow.
"""

import atexit
import os
from argparse import Namespace
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from fine_tune import interrupt
from fine_tune.data import Batch
from fine_tune.errors import Stop, UserError

SAID = os.environ if "TORCHELASTIC_RUN_ID" in os.environ else {}  # by torchrun: clusters set such names, too
RANK = int(SAID.get("RANK", 0))
SIZE = int(SAID.get("WORLD_SIZE", 1))
LOCAL = int(SAID.get("LOCAL_RANK", 0))  # on this machine
LOCAL_SIZE = int(SAID.get("LOCAL_WORLD_SIZE", 1))
PATIENCE = timedelta(days=1)  # the first rank may have a large file to tokenise; torchrun ends all if one dies

Result = TypeVar("Result")
Losses = tuple[torch.Tensor, dict[str, torch.Tensor]]


def first() -> bool:
    """Tell whether this is the first rank, the one that writes."""
    return RANK == 0


def devices(config: Namespace, *flags: str) -> list[torch.device]:
    """Return the device of each flag (-1 = CPU, n = cuda:n), and join the other ranks.

    Where there are several, the flags just say CPU or GPU: each takes the GPU of its own number on its machine. Raises
    UserError naming all flags without their GPU, or flags that disagree.
    """
    gpus = torch.cuda.device_count()
    numbers = {flag: getattr(config, flag) for flag in flags}
    have = f"this machine has {gpus} GPU{'s' * (gpus != 1)}" + (f", 0 to {gpus - 1}" if gpus else "")
    if SIZE > 1:
        given = ", ".join(f"--{flag} {number}" for flag, number in numbers.items())
        if len(set(numbers.values())) > 1:
            raise UserError(f"{given}: must agree under torchrun, where every process has one device")
        if min(numbers.values()) >= 0:
            if gpus < LOCAL_SIZE:
                raise UserError(f"{given}: torchrun started {LOCAL_SIZE} processes here, but {have}; -1 is the CPU")
            numbers = dict.fromkeys(flags, LOCAL)
    wrong = [f"--{flag} {number}: no such GPU" for flag, number in numbers.items() if number >= gpus]
    if wrong:
        raise UserError("; ".join(wrong) + f"; {have}; -1 is the CPU")
    places = [torch.device("cpu" if numbers[flag] < 0 else f"cuda:{numbers[flag]}") for flag in flags]
    if SIZE > 1:
        join(places[0])
    return places


def join(place: torch.device) -> None:
    """Meet the other ranks; what lies on a GPU travels by NCCL, all else by gloo."""
    if place.type == "cuda":
        torch.cuda.set_device(place)
    dist.init_process_group("gloo" if place.type == "cpu" else "cpu:gloo,cuda:nccl", timeout=PATIENCE)
    atexit.register(dist.destroy_process_group)


# --- who does what ----------------------------------------------------------------------------------------------------


def alone(do: Callable[[], Result]) -> Result | None:
    """Call `do` in the first rank only, while the others wait; what stops it stops them all."""
    if SIZE == 1:
        return do()
    result, stopped = None, [None]
    if first():
        try:
            result = do()
        except Stop as stop:
            stopped = [(str(stop), stop.word, stop.exit_code)]
    dist.broadcast_object_list(stopped)
    if stopped[0]:
        stop = Stop(stopped[0][0])
        stop.word, stop.exit_code = stopped[0][1:]
        raise stop
    return result


def first_before_others(do: Callable[[], Result]) -> Result:
    """Call `do` in every rank, in the first one first: the others find what it leaves on disk."""
    result = alone(do)
    return result if first() else do()


def interrupted() -> bool:
    """Tell whether a signal has come to any rank; then all of them have heard it."""
    if SIZE > 1:
        number = torch.tensor(interrupt.received[0] if interrupt.received else 0)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        if number and not interrupt.received:
            interrupt.received.append(int(number))
    return bool(interrupt.received)


def gathered(value: Result) -> list[Result]:
    """Return the `value` of every rank, by rank."""
    values = [value] * SIZE
    if SIZE > 1:
        dist.all_gather_object(values, value)
    return values


def summed(array: np.ndarray) -> np.ndarray:
    """Return the sum of an array over all ranks."""
    if SIZE > 1:
        dist.all_reduce(torch.from_numpy(array))  # in place
    return array


def own_random_stream(seed: int) -> None:
    """Give every rank a stream of its own, or all would drop out alike."""
    if SIZE > 1:
        torch.manual_seed(int(np.random.SeedSequence((seed, RANK)).generate_state(1)[0]))


# --- training ---------------------------------------------------------------------------------------------------------


def share(chosen: np.ndarray) -> tuple[np.ndarray, float]:
    """Return this rank's examples of a micro-batch, and what part of it they are.

    A rank that would have none computes one that counts nothing, so that it can follow the others.
    """
    own = chosen[RANK::SIZE]
    return (own, len(own) / len(chosen)) if len(own) else (chosen[:1], 0.0)


class Split(nn.Module):
    """Losses over a micro-batch that is split over the ranks: they, and the gradients, are those of the whole.

    `losses_of` computes them for a rank's part, whose share of the whole is the batch's.
    """

    def __init__(self, losses_of: nn.Module, accum_step: int) -> None:
        super().__init__()
        self.parallel = DistributedDataParallel(losses_of, forward_sync_buffers=False)
        self.accum_step, self.calls = accum_step, 0

    def forward(self, batch: Batch) -> Losses:
        """Return the loss that is to be minimised here, and what the whole micro-batch shows."""
        self.calls += 1
        last = self.calls % self.accum_step == 0
        with nullcontext() if last else self.parallel.no_sync():  # gradients travel once a step
            loss, named = self.parallel(batch)
        parts = [value.detach().flatten() * batch.share for value in named.values()]
        whole = torch.cat(parts)
        dist.all_reduce(whole)
        pieces = whole.split([len(part) for part in parts])
        shown = {name: piece.view_as(value) for (name, value), piece in zip(named.items(), pieces, strict=True)}
        return loss * batch.share * SIZE, shown  # DDP divides by SIZE


def split(losses_of: nn.Module, accum_step: int) -> nn.Module:
    """Return `losses_of` for micro-batches that are split over the ranks: itself where there is one."""
    return Split(losses_of, accum_step) if SIZE > 1 else losses_of
