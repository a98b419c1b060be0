"""Runs on disk: where their folders lie, what config.json says of them, and when two commands describe the same run."""

import hashlib
import json
import os
import re
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

from fine_tune.core.errors import UserError, nearest
from fine_tune.core.files import read_json
from fine_tune.core.shapes import Between, Shape
from fine_tune.data.tasks import Split, task_spec

PROJECT_ROOT = Path(__file__).resolve().parents[2]

SIZES = "num_hidden_layers hidden_size intermediate_size num_attention_heads type_vocab_size vocab_size".split()
STATE = "state.pt"  # what a resume needs; a finished run has none
INHERITED = ("dataset", "max_seq_len", "num_class", "ptrain_ver")  # a distiller takes these from its teacher

# A run may be resumed with other values of these: they shape where and how often, never the result.
RESUMABLE_FLAGS = set(
    "device_id tdevice_id gate_device_id cache_teacher cache_limit log_step ckpt_step keep_last data_dir "
    "experiment_dir weak_teacher eval_step eval_dataset".split()
)
USAGE = ("wall_seconds", "peak_memory_gib")  # what a finished run took
SEALS = {"config_sha256", "tokenizer_sha256"}  # by which a change to what was written is seen
# In config.json all the same:
NOT_FLAGS = SEALS | set(
    "kind method program labels encoder data_sha256 teacher_sha256 ptrain_commit ptrain_sha256".split()
)

PLAIN = re.compile(r"[A-Za-z0-9._-]{1,100}")
SIZE, COUNT = range(1, 10**6), range(0, 10**15)
ENCODER: Shape = dict.fromkeys((*SIZES, "max_position_embeddings"), SIZE) | {
    "hidden_act": PLAIN,
    "hidden_dropout_prob": Between(0, 1),
    "attention_probs_dropout_prob": Between(0, 1),
    "layer_norm_eps": Between(0, 1),
    "initializer_range": Between(0, 1e6),
    "pad_token_id": (COUNT, None),
}
CONFIG: Shape = (  # of what is read from a config.json; the values of other flags may be anything
    dict.fromkeys("experiment model task dataset teacher_exp tmodel method alp_exp probing_exp".split(), (PLAIN, None))
    | dict.fromkeys({"ptrain_ver", "program", "ptrain_commit", *SEALS}, str)
    | dict.fromkeys(("data_sha256", "teacher_sha256", "ptrain_sha256"), str)
    | dict.fromkeys(("max_seq_len", "num_class", "ranks"), SIZE)
    | dict.fromkeys("d_model d_ff num_attention_heads num_hidden_layers type_vocab_size".split(), SIZE)
    | dict.fromkeys(("total_step", "tckpt", "seed"), COUNT)
    | dict.fromkeys(("mu", "soft_weight", "wall_seconds"), float)
    | {"kind": {"teacher", "student"}, "device_id": range(-1, 10**6), "dropout": Between(0, 1), "encoder": ENCODER}
    | {"labels": [str], "id2label": {str: str}, "versions": ({}, None), "peak_memory_gib": {str: float}}
)


def own_folder(flags: Namespace) -> Path:
    """Return `<experiment_dir>/<experiment>_<model>_<task>` of the run that `flags`, or its config.json, describe."""
    return Path(flags.experiment_dir) / f"{flags.experiment}_{flags.model}_{flags.task}"


def teacher_folder(flags: Namespace) -> Path:
    """Return the folder of the teacher's run that --teacher_exp and --tmodel name."""
    return Path(flags.experiment_dir) / f"{flags.teacher_exp}_{flags.tmodel}_{flags.task}"


def log_folder(folder: Path) -> Path:
    """Return the tensorboard folder of the run in `folder`."""
    return folder.parent / "log" / folder.name


def checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the model checkpoints in `folder`, ascending."""
    found = (re.fullmatch(r"model-([0-9]+)\.pt", path.name) for path in folder.iterdir())
    return sorted(int(match[1]) for match in found if match)


def is_finished(folder: Path, config: Namespace) -> bool:
    """Tell whether the run in `folder` has come to its last step; the authors' configs need not name that."""
    last = getattr(config, "total_step", None)
    return not (folder / STATE).is_file() and (last is None or (folder / f"model-{last}.pt").is_file())


def data_file(flags: Namespace, split: Split) -> Path:
    """Return the file of `split` below --data_dir: the first of its names that exists, or else the first name."""
    paths = [Path(flags.data_dir) / name for name in split.files]
    return next((path for path in paths if os.path.isfile(path)), paths[0])


# --- config.json ------------------------------------------------------------------------------------------------------


def read_run(flag: str, folder: Path, flags: Namespace) -> Namespace:
    """Read the config.json of the run in `folder`, which `flag` named; what the authors do not write is added.

    A run that names its labels must have them in the order of --task: its logits would otherwise mean something else.

    Raises UserError naming the flag and the file.
    """
    path = folder / "config.json"
    try:
        saved = complete_config(path)
    except UserError as error:
        if os.path.lexists(path):
            raise UserError(f"--{flag}: {error}") from None
        others = f"--{'tmodel' if flag == 'teacher_exp' else 'model'}, --task, --experiment_dir"
        hint = nearest_run(folder, flags.task)
        raise UserError(f"--{flag}: {error}; is this the run you meant (check {others})?{hint}") from None
    named = saved.get("id2label", {})
    labels = saved.get("labels") or [named[key] for key in sorted(named, key=lambda key: (len(key), key))]
    wanted = task_spec(flags).labels
    if labels and labels != list(wanted):
        raise UserError(
            f"--{flag}: {path}: has the labels {', '.join(labels)}, but {flags.task} has {', '.join(wanted)}"
        )
    return Namespace(**saved)


