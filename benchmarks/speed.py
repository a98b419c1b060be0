"""What a step costs: plain research code (tests/reference.py) and ours side by side, on the CPU or a GPU.

`python benchmarks/speed.py` takes half an hour, with --tiny seconds. What is compared runs in processes of its own
that take turns, step by step, so that what else the machine does hits both alike. `--device_id 0` takes a GPU: batch
32, every --precision that it has, each with and without --compile.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import BertConfig  # noqa: E402

from benchmarks import common  # noqa: E402
from benchmarks.common import ON_GPU, VARIANTS, Job, Shape, Watch, Worker, distil_flops, forward_flops  # noqa: E402
from fine_tune.core import memory  # noqa: E402
from fine_tune.data.layout import full  # noqa: E402
from fine_tune.data.tokens import Batch, Tokens  # noqa: E402
from fine_tune.finetune import FineTuning  # noqa: E402
from fine_tune.methods.losses import hard_loss  # noqa: E402
from fine_tune.models.bert import BertClassifier  # noqa: E402
from fine_tune.models.precision import AUTOCAST, check_precision, compile_rows  # noqa: E402
from fine_tune.training.scoring import predict  # noqa: E402
from tests import reference  # noqa: E402

HEAD = (
    "variant | step, ms | steps/s | examples/s | times faster | peak MiB | of plain | loss differs | {what} differ | "
    "GFLOP/s | of the product's"
)


# --- what is measured -------------------------------------------------------------------------------------------------


def plain_batch(tokens: Tokens, chosen: np.ndarray, seq_len: int, device: torch.device) -> reference.MicroBatch:
    """Return the examples `chosen` (B,) padded to S, as the library takes them."""
    lengths = tokens.lengths(chosen)
    batch, shape = tokens.batch(chosen, full(lengths, seq_len)), (len(chosen), seq_len)
    mask = torch.arange(seq_len) < torch.from_numpy(lengths)[:, None]
    ids, types = batch.input_ids.view(shape), batch.token_type_ids.view(shape)
    inputs = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask.long()}
    return {name: tensor.to(device) for name, tensor in inputs.items()}, batch.labels.to(device)


def plain_model(model: BertClassifier) -> reference.Classifier:
    """Return a plain classifier with the sizes and weights of one of ours."""
    config = BertConfig.from_dict(model.encoder.config.to_dict())
    plain = reference.Classifier(config, model.linear_layer.out_features, model.dropout.p)
    plain.load_state_dict(model.state_dict())
    return plain.to(model.linear_layer.weight.device)


def plain_training(shape: Shape, plain: reference.Plain, parts: dict[str, torch.nn.Module], flops: float) -> Job:
    """Train `parts` by plain code on batches padded to S."""
    tokens = shape.tokens()

    def micro_batches(number: int) -> list[reference.MicroBatch]:
        return [plain_batch(tokens, shape.rows(number), shape.seq_len, shape.device)]

    def step(number: int) -> float:
        plain.step(micro_batches(number))
        return flops

    def check() -> dict[str, np.ndarray]:
        loss = plain.backward(micro_batches(1))
        return {"loss": np.array(loss)} | common.gradients(parts)

    return Job(step, check)


def plain_distil(shape: Shape, dropout: float, watch: Watch) -> Job:
    """Distil with LAD, plainly."""
    ours = common.distillation(shape, VARIANTS["exact"], dropout)
    teacher, student = plain_model(ours.teacher), plain_model(ours.student)
    gates = [
        reference.gate(shape.seq_len, shape.d_model, gate.state_dict()).to(shape.device)
        for gate in ours.method.gates.values()
    ]
    parts = {"model": student} | {f"gate-{index}": gate for index, gate in enumerate(gates, start=1)}
    plain = reference.PlainLad(teacher, student, gates, vars(ours.config))
    every = np.full(shape.batch_size, shape.seq_len)
    return plain_training(shape, plain, parts, distil_flops(shape, every, every))


def plain_fine_tune(shape: Shape, dropout: float, watch: Watch) -> Job:
    """Fine-tune the teacher, plainly."""
    model = plain_model(shape.classifier(shape.layers, dropout))
    every = np.full(shape.batch_size, shape.seq_len)
    flops = 3 * forward_flops(shape.layers, shape, every, every)
    plain = reference.PlainTeacher(model, vars(shape.flags(dropout)))
    return plain_training(shape, plain, {"model": model}, flops)


def our_fine_tune(shape: Shape, variant: dict[str, Any], dropout: float, watch: Watch) -> Job:
    """Fine-tune the teacher under the flags `variant`, as fine_tune/finetune.py does."""
    config = Namespace(**vars(shape.flags(dropout)) | common.DEFAULTS | variant)
    check_precision(config, [shape.device])
    model, tokens = shape.classifier(shape.layers, dropout), shape.tokens()
    if config.compile:
        compile_rows(model.encoder)
    tuning = FineTuning(model, config, shape.device)

    def batch(number: int) -> tuple[Batch, float]:
        rows = shape.rows(number)
        lengths = tokens.lengths(rows)
        return tokens.batch(rows, tuning.layout(lengths, rows, number)), 3 * cls_flops(shape, lengths)

    return common.our_training(tuning, batch, watch)


def cls_flops(shape: Shape, lengths: np.ndarray) -> float:
    """Return the operations of a teacher's forward pass of which [CLS] alone is read in the last layer."""
    lower = forward_flops(shape.layers - 1, shape, lengths, lengths)
    return lower + forward_flops(1, shape, np.ones_like(lengths), lengths)


