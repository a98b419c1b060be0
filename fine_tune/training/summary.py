"""The first and the last lines of a run: what is trained from what, for how long, and what it takes."""

import time
from argparse import Namespace
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fine_tune.cli.checks import STUDENT_SIZES
from fine_tune.cli.evaluations import evaluation_command, evaluation_path, read_evaluation
from fine_tune.cli.runs import data_file, own_folder, teacher_folder
from fine_tune.core.errors import UserError
from fine_tune.core.memory import give_back, size_words
from fine_tune.data.tasks import task_spec
from fine_tune.data.tokens import Tokens
from fine_tune.data.tsv import read_examples
from fine_tune.training.distributed import WORLD_SIZE
from fine_tune.training.log import print0
from fine_tune.training.optim import HIGH
from fine_tune.training.task import Task


class Needs(NamedTuple):
    """What a run leaves on disk: so many checkpoints of `each` bytes, `disk` bytes with the saved state."""

    checkpoints: int
    each: int
    disk: int

    def words(self) -> str:
        """Return it as it is printed."""
        return f"{self.checkpoints} checkpoints of {size_words(self.each)}, {size_words(self.disk)}"


def print_summary(folder: Path, config: Namespace, task: Task, tokens: Tokens) -> None:
    """Say what is about to happen, and the disk it will need."""
    micro = config.batch_size // config.accum_step
    modules = task.trainable_modules.items()
    millions = {name: sum(p.numel() for p in module.parameters()) / 1e6 for name, module in modules}
    gates = sum(millions.values()) - millions["model"]
    split = f", split over {WORLD_SIZE} processes" if WORLD_SIZE > 1 else ""
    lengths, needs = tokens.lengths(), disk_needs(config, task)
    cut = (lengths >= config.max_seq_len).mean()
    print0(f"{config.kind} {config.experiment}: {config.task} {config.dataset}, {len(tokens)} examples, in {folder}")
    for line in task.about:
        print0(line)
    and_gates = f", {len(millions) - 1} gates of {gates:.3g} M in all" if gates else ""
    print0(f"{millions['model']:.3g} M parameters{and_gates}")
    epochs = config.total_step * config.batch_size / len(tokens)
    size = f"{config.batch_size} examples ({config.accum_step} x {micro}{split})"
    count = torch.get_num_threads()
    threads = f"; {count} thread{'s' * (count > 1)}" if config.device_id < 0 else ""
    print0(f"{config.total_step} steps of {size}, {epochs:.1f} epochs{threads}")
    median = f"{np.median(lengths):.0f} word pieces in the median"
    print0(f"texts: {median}; {cut:.1%} fill --max_seq_len {config.max_seq_len}, and may be cut")
    print0(f"disk: {needs.words()} with the saved state")
    for name, group in task.optimizers.items():
        if group.peak_lr >= HIGH:
            usual = "what trains a BERT lies around 1e-5 to 1e-4; is a minus missing?"
            print0(f"note: --{name} {group.peak_lr:g}: {usual}")


