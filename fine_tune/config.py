"""What a run is: a namespace of flags, saved to and read from `config.json`, and the checks between flags.

A check is a generator of problems, one line each, that names the flags it needs; it is skipped while one of them is
itself wrong. Nothing here needs torch, so every mistake found here is answered in a fraction of a second.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from fine_tune.errors import UserError
from fine_tune.files import read_json
from fine_tune.tasks import TASKS, Split

PROJECT_ROOT = Path(__file__).resolve().parent.parent

Check = Callable[[Namespace], Iterator[str]]

COMPARED = ("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "type_vocab_size")
PAD_SAMPLES = 4  # the default of --pad_samples
INHERITED = ("dataset", "max_seq_len", "num_class", "ptrain_ver")  # a distiller takes these from its teacher


def needs(*flags: str) -> Callable[[Check], Check]:
    """Skip a check unless all of `flags` are there and valid."""

    def decorate(check: Check) -> Check:
        def guarded(config: Namespace) -> Iterator[str]:
            if all(hasattr(config, flag) for flag in flags):
                yield from check(config)

        return guarded

    return decorate


def run_folder(config: Namespace, experiment: str, model: str) -> Path:
    """Return `<experiment_dir>/<experiment>_<model>_<task>`."""
    return Path(config.experiment_dir) / f"{experiment}_{model}_{config.task}"


def log_folder(folder: Path) -> Path:
    """Return the tensorboard folder of the run in `folder`."""
    return folder.parent / "log" / folder.name


def read_run(flag: str, folder: Path, task: str) -> Namespace:
    """Read the config.json of the run in `folder`, which `flag` named; `kind` is added where the authors wrote none.

    A run that names its labels must have them in the order of `task`: its logits would otherwise mean something else.

    Raises UserError naming the flag and the file.
    """
    try:
        saved = read_json(folder / "config.json")
    except UserError as error:
        model = "tmodel" if flag == "teacher_exp" else "model"
        raise UserError(
            f"--{flag}: {error}; is this the run you meant (check --{model}, --task, --experiment_dir)?"
        ) from None
    saved.setdefault("kind", "teacher" if "ptrain_ver" in saved else "student")
    missing = [key for key in (*INHERITED[:3], "device_id") if key not in saved]
    if saved["kind"] == "teacher" and "ptrain_ver" not in saved:
        missing.append("ptrain_ver")
    if "encoder" in saved:
        sizes = saved["encoder"] if isinstance(saved["encoder"], dict) else {}
        missing += [f"encoder.{key}" for key in COMPARED if key not in sizes]
    if missing:
        raise UserError(f"--{flag}: {folder / 'config.json'}: lacks {', '.join(missing)}, so it is not a run's config")
    labels = saved.get("labels") or [saved["id2label"][key] for key in sorted(saved.get("id2label", {}), key=int)]
    if labels and labels != list(TASKS[task].labels):
        wanted = ", ".join(TASKS[task].labels)
        raise UserError(
            f"--{flag}: {folder / 'config.json'}: has the labels {', '.join(labels)}, but {task} has {wanted}"
        )
    return Namespace(**saved)


def read_teacher(config: Namespace) -> Namespace:
    """Read the config of the teacher that --teacher_exp and --tmodel name; raises UserError naming the flag."""
    folder = run_folder(config, config.teacher_exp, config.tmodel)
    teacher = read_run("teacher_exp", folder, config.task)
    if teacher.kind != "teacher":
        raise UserError(
            f"--teacher_exp {config.teacher_exp}: {folder} holds a {teacher.kind}, not a fine-tuned teacher"
        )
    return teacher


def inherit(config: Namespace, teacher: Namespace) -> Namespace:
    """Return the distiller's config with what it takes from its teacher's."""
    return Namespace(**vars(config) | {name: getattr(teacher, name) for name in INHERITED})


def data_file(config: Namespace, split: Split) -> Path:
    """Return the file of `split` below --data_dir: the first of its names that exists, or else the first name."""
    paths = [Path(config.data_dir) / name for name in split.files]
    return next((path for path in paths if os.path.isfile(path)), paths[0])


def require(problems: Iterable[str]) -> None:
    """Raise one UserError that names all `problems`, if there are any."""
    found = list(problems)
    if found:
        raise UserError("; ".join(found))


# --- checks ---------------------------------------------------------------------------------------------------------


@needs("accum_step", "batch_size")
def accumulation(config: Namespace) -> Iterator[str]:
    """Micro-batches must be whole."""
    if config.batch_size % config.accum_step:
        yield f"--accum_step {config.accum_step}: must divide --batch_size {config.batch_size}"


@needs("warmup_step", "total_step")
def warm_up(config: Namespace) -> Iterator[str]:
    """The warm-up ends within the run."""
    if config.warmup_step > config.total_step:
        yield f"--warmup_step {config.warmup_step}: must not exceed --total_step {config.total_step}"


@needs("gate_warmup_step", "gate_total_step")
def gate_warm_up(config: Namespace) -> Iterator[str]:
    """The gates' warm-up ends within the gates' schedule; where both are the student's, `warm_up` says so."""
    own = (config.gate_warmup_step, config.gate_total_step)
    taken = (getattr(config, "warmup_step", None), getattr(config, "total_step", None))
    if own[0] > own[1] and own != taken:
        limit = f"--gate_total_step {config.gate_total_step}"
        yield f"--gate_warmup_step {config.gate_warmup_step}: must not exceed {limit}"


