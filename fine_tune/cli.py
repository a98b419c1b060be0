"""Every flag of the suite, once: one function per group, and a parser that reports all problems together."""

import argparse
import math
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from fine_tune import interrupt
from fine_tune.config import PAD_SAMPLES, PROJECT_ROOT, Check
from fine_tune.errors import Stop, UserError
from fine_tune.tasks import TASKS

REQUIRED = object()
NO_VALUE = object()


@dataclass(frozen=True)
class Flag:
    """One flag: how its text is read (ValueError says what is allowed), its meaning, and its default as typed.

    `falls_back` says what stands in for an absent value: the flag it names is copied, any other text means None.
    A flag without `read` is a switch.
    """

    name: str
    read: Callable[[str], Any] | None
    help: str
    default: Any = REQUIRED
    falls_back: str = ""

    def help_line(self) -> str:
        """Return the meaning followed by the default, or by "(required)"."""
        if self.read is None:
            return self.help
        if self.falls_back:
            return f"{self.help} (default: {self.falls_back})"
        return f"{self.help} " + ("(required)" if self.default is REQUIRED else f"(default: {self.default})")


Group = tuple[str, list[Flag]]


# --- how a value is read ----------------------------------------------------------------------------------------------


def whole(low: int) -> Callable[[str], int]:
    """Return a reader of whole numbers >= `low`."""

    def read(text: str) -> int:
        try:
            value = int(text) if re.fullmatch(r"[+-]?[0-9]{1,15}", text) else low - 1
        except ValueError:
            value = low - 1
        if value < low:
            raise ValueError(f"must be a whole number >= {low}")
        return value

    return read


def real(low: float, high: float = math.inf, above: bool = False) -> Callable[[str], float]:
    """Return a reader of finite numbers in [low, high), or in (low, high) with `above`."""
    wanted = f"must be a finite number {'>' if above else '>='} {low:g}" + (
        f" and < {high:g}" if high < math.inf else ""
    )

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value < high) or (above and value == low):  # nan fails every comparison
            raise ValueError(wanted)
        return value

    return read