def evaluation(shape: Shape, examples: int, plain: bool, dropout: float, watch: Watch) -> Job:
    """Compute a teacher's logits of many examples: as fine_tune/evaluate.py does, or in their order and padded to S."""
    model, tokens, size = shape.classifier(shape.layers, dropout), shape.tokens(examples), shape.batch_size
    every = np.full(examples, shape.seq_len)
    flops = forward_flops(shape.layers, shape, every, every) if plain else cls_flops(shape, tokens.lengths())
    model = plain_model(model) if plain else model
    if not plain:
        memory.prepare()

    def logits() -> torch.Tensor:
        if not plain:
            return torch.from_numpy(predict(model, tokens, size, Path("evaluation")))
        chosen = (np.arange(start, min(start + size, examples)) for start in range(0, examples, size))
        return reference.predict(
            model, (plain_batch(tokens, rows, shape.seq_len, shape.device)[0] for rows in chosen)
        ).cpu()

    def step(number: int) -> float:
        logits()
        return flops

    def check() -> dict[str, np.ndarray]:
        found = logits()
        return {"loss": hard_loss(found, torch.from_numpy(tokens.labels)).numpy(), "logits": found.numpy()}

    return Job(step, check)


def product(shape: Shape, precision: str, dropout: float, watch: Watch) -> Job:
    """Multiply two matrices ten times: BERT's widest layer, (B * S, D) by (D, d_ff), or on a GPU 8192 by 8192."""
    sizes = (shape.batch_size * shape.seq_len, shape.d_model, shape.d_ff) if shape.device_id < 0 else (8192,) * 3
    dtype = AUTOCAST.get(precision, torch.float32)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    left, right = (torch.rand(size, device=shape.device).to(dtype) for size in (sizes[:2], sizes[1:]))

    def step(number: int) -> float:
        for _ in range(10):
            torch.mm(left, right)
        return 20.0 * sizes[0] * sizes[1] * sizes[2]

    return Job(step)


# --- tables -----------------------------------------------------------------------------------------------------------


def differences(plain: Path, other: Path) -> list[str]:
    """Return the losses' relative difference in two checks' files, and the largest difference of all else in them.

    The latter is absolute, divided by the largest absolute value of the plain ones.
    """
    with np.load(plain) as left, np.load(other) as right:
        assert set(left.files) == set(right.files), set(left.files) ^ set(right.files)
        names = [name for name in left.files if name != "loss"]
        apart = max(np.abs(left[name] - right[name]).max() for name in names)
        largest = max(np.abs(left[name]).max() for name in names)
        return [f"{abs(right['loss'] / left['loss'] - 1):.1e}", f"{apart / largest:.1e}"]


