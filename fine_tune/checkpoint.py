"""Model, gate and state files of a run."""

import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fine_tune import distributed
from fine_tune.errors import UserError
from fine_tune.files import replacing, sha256
from fine_tune.log import say
from fine_tune.optim import OptimizerGroup

STATE = "state.pt"
SUMS = "SHA256SUMS"


def save(path: Path, value: Any) -> None:
    """Write `value` with torch.save, atomically, and its checksum; raises UserError when the system refuses."""
    with replacing(path, before=lambda part: add_sum(path, sha256(part))) as file:
        try:
            torch.save(value, file)
        except RuntimeError as error:  # torch's word for a full disk
            raise OSError(str(error)) from error


def read_sums(folder: Path) -> dict[str, list[str]]:
    """Return the checksums listed in a folder by file name: none, one, or two while a file is being replaced."""
    sums: dict[str, list[str]] = {}
    path = folder / SUMS
    for line in path.read_text().splitlines() if path.is_file() else []:
        digest, _, name = line.partition("  ")
        sums.setdefault(name, []).append(digest)
    return sums


def write_sums(folder: Path, sums: dict[str, list[str]]) -> None:
    """Write the checksums of a folder as `sha256sum -c` reads them."""
    with replacing(folder / SUMS) as file:
        file.write("".join(f"{digest}  {name}\n" for name in sums for digest in sums[name]).encode())


def add_sum(path: Path, digest: str) -> None:
    """List the checksum of the file about to take the place of `path`; that of the one still there stays for now."""
    sums = read_sums(path.parent)
    old = sums.get(path.name, [])[-1:] if path.is_file() else []
    write_sums(path.parent, sums | {path.name: [*(digest_ for digest_ in old if digest_ != digest), digest]})


def remove(paths: list[Path]) -> None:
    """Delete checkpoint files of one folder and their checksums."""
    for path in paths:
        path.unlink(missing_ok=True)
    if paths:
        gone = {path.name for path in paths}
        folder = paths[0].parent
        write_sums(folder, {name: digests for name, digests in read_sums(folder).items() if name not in gone})


def load(path: Path) -> Any:
    """Read a file of tensors, on the CPU and without running anything in it, after a look at its checksum.

    Raises UserError naming `path` when it is damaged; a file that has no checksum is read with a note.
    """
    known = read_sums(path.parent).get(path.name) if path.is_file() else []
    if known is None:
        say(f"{path}: has no checksum in {SUMS} beside it, so damage to it cannot be seen")
    elif known and sha256(path) not in known:
        raise UserError(
            f"{path}: differs from its checksum in {SUMS}, so it is damaged (or was replaced: remove its line there)"
        )
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has advice about files that it then refuses
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged or foreign file makes torch raise nearly anything
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


def prune(folder: Path, keep: int) -> None:
    """Delete all parts of the checkpoints but the newest `keep`, also what an earlier, killed call left of them."""
    name = re.compile(r"(?:model|gate-[0-9]+|attn-[0-9]+)-([0-9]+)\.pt")
    found = ((path, name.fullmatch(path.name)) for path in folder.iterdir())
    parts = {path: int(match[1]) for path, match in found if match}
    kept = sorted(set(parts.values()))[-keep:]
    remove([path for path, step in parts.items() if step not in kept])


def save_state(
    folder: Path,
    step: int,
    modules: dict[str, nn.Module],
    groups: dict[str, OptimizerGroup],
    streams: list[dict[str, Any]],
) -> None:
    """Write all that a resume after `step` needs into one file; data order and learning rates follow from the step.

    `streams` are the `random_streams` of every rank.
    """
    state = {
        "step": step,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizers": {name: group.optimizer.state_dict() for name, group in groups.items()},
        "random": streams,
    }
    save(folder / STATE, state)


def random_streams() -> dict[str, Any]:
    """Return the state of this process's random streams: the CPU's and, by number, those of the GPUs it may use."""
    gpus = [
        gpu for gpu in range(torch.cuda.device_count()) if distributed.WORLD_SIZE == 1 or gpu == distributed.LOCAL_RANK
    ]
    return {"cpu": torch.get_rng_state(), "gpus": {gpu: torch.cuda.get_rng_state(gpu) for gpu in gpus}}


def load_state(folder: Path, modules: dict[str, nn.Module], groups: dict[str, OptimizerGroup]) -> int:
    """Put everything back as `save_state` found it; return the step it was saved after, 0 if there is no state."""
    if not (folder / STATE).is_file():
        return 0
    state = load(folder / STATE)
    try:
        for name, module in modules.items():
            module.load_state_dict(state["modules"][name])
        for name, group in groups.items():
            group.optimizer.load_state_dict(state["optimizers"][name])
        streams = state["random"][distributed.RANK]
        torch.set_rng_state(streams["cpu"])
        for gpu, stream in streams["gpus"].items():
            if gpu < torch.cuda.device_count():  # devices may be others now
                torch.cuda.set_rng_state(stream, gpu)
        return state["step"]
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder / STATE}: does not fit this run; delete it or start with --overwrite") from error
