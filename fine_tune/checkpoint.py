"""Model, gate and state files of a run."""

import pickle
import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fine_tune.errors import UserError
from fine_tune.files import replacing
from fine_tune.optim import Learner

STATE = "state.pt"


def save(path: Path, value: Any) -> None:
    """Write `value` with torch.save, atomically; raises UserError naming `path` when the system refuses."""
    with replacing(path) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch's word for a full disk
            raise OSError(str(error)) from error


def load(path: Path) -> Any:
    """Read a file of tensors, on the CPU and without running anything in it; raises UserError naming `path`."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (RuntimeError, pickle.UnpicklingError, ValueError, EOFError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: is damaged or no checkpoint of tensors; delete it or use another step") from error


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a bare state dict strictly; only the `position_ids` that old checkpoints hold are dropped.

    Raises UserError naming `path` and the first thing that does not fit.
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


def steps(folder: Path) -> list[int]:
    """Return the steps of the model checkpoints in `folder`, ascending."""
    found = (re.fullmatch(r"model-([0-9]+)\.pt", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def save_parts(folder: Path, step: int, modules: dict[str, nn.Module], tensors: dict[str, torch.Tensor]) -> None:
    """Write `<name>-<step>.pt` for every module (its bare state dict) and every tensor."""
    for name, module in modules.items():
        save(folder / f"{name}-{step}.pt", module.state_dict())
    for name, tensor in tensors.items():
        save(folder / f"{name}-{step}.pt", tensor.cpu())


def save_state(folder: Path, step: int, modules: dict[str, nn.Module], learners: dict[str, Learner]) -> None:
    """Write all that a resume after `step` needs into one file; data order and learning rates follow from the step."""
    state = {
        "step": step,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizers": {name: learner.optimizer.state_dict() for name, learner in learners.items()},
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }
    save(folder / STATE, state)


def load_state(folder: Path, modules: dict[str, nn.Module], learners: dict[str, Learner]) -> int:
    """Put everything back as `save_state` found it; return the step it was saved after, 0 if there is no state."""
    if not (folder / STATE).is_file():
        return 0
    state = load(folder / STATE)
    try:
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        for name, learner in learners.items():
            learner.optimizer.load_state_dict(state["optimizers"][name])
        torch.set_rng_state(state["rng"])
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda_rng"])
        return state["step"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder / STATE}: does not fit this run; delete it or start with --overwrite") from error
