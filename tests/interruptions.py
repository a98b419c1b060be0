"""Runs that are really killed: a script in a forked process, with a signal at a chosen moment, and what it leaves.

A moment is a patch (owner, name, replacement): the function as it is, but for a signal to the process in one call of
it. Moments are chosen by what the call is about - a step, a file - and not by how many calls came before.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from fine_tune.cli import parser
from fine_tune.distil import Distillation
from fine_tune.training.optim import OptimizerGroup
from tests import golden, tiny

SCRIPTS = {
    name: golden.RUNS[name] for name in ("lad", "lad_no", "partial_lad", "alp-kd-hidden-v2", "pkd", "lad-sampled")
}
Patch = tuple[object, str, object]


def in_child(action: Callable[[], None], *patches: Patch) -> tuple[int, str]:
    """Call `action` as a script's main in a forked process, with attributes patched; return its exit status and stderr.

    A process ended by a signal has the negative of its number as its status.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.close(read)
            os.dup2(write, 2)
            sys.stderr = open(2, "w", buffering=1, closefd=False)
            for owner, name, value in patches:
                setattr(owner, name, value)
            parser.run_script(action)
        except SystemExit as stop:
            status = stop.code
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


# --- moments ----------------------------------------------------------------------------------------------------------


def killed_when(
    owner: object, name: str, chosen: Callable[..., bool], number: int = signal.SIGKILL, after: bool = False
) -> Patch:
    """Send the process a signal before (or after) the first call of a function whose arguments are `chosen`."""
    function, done = getattr(owner, name), []

    def wrapped(*args: object, **kwargs: object) -> object:
        now = not done and chosen(*args, **kwargs)
        if now and not after:
            done.append(os.kill(os.getpid(), number))
        result = function(*args, **kwargs)
        if now and after:
            done.append(os.kill(os.getpid(), number))
        return result

    return owner, name, wrapped


def in_step(step: int, owner: type = Distillation, number: int = signal.SIGKILL) -> Patch:
    """Stop a run of two micro-batches a step before the second one of `step`."""
    seen = []

    def second(task: object, lengths: object, chosen: object, now: int) -> bool:
        seen.append(now)
        return seen.count(step) == 2

    return killed_when(owner, "layout", second, number)


def before_update(step: int) -> Patch:
    """Kill a run between the clipping and the update of `step`."""
    return killed_when(OptimizerGroup, "step", lambda group, now, found_inf: now == step)


def at_rename(name: str, old: bool, after: bool = False) -> Patch:
    """Kill a run before (or after) a finished file gets its `name`, where there is an `old` one or there is none."""

    def chosen(part: Path, path: Path) -> bool:
        return Path(path).name == name and Path(path).exists() == old

    return killed_when(os, "replace", chosen, after=after)


# --- what is run, and how two runs compare ----------------------------------------------------------------------------


def flags_of(root: Path, name: str, runs: str) -> tuple[str, dict[str, object]]:
    """Return a training command: dropout on, accumulation on, 12 steps of 4 over more than two epochs of 21."""
    long = {"total_step": 12, "warmup_step": 3, "ckpt_step": 5, "accum_step": 2, "dropout": 0.2, "lr": 1e-2}
    if name == "teacher":
        flags = tiny.teacher_flags(root, **long, experiment="run")
        script = "run_fine_tune"
    else:
        script, changes = SCRIPTS[name]
        flags = tiny.student_flags(root, **(changes | long), experiment="run")
        os.makedirs(root / runs, exist_ok=True)
        if not (root / runs / "teacher_bert_qqp").exists():
            os.symlink(root / "runs" / "teacher_bert_qqp", root / runs / "teacher_bert_qqp")
    return script, flags | {"experiment_dir": root / runs}


def run_on_a_gpu(
    root: Path, name: str, switches: tuple[str, ...], changes: dict[str, object], runs: str, *starts: tuple[Patch, ...]
) -> None:
    """Start a command in the folder `runs`, with `switches` and `changes`, once for each of `starts`; the last ends it.

    For a process that has not touched CUDA, which does not survive a fork. Some of CUDA's kernels add in any order:
    these are replaced.
    """
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    script, flags = flags_of(root, name, runs)
    for number, patches in enumerate(starts, 1):
        status, said = in_child(lambda: tiny.run_script(script, *switches, **flags | changes), *patches)
        assert status == (0 if number == len(starts) else -signal.SIGKILL), said


def resumed_on_a_gpu(root: Path, name: str, switches: tuple[str, ...], changes: dict[str, object]) -> list[str]:
    """Return in what a run that was killed and resumed differs from one that was not, as `run_on_a_gpu` runs them."""
    run_on_a_gpu(root, name, switches, changes, "whole", ())
    run_on_a_gpu(root, name, switches, changes, "broken", (before_update(8),), ())
    return difference(root / "whole", root / "broken")


def resumed_without_its_stream(root: Path, name: str, switches: tuple[str, ...], changes: dict[str, object]) -> None:
    """Kill a run and resume it, in the folder `other`, with the GPU's random stream of a fresh start."""
    fresh = (torch.cuda, "set_rng_state", lambda *stream: None)
    run_on_a_gpu(root, name, switches, changes, "other", (before_update(8),), (fresh,))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of every checkpoint file by file and name."""
    found = {}
    for path in sorted(folder.glob("*.pt")):
        value = torch.load(path, map_location="cpu", weights_only=True)
        found |= {f"{path.name}:{k}": v for k, v in (value if isinstance(value, dict) else {"": value}).items()}
    return found


def difference(one: Path, two: Path) -> list[str]:
    """Return in what the runs `run` of two experiment folders differ: file names, tensors, curves."""
    first, second = one / "run_bert_qqp", two / "run_bert_qqp"
    names = {path.name for path in first.iterdir()} ^ {path.name for path in second.iterdir()}
    a, b = tensors(first), tensors(second)
    changed = [name for name in a if name not in b or not torch.equal(a[name], b[name])]
    x, y = (tiny.curves(runs, "run_bert_qqp") for runs in (one, two))
    tags = {tag for tag in x.keys() | y.keys() if "/time/" not in tag}  # no two runs take the same time
    shown = [tag for tag in tags if repr(x.get(tag)) != repr(y.get(tag))]  # nan, of an overflow, is as nan
    return [*names, *changed, *shown]
