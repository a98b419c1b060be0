"""Every flag that scripts share, once: how its text is read, its meaning, its default; one function per group."""

import math
import os
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fine_tune.cli.runs import PROJECT_ROOT
from fine_tune.data.tasks import TASKS

REQUIRED = object()
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"  # Python's own also takes 1_000 and other digits
PAD_SAMPLES = 4  # the default of --pad_samples
MOST = 10**6  # no size of a model comes near
HOTTEST = 200  # softmax_temp: worst of 800 random batches in fp32, the soft loss is 0.2 % off there (docs/runs.md)
CACHE_LIMIT = 20  # the default of --cache_limit


@dataclass(frozen=True)
class Flag:
    """One flag: how its text is read (ValueError says what is allowed), its meaning, and its default as typed.

    `falls_back` says what stands in for an absent value: the flag it names is copied, any other text means None.
    A flag without `read` is a switch. A positional one takes all words that belong to no flag, at least one.
    """

    name: str
    read: Callable[[str], Any] | None
    help: str
    default: Any = REQUIRED
    falls_back: str = ""
    positional: bool = False

    def help_line(self) -> str:
        """Return the meaning followed by the default, or by "(required)"."""
        if self.read is None:
            return self.help
        if self.falls_back:
            return f"{self.help} (default: {self.falls_back})"
        return f"{self.help} " + ("(required)" if self.default is REQUIRED else f"(default: {self.default})")


FlagGroup = tuple[str, list[Flag]]


# --- how a value is read ----------------------------------------------------------------------------------------------


def integer(low: int, high: int = 10**15) -> Callable[[str], int]:
    """Return a reader of whole numbers >= `low` and < `high`."""
    limit = f" and < {high}" if high < 10**15 else ""

    def read(text: str) -> int:
        value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,15}", text) else low - 1
        if not low <= value < high:
            raise ValueError(f"must be a whole number >= {low}{limit}")
        return value

    return read


def number(low: float, high: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """Return a reader of finite numbers in [low, high), or in (low, high) with `above`."""
    limit = f" and < {high:g}" if high < math.inf else ""
    wanted = f"must be a finite number {'>' if above else '>='} {low:g}{limit}"

    def read(text: str) -> float:
        value = float(text) if re.fullmatch(NUMBER, text) else math.nan
        if not (low <= value < high) or (above and value == low):  # nan fails every comparison
            raise ValueError(wanted)
        return value

    return read


def step_or_best(text: str) -> int | str:
    """Read the step of a checkpoint, or the word best."""
    try:
        return text if text == "best" else integer(0)(text)
    except ValueError:
        raise ValueError("must be a whole number >= 0, or best") from None


step_or_best.metavar = "{best,step}"


def choice(*allowed: str) -> Callable[[str], str]:
    """Return a reader of one of the words `allowed`."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    read.metavar = "{" + ",".join(allowed) + "}"
    return read


def layer_numbers(text: str) -> list[int]:
    """Read comma separated layer numbers from 1, none twice."""
    parts = text.split(",")
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,5}", part) for part in parts):
        raise ValueError("must be layer numbers from 1, separated by commas")
    layers = [int(part) for part in parts]
    if len(set(layers)) < len(layers):
        raise ValueError("must not name a layer twice")
    return layers


def name_pattern(text: str) -> str:
    """Read a plain name in which * and ? may stand for other letters."""
    if not re.fullmatch(r"[A-Za-z0-9._*?-]{1,100}", text):
        raise ValueError("must be the name of a run, in which * and ? may stand for other letters")
    return re.sub(r"\*+", "*", text)  # ** would be folders


def checkpoint_choice(text: str) -> int | str:
    """Read which checkpoint of every run counts: best, last or a step."""
    try:
        return text if text in ("best", "last") else integer(0)(text)
    except ValueError:
        raise ValueError("must be best, last or a step") from None


checkpoint_choice.metavar = "{best,last,step}"


def label(text: str) -> str:
    """Read a name that may hold blanks."""
    if not text or not text.isprintable():
        raise ValueError("must be printable characters")
    return text


def names(text: str) -> list[str]:
    """Read names separated by commas, none twice."""
    found = text.split(",")
    if "" in found or len(set(found)) < len(found):
        raise ValueError("must be names separated by commas, none twice")
    return found


def plain_name(text: str) -> str:
    """Read a plain name, safe as a part of a path."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", text) or set(text) == {"."}:
        raise ValueError("must be a plain name of at most 100 letters, digits, '.', '_' and '-'")
    return text