def choice(*allowed: str) -> Callable[[str], str]:
    """Return a reader of one of the words `allowed`."""

    def read(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    read.shown = "{" + ",".join(allowed) + "}"  # in the help
    return read


def indices(text: str) -> list[int]:
    """Read comma separated layer numbers from 1, none twice."""
    parts = text.split(",")
    if not all(re.fullmatch(r"0*[1-9][0-9]{0,5}", part) for part in parts):
        raise ValueError("must be layer numbers from 1, separated by commas")
    numbers = [int(part) for part in parts]
    if len(set(numbers)) < len(numbers):
        raise ValueError("must not name a layer twice")
    return numbers


def name(text: str) -> str:
    """Read a plain name, safe as a part of a path."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,100}", text) or set(text) == {"."}:
        raise ValueError("must be a plain name of at most 100 letters, digits, '.', '_' and '-'")
    return text


def absolute(text: str) -> Path:
    """Return the absolute form of a path; ValueError when it starts at the home folder of an unknown user."""
    try:
        return Path(text).expanduser().absolute()
    except RuntimeError:
        raise ValueError("starts at the home folder of a user that is not known") from None


def path(text: str) -> str:
    """Read a path; one that is given is relative to the current folder and kept absolute."""
    if not text or not text.isprintable():
        raise ValueError("must be a path of printable characters")
    return str(absolute(text))


def pretrained(text: str) -> str:
    """Read a hub name or a local folder, which is kept absolute so that the run can be used from anywhere."""
    if not re.fullmatch(r"[^\s\x00-\x1f]+( [^\s\x00-\x1f]+)*", text):
        raise ValueError("must be a hub name or a local folder")
    folder = absolute(text)
    return str(folder) if os.path.isdir(folder) or text.startswith(("/", "~")) else text


# --- the groups -------------------------------------------------------------------------------------------------------


def experiment(device: Any = REQUIRED, falls_back: str = "") -> Group:
    """Flags that name a run and its device; all eight scripts."""
    return "experiment", [
        Flag("experiment", name, "name of the run"),
        Flag("task", choice(*TASKS), "GLUE task"),
        Flag("model", name, "model name, a part of the run's folder", "bert"),
        Flag("device_id", whole(-1), "where the model runs: -1 = CPU, n = cuda:n", device, falls_back),
    ]


def data_split() -> Group:
    """The split to read."""
    return "data split", [Flag("dataset", name, "split of the task: train, dev, test, ...")]


def teacher_model() -> Group:
    """Flags of the pre-trained teacher."""
    return "teacher model", [
        Flag("ptrain_ver", pretrained, "pre-trained BERT: hub name or local folder"),
        Flag("num_class", whole(1), "number of labels; 1 for the regression task stsb"),
        Flag("max_seq_len", whole(8), "longest input in word pieces, [CLS] and [SEP] included", "512"),
    ]


def optimiser(prefix: str, lr: str, same: bool) -> list[Flag]:
    """Flags of one AdamW with its schedule and clipping; with `same`, the steps default to the student's."""
    what = "the gates' " if prefix else ""
    return [
        Flag(f"{prefix}beta1", real(0, 1), f"{what}AdamW beta1", "0.9"),
        Flag(f"{prefix}beta2", real(0, 1), f"{what}AdamW beta2", "0.999"),
        Flag(f"{prefix}eps", real(0, above=True), f"{what}AdamW epsilon", "1e-8"),
        Flag(f"{prefix}lr", real(0, above=True), f"{what}peak learning rate", lr),
        Flag(f"{prefix}weight_decay", real(0), f"{what}weight decay, not on biases and LayerNorm", "0.01"),
        Flag(
            f"{prefix}max_norm",
            real(0, above=True),
            "norm to which each gate's gradient is clipped on its own"
            if prefix
            else "norm to which the gradient is clipped",
            "1",
        ),
        Flag(
            f"{prefix}total_step",
            whole(1),
            f"{what}optimiser steps until the learning rate is 0" if prefix else "optimiser steps of the run",
            "50000",
            "--total_step" if same else "",
        ),
        Flag(
            f"{prefix}warmup_step",
            whole(0),
            f"{what}steps in which the learning rate rises from 0 to its peak",
            "10000",
            "--warmup_step" if same else "",
        ),
    ]


def training() -> Group:
    """Flags of every training run."""
    return "training", [
        Flag("accum_step", whole(1), "micro-batches per optimiser step; divides batch_size", "1"),
        Flag("batch_size", whole(1), "examples per optimiser step", "32"),
        *optimiser("", "3e-5", same=False),
        Flag("dropout", real(0, 1), "dropout probability (teacher: of the head; student: everywhere)", "0.1"),
        Flag("seed", whole(0), "seed of everything random", "42"),
        Flag("log_step", whole(1), "steps between two tensorboard points", "500"),
        Flag("ckpt_step", whole(1), "steps between two checkpoints", "1000"),
    ]


def teacher_use() -> Group:
    """Flags that name a fine-tuned teacher; all distillers."""
    return "teacher use", [
        Flag("teacher_exp", name, "name of the teacher's run"),
        Flag("tmodel", name, "model name of the teacher's run", "bert"),
        Flag("tckpt", whole(0), "step of the teacher's checkpoint"),
        Flag("tdevice_id", whole(-1), "where the teacher runs: -1 = CPU, n = cuda:n", falls_back="--device_id"),
    ]


def student() -> Group:
    """Sizes of the student and how it starts; all distillers."""
    return "student", [
        Flag("d_model", whole(1), "hidden size; the teacher's", "768"),
        Flag("d_ff", whole(1), "size of the feed-forward layers", "3072"),
        Flag("num_attention_heads", whole(1), "attention heads; divides d_model", "12"),
        Flag("num_hidden_layers", whole(1), "layers; divides the teacher's", "6"),
        Flag("type_vocab_size", whole(1), "segment ids", "2"),
        Flag(
            "student_init",
            choice("even", "first", "random"),
            "layers taken from the pre-trained model: every (L/N)-th, the first N, or none",
            "even",
        ),
        Flag(
            "embedding_init",
            choice("pretrained", "random"),
            "embeddings: the pre-trained model's, or random as the authors' code leaves them",
            "pretrained",
        ),
        Flag("d_emb", whole(1), "accepted for old commands; has no effect", falls_back="not set"),
    ]


def objective() -> Group:
    """Weights of the losses; all distillers."""
    return "objective", [
        Flag("softmax_temp", real(0, above=True), "temperature T of the soft targets", "1"),
        Flag("soft_weight", real(0), "weight of the soft-target loss", "0.2"),
        Flag("hard_weight", real(0), "weight of the label loss", "0.8"),
        Flag("mu", real(0), "weight of the hidden-state loss", "1"),
        Flag(
            "pad_loss",
            choice("all", "masked", "sampled"),
            "padding positions in the hidden-state loss: all, none, or a weighted sample (other numbers, much faster)",
            "all",
        ),
        Flag("pad_samples", whole(1), "padding positions per example with --pad_loss sampled", str(PAD_SAMPLES)),
    ]


def gates() -> Group:
    """Flags of the gates' own optimiser; the LAD family."""
    return "gates", [
        Flag("gate_device_id", whole(-1), "where the gates run: -1 = CPU, n = cuda:n", falls_back="--device_id"),
        *optimiser("gate_", "1e-5", same=True),
    ]


def probing() -> Group:
    """Which probe of LAD, and which layers it pairs."""
    return "probe", [
        Flag("probing_exp", choice("partial_lad", "lad_user_defined", "lad_cls"), "the probe"),
        Flag(
            "gate_indices",
            indices,
            "gates whose knowledge is learned, such as 2,4,6",
            falls_back="none; lad_cls alone does without",
        ),
        Flag("student_indices", indices, "student layers that learn it, such as 1,2,3", falls_back="1..N"),
    ]


def attention() -> Group:
    """Which variant of ALP-KD."""
    return "ALP-KD", [
        Flag(
            "alp_exp",
            choice("alp-kd", "alp-kd-hidden", "alp-kd-hidden-v2"),
            "attend on [CLS], at every position, or at every position to the layers up to i * L / N (v2)",
        )
    ]


def evaluation(ckpt: Flag) -> Group:
    """Flags of evaluation and prediction; they differ in what --ckpt means."""
    return "evaluation", [Flag("batch_size", whole(1), "examples at a time; changes no result", "32"), ckpt]


def speed(distilling: bool) -> Group:
    """How numbers are computed; all training scripts."""
    cache = Flag(
        "cache_teacher", None, "compute the teacher once, keep what it says (alp-kd, lad_cls, or any with --mu 0)"
    )
    return "speed", [
        Flag(
            "precision",
            choice("fp32", "tf32", "bf16"),
            "of matrix products; parameters, losses and statistics stay in fp32 (other numbers, faster)",
            "fp32",
        ),
        Flag("compile", None, "compile the layers with torch.compile (numbers change by rounding)"),
    ] + [cache] * distilling


def paths() -> Group:
    """The two folders on disk; defaults lie in the project, wherever the script is called from."""
    data = PROJECT_ROOT / "data"
    return "paths", [
        Flag("data_dir", path, "folder of the GLUE data", str(data / "fine_tune")),
        Flag("experiment_dir", path, "folder of the runs", str(data / "fine_tune_experiment")),
    ]


def runs() -> Group:
    """What stays of a run, and what to do about one that is already there."""
    return "runs", [
        Flag("keep_last", whole(1), "checkpoints to keep, counted from the newest", falls_back="all"),
        Flag("overwrite", None, "start afresh; the run that is there is moved aside"),
    ]


def teaching_groups() -> list[Group]:
    """All groups of run_fine_tune.py."""
    return [
        experiment(device="0"),
        data_split(),
        teacher_model(),
        training(),
        speed(distilling=False),
        paths(),
        runs(),
    ]


def distilling_groups() -> list[Group]:
    """The groups that all distillers share."""
    return [experiment(), training(), teacher_use(), student(), objective(), speed(distilling=True), paths(), runs()]


# --- parsing ----------------------------------------------------------------------------------------------------------


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help in the shape `--lr LR`: the parser takes a value as optional only to report its absence with the rest."""

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        shown = default_metavar if action.metavar is None else action.metavar
        return shown if action.nargs == "?" else super()._format_args(action, default_metavar)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are a UserError like all others, not argparse's usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def attached(argv: Sequence[str], groups: Sequence[Group]) -> list[str]:
    """Write `--lr -1e-3` as `--lr=-1e-3`: argparse takes a word like -1e-3 or -inf for a flag of its own."""
    valued = {f"--{flag.name}" for _, flags in groups for flag in flags if flag.read}
    result: list[str] = []
    for word in argv:
        if result and result[-1] in valued and re.match(r"-[^-]", word) and word != "-h":
            result[-1] += f"={word}"
        else:
            result.append(word)
    return result


def build(description: str, groups: Sequence[Group], example: str) -> argparse.ArgumentParser:
    """Return the parser that prints the help; values stay text until `read_flags`."""
    required = [f"--{f.name} {f.name.upper()}" for _, flags in groups for f in flags if is_required(f)]
    parser = Parser(
        usage="%(prog)s " + " ".join(required) + " [more flags]",
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    for title, flags in groups:
        group = parser.add_argument_group(title)
        for flag in flags:
            line = flag.help_line().replace("%", "%%")
            shown = getattr(flag.read, "shown", flag.name.upper()) if flag.read else ""
            group.add_argument(f"--{flag.name}", nargs="?", const=NO_VALUE, metavar=shown, help=line)
    return parser


def is_required(flag: Flag) -> bool:
    """Tell whether a command must give `flag`."""
    return flag.read is not None and flag.default is REQUIRED and not flag.falls_back


def read_flags(raw: Namespace, groups: Sequence[Group], problems: list[str]) -> Namespace:
    """Return the flags' values; what is wrong is added to `problems` and left out of the result."""
    config = Namespace()
    for flag in (flag for _, flags in groups for flag in flags):
        text = getattr(raw, flag.name)
        if flag.read is None:
            setattr(config, flag.name, text is NO_VALUE)
            if text not in (None, NO_VALUE):
                problems.append(f"--{flag.name} {text!r}: takes no value")
        elif text is NO_VALUE:
            problems.append(f"--{flag.name}: needs a value")
        elif text is None and is_required(flag):
            problems.append(f"--{flag.name}: is required")
        elif text is None and flag.falls_back.startswith("--"):
            if hasattr(config, flag.falls_back[2:]):  # absent where it is wrong itself; groups list it first
                setattr(config, flag.name, getattr(config, flag.falls_back[2:]))
        elif text is None and flag.falls_back:
            setattr(config, flag.name, None)
        else:
            try:
                setattr(config, flag.name, flag.read(flag.default if text is None else text))
            except ValueError as error:
                problems.append(f"--{flag.name} {text!r}: {error}")
    return config


def parse(
    description: str,
    groups: Sequence[Group],
    checks: Sequence[Check],
    example: str,
    argv: Sequence[str] | None = None,
    **facts: str,
) -> Namespace:
    """Read the command line into a namespace of checked values; `facts` are what the script itself says of its runs.

    Raises UserError that names every problem of the command: unknown, missing and wrong flags, and what `checks` find.
    """
    raw, unknown = build(description, groups, example).parse_known_args(
        attached(sys.argv[1:] if argv is None else argv, groups)
    )
    # What follows an unknown flag is its value.
    strange = [
        word for before, word in pairwise(["", *unknown]) if word[:1] == "-" or before[:2] != "--" or "=" in before
    ]
    problems = [f"{word!r}: is no flag of this script (see -h)" for word in strange]
    config = Namespace(**vars(read_flags(raw, groups, problems)), **facts)
    for check in checks:
        problems.extend(check(config))
    if problems:
        raise UserError("; ".join(problems))
    return config


def run(main: Callable[[], None]) -> NoReturn:
    """Call a script's main; a Stop becomes one line `<script>: error: <message>` and its exit code."""
    interrupt.listen()
    try:
        main()
    except Stop as stop:
        under_torchrun = "TORCHELASTIC_RUN_ID" in os.environ  # then there are several of us, with the same reason
        if not under_torchrun or os.environ.get("LOCAL_RANK") == "0":
            print(f"{Path(sys.argv[0]).name}: {stop.word}: {stop}", file=sys.stderr)
        sys.exit(stop.exit_code)
    sys.exit(0)
