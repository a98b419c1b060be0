"""The card of a model that is given away: what it is, how good, and where it comes from."""

import shlex
import statistics
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import EvalResult, ModelCardData

from fine_tune.cli.evaluations import best, evaluation_path, read_evaluation
from fine_tune.cli.runs import (
    INHERITED,
    NOT_FLAGS,
    RESUMABLE_FLAGS,
    USAGE,
    complete_config,
    own_folder,
    read_config,
    shared_settings,
    teacher_folder,
)
from fine_tune.core.errors import UserError
from fine_tune.data.tasks import TASKS, TaskSpec
from fine_tune.models.bert import empty_classifier
from fine_tune.models.cost import params_words

HUB_METRICS = {"f1_score": "f1", "macro_f1": "f1", "matthews": "matthews_correlation"}  # others are called as here
FACTS = NOT_FLAGS | {"ranks", "versions", "imported", *USAGE}


class Exported(NamedTuple):
    """The model the card is about: its folder's name, its scores on dev, and the checksums of its weights."""

    name: str
    scores: dict[str, float]
    checkpoint_sha256: str
    weights_sha256: str
    license: str


def model_card(flags: Namespace, spec: TaskSpec, exported: Exported) -> str:
    """Return README.md of an exported model: the hub's metadata, then its text."""
    config = flags.run_config
    data = ModelCardData(
        license=exported.license,
        library_name="transformers",
        pipeline_tag="text-classification",
        base_model=config.ptrain_ver if is_hub_name(config.ptrain_ver) else None,
        datasets=["nyu-mll/glue"] if flags.task in TASKS else None,
        tags=["distillation", config.method] if hasattr(config, "method") else None,
        model_name=exported.name,
        eval_results=[
            EvalResult("text-classification", flags.task, flags.task, HUB_METRICS.get(metric, metric), value)
            for metric, value in exported.scores.items()
            if metric != "eval_loss" and value == value  # nan: not defined
        ],
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text(flags, spec, exported)}"


def text(flags: Namespace, spec: TaskSpec, exported: Exported) -> str:
    """Return the card's Markdown."""
    config = flags.run_config
    what = f"distilled by the method `{config.method}`" if hasattr(config, "method") else "fine-tuned"
    reads = "two texts" if spec.reads_pairs else "a text"
    says = f"one of the labels {', '.join(spec.labels)}" if spec.labels else "a score"
    inputs = '{"text": "a text", "text_pair": "another"}' if spec.reads_pairs else '"a text"'
    teacher = teacher_config(flags)
    commands = "\n".join(command(each) for each in (teacher, config) if each)
    checksums = {
        "training data": getattr(config, "data_sha256", "unknown"),
        f"checkpoint model-{flags.ckpt}.pt": exported.checkpoint_sha256,
        "model.safetensors": exported.weights_sha256,
    }
    lines = [
        f"# {exported.name}",
        f"A BERT that was {what} for the task {flags.task}: it reads {reads}, at most {config.max_seq_len} word "
        f"pieces, and gives {says}.",
        "```python\nfrom transformers import pipeline\n\n"
        f'classify = pipeline("text-classification", model="{exported.name}", truncation=True)\n'
        f"print(classify({inputs}))\n```",
        f"`{exported.name}` is this folder, as seen from the one around it. `truncation=True` cuts long texts as in "
        "training; without it they are an error.",
        f"## Scores on {spec.dev()}, in percent",
        score_table(flags, spec, exported.scores),
        seeds_line(flags, spec),
        "## Where it comes from",
        f"Started from `{Path(config.ptrain_ver).name if not is_hub_name(config.ptrain_ver) else config.ptrain_ver}`; "
        f"checkpoint {flags.ckpt}. {flags.choice}".strip(),
        f"```sh\n{commands}\n```",
        "| SHA-256 of | |\n|---|---|\n" + "\n".join(f"| {name} | `{digest}` |" for name, digest in checksums.items()),
    ]
    return "\n\n".join(lines) + "\n"


def is_hub_name(ptrain_ver: str) -> bool:
    """Tell whether a pre-trained model is named as on the hub; folders are kept absolute."""
    return not Path(ptrain_ver).is_absolute()


def folder_of_teacher(flags: Namespace) -> Path:
    """Return the folder of the run's teacher."""
    return teacher_folder(Namespace(**vars(flags.run_config) | {"experiment_dir": flags.experiment_dir}))


