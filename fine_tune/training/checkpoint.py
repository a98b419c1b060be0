"""Model, gate and state files of a run: written atomically, verified when read."""

import math
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from fine_tune.cli.runs import STATE
from fine_tune.core import torchrun
from fine_tune.core.errors import NotFinite, UserError
from fine_tune.core.files import atomic_write, require_file
from fine_tune.training.log import print0
from fine_tune.training.task import Task


def save(path: Path, value: Any) -> None:
    """Write `value` with torch.save, atomically; raises UserError when the system refuses."""
    with atomic_write(path) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch's word for a full disk
            raise OSError(str(error)) from error


def load(path: Path) -> Any:
    """Read a file of tensors, on the CPU and without running anything in it, after a look at its checksums.

    Raises UserError naming `path` when it is damaged.
    """
    require_file(path)
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has advice about files that it then refuses
        try:
            has_checksums = zipfile.is_zipfile(file)
            if has_checksums and is_damaged(file):
                raise ValueError
            file.seek(0)
            value = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged or foreign file makes torch and zipfile raise nearly anything
            raise UserError(f"{path}: is damaged or no checkpoint of tensors; delete it or use another step") from error
    if not has_checksums:
        print0(f"{path}: was saved without checksums by an old torch, so damage to it cannot be seen")
    return value


def is_damaged(file: IO[bytes]) -> bool:
    """Tell whether a record differs from the CRC-32 that torch.save writes for it, and that torch.load ignores.

    A record with external attributes, which torch.save leaves 0, is none that it wrote: such a bit alone makes
    torch.load return memory that was never filled.
    """
    with zipfile.ZipFile(file) as archive:
        return archive.testzip() is not None or any(record.external_attr for record in archive.infolist())


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a bare state dict strictly; only the `position_ids` that old checkpoints hold are dropped.

    Raises UserError naming `path` and the first thing that does not fit, NotFinite where a weight is no finite number.
    """
    weights = load(path)
    if not isinstance(weights, dict) or not all(isinstance(value, torch.Tensor) for value in weights.values()):
        raise UserError(f"{path}: holds something else than a model's weights")
    weights.pop("encoder.embeddings.position_ids", None)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reasons = str(error).strip().split("\n")[1:]
        raise UserError(f"{path}: does not fit the model of config.json: {reasons[0].strip()}") from error
    bad = first_non_finite({path.name: module})
    if bad:
        raise NotFinite(f"{path}: {bad} holds numbers that are not finite; use an earlier checkpoint")


def first_non_finite(modules: dict[str, nn.Module]) -> str:
    """Return the name of the first parameter that holds something else than finite numbers, "" if there is none."""
    named = ((f"{name}: {key}", p) for name, module in modules.items() for key, p in module.named_parameters())
    return next((key for key, parameter in named if not parameter.isfinite().all()), "")


def steps(folder: Path) -> list[int]:
    """Return the steps of the model checkpoints in `folder`, ascending."""
    found = (re.fullmatch(r"model-([0-9]+)\.pt", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def save_checkpoint(folder: Path, step: int, task: Task, vectors: dict[str, torch.Tensor]) -> None:
    """Write `<name>-<step>.pt` for every trainable module (its bare state dict) and every vector.

    The model comes last: a checkpoint is there when its model is.
    """
    states = {name: module.state_dict() for name, module in task.trainable_modules.items()}
    model = states.pop("model")
    vectors = {name: vector.cpu() for name, vector in vectors.items()}
    for name, value in (vectors | states | {"model": model}).items():
        save(folder / f"{name}-{step}.pt", value)


def prune(folder: Path, keep: int) -> None:
    """Delete all files of the checkpoints but the newest `keep`, also what an earlier, killed call left of them."""
    name = re.compile(r"(?:model|gate-[0-9]+|attn-[0-9]+)-([0-9]+)\.pt")
    found = ((path, name.fullmatch(path.name)) for path in folder.iterdir())
    step_of = {path: int(match[1]) for path, match in found if match}
    kept = sorted(set(step_of.values()))[-keep:]
    for path in sorted(step_of, key=lambda path: not path.name.startswith("model")):  # what is listed is complete
        if step_of[path] not in kept:
            path.unlink(missing_ok=True)


# --- resuming ---------------------------------------------------------------------------------------------------------


def save_state(
    folder: Path, step: int, task: Task, streams: list[dict[str, Any]], seconds: float, settings: str
) -> None:
    """Write all that a resume after `step` needs into one file; data order and learning rates follow from the step.

    `streams` are the `random_streams` of every rank, `seconds` the run's wall time so far, `settings` the checksum of
    what makes its numbers.
    """
    state = {
        "settings": settings,
        "step": step,
        "modules": {name: module.state_dict() for name, module in task.trainable_modules.items()},
        "optimizers": {name: group.optimizer.state_dict() for name, group in task.optimizers.items()},
        "random": streams,
        "seconds": seconds,
    }
    save(folder / STATE, state)


def random_streams() -> dict[str, Any]:
    """Return the state of this process's random streams: the CPU's and, by number, those of the GPUs it may use."""
    gpus = [gpu for gpu in range(torch.cuda.device_count()) if torchrun.WORLD_SIZE == 1 or gpu == torchrun.LOCAL_RANK]
    return {"cpu": torch.get_rng_state(), "gpus": {gpu: torch.cuda.get_rng_state(gpu) for gpu in gpus}}


def resume(folder: Path, task: Task, settings: str, total_step: int) -> tuple[int, float]:
    """Put everything back as `save_state` found it; return its step and seconds, 0 if there is no state.

    Raises UserError when the state is of a run of other `settings`, or does not fit this one.
    """
    path = folder / STATE
    if not path.is_file():
        return 0, 0.0
    state = load(path)
    try:
        if state.get("settings", settings) != settings:  # older states do not say
            raise ValueError
        step, seconds = int(state["step"]), float(state.get("seconds", 0))
        if not 0 < step <= total_step or not math.isfinite(seconds):
            raise ValueError
        for name, module in task.trainable_modules.items():
            module.load_state_dict(state["modules"][name])
        for name, group in task.optimizers.items():
            load_optimizer(group.optimizer, state["optimizers"][name])
        streams = state["random"][torchrun.RANK]
        torch.set_rng_state(streams["cpu"])
        for gpu, stream in streams["gpus"].items():
            if gpu < torch.cuda.device_count():  # devices may be others now
                torch.cuda.set_rng_state(stream, gpu)
        return step, seconds
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit this run; delete it or start with --overwrite") from error


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load AdamW's two averages of every parameter; ValueError where they are not of its shape and type.

    The fused kernel trusts them. What the flags say of an optimiser stays theirs.
    """
    own = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if not set(state["state"]) <= set(range(len(parameters))):
        raise ValueError
    for index, saved in state["state"].items():
        like = (parameters[index].shape, parameters[index].dtype)
        averages = saved["exp_avg"], saved["exp_avg_sq"]
        if len(saved) != 3 or saved["step"].numel() != 1 or any((each.shape, each.dtype) != like for each in averages):
            raise ValueError
    optimizer.load_state_dict(state)
    for group, options in zip(optimizer.param_groups, own, strict=True):
        group.update(options)
