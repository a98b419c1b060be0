"""Everything on an NVIDIA GPU against the CPU's numbers: `python -m pytest tests/test_gpu.py` where there is one."""

import json
import multiprocessing
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch

from fine_tune.core.errors import NotFinite, OutOfMemory
from fine_tune.data.layout import full, packed
from fine_tune.data.tokens import Batch
from fine_tune.distil import Distillation
from fine_tune.models import attention, precision
from fine_tune.training.graphs import captured
from fine_tune.training.loop import train
from fine_tune.training.optim import LossScaler, NonFiniteGuard, OptimizerGroup
from fine_tune.training.task import TaskOutput
from tests import golden, tiny
from tests.built import CPU, LENGTHS, METHODS, S, distillation, make_tokens
from tests.interruptions import resumed_on_a_gpu, resumed_without_its_stream
from tests.test_benchmarks import tables
from tests.test_encoder import LAYOUTS
from tests.test_fp16 import check_an_overflow, start_at
from tests.test_memory import allocate_in_step

GPU, DEVICE = 0, torch.device("cuda:0")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.device_count(), reason="needs an NVIDIA GPU")]


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_the_teachers_losses_are_the_golden_ones(root: Path) -> None:
    found = golden.teacher_losses(root, experiment="gpu", device_id=GPU)
    assert found == pytest.approx(golden.read("teacher"), rel=1e-4)
    folder = root / "runs" / "gpu_bert_qqp"
    assert tiny.config(folder)["peak_memory_gib"].keys() == {"cpu", str(DEVICE)}
    weights = torch.load(max(folder.glob("model-*.pt")), weights_only=True)
    assert {value.device.type for value in weights.values()} == {"cpu"}  # to be loaded where there is no GPU


@pytest.mark.parametrize("name", golden.RUNS)
def test_losses_are_the_golden_ones(golden_root: Path, name: str) -> None:
    found = golden.student_losses(golden_root, name, experiment=f"{name}-gpu", device_id=GPU)
    assert found == pytest.approx(golden.read(name), rel=1e-4)


@pytest.mark.parametrize("name", ["lad", "lad-masked"])
@pytest.mark.parametrize("where", ["001", "010", "011", "100", "101", "110"])
def test_student_teacher_and_gates_each_on_its_own_device(golden_root: Path, name: str, where: str) -> None:
    """1 stands for the GPU, 0 for the CPU."""
    numbers = (GPU if letter == "1" else -1 for letter in where)
    devices = dict(zip(("device_id", "tdevice_id", "gate_device_id"), numbers, strict=True))
    found = golden.student_losses(golden_root, name, experiment=f"{name}-{where}", **devices)
    assert found == pytest.approx(golden.read(name), rel=1e-4)


@pytest.mark.parametrize("name", ["lad", "lad-masked", "pkd", "alp-kd"])
def test_a_kept_teacher_teaches_the_same(golden_root: Path, name: str) -> None:
    for path in (golden_root / "runs" / "cache").glob("teacher-*"):
        path.unlink()  # another test's, computed on the CPU
    flags = {"experiment": f"{name}-kept-gpu", "device_id": GPU}
    found = golden.student_losses(golden_root, name, "--cache_teacher", **flags)
    assert found == pytest.approx(golden.read(name), rel=1e-4)


