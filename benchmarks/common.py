"""What the benchmarks share: random models, texts as long as QQP's, our training step, and the processes it runs in.

Shapes: B batch, S padded length, D hidden size.
"""

import gc
import multiprocessing
import random
import statistics
import tempfile
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fine_tune.core import memory
from fine_tune.core.files import sha256
from fine_tune.data.layout import Layout
from fine_tune.data.tasks import TASKS
from fine_tune.data.tokens import Batch, Tokens, load
from fine_tune.distil import Distillation
from fine_tune.methods.lad import lad
from fine_tune.methods.pkd import Pkd
from fine_tune.models import linear
from fine_tune.models.bert import BertClassifier, empty_encoder, freeze, sizes
from fine_tune.models.precision import (
    OLDEST,
    check_precision,
    compile_gates,
    compile_rows,
    keep_rounded,
    unsupported_reason,
)
from fine_tune.models.pretrained import load_tokenizer
from fine_tune.training.distributed import DEVICE_FLAGS
from fine_tune.training.graphs import learner
from fine_tune.training.loop import train
from fine_tune.training.optim import NonFiniteGuard
from fine_tune.training.summary import reset_peak_memory
from fine_tune.training.task import Task
from fine_tune.training.teacher_cache import CachedTeacher, cached_outputs, what_is_kept
from tests import tiny

MOST_STEPS = 16  # what a kept teacher knows, in batches
PHASES = ("batch", "teacher forward", "student forward", "method and losses", "backward", "clip", "update")
LOADING = "rows | first time, s | rows/s | peak MiB | from the cache, s | rows/s | peak MiB"
BURST = 8  # steps that follow one another on a GPU before it is waited for: as in training
HELD = 6 * 2**30  # bytes of a GPU, more than one process takes at batch 32
WARM_UP = 2  # steps; in the second, memory that the first freed is still being asked for again
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")  # how the names of CUDA's functions for it begin
CORES = multiprocessing.cpu_count()