def rate(steps: list[dict[str, float]]) -> float:
    """Return the GFLOP/s of several steps together."""
    return sum(step["flops"] for step in steps) / sum(step["seconds"] for step in steps) / 1e9


def compare(
    shape: Shape,
    plain: Callable,
    others: dict[str, tuple[Callable, str]],
    pairs: int,
    best: dict[str, float],
    examples: int,
    what: str,
    at_once: int,
) -> dict[str, list[dict[str, float]]]:
    """Print a table of `plain` against each of `others`, `pairs` steps each in turn; return the steps of the others.

    These come with their precision, of whose matrix product `best` are the GFLOP/s. A step takes `examples` examples;
    `what` is compared beside the loss. `at_once` of the others get ready together: most of that is compiling.
    """
    on_gpu = shape.device_id >= 0

    def row(name: str, precision: str, steps: list[dict[str, float]], launches: int, *cells: str) -> list[str]:
        seconds = [step["seconds"] for step in steps]
        per_second = 1 / statistics.median(seconds)
        speed = [common.milliseconds(seconds), f"{per_second:.2f}", f"{examples * per_second:.1f}"]
        share = [f"{rate(steps):.1f}", f"{rate(steps) / best[precision]:.0%}"]
        return [name, *speed, *cells, *share, *[str(launches)] * on_gpu]

    taken, before = {}, []
    names, warm_up = list(others), list(range(1, common.WARM_UP + 1))
    timed = [common.WARM_UP + pair for pair in range(1, pairs + 1)]
    more = timed if on_gpu else []  # --compile captures a graph for every shape of batches

    def rows() -> Iterator[list[str]]:
        with tempfile.TemporaryDirectory() as folder, Worker(plain, shape.threads, shape.device_id) as base:
            base.ask("prepare", Path(folder, "plain.npz"), warm_up)
            for chosen in (names[start : start + at_once] for start in range(0, len(names), at_once)):
                with ExitStack() as stack:
                    made = (Worker(others[name][0], shape.threads, shape.device_id) for name in chosen)
                    workers = {name: stack.enter_context(worker) for name, worker in zip(chosen, made, strict=True)}
                    for name, worker in workers.items():
                        worker.begin("prepare", Path(folder, f"{name}.npz"), warm_up + more)
                    for worker in workers.values():
                        worker.answer()
                    for name, worker in workers.items():
                        turns = [(base.ask("step", number), worker.ask("step", number)) for number in timed]
                        peak, peak_before = worker.ask("peak"), base.ask("peak")
                        launches, launches_before = (
                            one.ask("launches", timed[0]) if on_gpu else 0 for one in (worker, base)
                        )
                        taken[name] = [after for _, after in turns]
                        before.extend(first for first, _ in turns)
                        faster = statistics.median(first["seconds"] / after["seconds"] for first, after in turns)
                        apart = differences(Path(folder, "plain.npz"), Path(folder, f"{name}.npz"))
                        cells = (f"{faster:.2f}", f"{peak:.0f}", f"{peak / peak_before:.2f}", *apart)
                        yield row(name, others[name][1], taken[name], launches, *cells)
        yield row("plain", "fp32", before, launches_before, "1", f"{peak_before:.0f}", "1", "", "")

    common.table(HEAD.format(what=what) + " | launches" * on_gpu, rows())
    return taken


def matrix_rates(shape: Shape) -> tuple[str, dict[str, float], int]:
    """Return the GPU's name, "" for the CPU, and the GFLOP/s of a product in each precision.

    The last is how many processes, at least one, there is memory for beside the plain one.
    """

    def measured(precision: str) -> float:
        with Worker(partial(product, shape, precision), shape.threads, shape.device_id) as worker:
            return rate([worker.ask("step", number) for number in range(6)][1:])

    with Worker(partial(product, shape, "fp32"), shape.threads, shape.device_id) as worker:
        card, can, free = worker.ask("about")
    fit = int(free / (common.HELD * max(1, shape.batch_size / 32))) - 1
    return card, {precision: measured(precision) for precision in can}, max(1, fit)


