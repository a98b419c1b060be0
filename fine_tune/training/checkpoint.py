"""Model, gate and state files of a run: written atomically, verified when read."""

import json
import math
import os
import re
import warnings
import zipfile
from argparse import Namespace
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from fine_tune.cli.runs import STATE, require_same_settings
from fine_tune.core import torchrun
from fine_tune.core.errors import NotFinite, UserError
from fine_tune.core.files import atomic_write, json_bytes, open_file
from fine_tune.models.precision import first_non_finite
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
    with open_file(path) as file, warnings.catch_warnings():
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
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in weights.items()
    ):
        raise UserError(f"{path}: holds something else than a model's weights")
    weights.pop("encoder.embeddings.position_ids", None)
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        reasons = str(error).strip().split("\n")[1:]
        raise UserError(f"{path}: does not fit the model of config.json: {reasons[0].strip()}") from error
    bad = first_non_finite({str(path): module})
    if bad:
        raise NotFinite(f"{bad} holds numbers that are not finite; use an earlier checkpoint")


def save_checkpoint(folder: Path, step: int, task: Task, vectors: dict[str, torch.Tensor]) -> None:
    """Write `<name>-<step>.pt` for every trainable module (its bare state dict) and every vector, all on the CPU.

    The model comes last: a checkpoint is there when its model is.
    """
    modules = task.trainable_modules.items()
    states = {name: {key: value.cpu() for key, value in module.state_dict().items()} for name, module in modules}
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
    folder: Path, step: int, task: Task, streams: list[dict[str, Any]], seconds: float, config: Namespace
) -> None:
    """Write all that a resume after `step` needs into one file; data order and learning rates follow from the step.

    `streams` are the `random_streams` of every rank, `seconds` the run's wall time so far; the settings in `config`
    tell whose state it is.
    """
    state = {
        "settings": json.loads(json_bytes(vars(config))),  # plain values, as load takes them
        "step": step,
        "modules": {name: module.state_dict() for name, module in task.trainable_modules.items()},
        "optimizers": {name: group.optimizer.state_dict() for name, group in task.optimizers.items()},
        "scaler": task.scaler and task.scaler.state_dict(),
        "random": streams,
        "seconds": seconds,
    }
    save(folder / STATE, state)


def random_streams(gpus: list[int]) -> dict[str, Any]:
    """Return the state of this process's random streams: the CPU's and, by number, those of `gpus`."""
    return {"cpu": torch.get_rng_state(), "gpus": {gpu: torch.cuda.get_rng_state(gpu) for gpu in gpus}}


def resume(folder: Path, task: Task, config: Namespace) -> tuple[int, float]:
    """Put everything back as `save_state` found it; return its step and seconds, 0 if there is no state.

    Raises UserError when it is the state of other settings than `config`, or not this task's.
    """
    path = folder / STATE
    if not os.path.lexists(path):
        return 0, 0.0
    state = load(path)
    try:
        if "settings" in state:  # older states do not say
            require_same_settings(state["settings"], config)
        require(type(state["step"]) is int and 0 < state["step"] <= config.total_step)
        require(math.isfinite(state.get("seconds", 0)))  # older states do not say
        for name, module in task.trainable_modules.items():
            require_alike(state["modules"][name], module.state_dict())
            module.load_state_dict(state["modules"][name])
        for name, group in task.optimizers.items():
            load_optimizer(group.optimizer, state["optimizers"][name]["state"])
        if task.scaler:
            require_alike(state["scaler"], task.scaler.state_dict())
            task.scaler.load_state_dict(state["scaler"])
        streams = state["random"][torchrun.RANK]
        torch.set_rng_state(streams["cpu"])
        for gpu, stream in streams["gpus"].items():
            if gpu in task.gpus:  # devices may be others now
                torch.cuda.set_rng_state(stream, gpu)
        return state["step"], float(state.get("seconds", 0))
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: does not fit this run; delete it or start with --overwrite") from error


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[int, dict[str, torch.Tensor]]) -> None:
    """Load the moments of AdamW by parameter; ValueError when they are not its parameters'.

    A fused optimiser takes whatever it is given, and may end the process. Its settings are not the file's but its own.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    require(len(saved) > 0 or not any(parameter.requires_grad for parameter in parameters))
    for index, moments in saved.items():
        own = {"step": torch.zeros(()), "exp_avg": parameters[index], "exp_avg_sq": parameters[index]}
        require_alike(moments, own)
    optimizer.load_state_dict({"state": saved, "param_groups": optimizer.state_dict()["param_groups"]})


def require_alike(saved: dict[str, torch.Tensor], own: dict[str, torch.Tensor]) -> None:
    """Raise ValueError unless the tensors of `saved` can take the place of `own`: shapes, types, strides."""
    require(saved.keys() == own.keys())
    for name, tensor in own.items():
        found = saved[name]
        require(type(found) in (torch.Tensor, nn.Parameter) and found.layout == tensor.layout)
        require((found.shape, found.dtype, found.stride()) == (tensor.shape, tensor.dtype, tensor.stride()))


def require(fact: bool) -> None:
    """Raise ValueError unless `fact` holds of a saved state."""
    if not fact:
        raise ValueError