@dataclass(frozen=True)
class Shape:
    """Sizes of a teacher of `layers` and a student of `students` layers, of a batch, and how many threads work."""

    layers: int = 12
    students: int = 6
    d_model: int = 768
    heads: int = 12
    d_ff: int = 3072
    vocab: int = 30522
    seq_len: int = 128
    batch_size: int = 8
    threads: int = 1
    device_id: int = -1

    @property
    def device(self) -> torch.device:
        """The device that --device_id names."""
        return torch.device("cpu" if self.device_id < 0 else f"cuda:{self.device_id}")

    def flags(self, dropout: float) -> Namespace:
        """Return the flags of a distillation, as far as a step needs them."""
        sizes = {"batch_size": self.batch_size, "max_seq_len": self.seq_len, "d_model": self.d_model}
        sizes |= {"num_hidden_layers": self.students, "dropout": dropout, "lr": 1e-4, "gate_lr": 5e-7}
        both = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "max_norm": 1.0}
        both |= {"warmup_step": 10, "total_step": 1000}
        both |= {f"gate_{name}": value for name, value in both.items()}
        objective = {"hard_weight": 0.3, "soft_weight": 0.7, "softmax_temp": 20.0, "mu": 500.0}
        return Namespace(task="qqp", dataset="train", model="bert", **objective, **sizes, **both)

    def classifier(self, layers: int, dropout: float) -> BertClassifier:
        """Return a random classifier, always the same."""
        sizes = {"vocab_size": self.vocab, "hidden_size": self.d_model, "num_hidden_layers": layers}
        sizes |= {"num_attention_heads": self.heads, "intermediate_size": self.d_ff}
        sizes |= {"max_position_embeddings": self.seq_len}
        sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        torch.manual_seed(layers)
        return BertClassifier(empty_encoder(sizes), 2, dropout).to(self.device)

    def tokens(self, examples: int = 4096) -> Tokens:
        """Return random examples as long as QQP's pairs: 29 word pieces in the mean, skewed to the right."""
        generator = np.random.default_rng(0)
        lengths = generator.lognormal(np.log(27), 0.45, examples).astype(np.int64).clip(8, self.seq_len)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        ids = generator.integers(1, self.vocab, offsets[-1], dtype=np.int32)
        return Tokens(ids, offsets, (lengths // 2).astype(np.int32), generator.integers(0, 2, examples))

    def rows(self, number: int) -> np.ndarray:
        """Return the examples (B,) of step `number`, the same in whatever is compared."""
        return np.arange((number - 1) * self.batch_size, number * self.batch_size) % 4096


BASE = Shape()
TINY = Shape(layers=4, students=2, d_model=16, heads=2, d_ff=32, vocab=45, seq_len=32, batch_size=4)


# --- floating-point operations ----------------------------------------------------------------------------------------


def counted(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Return how many rows, and how many real ones, each example of a batch has, (B,) each."""
    tokens = layout.token_rows[layout.is_token]
    return np.bincount(layout.batch_index[layout.weight > 0]), np.bincount(layout.batch_index[tokens])


def forward_flops(layers: int, shape: Shape, rows: np.ndarray, keys: np.ndarray) -> float:
    """Return the floating-point operations of BERT's layers over examples of `rows` (B,) that attend to `keys` (B,).

    Two for each multiply-add: per row 2 D^2 of them (query, output) and 2 D d_ff; per key 2 D^2 (key, value); per pair
    2 D (scores, mixing). Embeddings, pooler and all that is no matrix product are left out.
    """
    per_key = 2 * shape.d_model**2
    per_row = per_key + 2 * shape.d_model * shape.d_ff
    return 2.0 * layers * (rows.sum() * per_row + keys.sum() * per_key + (rows * keys).sum() * 2 * shape.d_model)


def distil_flops(shape: Shape, rows: np.ndarray, keys: np.ndarray) -> float:
    """Return the operations of a distillation step: the backward pass of student and gates is twice the forward."""
    gates = 2.0 * (shape.layers - 1) * rows.sum() * shape.d_model**2
    models = forward_flops(shape.layers, shape, rows, keys) + 3 * forward_flops(shape.students, shape, rows, keys)
    return models + 3 * gates


# --- our step ---------------------------------------------------------------------------------------------------------


Watch = Callable[[str, Callable], Callable]  # watch(phase, function) is the function, with its time taken


@dataclass
class Job:
    """Something that is measured: `step(number)`, counted from 1, does it once and returns its operations.

    `check()` does step 1; it returns the loss, and all gradients before they are clipped (or logits), by name.
    """

    step: Callable[[int], float]
    check: Callable[[], dict[str, np.ndarray]] | None = None


VARIANTS: dict[str, dict[str, Any]] = {  # the flags that set a variant of our distillation step apart
    "exact": {},
    "exact, products by BLAS": {"one_dnn": False},
    "masked": {"pad_loss": "masked"},
    "sampled": {"pad_loss": "sampled"},
    "exact bf16": {"precision": "bf16"},
    "masked bf16": {"pad_loss": "masked", "precision": "bf16"},
    "masked, teacher kept": {"pad_loss": "masked", "cache_teacher": True},
    "masked, a step that is logged": {"pad_loss": "masked", "watched": True},
    "masked compiled": {"pad_loss": "masked", "compile": True},
}
PRECISIONS = ("fp32", *OLDEST)
ON_GPU: dict[str, dict[str, Any]] = {
    name + f" {precision}" * (precision != "fp32") + " compiled" * compiled: {
        "pad_loss": pad_loss,
        "precision": precision,
        "compile": compiled,
    }
    for name, pad_loss in (("exact", "all"), ("masked", "masked"))
    for precision in PRECISIONS
    for compiled in (False, True)
}
DEFAULTS = {"pad_loss": "all", "pad_samples": 4, "precision": "fp32", "compile": False, "seed": 42}
DEFAULTS |= {"cache_teacher": False, "cache_limit": 20, "watched": False}
DEFAULTS["method"] = "lad"  # no flag either
DEFAULTS["one_dnn"] = linear.ONE_DNN  # no flag: what fine_tune/models/linear.py finds


def distillation(shape: Shape, variant: dict[str, Any], dropout: float) -> Distillation:
    """Put random models and a method together as `distil` does; every variant starts from the same weights."""
    config = Namespace(**vars(shape.flags(dropout)) | DEFAULTS | variant)
    check_precision(config, [shape.device])
    linear.ONE_DNN = config.one_dnn
    teacher, student = shape.classifier(shape.layers, dropout), shape.classifier(shape.students, dropout)
    if config.compile:
        compile_rows(teacher.encoder)
        compile_rows(student.encoder)
    keep_rounded(teacher.encoder, config.precision)
    sizes_of = {"lad": (shape.seq_len, shape.d_model), "pkd": ()}
    method = {"lad": lad, "pkd": Pkd}[config.method](shape.layers, shape.students, *sizes_of[config.method])
    method = method.to(shape.device)
    if config.compile:
        compile_gates(method.gates)
    devices = dict.fromkeys(DEVICE_FLAGS, shape.device)
    if not config.cache_teacher:
        return Distillation(freeze(teacher), student, method, config, devices)
    every, count = shape.tokens(), shape.batch_size * MOST_STEPS
    tokens = Tokens(
        every.ids[: every.offsets[count]], every.offsets[: count + 1], every.first_segment, every.labels[:count]
    )
    kept = what_is_kept("tokens", tokens, config, 2, sizes(teacher.encoder.config))
    with tempfile.TemporaryDirectory() as folder:  # what is mapped stays readable
        flat = cached_outputs(lambda: freeze(teacher), tokens, kept, config, "benchmark", Path(folder))
    return Distillation(
        CachedTeacher(flat, kept), student, method, config, devices | {"tdevice_id": torch.device("cpu")}
    )


def our_distil(shape: Shape, variant: dict[str, Any], dropout: float, watch: Watch) -> Job:
    """Distil under the flags `variant`."""
    made, tokens = distillation(shape, variant, dropout), shape.tokens()
    for name, model in (("teacher", made.teacher), ("student", made.student)):
        model.forward = watch(f"{name} forward", model.forward)

    def batch(number: int) -> tuple[Batch, float]:
        rows = shape.rows(number)
        layout = made.layout(tokens.lengths(rows), rows, number)
        spared = forward_flops(shape.layers, shape, *counted(layout)) if made.config.cache_teacher else 0
        batch = replace(tokens.batch(rows, layout), watched=made.config.watched)
        return batch, distil_flops(shape, *counted(layout)) - spared

    return our_training(made, batch, watch)


def our_training(task: Task, batch: Callable[[int], tuple[Batch, float]], watch: Watch) -> Job:
    """Train `task` by the package's own loop; `batch` makes a step's batch and counts its operations."""
    if task.scaler:
        task.scaler.scale = torch.tensor(2.0**8)  # a step that overflows would be left out, and so be too fast
    memory.prepare()
    guard, seen = NonFiniteGuard(task.optimizers, task.scaler), {}
    forward, batch = watch("losses", learner(task.train())), watch("batch", batch)
    for group in task.optimizers.values():
        group.clip, group.step = watch("clip", group.clip), watch("update", group.step)

    def log(step: int, losses: dict, lrs: dict, shown: dict) -> None:
        seen["loss"] = losses["loss"]

    def step(number: int) -> float:
        made, flops = batch(number)
        steps = range(number, number + 1)
        train(steps, 1, iter([made]), forward, task.optimizers, guard, log, lambda step, vectors: None)
        return flops

    def check() -> dict[str, np.ndarray]:
        clip = task.optimizers["lr"].clip  # comes first

        def keep(scale: torch.Tensor | None) -> torch.Tensor:
            seen.update(gradients(task.trainable_modules, 1.0 if scale is None else scale.item()))
            return clip(scale)

        task.optimizers["lr"].clip = keep
        step(1)
        return seen | {"loss": seen["loss"].cpu().numpy()}

    return Job(step, check)


def gradients(parts: dict[str, nn.Module], scale: float = 1.0) -> dict[str, np.ndarray]:
    """Return the gradients of named modules over `scale`, as a copy, by `<part>.<parameter>`."""
    named = {f"{part}.{name}": p for part, module in parts.items() for name, p in module.named_parameters()}
    return {name: p.grad.cpu().numpy() / scale for name, p in named.items()}


# --- reading a file ---------------------------------------------------------------------------------------------------


def reading(folder: Path, dropout: float, watch: Watch) -> Job:
    """Load the training file in `folder`, which also holds a vocabulary and the cache."""
    spec, tokenizer = TASKS["qqp"], load_tokenizer(folder / "bert", len(tiny.VOCABULARY), "benchmark")
    path = folder / "QQP" / "train.tsv"
    more = (spec, spec.splits["train"], tokenizer, BASE.seq_len, folder / "cache")
    return Job(lambda number: float(len(load(path, sha256(path), *more))))


def loading(rows: int) -> list[str]:
    """Return a row of LOADING: a file of `rows` rows read for the first time and again, in a process each."""
    with tempfile.TemporaryDirectory() as name:
        folder, cells = Path(name), [f"{rows:,}"]
        tiny.make_bert(folder / "bert")
        (folder / "QQP").mkdir()
        generator = random.Random(0)
        words = [round(generator.lognormvariate(2.46, 0.45)) for _ in range(5000)]  # 29 word pieces a pair
        questions = [" ".join(generator.choices(tiny.WORDS, k=k)) for k in words]
        with (folder / "QQP" / "train.tsv").open("w") as file:
            file.write("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n")
            for i in range(rows):
                file.write("\t".join([f"{i}\t{i}\t{i}", *generator.choices(questions, k=2), f"{i % 2}\n"]))
        for _ in ("first time", "from the cache"):
            with Worker(partial(reading, folder), CORES) as worker:  # the tokenizer takes all cores
                seconds = worker.ask("step", 1)["seconds"]
                cells += [f"{seconds:.2f}", f"{rows / seconds:,.0f}", f"{worker.ask('peak'):.0f}"]
    return cells


# --- processes --------------------------------------------------------------------------------------------------------


class Host:
    """Lives in a worker process: takes the time and memory of one job."""

    def __init__(self, make: Callable[..., Job], threads: int, gpu: int) -> None:
        # CPU time is blind to what else the machine does, but adds threads up, and knows nothing of a GPU.
        self.now = time.process_time if threads == 1 and gpu < 0 else time.perf_counter
        self.make, self.gpu, self.job, self.spent = make, gpu, None, Counter()

    def clock(self) -> float:
        """Return the time in seconds, once a GPU has done what it was asked."""
        if self.gpu >= 0:
            torch.cuda.synchronize(self.gpu)
        return self.now()

    def watch(self, phase: str, function: Callable) -> Callable:
        """Return `function` with its seconds added to those of `phase`; a GPU is waited for after whole steps only."""
        if self.gpu >= 0 and phase != "seconds":
            return function

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = self.clock()
            result = function(*args, **kwargs)
            self.spent[phase] += self.clock() - start
            return result

        return timed

    def check(self, path: Path) -> None:
        """Write what the job's check finds without dropout into an .npz file; that job is gone afterwards."""
        np.savez(path, **self.make(dropout=0.0, watch=self.watch).check())
        gc.collect()

    def prepare(self, path: Path, numbers: list[int]) -> None:
        """Check, and do steps that are not timed."""
        self.check(path)
        for number in numbers:
            self.step(number)

    def step(self, number: int) -> dict[str, float]:
        """Do a step with dropout, on a GPU BURST as one; return its seconds, also by phase, and its operations."""
        if self.job is None:
            self.job = self.make(dropout=0.1, watch=self.watch)
            gc.collect()  # of models that were only there to be copied
            reset_peak_memory([self.gpu] if self.gpu >= 0 else [])  # what counts is the steps
        self.spent.clear()
        burst = BURST if self.gpu >= 0 else 1
        numbers = range((number - 1) * burst + 1, number * burst + 1)
        flops = self.watch("seconds", lambda: sum(map(self.job.step, numbers)))() / burst
        spent = Counter({phase: seconds / burst for phase, seconds in self.spent.items()})
        spent["method and losses"] = spent["losses"] - spent["teacher forward"] - spent["student forward"]
        known = spent["batch"] + spent["losses"] + spent["clip"] + spent["update"]
        return {"flops": flops, "backward": spent["seconds"] - known} | spent

    def about(self) -> tuple[str, list[str], int]:
        """Return the GPU's name, "" for the CPU, in which of PRECISIONS it can work, and its free bytes or 0."""
        device = torch.device("cpu" if self.gpu < 0 else f"cuda:{self.gpu}")
        can = [name for name in PRECISIONS if name == "fp32" or not unsupported_reason(name, device)]
        if self.gpu < 0:
            return "", can, 0
        return torch.cuda.get_device_name(device), can, torch.cuda.mem_get_info(device)[0]

    def launches(self, number: int) -> int:
        """Return how many kernels and graphs a step, one that was done before, launches on the GPU."""
        with torch.profiler.profile() as profiler:  # of all that is there: CPU and CUDA
            self.job.step(number)
            self.clock()
        return sum(event.name.startswith(LAUNCHES) for event in profiler.events())

    def peak(self) -> float:
        """Return the peak memory of the steps in MiB: the GPU's, or the process's on the CPU."""
        if self.gpu >= 0:
            return torch.cuda.max_memory_allocated(self.gpu) / 2**20
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class Worker:
    """A process of its own, so that its peak memory is its own; `make(dropout=, watch=)` makes its job there."""

    def __init__(self, make: Callable[..., Job], threads: int, gpu: int = -1) -> None:
        context = multiprocessing.get_context("fork")  # the libraries take seconds to import
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=self.serve, args=(other, make, threads, gpu), daemon=True)
        self.process.start()
        other.close()  # so that the end of the process is the end of the pipe

    def serve(self, pipe: Any, make: Callable[..., Job], threads: int, gpu: int) -> None:
        """Answer, in the process, the calls that come through `pipe` until it is closed."""
        self.pipe.close()
        torch.set_num_threads(threads)
        host = Host(make, threads, gpu)
        while True:
            try:
                name, args = pipe.recv()
            except EOFError:
                return
            pipe.send(getattr(host, name)(*args))

    def ask(self, name: str, *args: Any) -> Any:
        """Call a method of the Host; EOFError when the process has died, which says why on stderr."""
        self.begin(name, *args)
        return self.answer()

    def begin(self, name: str, *args: Any) -> None:
        """Call a method of the Host without waiting for its `answer`."""
        self.pipe.send((name, args))

    def answer(self) -> Any:
        """Return the result of the call that was begun."""
        return self.pipe.recv()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.pipe.close()
        self.process.join()


# --- report -----------------------------------------------------------------------------------------------------------


def heading(title: str, shape: Shape) -> None:
    """Print the title, the machine, and what the models and texts look like; from here on the parent has one thread."""
    torch.set_num_threads(1)  # a pool of threads does not survive the fork
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(": ")[1] for line in lines if line.startswith("model name")), "unknown CPU")
    print(f"# {title}\n\n{cpu}, {CORES} cores; torch {torch.__version__}.")
    print(f"Random BERTs, {shape.layers} to {shape.students} layers, D {shape.d_model}, d_ff {shape.d_ff}, in fp32;")
    print(
        f"{shape.tokens().lengths().mean():.1f} of {shape.seq_len} word pieces per example. One thread: CPU time; more"
    )
    print("threads or a GPU: wall time. Peak memory is that of the steps: the GPU's, or the whole process's, libraries")
    print("included.\n")


def table(head: str, rows: Iterable[list[str]]) -> None:
    """Print a Markdown table, row by row as they come; `head` holds its columns, separated by `|`."""
    columns = head.split(" | ")
    for row in chain([columns, ["---"] * len(columns)], rows):
        print("| " + " | ".join(row) + " |", flush=True)
    print(flush=True)


def milliseconds(seconds: list[float]) -> str:
    """Return the median in ms."""
    median = statistics.median(seconds)
    return f"{median * 1e3:.{1 if median < 1 else 0}f}"