def phases(taken: dict[str, list[dict[str, float]]]) -> None:
    """Print where the time of our steps goes."""
    rows = [
        [name, *(common.milliseconds([step[phase] for step in steps]) for phase in common.PHASES)]
        for name, steps in taken.items()
    ]
    common.table("ms | " + " | ".join(common.PHASES), rows)


def helps(repeat: int) -> None:
    """Print how long each script takes to answer -h."""
    rows = []
    for script in sorted(ROOT.glob("*.py")):
        seconds = []
        for _ in range(repeat):
            start = time.perf_counter()
            subprocess.run([sys.executable, script, "-h"], check=True, stdout=subprocess.DEVNULL)
            seconds.append(time.perf_counter() - start)
        rows.append([script.name, common.milliseconds(seconds)])
    common.table("script | -h, ms", rows)


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--batch_size", type=int, nargs="+", help="batch sizes; default: 8 and 32, on a GPU 32")
    parser.add_argument("--threads", type=int, nargs="+", help="numbers of threads; default: 1 and 2, on a GPU 1")
    most = common.MOST_STEPS - common.WARM_UP
    parser.add_argument("--pairs", type=int, default=3, choices=range(1, most + 1), help="timed steps of each, in turn")
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=VARIANTS | ON_GPU,
        help="of our distillation step; default: all that the device has",
    )
    parser.add_argument("--device_id", type=int, default=-1, help="-1 = CPU, n = cuda:n")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, one batch size, one thread")
    flags = parser.parse_args()
    on_gpu = flags.device_id >= 0
    usual = ([32], [1]) if on_gpu else ([8, 32], [1, 2])
    sizes, threads = ([4], [1]) if flags.tiny else (flags.batch_size or usual[0], flags.threads or usual[1])
    base, count = (common.TINY, 32) if flags.tiny else (common.BASE, 128)
    base = replace(base, device_id=flags.device_id)
    known = {name: common.DEFAULTS | variant for name, variant in (VARIANTS | ON_GPU).items()}

    common.heading("Speed", base)
    for shape in (replace(base, batch_size=size, threads=number) for number in threads for size in sizes):
        card, best, at_once = matrix_rates(shape)
        where = f"on {card}" if card else f"{shape.threads} thread{'s' * (shape.threads > 1)}"
        rates = ", ".join(f"{precision} {found:.0f}" for precision, found in best.items())
        print(f"## Batch {shape.batch_size}, {where}; matrix products, GFLOP/s: {rates}\n")
        names = flags.variants or (ON_GPU if on_gpu else VARIANTS)
        variants = {
            name: (partial(common.our_distil, shape, known[name]), known[name]["precision"])
            for name in names
            if known[name]["precision"] in best
        }
        lacking = [name for name in names if name not in variants]
        if lacking:
            print(f"Left out, since the device cannot do it: {', '.join(lacking)}.\n")
        print("### Distillation step (LAD)\n")
        step = {"pairs": flags.pairs, "best": best, "examples": shape.batch_size, "what": "gradients"}
        step["at_once"] = at_once
        taken = compare(shape, partial(plain_distil, shape), variants, **step)
        if not on_gpu:
            phases(taken)
        print("### Fine-tuning step\n")
        tuned = {
            name.replace("exact", "ours"): (partial(our_fine_tune, shape, known[name]), known[name]["precision"])
            for name in ["exact", *(name for name in variants if name.startswith("exact "))]
        }
        compare(shape, partial(plain_fine_tune, shape), tuned, **step)
        print(f"### Evaluation of {count} examples\n")
        plain, ours = (partial(evaluation, shape, count, way) for way in (True, False))
        compare(shape, plain, {"ours": (ours, "fp32")}, **step | {"examples": count, "what": "logits"})
    print("## Start-up\n")
    common.table(common.LOADING, [common.loading(2000 if flags.tiny else 20000)])
    helps(1 if flags.tiny else 3)


if __name__ == "__main__":
    main()
