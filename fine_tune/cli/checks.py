"""The checks between flags: generators of problems, one line each, skipped while what they need is itself wrong.

Nothing here needs torch, so every mistake found here is answered in a fraction of a second.
"""

import os
import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from functools import partial, wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fine_tune.cli.evaluations import BEST, best_checkpoint
from fine_tune.cli.flags import CACHE_LIMIT, PAD_SAMPLES
from fine_tune.cli.runs import INHERITED, data_file, is_finished, own_folder, read_run, read_teacher, teacher_folder
from fine_tune.core.errors import UserError
from fine_tune.core.files import sha256
from fine_tune.data.tasks import TASK_FILE, TASKS, own_tasks, task_spec

STUDENT_SIZES = {  # flags, and what they are called in a teacher's config.json
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "type_vocab_size": "type_vocab_size",
}
BERT_BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "type_vocab_size": 2}

MANY = 12  # checkpoints that are named one by one

Check = Callable[[Namespace], Iterator[str]]
Rule = Callable[[Namespace, int], Iterator[str]]  # what a method asks of its flags for a teacher of so many layers


def needs(*names: str) -> Callable[[Callable[..., Iterator[str]]], Callable[..., Iterator[str]]]:
    """Skip a check or rule unless the flags `names` are all there and valid."""

    def decorate(check: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
        @wraps(check)
        def guarded(flags: Namespace, *more: Any, **own: Any) -> Iterator[str]:
            if all(hasattr(flags, name) for name in names):
                yield from check(flags, *more, **own)

        return guarded

    return decorate


def require(problems: Iterable[str]) -> None:
    """Raise one UserError that names all `problems`, if there are any."""
    found = list(problems)
    if found:
        raise UserError("; ".join(found))


# --- checks ---------------------------------------------------------------------------------------------------------


@needs("task")
def known_task(flags: Namespace) -> Iterator[str]:
    """The task is one of GLUE or has a task.json; else it is taken out, so that what needs it is skipped."""
    if flags.task in TASKS:
        return
    named, data_dir = flags.task, getattr(flags, "data_dir", None)
    if data_dir and os.path.isfile(Path(data_dir) / named / TASK_FILE):
        try:
            task_spec(flags)
            return
        except UserError as error:
            yield f"--task {named}: {error}"
    else:
        known = ", ".join([*TASKS, *(own_tasks(Path(data_dir)) if data_dir else [])])
        yield f"--task {named!r}: must be one of {known}"
    del flags.task


@needs("accum_step", "batch_size")
def accumulation(flags: Namespace) -> Iterator[str]:
    """Micro-batches must be whole."""
    if flags.batch_size % flags.accum_step:
        yield f"--accum_step {flags.accum_step}: must divide --batch_size {flags.batch_size}"


@needs("warmup_step", "total_step")
def warm_up(flags: Namespace) -> Iterator[str]:
    """The warm-up ends within the run."""
    if flags.warmup_step > flags.total_step:
        yield f"--warmup_step {flags.warmup_step}: must not exceed --total_step {flags.total_step}"


@needs("gate_warmup_step", "gate_total_step")
def gate_warm_up(flags: Namespace) -> Iterator[str]:
    """The gates' warm-up ends within the gates' schedule; where both are the student's, `warm_up` says so."""
    own = (flags.gate_warmup_step, flags.gate_total_step)
    taken = (getattr(flags, "warmup_step", None), getattr(flags, "total_step", None))
    if own[0] > own[1] and own != taken:
        limit = f"--gate_total_step {flags.gate_total_step}"
        yield f"--gate_warmup_step {flags.gate_warmup_step}: must not exceed {limit}"


@needs("teacher_config", "num_attention_heads", "d_model")
def heads(flags: Namespace) -> Iterator[str]:
    """Every attention head has the same width."""
    if flags.d_model % flags.num_attention_heads:
        yield f"--num_attention_heads {flags.num_attention_heads}: must divide --d_model {flags.d_model}"


@needs("task", "num_class")
def class_count(flags: Namespace) -> Iterator[str]:
    """The classifier has one output per label of the task."""
    expected = task_spec(flags).num_class
    if flags.num_class != expected:
        yield f"--num_class {flags.num_class}: --task {flags.task} needs {expected}"


def split_problems(flags: Namespace, dataset: str, allowed: list[str], flag: str) -> Iterator[str]:
    """Yield what is wrong with reading split `dataset` of the task."""
    if dataset not in allowed:
        yield f"{flag} {dataset}: --task {flags.task} has {', '.join(allowed)}" + (
            " (with labels)" if dataset in task_spec(flags).splits else ""
        )
        return
    if not hasattr(flags, "data_dir"):
        return
    path = data_file(flags, task_spec(flags).splits[dataset])
    if not os.path.isfile(path):
        yield f"--data_dir {flags.data_dir}: {path} does not exist; {data_cure(flags, path)}"


def data_cure(flags: Namespace, path: Path) -> str:
    """Return what to do about a data file that is not there: --data_dir may be a folder too deep, or too high."""
    name, folder = path.relative_to(flags.data_dir), Path(flags.data_dir)
    around = [folder.parent, *(sorted(folder.glob("*/")) if os.path.isdir(folder) else [])]
    near = next((each for each in around if os.path.isfile(each / name)), None)
    if near:
        return f"did you mean --data_dir {near}?"
    return "python -m fine_tune.download gets it (docs/data.md), or point --data_dir at it"


@needs("task", "dataset")
def labelled_split(flags: Namespace) -> Iterator[str]:
    """Training and evaluation read a split with labels."""
    yield from split_problems(flags, flags.dataset, task_spec(flags).labelled(), "--dataset")


@needs("task", "dataset")
def any_split(flags: Namespace) -> Iterator[str]:
    """A prediction reads any split."""
    yield from split_problems(flags, flags.dataset, list(task_spec(flags).splits), "--dataset")


@needs("task")
def dev_split(flags: Namespace) -> Iterator[str]:
    """What is said of a model is said of the dev split, which becomes `flags.dataset`."""
    flags.dataset = task_spec(flags).dev()
    yield from split_problems(flags, flags.dataset, [flags.dataset], "--dataset")


@needs("out")
def new_folder(flags: Namespace) -> Iterator[str]:
    """Nothing that is there already is written over."""
    if os.path.lexists(flags.out) and not (os.path.isdir(flags.out) and not os.listdir(flags.out)):
        yield f"--out {flags.out}: exists already; give a new folder"


@needs("ptrain_ver")
def pretrained_folder(flags: Namespace) -> Iterator[str]:
    """What looks like a path must be a folder with a model's config.json; a hub name is looked up later."""
    path = Path(flags.ptrain_ver)
    if os.path.isdir(path):
        if not (path / "config.json").is_file():
            yield f"--ptrain_ver {flags.ptrain_ver}: {path / 'config.json'} does not exist, so this is no model folder"
    elif os.path.exists(path) or path.is_absolute() or re.match(r"\.|.*/.*/", flags.ptrain_ver):
        yield f"--ptrain_ver {flags.ptrain_ver}: no such folder; give a local model folder or a hub name"


@needs("ptrain_ver")
def own_pretrained(flags: Namespace) -> Iterator[str]:
    """What a distiller is given stands in for the teacher's, which is not looked at before it is needed."""
    if flags.ptrain_ver is not None:
        yield from pretrained_folder(flags)


@needs("experiment", "model", "task", "experiment_dir")
def existing_run(flags: Namespace) -> Iterator[str]:
    """Evaluation and prediction need a run; what its config.json says becomes `flags.run_config`."""
    try:
        flags.run_config = read_run("experiment", own_folder(flags), flags)
    except UserError as error:
        yield str(error)


@needs("experiment", "model", "task", "experiment_dir", "ckpt")
def existing_checkpoint(flags: Namespace) -> Iterator[str]:
    """Prediction needs its checkpoint; a run that is missing altogether is reported by `existing_run`.

    The word best becomes the step that it means, and `flags.choice` says why; else that is empty.
    """
    flags.choice = ""
    if flags.ckpt == BEST:
        try:
            flags.ckpt, flags.choice = best_checkpoint(flags)
        except UserError as error:
            if hasattr(flags, "run_config"):
                yield str(error)
        return
    path = own_folder(flags) / f"model-{flags.ckpt}.pt"
    if hasattr(flags, "run_config") and not path.is_file():
        yield f"--ckpt {flags.ckpt}: {path} does not exist ({checkpoints_there(path.parent, flags.run_config)})"


def checkpoints_there(folder: Path, config: Namespace) -> str:
    """Return which checkpoints a run has, and whether more may come."""
    steps = sorted(int(path.stem[6:]) for path in folder.glob("model-*.pt") if path.stem[6:].isdecimal())
    there = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
    if len(steps) > MANY:
        there = f"there are {len(steps)}, from {steps[0]} to {steps[-1]}"
    at = f"{steps[-1] if steps else 0}" + (f" of {config.total_step}" if hasattr(config, "total_step") else "")
    return there if is_finished(folder, config) else f"{there}; the run is unfinished, at step {at}"


@needs("layers", "run_config", "experiment", "task", "experiment_dir")
def teacher_at_hand(flags: Namespace) -> Iterator[str]:
    """--layers compares a student with its teacher, whose config becomes `flags.teacher_config`."""
    run = flags.run_config
    if not flags.layers:
        return
    if not all(hasattr(run, name) for name in ("teacher_exp", "tmodel", "tckpt")):
        yield f"--layers: --experiment {flags.experiment} is no student of a teacher that its config.json names"
        return
    folder = teacher_folder(Namespace(**vars(run) | {"experiment_dir": flags.experiment_dir}))
    try:
        flags.teacher_config = read_run("layers", folder, flags)
    except UserError as error:
        yield str(error)
        return
    path = folder / f"model-{run.tckpt}.pt"
    if not path.is_file():
        yield f"--layers: {path}, the teacher of --experiment {flags.experiment}, does not exist"
    elif getattr(run, "teacher_sha256", None) not in (None, sha256(path)):  # older configs do not say
        yield f"--layers: {path} is not the teacher that taught --experiment {flags.experiment} any more; leave it out"


@needs("teacher_exp", "tmodel", "tckpt", "task", "experiment_dir")
def teacher_run(flags: Namespace) -> Iterator[str]:
    """A distiller needs its teacher's config, which becomes `flags.teacher_config`, its checkpoint and its data.

    The flags in INHERITED are set to the teacher's, and the student's sizes where they were not given.
    """
    try:
        teacher = flags.teacher_config = read_teacher(flags)
    except UserError as error:
        yield str(error)
        return
    if getattr(flags, "ptrain_ver", None):  # it lies elsewhere now
        teacher.ptrain_ver = flags.ptrain_ver
    vars(flags).update({name: getattr(teacher, name) for name in INHERITED})
    sizes = getattr(teacher, "encoder", BERT_BASE)  # the authors' folders do not say
    absent = {flag: sizes[key] for flag, key in STUDENT_SIZES.items() if getattr(flags, flag, key) is None}
    vars(flags).update(absent)
    path = teacher_folder(flags) / f"model-{flags.tckpt}.pt"
    if not path.is_file():
        yield f"--tckpt {flags.tckpt}: {path} does not exist ({checkpoints_there(path.parent, teacher)})"
    expected = task_spec(flags).num_class
    if teacher.num_class != expected:
        found = f"{path.with_name('config.json')} says num_class {teacher.num_class}"
        yield f"--teacher_exp {flags.teacher_exp}: {found}, but --task {flags.task} needs {expected}"
    allowed = task_spec(flags).labelled()
    yield from split_problems(flags, teacher.dataset, allowed, f"--teacher_exp {flags.teacher_exp}: its dataset")


def no_rule(flags: Namespace, layers: int) -> Iterator[str]:
    """Ask nothing: any depth that divides the teacher's will do."""
    yield from ()


@needs("teacher_config")
def fits_teacher(flags: Namespace, rule: Rule) -> Iterator[str]:
    """The student must fit the teacher. The authors' folders do not say its sizes: those are checked once known."""
    if hasattr(flags.teacher_config, "encoder"):
        yield from student_problems(flags, flags.teacher_config.encoder, rule)


def student_problems(flags: Namespace, encoder: dict[str, Any], rule: Rule) -> Iterator[str]:
    """The student must fit the teacher of sizes `encoder`: its width, layers that divide, weights that can be taken."""
    given = vars(flags)
    if "num_hidden_layers" in given:
        layers, students = encoder["num_hidden_layers"], flags.num_hidden_layers
        if layers % students:
            yield f"--num_hidden_layers {students}: must divide the teacher's {layers} layers"
        else:
            yield from rule(flags, layers)
    cures = {"d_model": ""}
    if given.get("student_init") != "random":
        cures |= dict.fromkeys(("d_ff", "num_attention_heads"), " unless --student_init random")
    if given.get("embedding_init") != "random":
        cures["type_vocab_size"] = " unless --embedding_init random"
    for flag, cure in cures.items():
        key = STUDENT_SIZES[flag]
        if flag in given and given[flag] != encoder[key]:
            yield f"--{flag} {given[flag]}: must be the teacher's {encoder[key]}{cure}"


@needs("teacher_config", "task", "type_vocab_size")
def segments(flags: Namespace) -> Iterator[str]:
    """A pair of texts has two segment ids."""
    if flags.type_vocab_size < 2 and task_spec(flags).reads_pairs:
        yield f"--type_vocab_size {flags.type_vocab_size}: --task {flags.task} has pairs of texts, which need 2"


@needs("pad_loss", "pad_samples")
def padding(flags: Namespace) -> Iterator[str]:
    """--pad_samples has a meaning only where padding is sampled."""
    if flags.pad_samples != PAD_SAMPLES and flags.pad_loss != "sampled":
        yield f"--pad_samples {flags.pad_samples}: has no meaning with --pad_loss {flags.pad_loss}; leave it out"


@needs("cache_teacher", "cache_limit")
def teacher_cache(flags: Namespace) -> Iterator[str]:
    """--cache_limit has a meaning only for a cache."""
    if flags.cache_limit != CACHE_LIMIT and not flags.cache_teacher:
        yield f"--cache_limit {flags.cache_limit:g}: has no meaning without --cache_teacher; leave it out"


@needs("task", "dataset", "metric")
def reported_score(flags: Namespace) -> Iterator[str]:
    """A report compares one of the task's scores on a split with labels; by default its first, on dev."""
    spec = task_spec(flags)
    flags.dataset = flags.dataset or spec.dev()
    flags.metric = flags.metric or spec.metrics[0]
    if flags.dataset not in spec.labelled():
        yield f"--dataset {flags.dataset}: --task {flags.task} has {', '.join(spec.labelled())} (with labels)"
    if flags.metric not in spec.metrics:
        yield f"--metric {flags.metric}: --task {flags.task} has {', '.join(spec.metrics)}"


@needs("plot")
def picture_format(flags: Namespace) -> Iterator[str]:
    """The picture's format is its file's; only a picture needs matplotlib."""
    if flags.plot and Path(flags.plot).suffix not in (".png", ".pdf", ".svg"):
        yield f"--plot {flags.plot}: must end in .png, .pdf or .svg"
    elif flags.plot and find_spec("matplotlib") is None:
        yield f"--plot {flags.plot}: needs matplotlib: pip install matplotlib"


@needs("task", "eval_step", "eval_dataset")
def evaluation_beside(flags: Namespace) -> Iterator[str]:
    """--eval_step reads a split with labels, by default dev; without it no split is read."""
    if flags.eval_step is None:
        if flags.eval_dataset is not None:
            yield f"--eval_dataset {flags.eval_dataset}: has no meaning without --eval_step; leave it out"
        return
    flags.eval_dataset = flags.eval_dataset or task_spec(flags).dev()
    yield from split_problems(flags, flags.eval_dataset, task_spec(flags).labelled(), "--eval_dataset")


TRAINING: tuple[Check, ...] = (known_task, accumulation, warm_up, evaluation_beside)
FINE_TUNING: tuple[Check, ...] = (*TRAINING, class_count, labelled_split, pretrained_folder)
EVALUATION: tuple[Check, ...] = (known_task, labelled_split, existing_run, teacher_at_hand)
REPORT: tuple[Check, ...] = (known_task, reported_score, picture_format)
PREDICTION: tuple[Check, ...] = (known_task, any_split, existing_run, existing_checkpoint)


def distillation(rule: Rule = no_rule) -> tuple[Check, ...]:
    """Return what every distiller checks; `rule` is the method's own."""
    shared = (gate_warm_up, padding, teacher_cache, own_pretrained, teacher_run, heads, segments)
    return (*TRAINING, *shared, partial(fits_teacher, rule=rule))