def task_name(text: str) -> str:
    """Read the name of a task; whether there is such a task, --data_dir tells."""
    return plain_name(text)


task_name.metavar = "{" + ",".join(TASKS) + "}"


def is_printable(text: str) -> bool:
    """Tell whether a word can stand in one line; blanks of any width may be in it."""
    return text != "" and all(letter.isprintable() or unicodedata.category(letter) == "Zs" for letter in text)


def absolute(text: str) -> Path:
    """Return the absolute form of a path; ValueError says why there is none."""
    try:
        found = Path(text).expanduser().absolute()
        str(found).encode()
        return found
    except UnicodeEncodeError:
        raise ValueError("is relative to a folder whose name is not UTF-8; rename that") from None
    except RuntimeError:
        raise ValueError("starts at the home folder of a user that is not known") from None
    except FileNotFoundError:
        raise ValueError("is relative to the current folder, which is gone; cd to one that is there") from None


def path(text: str) -> str:
    """Read a path; one that is given is relative to the current folder and kept absolute."""
    if not is_printable(text):
        raise ValueError("must be a path of printable characters")
    return str(absolute(text))


def pretrained(text: str) -> str:
    """Read a hub name or a local folder, which is kept absolute so that the run can be used from anywhere."""
    if not is_printable(text) or text != text.strip():
        raise ValueError("must be a hub name or a local folder")
    folder = absolute(text)
    return str(folder) if os.path.isdir(folder) or text.startswith(("/", "~")) else text


# --- the groups -------------------------------------------------------------------------------------------------------


def task() -> Flag:
    """Return the flag that names the task; everything that reads a run."""
    return Flag("task", task_name, "GLUE task, or one of your own (fine_tune.add_task)")


def model() -> Flag:
    """Return the flag of the middle part of a run's folder; everything that reads a run."""
    return Flag("model", plain_name, "model name, a part of the run's folder", "bert")


def experiment(device: Any = REQUIRED, falls_back: str = "") -> FlagGroup:
    """Flags that name a run and its device; all eight scripts."""
    return "experiment", [
        Flag("experiment", plain_name, "name of the run"),
        task(),
        model(),
        Flag("device_id", integer(-1), "where the model runs: -1 = CPU, n = cuda:n", device, falls_back),
    ]


def data_split() -> FlagGroup:
    """The split to read."""
    return "data split", [Flag("dataset", plain_name, "split of the task: train, dev, test, ...")]


def teacher_model() -> FlagGroup:
    """Flags of the pre-trained teacher."""
    return "teacher model", [
        Flag("ptrain_ver", pretrained, "pre-trained BERT: hub name, name@revision or local folder"),
        Flag("num_class", integer(1), "number of labels; 1 for the regression task stsb"),
        Flag("max_seq_len", integer(8), "longest input in word pieces, [CLS] and [SEP] included", "512"),
    ]


def optimiser(prefix: str, lr: str) -> list[Flag]:
    """Flags of one AdamW with its schedule and clipping; the gates' steps default to the student's."""
    what = "the gates' " if prefix else ""
    clipped = "each gate's gradient is clipped on its own" if prefix else "the gradient is clipped"
    total = f"{what}optimiser steps until the learning rate is 0" if prefix else "optimiser steps of the run"
    rise = f"{what}steps in which the learning rate rises from 0 to its peak"
    total_step, warmup_step = ("--total_step", "--warmup_step") if prefix else ("", "")
    return [
        Flag(f"{prefix}beta1", number(0, 1), f"{what}AdamW beta1", "0.9"),
        Flag(f"{prefix}beta2", number(0, 1), f"{what}AdamW beta2", "0.999"),
        Flag(f"{prefix}eps", number(0, above=True), f"{what}AdamW epsilon", "1e-8"),
        Flag(f"{prefix}lr", number(0, above=True), f"{what}peak learning rate", lr),
        Flag(f"{prefix}weight_decay", number(0), f"{what}weight decay, not on biases and LayerNorm", "0.01"),
        Flag(f"{prefix}max_norm", number(0, above=True), f"norm to which {clipped}", "1"),
        Flag(f"{prefix}total_step", integer(1), total, "50000", total_step),
        Flag(f"{prefix}warmup_step", integer(0), rise, "10000", warmup_step),
    ]


