"""What a report says in numbers: scores in percent, differences in points. Without torch, which takes seconds.

Shapes: n examples of the split, R runs, B draws.
"""

import math
from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fine_tune.cli.runs import data_file
from fine_tune.core.errors import UserError
from fine_tune.core.files import sha256
from fine_tune.data import statistics
from fine_tune.data.statistics import METRICS, Difference, Interval, Mean
from fine_tune.data.tasks import task_spec
from fine_tune.data.tsv import read_examples
from fine_tune.models.cost import Cost, cost
from fine_tune.reporting.collect import Collection, Run, beyond_the_method, evaluated_on

DRAWS = 1000  # of seeds and examples
BATCH_SIZES = (1, 32)  # that --measure times


@dataclass(frozen=True)
class SeedLine:
    """One run of a group; agreement: the share of its predictions that are the teacher's, in percent."""

    experiment: str
    seed: int
    step: int
    checkpoints: int
    score: float
    agreement: float | None


@dataclass
class Model:
    """What a model of some size costs; milliseconds by batch size where they were measured."""

    layers: int | None
    cost: Cost | None
    milliseconds: dict[int, float] | None = None


@dataclass
class TeacherLine(Model):
    """The teacher, or one of several."""

    name: str = ""
    step: int = 0
    score: float = math.nan


@dataclass
class Group(Model):
    """Runs that differ in their seed alone.

    kept: the share of the teacher's score, in percent. to_teacher_interval: of seeds and examples drawn together.
    """

    name: str = ""
    seeds: list[SeedLine] = field(default_factory=list)
    mean: Mean = Mean(0, math.nan, math.nan, None)
    to_teacher: float | None = None
    to_teacher_interval: Interval | None = None
    kept: float | None = None
    agreement: float | None = None


@dataclass
class Comparison:
    """A group against the baseline.

    p_holm: adjusted for all comparisons. together: the interval of the difference when seeds and examples are drawn
    together. mcnemar: of two single runs, examples that only the group's, or only the baseline's, gets right, and p.
    """

    group: str
    difference: Difference
    p_holm: float = math.nan
    together: Interval | None = None
    mcnemar: tuple[int, int, float] | None = None
    verdict: str = ""


@dataclass
class Report:
    """Everything that is shown."""

    task: str
    dataset: str
    metric: str
    rows: int | None
    select: str
    checkpoints: tuple[int, int]
    max_seq_len: int
    majority: float | None
    teachers: list[TeacherLine]
    groups: list[Group]
    baseline: str | None
    comparisons: list[Comparison]
    measured_on: str
    warnings: list[str]
    missing: list[str]
    signature: str = ""


def analyse(flags: Namespace, collection: Collection) -> Report:
    """Return the numbers of a report."""
    runs = collection.runs()
    facts = next((run.facts for run in runs if run.facts), {})
    counts = [run.checkpoints for run in runs]
    majority = (facts.get("majority") or {}).get(flags.metric)
    report = Report(
        task=flags.task,
        dataset=flags.dataset,
        metric=flags.metric,
        rows=facts.get("rows"),
        select=str(flags.select),
        checkpoints=(min(counts), max(counts)),
        max_seq_len=runs[0].config.max_seq_len,
        majority=None if majority is None else 100 * majority,
        teachers=[teacher_line(teacher) for teacher in collection.teachers.values()],
        groups=[group_line(name, own, collection.teachers) for name, own in collection.groups.items()],
        baseline=flags.baseline,
        comparisons=[],
        measured_on="",
        warnings=list(collection.warnings),
        missing=list(collection.missing),
    )
    labels = read_labels(flags, facts, report.missing)
    same = [run for run in [*runs, *collection.teachers.values()] if evaluated_on(run) == facts.get("data_sha256")]
    drawn = drawn_scores(flags.metric, labels, same)
    for group in report.groups:
        group.to_teacher_interval = against_teacher(collection.groups[group.name], collection.teachers, drawn)
    if flags.baseline:
        report.comparisons = comparisons(flags, collection, labels, drawn)
        base = collection.groups[flags.baseline][0]
        for name, own in collection.groups.items():
            report.warnings += beyond_the_method(name, own[0], flags.baseline, base)
    report.signature = signature(report, runs)
    return report


