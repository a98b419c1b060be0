"""The runs that a report compares: found, grouped, their checkpoint chosen; what is missing or unfair is named."""

import math
from argparse import Namespace
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fine_tune.cli.evaluations import (
    Evaluation,
    Row,
    best,
    evaluation_command,
    evaluation_path,
    logits_path,
    read_evaluation,
)
from fine_tune.cli.runs import NOT_FLAGS, checkpoint_steps, is_finished, read_run, shared_settings
from fine_tune.core.errors import UserError
from fine_tune.data.logits import read_logits

VARIANTS = ("alp_exp", "probing_exp", "method")  # the flags that name a method, the most exact first


@dataclass(frozen=True)
class Run:
    """A run and the checkpoint of it that counts; score in percent, logits None where they are not there."""

    experiment: str
    config: Namespace
    step: int
    score: float
    checkpoints: int  # scored, of which this one was chosen
    facts: dict[str, Any]
    logits: np.ndarray | None

    @property
    def seed(self) -> int:
        """The seed that the run was started with; the authors' configs need not say."""
        return getattr(self.config, "seed", 0)

    @property
    def teacher(self) -> str:
        """What tells its teacher's weights from others; "" for a run that had none."""
        if self.config.kind == "teacher":
            return ""
        named = f"{getattr(self.config, 'teacher_exp', '')} {getattr(self.config, 'tckpt', '')}".strip()
        return getattr(self.config, "teacher_sha256", named)


@dataclass
class Collection:
    """Everything that a report is made of: runs by group, teachers by checksum, and what there is to say of them."""

    groups: dict[str, list[Run]]
    teachers: dict[str, Run] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def runs(self) -> list[Run]:
        """Return the runs of all groups."""
        return [run for runs in self.groups.values() for run in runs]


def collect(flags: Namespace) -> Collection:
    """Read the runs that `flags` name; raises UserError when none is left, or when it would be unfair to compare them.

    A teacher among them is left to its students' comparison.
    """
    found = {folder: read_run("experiment", folder, flags) for folder in find(flags)}
    taught = {teacher_of(flags, config)[0] for config in found.values() if config.kind == "student"}
    own = {folder: config for folder, config in found.items() if folder not in taught}
    warnings: list[str] = []
    missing: list[str] = []
    chosen: list[Run] = []
    for folder, config in own.items():
        run = read_scored(flags, folder, config, missing)
        if run is not None and not any(is_twin(run, other, warnings) for other in chosen):
            chosen.append(run)
    if not chosen:
        raise UserError(f"no run is left to report: {'; '.join(missing)}")
    collection = Collection(grouped(chosen), warnings=warnings, missing=missing)
    for run in {run.teacher: run for run in reversed(chosen) if run.teacher}.values():  # the first of each teacher
        teacher = read_teacher_score(flags, run, missing)
        if teacher:
            collection.teachers[run.teacher] = teacher
    unfair = other_data(chosen)
    if unfair and not flags.anyway:
        raise UserError(f"{'; '.join(unfair)}: no fair comparison; --anyway makes it")
    warnings += unfair + other_choice(chosen, flags.select) + absent_seeds(collection.groups)
    return collection


def find(flags: Namespace) -> list[Path]:
    """Return the folders of the runs that the patterns name, each once."""
    folders: dict[Path, None] = {}
    for pattern in flags.experiment:
        matching = sorted(Path(flags.experiment_dir).glob(f"{pattern}_{flags.model}_{flags.task}"))
        matching = [folder for folder in matching if (folder / "config.json").is_file()]
        if not matching:
            where = Path(flags.experiment_dir) / f"{pattern}_{flags.model}_{flags.task}"
            raise UserError(f"EXPERIMENT {pattern}: there is no run {where} (check --model, --task, --experiment_dir)")
        folders |= dict.fromkeys(matching)
    return list(folders)


def name_of(flags: Namespace, folder: Path) -> str:
    """Return the experiment whose run lies in `folder`."""
    return folder.name.removesuffix(f"_{flags.model}_{flags.task}")


# --- one run ----------------------------------------------------------------------------------------------------------


def read_scored(flags: Namespace, folder: Path, config: Namespace, missing: list[str]) -> Run | None:
    """Return a run with its chosen checkpoint; None, and what to do about it in `missing`, where there is none."""
    name = name_of(flags, folder)
    who = f"{method_of(config)} seed {getattr(config, 'seed', '?')} ({name})"
    path = evaluation_path(folder, flags.dataset)
    cure = evaluation_command(flags, name, flags.model, flags.dataset)
    read = read_evaluation(path) if path.is_file() else Evaluation([], {})
    steps = checkpoint_steps(folder)
    last = getattr(config, "total_step", None)
    done = is_finished(folder, config) or last in [row["step"] for row in read.rows]
    if not done:
        at = f"at step {max(steps)} of {last}" if steps else "before its first checkpoint"
        missing.append(f"{who} is unfinished, {at}, and left out: give its training command again")
    elif not read.rows:
        missing.append(f"{who} has no {path.name}: {cure}")
    elif read.facts.get("finished") is False:
        missing.append(f"{who} was evaluated before its end: {cure}")
    else:
        return chosen_checkpoint(flags, folder, config, read, who, cure, missing)
    return None