@needs("num_attention_heads", "d_model")
def heads(config: Namespace) -> Iterator[str]:
    """Every attention head has the same width."""
    if config.d_model % config.num_attention_heads:
        yield f"--num_attention_heads {config.num_attention_heads}: must divide --d_model {config.d_model}"


@needs("task", "num_class")
def class_count(config: Namespace) -> Iterator[str]:
    """The classifier has one output per label of the task."""
    expected = TASKS[config.task].num_class
    if config.num_class != expected:
        yield f"--num_class {config.num_class}: --task {config.task} needs {expected}"


def split_problems(config: Namespace, dataset: str, allowed: list[str], flag: str) -> Iterator[str]:
    """Yield what is wrong with reading split `dataset` of the task."""
    if dataset not in allowed:
        yield f"{flag} {dataset}: --task {config.task} has {', '.join(allowed)}" + (
            " (with labels)" if dataset in TASKS[config.task].splits else ""
        )
        return
    if not hasattr(config, "data_dir"):
        return
    path = data_file(config, TASKS[config.task].splits[dataset])
    if not os.path.isfile(path):
        yield f"--data_dir {config.data_dir}: {path} does not exist; download the data or point --data_dir at it"


@needs("task", "dataset")
def labelled_split(config: Namespace) -> Iterator[str]:
    """Training and evaluation read a split with labels."""
    yield from split_problems(config, config.dataset, TASKS[config.task].labelled(), "--dataset")


@needs("task", "dataset")
def any_split(config: Namespace) -> Iterator[str]:
    """A prediction reads any split."""
    yield from split_problems(config, config.dataset, list(TASKS[config.task].splits), "--dataset")


@needs("ptrain_ver")
def pretrained_place(config: Namespace) -> Iterator[str]:
    """What looks like a path must be a folder with a model's config.json; a hub name is looked up later."""
    path = Path(config.ptrain_ver)
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            yield f"--ptrain_ver {config.ptrain_ver}: {path / 'config.json'} does not exist, so this is no model folder"
    elif (
        os.path.exists(path)
        or path.is_absolute()
        or config.ptrain_ver.count("/") > 1
        or config.ptrain_ver.startswith(".")
    ):
        yield f"--ptrain_ver {config.ptrain_ver}: no such folder; give a local model folder or a hub name"


@needs("experiment", "model", "task", "experiment_dir")
def existing_run(config: Namespace) -> Iterator[str]:
    """Evaluation and prediction need a run."""
    folder = run_folder(config, config.experiment, config.model)
    try:
        read_run("experiment", folder, config.task)
    except UserError as error:
        yield str(error)


@needs("experiment", "model", "task", "experiment_dir", "ckpt")
def existing_checkpoint(config: Namespace) -> Iterator[str]:
    """Prediction needs its checkpoint; a run that is missing altogether is reported by `existing_run`."""
    folder = run_folder(config, config.experiment, config.model)
    path = folder / f"model-{config.ckpt}.pt"
    if (folder / "config.json").is_file() and not path.is_file():
        yield f"--ckpt {config.ckpt}: {path} does not exist"


@needs("teacher_exp", "tmodel", "tckpt", "task", "experiment_dir")
def teacher_run(config: Namespace) -> Iterator[str]:
    """The teacher's folder must hold its config and the checkpoint of --tckpt, and its data must be at hand."""
    try:
        teacher = read_teacher(config)
    except UserError as error:
        yield str(error)
        return
    path = run_folder(config, config.teacher_exp, config.tmodel) / f"model-{config.tckpt}.pt"
    if not path.is_file():
        yield f"--tckpt {config.tckpt}: {path} does not exist"
    expected = TASKS[config.task].num_class
    if teacher.num_class != expected:
        file = path.with_name("config.json")
        yield (
            f"--teacher_exp {config.teacher_exp}: {file} says num_class {teacher.num_class}, "
            f"but --task {config.task} needs {expected}"
        )
    allowed = TASKS[config.task].labelled()
    yield from split_problems(config, teacher.dataset, allowed, f"--teacher_exp {config.teacher_exp}: its dataset")
    if hasattr(teacher, "encoder"):  # the authors' folders do not say: those sizes are checked once they are known
        yield from student_sizes(config, teacher.encoder)


