"""Memory that does not suffice: one line, the cures that apply, what was saved stays; what is kept of freed memory."""

import ctypes
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from fine_tune import evaluate
from fine_tune.core.errors import OutOfMemory, UserError
from fine_tune.core.memory import cures, needs_memory, size_words
from fine_tune.distil import Distillation
from fine_tune.training.scoring import predict
from tests import tiny
from tests.interruptions import Patch, in_child
from tests.processes import ROOT

TOO_MUCH = 10**14  # bytes: refused at once, by PyTorch's own allocator or by NumPy's


def allocate_in_step(step: int) -> Patch:
    """Ask for more than there is in the forward pass of `step`."""
    forward, seen = Distillation.forward, []

    def greedy(task: Distillation, batch: object) -> object:
        seen.append(batch)
        return torch.empty(TOO_MUCH // 4, device=task.device) if len(seen) == step else forward(task, batch)

    return Distillation, "forward", greedy


def test_a_training_that_needs_too_much(root: Path) -> None:
    flags = tiny.student_flags(root)
    code, said = in_child(lambda: tiny.run_script("run_lad_distil", **flags), allocate_in_step(5))
    assert code == 4
    cure = "--accum_step 2 (other numbers), or --pad_loss masked (other numbers), or a smaller --batch_size"
    expected = f": out of memory in training; what was saved stays; {cure} (other numbers)"
    assert said.splitlines()[-1].endswith(expected)
    assert "Traceback" not in said
    code, said = in_child(lambda: tiny.run_script("run_lad_distil", **flags))
    assert code == 0
    assert "resuming after step 4" in said


def test_an_evaluation_that_needs_too_much(root: Path) -> None:
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "dev", "batch_size": 4} | tiny.paths(root)

    def greedy(*args: object) -> np.ndarray:
        predict(*args)
        return np.empty(TOO_MUCH, np.int8)

    code, said = in_child(lambda: tiny.run_script("run_fine_tune_eval", **flags), (evaluate, "predict", greedy))
    assert code == 4
    assert said.splitlines()[-1].endswith(
        ": out of memory in evaluation; what was scored stays; a smaller --batch_size"
    )


def test_a_file_for_which_there_is_no_room_is_not_called_damaged(root: Path) -> None:
    def greedy(*args: object, **kwargs: object) -> object:
        return torch.empty(TOO_MUCH // 4)

    flags = tiny.student_flags(root)
    code, said = in_child(lambda: tiny.run_script("run_lad_distil", **flags), (torch, "load", greedy))
    assert code == 4
    assert ": out of memory in training; " in said and "damaged" not in said


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), OSError(12, "Cannot allocate memory")]
)
def test_every_library_has_its_words_for_it(error: Exception) -> None:
    def work(flags: Namespace) -> None:
        raise UserError("model.safetensors: cannot be read") from error

    with pytest.raises(OutOfMemory, match="^out of memory in a test; a machine with more memory$"):
        needs_memory("in a test")(work)(Namespace())


def test_another_error_stays_a_bug(root: Path) -> None:
    def broken(*args: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    flags = tiny.student_flags(root)
    code, said = in_child(lambda: tiny.run_script("run_lad_distil", **flags), (Distillation, "forward", broken))
    assert code == 70
    assert "out of memory" not in said


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"batch_size": 32, "accum_step": 16, "pad_loss": "masked"}, ["--accum_step 32", "a smaller --batch_size"]),
        ({"batch_size": 3, "accum_step": 1, "pad_loss": "sampled"}, ["--pad_loss masked", "a smaller --batch_size"]),
        (
            {"batch_size": 1, "accum_step": 1, "precision": "fp32", "device_id": 0},
            ["--precision bf16"],
        ),
        ({"batch_size": 1, "accum_step": 1, "precision": "fp32", "device_id": -1}, ["a machine with more memory"]),
        ({"batch_size": 8}, ["a smaller --batch_size"]),
    ],
)
def test_only_cures_that_apply_are_named(flags: dict[str, object], found: list[str]) -> None:
    assert [cure.partition(" (")[0] for cure in cures(Namespace(**flags))] == found


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1,000 B"), (1024, "1 KiB"), (86016, "84 KiB"), (1.5e6, "1.43 MiB")]
    + [(1023 * 2**20, "1,023 MiB"), (5 * 2**30, "5 GiB"), (397.4 * 2**30, "397 GiB"), (2000 * 2**30, "2,000 GiB")],
)
def test_sizes_have_digits_that_mean_something(count: float, words: str) -> None:
    assert size_words(count) == words


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="needs glibc")
def test_what_is_freed_is_kept_for_the_next_one() -> None:
    """Tensors of 4 to 16 MiB, 20 at a time and 20 times: hardly a new page, but many where memory is given back."""
    program = """
import random, resource, sys
import torch
from fine_tune.core import memory

if sys.argv[1:]:
    memory.prepare()
random.seed(0)
for turn in range(25):
    if turn == 5:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(random.randrange(2**20, 2**22)) for _ in range(20)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    environment = {name: os.environ[name] for name in os.environ if not name.startswith(("MALLOC_", "GLIBC_"))}
    faults = []
    for words in ([], ["prepared"]):
        command = [sys.executable, "-c", program, *words]
        faults.append(int(subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True).stdout))
    given_back, kept = faults
    assert kept < given_back / 5


def test_what_was_freed_is_no_part_of_a_peak_that_is_measured_from_then_on() -> None:
    program = """
import torch
from fine_tune.core import memory
from fine_tune.training.summary import peak_memory, reset_peak_memory

memory.prepare()
reset_peak_memory([])
before = peak_memory([])["cpu"]
[torch.ones(2**21) for _ in range(25)]
between = peak_memory([])["cpu"]
reset_peak_memory([])
print(before, between, peak_memory([])["cpu"])
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=True)
    before, between, after = map(float, done.stdout.split())  # GiB
    assert between > before + 0.15
    assert after < before + 0.05


@pytest.mark.parametrize(("users", "found"), [(None, [0, 50]), ("20", [0, 0]), ("400", [150, 50])])
def test_few_kernels_are_kept_unless_the_user_wants_it_otherwise(users: str | None, found: list[int]) -> None:
    """oneDNN itself tells which it finds again, of 150 shapes and of 50 that come twice, one after the other."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN_")}
    environment |= {"ONEDNN_VERBOSE": "profile_create"} | ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": users} if users else {})
    program = """
def main():
    import torch
    from fine_tune.models.linear import product

    torch.set_num_threads(1)
    for first, count in ((1, 150), (1001, 50)):
        print("next", flush=True)
        for rows in 2 * list(range(first, first + count)):
            product(torch.ones(rows, 8), torch.ones(8, 8))

from fine_tune.cli import parser
parser.run_script(main)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert [part.count("create:cache_hit") for part in done.stdout.split("next\n")[1:]] == found