def chosen_checkpoint(
    flags: Namespace, folder: Path, config: Namespace, read: Evaluation, who: str, cure: str, missing: list[str]
) -> Run | None:
    """Return a run with the checkpoint that --select takes; what it lacks is added to `missing`."""
    row = select(read.rows, flags.metric, flags.select)
    if row is None:
        known = ", ".join(str(row["step"]) for row in read.rows)
        missing.append(f"{who} has no score of step {flags.select}, only of {known}: {cure}")
        return None
    if math.isnan(row.get(flags.metric, math.nan)):
        what = f"{flags.metric} is not defined (constant predictions)" if flags.metric in row else f"no {flags.metric}"
        missing.append(f"{who}: {what}, so it is left out, and the others' mean is too good")
        return None
    unscored = sorted(set(checkpoint_steps(folder)) - {row["step"] for row in read.rows})
    if unscored:
        missing.append(f"{who} has checkpoints without a score, {', '.join(map(str, unscored))}: {cure}")
    logits = read_logits(logits_path(folder, flags.dataset, row["step"]), config.num_class, read.facts.get("rows"))
    if logits is None:
        missing.append(f"{who} has no logits of step {row['step']}: {cure}")
    score = 100 * row[flags.metric]
    return Run(name_of(flags, folder), config, row["step"], score, len(read.rows), read.facts, logits)


def select(rows: list[Row], metric: str, which: int | str) -> Row | None:
    """Return the row of the best or the last checkpoint, or of a step; None when there is none."""
    if which == "last":
        return max(rows, key=lambda row: row["step"])
    if which == "best":
        winner = best([{"step": row["step"], metric: row.get(metric, math.nan)} for row in rows]).get(metric)
        return next(row for row in rows if row["step"] == winner["step"]) if winner else rows[-1]
    return next((row for row in rows if row["step"] == which), None)


def is_twin(run: Run, other: Run, warnings: list[str]) -> bool:
    """Tell whether two runs are the same seed of the same settings, after a warning: they are one sample, not two."""
    twins = run.seed == other.seed and settings(run.config) == settings(other.config)
    if twins:
        warnings.append(f"{run.experiment} repeats {other.experiment}, seed and all, and is left out")
    return twins


def teacher_of(flags: Namespace, config: Namespace) -> tuple[Path, str]:
    """Return the folder and the model name of a student's teacher."""
    model = getattr(config, "tmodel", "bert")
    return Path(flags.experiment_dir) / f"{getattr(config, 'teacher_exp', '')}_{model}_{flags.task}", model


def read_teacher_score(flags: Namespace, run: Run, missing: list[str]) -> Run | None:
    """Return the teacher of a run at the step that taught; None, and what to do about it in `missing`."""
    folder, model = teacher_of(flags, run.config)
    name, step = run.config.teacher_exp, run.config.tckpt
    path = evaluation_path(folder, flags.dataset)
    cure = evaluation_command(flags, name, model, flags.dataset)
    read = read_evaluation(path) if path.is_file() else Evaluation([], {})
    row = select(read.rows, flags.metric, step)
    if row is None or math.isnan(row.get(flags.metric, math.nan)):
        missing.append(f"teacher {name} has no score of step {step}: {cure}")
        return None
    if row.get("sha256", run.teacher) != run.teacher and hasattr(run.config, "teacher_sha256"):
        missing.append(f"teacher {name}, step {step}, is not the one that taught {run.experiment} any more")
        return None
    logits = read_logits(logits_path(folder, flags.dataset, step), run.config.num_class, read.facts.get("rows"))
    if logits is None:
        missing.append(f"teacher {name} has no logits of step {step}: {cure}")
    config = read_run("experiment", folder, flags)
    return Run(name, config, step, 100 * row[flags.metric], len(read.rows), read.facts, logits)


# --- groups -----------------------------------------------------------------------------------------------------------


def method_of(config: Namespace) -> str:
    """Return a run's method by its most exact name; where mu is 0 it is none, and what is learned says more."""
    if config.kind == "student" and getattr(config, "mu", None) == 0:
        return "logits only" if config.soft_weight else "labels only"
    named = (getattr(config, flag, None) for flag in VARIANTS)
    return next(filter(None, named), "fine-tuned" if config.kind == "teacher" else "student")


def settings(config: Namespace) -> dict[str, Any]:
    """Return what all runs of a group have in common."""
    return shared_settings(vars(config))