def signature(report: Report, runs: list[Run]) -> str:
    """Return in one line what was compared and how, for the caption of a table."""
    few, many = report.checkpoints
    counted = str(many) if few == many else f"{few}-{many}"
    chosen = {"best": f"best{counted}", "last": "last"}.get(report.select, f"step{report.select}")
    sizes = sorted({group.mean.n for group in report.groups})
    n = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]}-{sizes[-1]}"
    tests = sorted({found.difference.test.lower().replace(" ", "-") for found in report.comparisons} - {""})
    torches = sorted({str(getattr(run.config, "versions", {}).get("torch", "unknown")) for run in runs})
    split = f"{report.task}/{report.dataset}/{report.metric}"
    return "|".join(
        [split, chosen, f"n{n}", "+".join([*tests, "holm"] if tests else ["t"]), f"torch {'/'.join(torches)}"]
    )


# --- models -----------------------------------------------------------------------------------------------------------


def model_cost(run: Run) -> tuple[int | None, Cost | None]:
    """Return the layers and the cost of a run's model; the authors' configs do not say enough."""
    sizes = getattr(run.config, "encoder", None)
    if sizes is None:
        return getattr(run.config, "num_hidden_layers", None), None
    return sizes["num_hidden_layers"], cost(sizes, run.config.num_class, run.config.max_seq_len)


def teacher_line(run: Run) -> TeacherLine:
    """Return what is said of a teacher."""
    return TeacherLine(*model_cost(run), name=run.experiment, step=run.step, score=run.score)


def group_line(name: str, runs: list[Run], teachers: dict[str, Run]) -> Group:
    """Return the numbers of a group on its own and beside its teacher."""
    teacher = teachers.get(runs[0].teacher)
    agreements = [agreement(run, teacher) for run in runs]
    seeds = [
        SeedLine(run.experiment, run.seed, run.step, run.checkpoints, run.score, agrees)
        for run, agrees in zip(runs, agreements, strict=True)
    ]
    mean = statistics.mean_of([run.score for run in runs])
    known = [value for value in agreements if value is not None]
    group = Group(*model_cost(runs[0]), name=name, seeds=seeds, mean=mean)
    group.agreement = sum(known) / len(known) if known else None
    if teacher:
        group.to_teacher = mean.mean - teacher.score
        group.kept = 100 * mean.mean / teacher.score if teacher.score > 0 else None
    return group


def predictions(logits: np.ndarray) -> np.ndarray:
    """Return the predictions (n,) of logits (n, C): classes, or for regression the scores themselves."""
    return logits.argmax(1) if logits.shape[1] > 1 else logits[:, 0]


def agreement(run: Run, teacher: Run | None) -> float | None:
    """Return the share of equal predictions in percent, for regression Pearson's correlation; None where unknown."""
    if teacher is None or run.logits is None or teacher.logits is None or run.logits.shape != teacher.logits.shape:
        return None
    own, other = predictions(run.logits), predictions(teacher.logits)
    if run.logits.shape[1] > 1:
        return 100 * float((own == other).mean())
    value = statistics.pearson(other, own[None], np.ones((1, len(own))))
    return None if np.isnan(value).any() else 100 * float(value[0, 0])


# --- examples ---------------------------------------------------------------------------------------------------------


def read_labels(flags: Namespace, facts: dict[str, Any], missing: list[str]) -> np.ndarray | None:
    """Return the labels (n,) of the split that was evaluated; None, and why in `missing`, where they are not here."""
    spec = task_spec(flags)
    path = data_file(flags, spec.splits[flags.dataset])
    without = "so nothing is said about other examples"
    try:
        examples = read_examples(path, spec, spec.splits[flags.dataset])
    except UserError as error:
        missing.append(f"{error}, {without}: --data_dir names the folder of the data")
        return None
    if facts.get("data_sha256", "") != sha256(path):
        missing.append(f"{path} is not known to be the file that was evaluated, {without}")
        return None
    return np.array([example.label for example in examples])