def training() -> FlagGroup:
    """Flags of every training run."""
    return "training", [
        Flag("accum_step", integer(1), "micro-batches per optimiser step; divides batch_size", "1"),
        Flag("batch_size", integer(1), "examples per optimiser step", "32"),
        *optimiser("", "3e-5"),
        Flag("dropout", number(0, 1), "dropout probability (teacher: of the head; student: everywhere)", "0.1"),
        Flag("seed", integer(0), "seed of everything random", "42"),
        Flag("log_step", integer(1), "steps between two tensorboard points", "500"),
        Flag("ckpt_step", integer(1), "steps between two checkpoints", "1000"),
    ]


def teacher_use() -> FlagGroup:
    """Flags that name a fine-tuned teacher; all distillers."""
    return "teacher use", [
        Flag("teacher_exp", plain_name, "name of the teacher's run"),
        Flag("tmodel", plain_name, "model name of the teacher's run", "bert"),
        Flag("tckpt", integer(0), "step of the teacher's checkpoint"),
        Flag("tdevice_id", integer(-1), "where the teacher runs: -1 = CPU, n = cuda:n", falls_back="--device_id"),
        Flag("ptrain_ver", pretrained, "where the model that it started from lies now", falls_back="where it lay then"),
        Flag("weak_teacher", None, "go on with a teacher that is no better on dev than the majority class"),
    ]


def student() -> FlagGroup:
    """Sizes of the student and how it starts; all distillers."""
    layers = "layers taken from the pre-trained model: every (L/N)-th, the first N, or none"
    embeddings = "embeddings: the pre-trained model's, or random as the authors' code leaves them"
    return "student", [
        Flag("d_model", integer(1, MOST), "hidden size; must be the teacher's", falls_back="the teacher's"),
        Flag("d_ff", integer(1, MOST), "size of the feed-forward layers", falls_back="the teacher's"),
        Flag("num_attention_heads", integer(1, MOST), "attention heads; divides d_model", falls_back="the teacher's"),
        Flag("num_hidden_layers", integer(1, MOST), "layers; divides the teacher's", "6"),
        Flag("type_vocab_size", integer(1, MOST), "segment ids", falls_back="the teacher's"),
        Flag("student_init", choice("even", "first", "random"), layers, "even"),
        Flag("embedding_init", choice("pretrained", "random"), embeddings, "pretrained"),
        Flag("d_emb", integer(1), "accepted for old commands; has no effect", falls_back="not set"),
    ]


def objective() -> FlagGroup:
    """Weights of the losses; all distillers."""
    padding = "padding positions in the hidden-state loss: all, none, or a weighted sample (other numbers, much faster)"
    return "objective", [
        Flag("softmax_temp", number(0, HOTTEST, above=True), "temperature T of the soft targets", "1"),
        Flag("soft_weight", number(0), "weight of the soft-target loss", "0.2"),
        Flag("hard_weight", number(0), "weight of the label loss", "0.8"),
        Flag("mu", number(0), "weight of the hidden-state loss", "1"),
        Flag("pad_loss", choice("all", "masked", "sampled"), padding, "all"),
        Flag("pad_samples", integer(1), "padding positions per example with --pad_loss sampled", str(PAD_SAMPLES)),
    ]


def gates() -> FlagGroup:
    """Flags of the gates' own optimiser; the LAD family."""
    return "gates", [
        Flag("gate_device_id", integer(-1), "where the gates run: -1 = CPU, n = cuda:n", falls_back="--device_id"),
        *optimiser("gate_", "1e-5"),
    ]


