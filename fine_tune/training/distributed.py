"""One run in several processes, as torchrun starts them, each with a device of its own: the ranks.

Without torchrun there is one rank, and nothing here does anything. With it, every micro-batch is split over the ranks,
and the main process, rank 0, alone writes, prints and decides.
"""

import atexit
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

from fine_tune.core import interrupt
from fine_tune.core.errors import Stop, UserError
from fine_tune.core.torchrun import LOCAL_RANK, LOCAL_WORLD_SIZE, RANK, WORLD_SIZE, is_main_process
from fine_tune.data.tokens import Batch
from fine_tune.training.task import Task, TaskOutput

DEVICE_FLAGS = ("tdevice_id", "device_id", "gate_device_id")
TIMEOUT = timedelta(days=1)  # the main process may have a large file to tokenise; torchrun ends all if one dies

Result = TypeVar("Result")


def select_devices(flags: Namespace) -> dict[str, torch.device]:
    """Return the device of each device flag there is (-1 = CPU, n = cuda:n), and join the other ranks.

    Where there are several, the flags just say CPU or GPU: each takes the GPU of its own number on its machine. Raises
    UserError naming all flags without their GPU, or flags that disagree.
    """
    gpus = torch.cuda.device_count()
    numbers = {flag: getattr(flags, flag) for flag in DEVICE_FLAGS if hasattr(flags, flag)}
    have = f"this machine has {gpus} GPU{'s' * (gpus != 1)}" + (f", 0 to {gpus - 1}" if gpus else "")
    if WORLD_SIZE > 1:
        given = ", ".join(f"--{flag} {number}" for flag, number in numbers.items())
        if len(set(numbers.values())) > 1:
            raise UserError(f"{given}: must agree under torchrun, where every process has one device")
        if min(numbers.values()) >= 0:
            if gpus < LOCAL_WORLD_SIZE:
                raise UserError(
                    f"{given}: torchrun started {LOCAL_WORLD_SIZE} processes here, but {have}; -1 is the CPU"
                )
            numbers = dict.fromkeys(numbers, LOCAL_RANK)
    wrong = [f"--{flag} {number}: no such GPU" for flag, number in numbers.items() if number >= gpus]
    if wrong:
        raise UserError("; ".join(wrong) + f"; {have}; -1 is the CPU")
    devices = {flag: torch.device("cpu" if number < 0 else f"cuda:{number}") for flag, number in numbers.items()}
    devices.setdefault("gate_device_id", devices["device_id"])  # a method without gates computes beside the student
    if WORLD_SIZE > 1:
        init_distributed(devices["device_id"])
    return devices


def init_distributed(device: torch.device) -> None:
    """Meet the other ranks; what lies on a GPU travels by NCCL, all else by gloo."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl", timeout=TIMEOUT)
    atexit.register(dist.destroy_process_group)


# --- between ranks ----------------------------------------------------------------------------------------------------


def on_main_process(do: Callable[[], Result]) -> Result | None:
    """Call `do` in the main process only, while the others wait; what stops it stops them all."""
    if WORLD_SIZE == 1:
        return do()
    result, stopped = None, [None]
    if is_main_process():
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


def main_process_first(do: Callable[[], Result]) -> Result:
    """Call `do` in every rank, in the main process first: the others find what it leaves on disk."""
    result = on_main_process(do)
    return result if is_main_process() else do()


def interrupted() -> bool:
    """Tell whether a signal has come to any rank; all ranks answer alike, and then all of them have heard it."""
    number = torch.tensor(interrupt.received[0] if interrupt.received else 0)
    if WORLD_SIZE > 1:
        dist.all_reduce(number, dist.ReduceOp.MAX)  # one that comes here meanwhile is asked for the next time
        if number and not interrupt.received:
            interrupt.received.append(int(number))
    return bool(number)


def all_gather(value: Result) -> list[Result]:
    """Return the `value` of every rank, by rank."""
    values = [value] * WORLD_SIZE
    if WORLD_SIZE > 1:
        dist.all_gather_object(values, value)
    return values


def all_reduce_sum(array: np.ndarray) -> np.ndarray:
    """Return the sum of an array over all ranks."""
    if WORLD_SIZE > 1:
        dist.all_reduce(torch.from_numpy(array))  # in place
    return array


def seed_rank(seed: int) -> None:
    """Give every rank a stream of its own, or all would drop out alike."""
    if WORLD_SIZE > 1:
        torch.manual_seed(int(np.random.SeedSequence((seed, RANK)).generate_state(1)[0]))


# --- training ---------------------------------------------------------------------------------------------------------


def shard(chosen: np.ndarray) -> tuple[np.ndarray, float]:
    """Return this rank's examples of a micro-batch, and what part of it they are.

    A rank that would have none computes one that counts nothing, so that it can follow the others.
    """
    own = chosen[RANK::WORLD_SIZE]
    return (own, len(own) / len(chosen)) if len(own) else (chosen[:1], 0.0)


class DistributedTask(nn.Module):
    """A task over micro-batches that are split over the ranks: losses and gradients are those of the whole.

    The task computes them for a rank's shard, which is the fraction `batch.fraction` of the whole.
    """

    def __init__(self, task: Task, accum_step: int) -> None:
        super().__init__()
        self.parallel = DistributedDataParallel(task)
        self.parallel.broadcast_buffers = False  # before every pass: none ever changes; torch 2.13 renames the argument
        self.accum_step, self.calls = accum_step, 0

    def forward(self, batch: Batch) -> TaskOutput:
        """Return the loss that is to be minimised here, and the values of the whole micro-batch."""
        self.calls += 1
        last = self.calls % self.accum_step == 0
        with nullcontext() if last else self.parallel.no_sync():  # gradients travel once a step
            loss, *named = self.parallel(batch)
        values = [value for each in named for value in each.values()]
        parts = [value.detach().flatten().to(loss.device) * batch.fraction for value in values]
        whole = torch.cat(parts)
        dist.all_reduce(whole)
        pieces = iter(whole.split([len(part) for part in parts]))
        summed = [{name: next(pieces).view_as(value) for name, value in each.items()} for each in named]
        return TaskOutput(loss * batch.fraction * WORLD_SIZE, *summed)  # DDP divides by WORLD_SIZE