def nearest_run(folder: Path, task: str) -> str:
    """Return a question after the run that a missing `folder` may mean, "" where none is near."""
    if not os.path.isdir(folder.parent):
        return ""
    names = {path.parent.name for path in folder.parent.glob(f"*_{task}/config.json")}
    model_and_task = "_".join(folder.name.rsplit("_", 2)[1:])
    doubled = folder.name.removesuffix(f"_{model_and_task}")  # --experiment with what is added to it
    if doubled in names:
        return f" (did you mean {doubled.removesuffix(f'_{model_and_task}')}?)"
    return nearest(folder.name, sorted(names)).replace(f"_{model_and_task}?", "?")


def complete_config(path: Path) -> dict[str, Any]:
    """Read a run's config.json with what the authors do not write; raises UserError naming what it lacks."""
    saved = read_config(path)
    missing = [key for key in (*INHERITED[:3], "device_id") if key not in saved]
    saved.setdefault("kind", "teacher" if "ptrain_ver" in saved else "student")
    if saved["kind"] == "teacher" and "ptrain_ver" not in saved:
        missing.append("ptrain_ver")
    saved.setdefault("ptrain_ver", "bert-base-uncased")  # the authors' students do not name theirs
    if "encoder" in saved:
        missing += [f"encoder.{key}" for key in SIZES if key not in saved["encoder"]]
    if missing:
        raise UserError(f"{path}: lacks {', '.join(missing)}, so it is not a run's config")
    return saved


def read_config(path: Path) -> dict[str, Any]:
    """Read a config.json; raises UserError naming `path` when it holds what it cannot, or was changed by hand."""
    saved = read_json(path, CONFIG)
    if saved.get("config_sha256") not in (None, seal(saved)):
        cure = "put it back as it was; if you vouch for it, take config_sha256 out of it"
        raise UserError(f"{path}: was changed since the run wrote it; {cure}")
    return saved


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` as config.json holds it, with the checksum by which a change to it is seen."""
    return content | {"config_sha256": seal(content)}


def seal(content: dict[str, Any]) -> str:
    """Return the checksum of all in `content` but a checksum of that kind."""
    rest = {name: value for name, value in content.items() if name != "config_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_teacher(flags: Namespace) -> Namespace:
    """Read the config of the teacher that --teacher_exp and --tmodel name; raises UserError naming the flag."""
    folder = teacher_folder(flags)
    teacher = read_run("teacher_exp", folder, flags)
    if teacher.kind != "teacher":
        raise UserError(f"--teacher_exp {flags.teacher_exp}: {folder} holds a {teacher.kind}, not a fine-tuned teacher")
    return teacher


def shared_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run's config.json that its repeats with other seeds have in common."""
    own = RESUMABLE_FLAGS | SEALS | {"experiment", "seed", "versions", "ranks", "program", *USAGE}
    own |= {"ptrain_ver"} if "ptrain_sha256" in config else set()
    return {name: value for name, value in config.items() if name not in own}


# --- a run that is there already --------------------------------------------------------------------------------------


class SavedConfig(NamedTuple):
    """What the config.json of a run said, and when it had last been written; no values and 0 where there was none."""

    values: dict[str, Any]
    written: int


def saved_config(flags: Namespace) -> SavedConfig:
    """Read the config.json of the run that `flags` describe, if it is there."""
    path = own_folder(flags) / "config.json"
    return SavedConfig(read_config(path) if os.path.lexists(path) else {}, last_written(path))


def last_written(path: Path) -> int:
    """Return when a file was last written, in nanoseconds; 0 when there is none."""
    return path.stat().st_mtime_ns if path.is_file() else 0


def require_same_settings(saved: dict[str, Any], config: Namespace) -> None:
    """Raise UserError that names each setting of `config`, flags or config.json, in which the run `saved` differs."""
    source = f"--experiment {config.experiment}: {own_folder(config)}"
    cure = "use another name, or --overwrite to start afresh"
    if "kind" not in saved:
        raise UserError(f"{source} was trained by other code, which cannot be resumed; {cure}")
    before = saved.get("ranks", 1)
    if getattr(config, "ranks", before) != before:  # flags alone do not say
        wanted = "go on with as many as before (torchrun --nproc_per_node), or use another name"
        raise UserError(f"{source} was started with {before} processes, now there are {config.ranks}; {wanted}")
    now = {name: value for name, value in vars(config).items() if name not in RESUMABLE_FLAGS | {"ranks", "versions"}}
    if saved["kind"] == "student" and "ptrain_sha256" in saved:  # which says more than where that model lies
        now.pop("ptrain_ver", None)
    shared = [name for name in now if name in saved and saved[name] != now[name]]
    changed = [f"{'' if name in NOT_FLAGS else '--'}{name} was {saved[name]}, now {now[name]}" for name in shared]
    if changed:
        raise UserError(f"{source} was started with other settings: {', '.join(changed)}; {cure}")