def teacher_config(flags: Namespace) -> Namespace | None:
    """Return the config of the run's teacher, None without one or where its folder is not here."""
    try:
        folder = folder_of_teacher(flags) if hasattr(flags.run_config, "teacher_exp") else None
        return Namespace(**complete_config(folder / "config.json")) if folder else None
    except UserError:
        return None


def command(config: Namespace) -> str:
    """Return the command that a run came from, without what concerns the machine it ran on."""
    values = {name: value for name, value in vars(config).items() if is_setting(name, value)}
    if not is_hub_name(config.ptrain_ver):
        values["ptrain_ver"] = Path(config.ptrain_ver).name
    program = getattr(config, "program", "run_<method>.py")  # older runs do not say
    if program.endswith("import_teacher"):
        values = {"from": values["ptrain_ver"]} | {name: values[name] for name in ("experiment", "task", "max_seq_len")}
    elif "teacher_exp" in values:
        values = {name: value for name, value in values.items() if name not in INHERITED}
    words = program.split() if program.startswith("python") else ["python", program]
    for name, value in values.items():
        typed = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        words += [f"--{name}"] if value is True else [f"--{name}", typed]
    return shlex.join(words)


def is_setting(name: str, value: Any) -> bool:
    """Tell whether an entry of config.json is a flag of the training that says something to strangers."""
    return name not in FACTS | RESUMABLE_FLAGS and value is not None and value is not False  # 0 says something


def score_table(flags: Namespace, spec: TaskSpec, values: dict[str, float]) -> str:
    """Return the rows of the teacher, if there was one, and of this model."""
    config, teacher = flags.run_config, teacher_config(flags)
    lines = [f"| model | layers | parameters | {' | '.join(spec.metrics)} |", "|---" * (3 + len(spec.metrics)) + "|"]
    if hasattr(config, "teacher_exp"):
        folder = folder_of_teacher(flags)
        found = {metric: saved_score(folder, spec.dev(), metric, config.tckpt) for metric in spec.metrics}
        lines.append(
            table_row("its teacher", teacher, spec, found) if teacher else "| its teacher" + " |" * (3 + len(found))
        )
    return "\n".join([*lines, table_row("this model", config, spec, values)])


def table_row(name: str, config: Namespace, spec: TaskSpec, values: dict[str, float | None]) -> str:
    """Return one model's row."""
    with torch.device("meta"):  # to be counted, not computed with
        model = empty_classifier(config, name)
    params = params_words(sum(parameter.numel() for parameter in model.parameters()))
    cells = ["not evaluated" if values[metric] is None else percent(values[metric]) for metric in spec.metrics]
    return f"| {name} | {model.encoder.config.num_hidden_layers} | {params} | {' | '.join(cells)} |"


def percent(value: float) -> str:
    """Return a score in percent with two decimals."""
    return f"{100 * value:.2f}"


def saved_score(folder: Path, dataset: str, metric: str, step: int | None = None) -> float | None:
    """Return a score from the evaluation of the run in `folder`: of a step, or the best; None where it has none."""
    try:
        rows = read_evaluation(evaluation_path(folder, dataset)).rows
    except UserError:
        return None
    if step is None:
        return best(rows).get(metric, {}).get("value")
    return next((row.get(metric) for row in rows if row["step"] == step), None)


def other_seeds(flags: Namespace) -> Iterator[Path]:
    """Yield the folders of the runs that differ from this one in nothing but their seed."""
    own, folder = vars(flags.run_config), own_folder(flags)
    for path in sorted(folder.parent.glob(f"*_{flags.task}/config.json")):
        try:
            other = read_config(path)
        except UserError:
            continue
        alike = shared_settings(own) == shared_settings(other)
        if path.parent != folder and alike and own.get("seed") != other.get("seed"):
            yield path.parent


def seeds_line(flags: Namespace, spec: TaskSpec) -> str:
    """Return mean and standard deviation over the seeds that were evaluated, this run's among them."""
    folders = [own_folder(flags), *other_seeds(flags)]
    found = [
        score for score in (saved_score(each, spec.dev(), spec.metrics[0]) for each in folders) if score is not None
    ]
    if len(found) < 2:
        return "One seed: nothing is known of the spread between runs."
    mean, sd = percent(statistics.mean(found)), percent(statistics.stdev(found))
    of = f"{len(found)} runs that differ in their seed alone, the best checkpoint of each"
    return f"{of}: {spec.metrics[0]} {mean} ± {sd} (mean ± standard deviation)."