def disk_needs(config: Namespace, task: Task) -> Needs:
    """Return what a run leaves on disk: weights in fp32, and until its end the state, with AdamW's two numbers each."""
    parameters = sum(p.numel() for module in task.trainable_modules.values() for p in module.parameters())
    each = 4 * parameters
    checkpoints = -(-config.total_step // config.ckpt_step)
    checkpoints = min(checkpoints, config.keep_last or checkpoints)
    # The saved state is three times a checkpoint, and twice there while it is replaced.
    return Needs(checkpoints, each, (checkpoints + 6) * each)


# --- method and teacher -----------------------------------------------------------------------------------------------


def method_line(config: Namespace, layers: int) -> str:
    """Return a line on the method, its variant, and the layers that a student of a teacher of `layers` starts from."""
    variant = getattr(config, "alp_exp", getattr(config, "probing_exp", config.method))
    students = config.num_hidden_layers
    skip = {"even": layers // students, "first": 1}.get(config.student_init)
    taken = ", ".join(str(skip * i) for i in range(1, students + 1)) if skip else ""
    start = f"starts from layers {taken} of {config.ptrain_ver}" if skip else "its layers start at random"
    deep = " (as deep as its teacher: nothing becomes faster)" if students == layers else ""
    return f"method {variant}: {layers} -> {students} layers{deep}; {start}"


def sizes_line(config: Namespace) -> str:
    """Return a line on the student's sizes, as flags: given, or else the teacher's."""
    return "sizes: " + " ".join(f"--{flag} {getattr(config, flag)}" for flag in STUDENT_SIZES)


def teacher_line(flags: Namespace) -> str:
    """Return a line on the teacher, with its score on dev from its evaluation's file.

    Raises UserError when it is no better than the majority class, unless --weak_teacher allows that or the run has
    begun.
    """
    spec = task_spec(flags)
    dataset, metric = spec.dev(), spec.metrics[0]
    row, known = evaluated(evaluation_path(teacher_folder(flags), dataset), flags.tckpt, metric)
    name = f"teacher {flags.teacher_exp}, step {flags.tckpt}"
    if row is None:
        return f"{name}: not evaluated: {evaluation_command(flags, flags.teacher_exp, flags.tmodel, dataset)}"
    floor = majority_score(flags, dataset, metric) if known is None else known
    beside = "" if floor is None else f" (majority class {floor:.4f})"
    begun = not flags.overwrite and (own_folder(flags) / "config.json").is_file()
    if floor is not None and not row > floor and not (flags.weak_teacher or begun):  # nan is no better
        raise UserError(
            f"--teacher_exp {flags.teacher_exp}: at --tckpt {flags.tckpt} its {metric} on {dataset} is {row:.4f}, no "
            f"better than the majority class's {floor:.4f}; train it longer, take another step, or add --weak_teacher"
        )
    return f"{name}: {metric} {row:.4f} on {dataset}{beside}"


def evaluated(path: Path, step: int, metric: str) -> tuple[float | None, float | None]:
    """Return the score of checkpoint `step` in an evaluation's file, and the majority class's; None if not there.

    A score that is there but not defined is nan.
    """
    try:
        rows, facts = read_evaluation(path)
    except UserError:
        return None, None
    score = next((row.get(metric) for row in rows if row["step"] == step), None)
    return score, facts.get("majority", {}).get(metric)


def majority_score(flags: Namespace, dataset: str, metric: str) -> float | None:
    """Return what it scores to answer the most frequent label always; None when the split cannot be read.

    Correlations, of which Matthews' is one, give a constant answer no credit: 0.
    """
    if metric != "accuracy":
        return 0.0
    spec = task_spec(flags)
    try:
        examples = read_examples(data_file(flags, spec.splits[dataset]), spec, spec.splits[dataset])
    except UserError:
        return None
    return max(Counter(example.label for example in examples).values()) / len(examples)


# --- what a run took --------------------------------------------------------------------------------------------------


class Usage:
    """Wall time of a run over all its sessions, `before` seconds of it in earlier ones, and this one's peak memory.

    `gpus` are the numbers of those that it uses.
    """

    def __init__(self, before: float, gpus: list[int]) -> None:
        self.before, self.gpus, self.since = before, gpus, time.monotonic()

    def seconds(self) -> float:
        """Return the time so far."""
        return self.before + time.monotonic() - self.since

    def facts(self) -> dict[str, Any]:
        """Return what config.json keeps of it."""
        return {"wall_seconds": round(self.seconds(), 1), "peak_memory_gib": peak_memory(self.gpus)}


def peak_memory(gpus: list[int]) -> dict[str, float]:
    """Return this process's peak memory in GiB: its own, and what it took of each of `gpus`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**20
    found = {"cpu": resident} | {f"cuda:{gpu}": torch.cuda.max_memory_allocated(gpu) / 2**30 for gpu in gpus}
    return {name: round(gib, 3) for name, gib in found.items()}


def reset_peak_memory(gpus: list[int]) -> None:
    """Let the peak memory be that from now on, where the system allows it."""
    give_back()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    for gpu in gpus:
        torch.cuda.reset_peak_memory_stats(gpu)


def memory_words(peak: dict[str, float]) -> str:
    """Return peak memory as it is printed."""
    return ", ".join(f"{size_words(gib * 2**30)} on {name}" for name, gib in peak.items())


def duration(seconds: float) -> str:
    """Return a time as h:mm:ss."""
    return str(timedelta(seconds=round(min(seconds, 1e13))))  # beyond, timedelta ends
