"""--precision and --compile: what they change, what they leave, and where they are refused."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fine_tune.core.errors import UserError
from fine_tune.data.layout import packed
from fine_tune.methods.alp import mix
from fine_tune.models import bert, precision
from fine_tune.models.precision import autocast, keep_rounded
from fine_tune.training.graphs import Leaves
from tests import built, golden, tiny

CPU = torch.device("cpu")
HAS_BF16 = not precision.unsupported_reason("bf16", CPU)
needs_bf16 = pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 arithmetic")


@needs_bf16
@pytest.mark.parametrize("name", golden.RUNS)
def test_bf16_stays_near_the_golden_losses(golden_root: Path, name: str) -> None:
    """8 bits of mantissa: the losses move, by about a hundredth; all that is saved is fp32."""
    found = golden.student_losses(golden_root, name, experiment=f"{name}-bf16", precision="bf16")
    known = golden.read(name)
    assert found == pytest.approx(known, rel=0.03)
    assert found != pytest.approx(known, rel=1e-5)
    for path in (golden_root / "runs" / f"{name}-bf16_bert_qqp").glob("*-8.pt"):
        saved = torch.load(path)
        values = [saved] if path.name.startswith("attn") else saved.values()
        assert {value.dtype for value in values} == {torch.float32}, path


@needs_bf16
def test_bf16_teacher(root: Path) -> None:
    for name, mode in (("one", "fp32"), ("two", "bf16")):
        tiny.run_script("run_fine_tune", **tiny.teacher_flags(root, dropout=0, experiment=name, precision=mode))
    one, two = (list(tiny.curve(root / "runs", f"{n}_bert_qqp", "qqp/train/loss").values()) for n in ("one", "two"))
    assert two == pytest.approx(one, rel=0.02)
    assert two != pytest.approx(one, rel=1e-6)


@needs_bf16
def test_what_bf16_leaves_in_fp32() -> None:
    """Logits, and ALP's weights and targets, are those of fp32 inputs to the last bit."""
    teacher, state = torch.randn(5, 3, 8), torch.randn(5, 8)
    head = bert.BertClassifier(bert.empty_encoder({"hidden_size": 8, "num_attention_heads": 2}), 2, 0.0)
    known = mix(teacher, state)
    with precision.autocast("bf16", [CPU]):
        assert nn.Linear(8, 2)(state).dtype == torch.bfloat16
        for found, wanted in zip(mix(teacher, state), known, strict=True):
            assert torch.equal(found, wanted)
        with precision.no_autocast(CPU):
            assert head.linear_layer(state).dtype == torch.float32


@pytest.mark.parametrize("pad_loss", ["all", "masked"])
@pytest.mark.parametrize("name", built.METHODS)
def test_weights_rounded_at_once_are_those_that_autocast_rounds(name: str, pad_loss: str) -> None:
    """Loss and gradients to the last bit, after an update, too; what is differentiated has 16 bits."""
    task = built.distillation(name, pad_loss)
    task.config.precision = "bf16"
    tokens, chosen = built.make_tokens(), np.arange(4)
    batch = tokens.batch(chosen, task.layout(tokens.lengths(chosen), chosen, 1))
    leaves = Leaves(task)
    for _ in range(2):
        with torch.no_grad():
            for parameter in task.student.parameters():
                parameter.add_(torch.randn(parameter.shape) / 10)
        known, found = task(batch).loss, leaves.compute(batch).loss
        assert torch.equal(found, known)
        expected = torch.autograd.grad(known, list(leaves.named.values()), allow_unused=True)
        for one, two in zip(leaves.gradients(found), expected, strict=True):
            assert one is two is None or torch.equal(one.float(), two)
    layers = [part for part in task.student.encoder.modules() if isinstance(part, nn.Linear)]
    assert [leaf.dtype for leaf in leaves.rounded.values()] == [torch.bfloat16] * 2 * len(layers)
    task.config.precision = "fp32"
    assert not Leaves(task).rounded


def test_refused_where_the_hardware_lacks_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UserError, match=r"^--precision tf32: is a mode of NVIDIA GPUs, and a device flag names the CPU"
    ):
        tiny.run_script("run_lad_distil", **tiny.student_flags(root, precision="tf32"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # a CPU that can do nothing special
    for script, flags in (("run_lad_distil", tiny.student_flags(root)), ("run_fine_tune", tiny.teacher_flags(root))):
        with pytest.raises(UserError, match=r"^--precision bf16: this CPU has no bf16 arithmetic .* use fp32"):
            tiny.run_script(script, **flags | {"precision": "bf16", "experiment": "new"})
    assert not list((root / "runs").glob("student*"))
    assert not list((root / "runs").glob("new*"))


def test_compile_needs_a_compiler(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(root))
    with pytest.raises(UserError, match=r"^--compile: needs a C\+\+ compiler"):
        tiny.run_script("run_lad_distil", "--compile", **tiny.student_flags(root))
    assert not list((root / "runs").glob("student*"))


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_compiled_layers_have_the_golden_losses(golden_root: Path) -> None:
    found = golden.student_losses(golden_root, "lad", "--compile", experiment="lad-compiled")
    assert found == pytest.approx(golden.read("lad"), rel=1e-5)
    weights = torch.load(golden_root / "runs" / "lad-compiled_bert_qqp" / "model-8.pt")
    assert not [name for name in weights if "_orig_mod" in name]
    assert "encoder.encoder.layer.1.output.dense.weight" in weights


def test_a_teacher_kept_rounded_says_the_same() -> None:
    teacher, other = (built.classifier(4, 1) for _ in range(2))
    keep_rounded(other.encoder, "bf16")
    tokens, chosen = built.make_tokens(), np.arange(4)
    batch = tokens.batch(chosen, packed(tokens.lengths(chosen), built.S))
    with torch.no_grad(), autocast("bf16", [built.CPU]):
        said, others = teacher(batch, False), other(batch, False)
    torch.testing.assert_close(others, said, rtol=0, atol=0)
    assert other.encoder.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    assert other.encoder.encoder.layer[0].output.LayerNorm.weight.dtype == torch.float32