@pytest.mark.parametrize("compiled", [(), ("--compile",)])
@pytest.mark.parametrize(("mode", "apart"), [("fp32", 1e-4), ("tf32", 0.01), ("fp16", 0.01), ("bf16", 0.03)])
def test_precisions(
    golden_root: Path, mode: str, apart: float, compiled: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding moves the losses; fp16 is taken at a scale at which no step overflows and is left out."""
    if mode != "fp32" and precision.unsupported_reason(mode, DEVICE):
        pytest.skip(f"the GPU has no {mode}")
    monkeypatch.setattr(LossScaler, "__init__", start_at(2.0**6))
    for name in ("lad", "lad-masked"):
        experiment = "-".join([name, mode, *compiled])
        flags = {"experiment": experiment, "precision": mode, "device_id": GPU}
        found = golden.student_losses(golden_root, name, *compiled, **flags)
        assert found == pytest.approx(golden.read(name), rel=apart)
    tiny.run_script(
        "run_fine_tune", *compiled, **tiny.teacher_flags(golden_root, **flags | {"experiment": f"teacher-{experiment}"})
    )


needs_flash = pytest.mark.skipif(
    not torch.cuda.device_count() or torch.cuda.get_device_capability(DEVICE) < (8, 0),
    reason="needs a GPU from Ampere on",
)
SHAPED = LAYOUTS | {"full, few shapes": full(LENGTHS, S, True), "packed, few shapes": packed(LENGTHS, S, True)}


@needs_flash
@pytest.mark.parametrize("cls_only", [False, True])
@pytest.mark.parametrize("name", SHAPED)
@pytest.mark.parametrize(("dtype", "apart"), [(torch.bfloat16, 2**-6), (torch.float16, 2**-9)])
def test_attention_in_16_bits_is_the_cpus(name: str, dtype: torch.dtype, apart: float, cls_only: bool) -> None:
    """Where rows only fill up, nobody attends to them and nothing is read of them."""
    layout = SHAPED[name]
    asked = layout.cls if cls_only else layout
    generator = torch.Generator().manual_seed(0)
    sizes = (len(asked), len(layout.token_rows), len(layout.token_rows))
    parts = [torch.randn(size, 24, generator=generator).to(dtype) for size in sizes]
    weights = torch.randn(len(asked), 24, generator=generator) * (asked.weight > 0)[:, None]
    found = []
    for device, kind in ((CPU, torch.float32), (DEVICE, dtype)):
        there = [part.to(device, kind).requires_grad_() for part in parts]
        assert attention.has_flash(there[0], 3) == (device == DEVICE)
        mixed = attention.attend(*there, asked.to(device), layout.to(device), 3, 0.0).float()
        loss = (mixed * weights.to(device)).sum()
        mixed = torch.where(weights.to(device) == 0, 0, mixed)
        found.append([one.float().cpu() for one in (mixed, *torch.autograd.grad(loss, there))])
    torch.testing.assert_close(found[1], found[0], rtol=apart, atol=4 * apart)
    assert not torch.allclose(found[0][0][0], found[0][0][1], atol=0.1)


@needs_flash
def test_attention_in_16_bits_drops_out() -> None:
    """What comes of many draws is in the mean what comes of none; every draw is another."""
    layout = LAYOUTS["packed"].to(DEVICE)
    parts = [torch.randn(len(layout), 24, device=DEVICE, dtype=torch.bfloat16) for _ in range(3)]
    drawn = torch.stack([attention.attend(*parts, layout, layout, 3, 0.4).float() for _ in range(2000)])
    exact = attention.attend(*parts, layout, layout, 3, 0.0).float()
    torch.testing.assert_close(drawn.mean(0), exact, rtol=0, atol=0.15)
    assert drawn.std(0).min() > 0


def test_evaluation_and_prediction_are_the_cpus(root: Path) -> None:
    found = []
    for name, device in (("cpu", -1), ("gpu", GPU)):
        there = tiny.paths(root) | {"experiment_dir": root / name, "experiment": "teacher", "task": "qqp"}
        shutil.copytree(root / "runs", root / name)
        tiny.run_script("run_fine_tune_eval", dataset="dev", batch_size=3, device_id=device, **there)
        tiny.run_script("generate_test_prediction", dataset="test", ckpt=4, batch_size=3, device_id=device, **there)
        folder = root / name / "teacher_bert_qqp"
        scores = json.loads((folder / "eval-dev.json").read_text())["checkpoints"]
        logits = np.concatenate([np.load(folder / f"logits-dev-{step}.npy") for step in (2, 4)])
        found.append((logits, scores, (folder / "QQP.tsv").read_bytes()))
    (logits, scores, answers), (other_logits, other_scores, other_answers) = found
    np.testing.assert_allclose(other_logits, logits, rtol=1e-4, atol=1e-5)
    assert other_answers == answers
    for one, other in zip(scores, other_scores, strict=True):
        assert [other[name] for name in ("accuracy", "f1_score")] == [one[name] for name in ("accuracy", "f1_score")]
        assert other["eval_loss"] == pytest.approx(one["eval_loss"], rel=1e-4)
        assert one["device"] == "cpu"


# --- what ends or breaks a run ----------------------------------------------------------------------------------------


@contextmanager
def without_waiting() -> Iterator[None]:
    """Inside, an operation that waits for the GPU is an error."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_an_operation_that_waits_is_found() -> None:
    with without_waiting(), pytest.raises(RuntimeError):
        torch.ones((), device=DEVICE).item()


@pytest.mark.parametrize("pad_loss", ["all", "masked", "sampled"])
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("scaler", [None, LossScaler])
def test_steps_wait_for_nothing_and_a_bad_one_is_reported_later(
    name: str, pad_loss: str, scaler: type[LossScaler] | None
) -> None:
    """The first step moves counters to the GPU; the third has a loss that is not finite, and updates end before it."""
    task, tokens, chosen = distillation(name, pad_loss, device=DEVICE), make_tokens(), np.arange(4)
    task.scaler = scaler and scaler()
    guard = NonFiniteGuard(task.optimizers, task.scaler)
    batch = tokens.batch(chosen, task.layout(tokens.lengths(chosen), chosen, 1))
    more = (lambda *of_a_step: None, lambda step, vectors: None)

    def broken(batch: object) -> object:
        output = task(batch)
        return TaskOutput(output.loss, output.losses | {"loss": output.loss * torch.nan}, *output[2:])

    train([1], 1, iter([batch]), task, task.optimizers, guard, *more)
    with without_waiting():
        for step, forward in ((2, task), (3, broken), (4, task)):
            train([step], 1, iter([batch]), forward, task.optimizers, guard, *more)
    with pytest.raises(NotFinite, match="^step 3 at lr .* loss nan"):
        guard.raise_if_tripped()
    taken = {state["step"].item() for group in task.optimizers.values() for state in group.optimizer.state.values()}
    assert taken == {2}


def seen_in_steps(task: Distillation, forward: Callable[[Batch], TaskOutput]) -> list[dict[str, torch.Tensor]]:
    """Do four steps of two batches, of two shapes, the last two with a watched one; return losses, vectors, gradients.

    Nothing is learned: AdamW makes much of small gradients, and so of rounding. From the second step on nothing waits.
    """
    guard, tokens, seen = NonFiniteGuard(task.optimizers, task.scaler), make_tokens(), []
    names = {id(parameter): name for name, parameter in task.named_parameters()}

    def recording(group: OptimizerGroup, clip: Callable) -> Callable:
        def clipped(scale: torch.Tensor | None) -> torch.Tensor:
            parameters = [p for module in group.clipped_together for p in module if p.grad is not None]
            seen.append({names[id(p)]: p.grad.clone() for p in parameters})
            return clip(scale)

        return clipped

    for group in task.optimizers.values():
        group.peak_lr, group.clip = 0.0, recording(group, group.clip)
    for step in range(1, 5):
        chosen = [np.array([0, 1, 2, 3]), np.array([step % 4, 3, 1])]
        batches = [tokens.batch(each, task.layout(tokens.lengths(each), each, step)) for each in chosen]
        batches[step % 2].watched = step > 2
        more = (lambda step, losses, *rest: seen.append(losses), lambda step, vectors: seen.append(vectors))
        with without_waiting() if step > 1 else nullcontext():
            train([step], 2, iter(batches), forward, task.optimizers, guard, *more)
    guard.raise_if_tripped()
    return seen


@pytest.mark.parametrize(("mode", "apart"), [("fp32", 1e-5), ("bf16", 1e-3)])
@pytest.mark.parametrize("pad_loss", ["all", "masked"])
@pytest.mark.parametrize("name", METHODS)
def test_graphs_compute_the_same(name: str, pad_loss: str, mode: str, apart: float) -> None:
    """Where weights are rounded, the gradient is that of the rounded ones: what autocast's is."""
    if mode != "fp32" and precision.unsupported_reason(mode, DEVICE):
        pytest.skip("the GPU has no bf16")
    task, other = (distillation(name, pad_loss, device=DEVICE) for _ in range(2))
    task.config.precision = other.config.precision = mode
    by_graphs = captured(other)
    for found, known in zip(seen_in_steps(other, by_graphs), seen_in_steps(task, task), strict=True):
        assert found.keys() == known.keys()
        largest = max((value.abs().max().item() for value in known.values()), default=0.0)
        for key, value in known.items():
            torch.testing.assert_close(found[key], value, rtol=apart, atol=apart * largest)
    assert len(by_graphs.captured) == 4  # two shapes, watched or not


def test_a_graph_drops_out_anew_each_time() -> None:
    task, tokens, chosen = distillation("lad", "all", device=DEVICE), make_tokens(), np.arange(4)
    by_graphs = captured(task)
    task.student.train()
    batch = tokens.batch(chosen, task.layout(tokens.lengths(chosen), chosen, 1))
    by_graphs(batch)

    def losses() -> list[float]:
        torch.manual_seed(1)
        return [by_graphs(batch).loss.item() for _ in range(4)]

    found = losses()
    assert len(set(found)) == 4
    assert losses() == found


def test_an_overflow() -> None:
    check_an_overflow(DEVICE)


@pytest.fixture(scope="module")
def clean_process() -> Iterator[ProcessPoolExecutor]:
    """Return a process that has not touched CUDA, and may fork."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        yield process


@pytest.mark.parametrize("mode", ["fp32", "fp16"])
@pytest.mark.parametrize("name", ["teacher", "lad", "lad-sampled", "alp-kd-hidden-v2", "pkd"])
def test_a_killed_run_ends_bit_equal(root: Path, name: str, mode: str, clean_process: ProcessPoolExecutor) -> None:
    if mode == "fp16" and precision.unsupported_reason(mode, DEVICE):
        pytest.skip("the GPU has no fp16")
    changes = {"device_id": GPU, "precision": mode}
    assert clean_process.submit(resumed_on_a_gpu, root, name, (), changes).result() == []


@pytest.mark.parametrize("name", ["teacher", "lad"])
def test_a_killed_compiled_run_goes_on_with_the_same_draws(
    root: Path, name: str, clean_process: ProcessPoolExecutor
) -> None:
    """Its first loss is the same up to rounding; with the random stream of a fresh start it would be another."""
    flags = {"device_id": GPU}
    clean_process.submit(resumed_on_a_gpu, root, name, ("--compile",), flags).result()
    clean_process.submit(resumed_without_its_stream, root, name, ("--compile",), flags).result()
    curves = [tiny.curves(root / runs, "run_bert_qqp") for runs in ("whole", "broken", "other")]
    whole, broken, other = ([losses[tag][6] for tag in losses if tag.endswith("/loss")] for losses in curves)
    assert broken == pytest.approx(whole, rel=1e-5)
    assert other != pytest.approx(whole, rel=1e-3)


def test_out_of_memory(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*allocate_in_step(5))
    with pytest.raises(OutOfMemory, match="^out of memory in training; .*--precision bf16") as caught:
        tiny.run_script("run_lad_distil", **tiny.student_flags(root, device_id=GPU))
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    assert (root / "runs" / "student_bert_qqp" / "model-4.pt").is_file()


def test_the_benchmark_counts_launches(clean_process: ProcessPoolExecutor) -> None:
    found = clean_process.submit(tables, "speed", "--pairs", "1", "--device_id", str(GPU)).result()
    for number in range(3):  # distillation, fine-tuning, evaluation
        assert all(int(row["launches"]) > 50 for row in found[f"variant {number}"])