Drawn = dict[int, np.ndarray]  # by the id of a run: its score in percent in each of B draws of the examples


def drawn_scores(metric: str, labels: np.ndarray | None, runs: list[Run]) -> Drawn:
    """Return the scores of runs on the same draws of examples; runs without logits have none."""
    if labels is None or metric not in METRICS:
        return {}
    usable = [run for run in runs if run.logits is not None and len(run.logits) == len(labels)]
    if not usable:
        return {}
    values = np.stack([predictions(run.logits) for run in usable])
    scores = 100 * statistics.draw_scores(metric, labels, values, DRAWS, np.random.default_rng(0))
    return {id(run): scores[:, column] for column, run in enumerate(usable)}


def stacked(runs: list[Run], drawn: Drawn) -> np.ndarray | None:
    """Return the drawn scores (B, R) of runs, None unless all of them have some."""
    found = [drawn[id(run)] for run in runs if id(run) in drawn]
    return np.stack(found, axis=1) if found and len(found) == len(runs) else None


def against_teacher(runs: list[Run], teachers: dict[str, Run], drawn: Drawn) -> Interval | None:
    """Return the interval of a group's distance to its teacher, whose one run is the same in every draw of seeds."""
    teacher = teachers.get(runs[0].teacher)
    own, other = stacked(runs, drawn), stacked([teacher] if teacher else [], drawn)
    if own is None or other is None:
        return None
    return statistics.multi_bootstrap(own, other, False, np.random.default_rng(1))


# --- comparisons ------------------------------------------------------------------------------------------------------


def comparisons(flags: Namespace, collection: Collection, labels: np.ndarray | None, drawn: Drawn) -> list[Comparison]:
    """Compare every group with the baseline; p-values are adjusted for all of them together."""
    groups = collection.groups
    base = groups[flags.baseline]
    found = [compared(name, own, base, labels, drawn) for name, own in groups.items() if name != flags.baseline]
    for comparison, p in zip(found, statistics.holm([each.difference.p for each in found]), strict=True):
        comparison.p_holm = p
        comparison.verdict = verdict(comparison)
    return found


def compared(name: str, own: list[Run], base: list[Run], labels: np.ndarray | None, drawn: Drawn) -> Comparison:
    """Compare two groups, without a verdict yet."""
    a, b = ({run.seed: run for run in runs} for runs in (own, base))
    scores = ({seed: run.score for seed, run in runs.items()} for runs in (a, b))
    comparison = Comparison(name, statistics.compare(*scores))
    if comparison.difference.same_sign is not None:  # pairs: the seeds that both have, in the same order
        shared = sorted(a.keys() & b.keys())
        own, base = [a[seed] for seed in shared], [b[seed] for seed in shared]
    drawn_own, drawn_base = stacked(own, drawn), stacked(base, drawn)
    if drawn_own is not None and drawn_base is not None:
        is_paired = comparison.difference.same_sign is not None
        rng = np.random.default_rng(1)
        comparison.together = statistics.multi_bootstrap(drawn_own, drawn_base, is_paired, rng)
        if len(own) == len(base) == 1 and own[0].config.num_class > 1:
            right = [predictions(runs[0].logits) == labels for runs in (own, base)]
            comparison.mcnemar = statistics.mcnemar(*right)
    return comparison


def verdict(comparison: Comparison) -> str:
    """Return what may be said of a comparison: better or worse only below 0.05 after Holm."""
    found = comparison.difference
    if not found.test:
        return "no test: one seed is no sample" if min(found.n) < 2 else "no test: the seeds do not differ"
    if comparison.p_holm < 1 - statistics.LEVEL:
        return "better" if found.difference > 0 else "worse"
    if found.needed is None:
        return f"not distinguishable; more than {statistics.MOST_SEEDS:,} seeds would be needed"
    return f"not distinguishable; about {max(found.needed, min(found.n) + 1)} seeds would be needed"