def grouped(runs: list[Run]) -> dict[str, list[Run]]:
    """Return the runs by group, each called by its method, and by its flags where two groups have the same method."""
    groups: list[list[Run]] = []
    for run in runs:
        for group in groups:
            if settings(group[0].config) == settings(run.config):
                group.append(run)
                break
        else:
            groups.append([run])
    methods: dict[str, list[list[Run]]] = defaultdict(list)
    for group in groups:
        methods[method_of(group[0].config)].append(group)
    named = {}
    for method, same in methods.items():
        names = names_of(method, [group[0] for group in same])
        for name, group in zip(names, same, strict=True):  # what no flag tells apart, the first run's name does
            named[f"{name} ({group[0].experiment})" if names.count(name) > 1 else name] = group
    return {name: sorted(named[name], key=lambda run: run.seed) for name in sorted(named)}


def names_of(method: str, runs: list[Run]) -> list[str]:
    """Return what to call the group of each of `runs`: its method, and the flags that others do not share."""
    every, differing = [settings(run.config) for run in runs], differing_settings(runs)
    names = []
    for own in every:
        said = [name for name in differing if is_unusual(own.get(name), [each.get(name) for each in every])]
        names.append(" ".join([method, *(f"{name}={short(own.get(name))}" for name in said)]))
    return names


def is_unusual(value: Any, values: list[Any]) -> bool:
    """Tell whether at most half of `values` are `value`: of single changes to one setting, the name says the change."""
    return 2 * values.count(value) <= len(values)


def differing_settings(runs: list[Run]) -> list[str]:
    """Return the names of the flags in which runs differ; of what flags do not say only where no flag differs."""
    every = [settings(run.config) for run in runs]
    names = dict.fromkeys(name for own in every for name in own)
    differing = [name for name in names if any(own.get(name) != every[0].get(name) for own in every)]
    flags = [name for name in differing if name not in NOT_FLAGS]
    # A gate's flag that only follows the student's says nothing new.
    follows = {
        name for name in flags if all(own.get(name) == own.get(name.removeprefix("gate_"), own) for own in every)
    }
    return [name for name in flags if not name.startswith("gate_") or name not in follows] or differing


def short(value: Any) -> str:
    """Return a setting's value as it is typed: no path but its name, a number without needless digits."""
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ",".join(map(str, value))
    return Path(value).name[:16] if isinstance(value, str) else str(value)


# --- what is unfair ---------------------------------------------------------------------------------------------------


def other_data(runs: list[Run]) -> list[str]:
    """Return why it would be unfair to compare `runs` at all: other teachers, other data."""
    found = []
    teachers = {run.teacher: f"{run.config.teacher_exp} step {run.config.tckpt}" for run in runs if run.teacher}
    if len(teachers) > 1:
        found.append(f"the runs had different teachers ({', '.join(sorted(teachers.values()))})")
    for what, key in (("trained", lambda run: getattr(run.config, "data_sha256", None)), ("evaluated", evaluated_on)):
        examples = {key(run): run.experiment for run in reversed(runs) if key(run)}
        if len(examples) > 1:
            found.append(f"the runs were {what} on different data ({', '.join(examples.values())})")
    return found


def evaluated_on(run: Run) -> str | None:
    """Return the checksum of the data that a run was scored on; older evaluations do not say."""
    return run.facts.get("data_sha256")


def other_choice(runs: list[Run], which: int | str) -> list[str]:
    """Return a warning when the best of more checkpoints is compared with the best of fewer."""
    counts = Counter(run.checkpoints for run in runs)
    if which != "best" or len(counts) < 2:
        return []
    return [
        f"best of {max(counts)} checkpoints against best of {min(counts)}: more to choose from, higher the best; "
        "--select last is fair"
    ]


def absent_seeds(groups: dict[str, list[Run]]) -> list[str]:
    """Return a warning for each group that lacks seeds which others have: pairs are then fewer."""
    every = {run.seed for runs in groups.values() for run in runs}
    found = []
    for name, runs in groups.items():
        absent = sorted(every - {run.seed for run in runs})
        if absent and len(groups) > 1:
            found.append(f"{name} has no run of seed{'s' * (len(absent) > 1)} {', '.join(map(str, absent))}")
    return found


def beyond_the_method(name: str, own: Run, baseline: str, base: Run) -> list[str]:
    """Return a warning that names the shared flags in which a group differs from the baseline, beside the method."""
    a, b = settings(own.config), settings(base.config)
    apart = set(VARIANTS) | NOT_FLAGS | {"teacher_exp", "tckpt", "tmodel"}
    differing = [key for key in a if key in b and a[key] != b[key] and key not in apart]
    if not differing:
        return []
    listed = ", ".join(f"{key} {short(a[key])} (there {short(b[key])})" for key in differing)
    return [f"{name} differs from {baseline} in more than the method: {listed}"]