def speed(distilling: bool) -> FlagGroup:
    """How numbers are computed; all training scripts."""
    products = "of matrix products; parameters, losses and statistics stay in fp32 (other numbers, faster)"
    once = "compute what the teacher says once, and keep it for this run and others"
    limit = Flag("cache_limit", number(0), "GiB that --cache_teacher may take of the disk", str(CACHE_LIMIT))
    return "speed", [
        Flag("precision", choice("fp32", "tf32", "bf16", "fp16"), products, "fp32"),
        Flag("compile", None, "compile the layers; on a GPU also CUDA graphs (numbers change by rounding)"),
    ] + [Flag("cache_teacher", None, once), limit] * distilling


def one_checkpoint() -> FlagGroup:
    """The checkpoint that is taken out of a run."""
    what = "checkpoint to use: a step, or the one with the best score on dev"
    return "checkpoint", [Flag("ckpt", step_or_best, what)]


def data_dir() -> Flag:
    """Return the flag of the tasks' folder; its default lies in the project, wherever the script is called from."""
    return Flag("data_dir", path, "folder of the GLUE data", str(PROJECT_ROOT / "data" / "fine_tune"))


def paths() -> FlagGroup:
    """The two folders on disk."""
    runs = str(PROJECT_ROOT / "data" / "fine_tune_experiment")
    return "paths", [data_dir(), Flag("experiment_dir", path, "folder of the runs", runs)]


def runs() -> FlagGroup:
    """What stays of a run, and what to do about one that is already there."""
    return "runs", [
        Flag("keep_last", integer(1), "checkpoints to keep, counted from the newest", falls_back="all"),
        Flag("overwrite", None, "start afresh; the run that is there is moved aside"),
        Flag("dry_run", None, "check everything, do a few steps in memory, say what to expect; write nothing"),
        Flag("eval_step", integer(1), "steps between two evaluations; changes no number", falls_back="off"),
        Flag("eval_dataset", plain_name, "split for --eval_step", falls_back="dev, of MNLI dev_matched"),
    ]


def fine_tuning() -> list[FlagGroup]:
    """Return all groups of run_fine_tune.py."""
    own = [experiment(device="0"), data_split(), teacher_model()]
    return [*own, training(), speed(distilling=False), paths(), runs()]


def distillation() -> list[FlagGroup]:
    """Return the groups that all distillers share."""
    return [experiment(), training(), teacher_use(), student(), objective(), speed(distilling=True), paths(), runs()]


def evaluation(*own: Flag) -> list[FlagGroup]:
    """Return all groups of evaluation and prediction; they differ in what --ckpt means, the first of their `own`."""
    batch_size = Flag("batch_size", integer(1), "examples at a time; changes no result", "32")
    return [experiment(falls_back="the run's own"), data_split(), ("evaluation", [batch_size, *own]), paths()]


def reporting() -> list[FlagGroup]:
    """Return all groups of the report."""
    which = "runs to compare: names, in which * and ? may stand for other letters"
    formats = choice("text", "markdown", "latex", "csv", "json")
    return [
        ("runs", [Flag("experiment", name_pattern, which, positional=True), task(), model()]),
        (
            "comparison",
            [
                Flag("dataset", plain_name, "split whose scores are compared", falls_back="the task's dev"),
                Flag("metric", plain_name, "score to compare", falls_back="the task's first"),
                Flag("select", checkpoint_choice, "checkpoint of each run that counts", "best"),
                Flag(
                    "baseline", label, "group, by its name in the report, to compare the others with", falls_back="none"
                ),
                Flag("anyway", None, "compare runs of other teachers or other data, which is refused otherwise"),
            ],
        ),
        (
            "output",
            [
                Flag("format", formats, "what is printed; csv has a line for each run", "text"),
                Flag("plot", path, "also draw a picture into this file: .png, .pdf or .svg", falls_back="none"),
                Flag("measure", None, "also time teacher and students on --device_id, batch 1 and 32"),
                Flag("device_id", integer(-1), "where --measure runs: -1 = CPU, n = cuda:n", "-1"),
            ],
        ),
        paths(),
    ]