def student_sizes(config: Namespace, encoder: dict[str, Any]) -> Iterator[str]:
    """The student must fit the teacher of sizes `encoder`: its width, layers that divide, weights that can be taken."""
    given = vars(config)
    if "num_hidden_layers" in given:
        yield from student_depth(config, encoder["num_hidden_layers"])
    taken = given.get("student_init") != "random"
    same = {"d_model": "hidden_size"}
    if taken:
        same |= {"d_ff": "intermediate_size", "num_attention_heads": "num_attention_heads"}
    if given.get("embedding_init") != "random":
        same["type_vocab_size"] = "type_vocab_size"
    for flag, key in same.items():
        if flag in given and given[flag] != encoder[key]:
            cure = {"d_model": "", "type_vocab_size": " unless --embedding_init random"}.get(
                flag, " unless --student_init random"
            )
            yield f"--{flag} {given[flag]}: must be the teacher's {encoder[key]}{cure}"


def student_depth(config: Namespace, layers: int) -> Iterator[str]:
    """The student's depth must divide the teacher's `layers`, and suit the method."""
    students = config.num_hidden_layers
    if layers % students:
        yield f"--num_hidden_layers {students}: must divide the teacher's {layers} layers"
    elif config.method == "lad_no" and layers // students < 2:
        yield f"--num_hidden_layers {students}: LAD-NO needs at most half of the teacher's {layers} layers"
    elif hasattr(config, "gate_indices") and hasattr(config, "student_indices") and hasattr(config, "probing_exp"):
        yield from index_problems(config, layers)


@needs("probing_exp", "gate_indices")
def probe(config: Namespace) -> Iterator[str]:
    """Every probe but lad_cls pairs layers; lad_cls pairs none."""
    if config.probing_exp != "lad_cls" and config.gate_indices is None:
        yield f"--gate_indices: is required with --probing_exp {config.probing_exp}"
    for flag in ("gate_indices", "student_indices"):
        if config.probing_exp == "lad_cls" and getattr(config, flag, None):
            yield f"--{flag}: has no meaning with --probing_exp lad_cls; leave it out"


@needs("task", "type_vocab_size")
def segments(config: Namespace) -> Iterator[str]:
    """A pair of texts has two segment ids."""
    if config.type_vocab_size < 2 and TASKS[config.task].splits["train"].pair is not None:
        yield f"--type_vocab_size {config.type_vocab_size}: --task {config.task} has pairs of texts, which need 2"


@needs("pad_loss", "pad_samples")
def padding(config: Namespace) -> Iterator[str]:
    """How much padding is sampled says nothing where none is."""
    if config.pad_samples != PAD_SAMPLES and config.pad_loss != "sampled":
        yield f"--pad_samples {config.pad_samples}: has no meaning with --pad_loss {config.pad_loss}; leave it out"


@needs("cache_teacher", "mu")
def teacher_cache(config: Namespace) -> Iterator[str]:
    """Only what the teacher says of [CLS] is small enough to be kept."""
    cls_only = "alp-kd" == getattr(config, "alp_exp", "") or "lad_cls" == getattr(config, "probing_exp", "")
    if config.cache_teacher and config.mu > 0 and not cls_only:
        yield (
            "--cache_teacher: this method reads the teacher's state at every position of every layer, megabytes an "
            "example; it is for --alp_exp alp-kd, --probing_exp lad_cls and --mu 0"
        )


def index_problems(config: Namespace, layers: int) -> Iterator[str]:
    """Yield what is wrong with --gate_indices and --student_indices for a teacher of `layers` layers."""
    if config.probing_exp == "lad_cls" or config.gate_indices is None:
        return
    gates, students = config.gate_indices, config.num_hidden_layers
    chosen = config.student_indices or list(range(1, students + 1))
    limits = (("gate_indices", gates, layers), ("student_indices", chosen, students))
    outside = [(flag, values, limit) for flag, values, limit in limits if max(values) > limit]
    for flag, values, limit in outside:
        yield f"--{flag} {listed(values)}: must lie within 1..{limit}"
    if outside:
        return
    both = f"--gate_indices {listed(gates)} and --student_indices {listed(chosen)}"
    if config.probing_exp == "lad_user_defined" and len(chosen) != len(gates):
        yield f"{both}: must name as many layers as each other, not {len(gates)} and {len(chosen)}"
    if config.probing_exp == "partial_lad":
        skip = layers // students
        if len(chosen) not in (len(gates), students):
            yield f"{both}: the latter must name {len(gates)} layers, or all {students}"
        rest, odd = divmod(layers - max(gates), skip)
        if odd or len(gates) + rest != students:
            yield (
                f"{both}: {len(gates)} gates and every {skip}th layer from {max(gates)} to {layers} "
                f"must make {students} targets"
            )


def listed(numbers: list[int]) -> str:
    """Return numbers as they are typed."""
    return ",".join(map(str, numbers))


TRAINING: tuple[Check, ...] = (accumulation, warm_up)
TEACHER: tuple[Check, ...] = (*TRAINING, class_count, labelled_split, pretrained_place)
STUDENT: tuple[Check, ...] = (*TRAINING, heads, segments, padding, teacher_run, teacher_cache)
GATED: tuple[Check, ...] = (*STUDENT, gate_warm_up)
PROBING: tuple[Check, ...] = (*GATED, probe)
EVALUATION: tuple[Check, ...] = (labelled_split, existing_run)
PREDICTION: tuple[Check, ...] = (any_split, existing_run, existing_checkpoint)
