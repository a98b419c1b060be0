"""The loop, the optimiser and the losses of a whole run against an independent oracle."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fine_tune.data.tokens import epoch_order
from fine_tune.training.optim import warmup_factor
from tests import golden, reference, tiny
from tests.built import optimizer


def test_lad_equals_the_plain_loop(root: Path) -> None:
    """Losses of ten steps over three epochs, accumulation 2, short last batches: the plain loop's to 1e-5."""
    flags = tiny.student_flags(
        root,
        dropout=0,
        total_step=10,
        warmup_step=3,
        ckpt_step=1,
        gate_lr=1e-2,
        accum_step=2,
        experiment="lad",
        lr=1e-2,
    )
    tiny.run_script("run_lad_distil", **flags)
    run = root / "runs" / "lad_bert_qqp"
    size, per_epoch = 2, 11  # 21 examples, micro-batches of 2
    order = [epoch_order(42, m // per_epoch, 21)[m % per_epoch * size :][:size].tolist() for m in range(20)]
    assert sum(map(len, order)) < 40  # a short batch is among them
    # Step 1 runs at lr 0, so the first checkpoint holds the initial weights.
    gates = {index: tiny.load(run / f"gate-{index}-1.pt") for index in (1, 2, 3)}
    teacher = root / "runs" / "teacher_bert_qqp"
    plain = reference.lad_losses(flags, teacher, order, tiny.load(run / "model-1.pt"), gates)
    ours = tiny.curve(root / "runs", "lad_bert_qqp", "qqp/train/bert/loss")
    assert list(ours.values()) == pytest.approx(plain, rel=1e-5)
    assert max(plain) / min(plain) > 1.2  # the loss moves, so equality says something


def test_first_step_runs_at_learning_rate_0(root: Path) -> None:
    flags = tiny.student_flags(root, ckpt_step=1, total_step=2, warmup_step=2, gate_lr=1e-2)
    tiny.run_script("run_lad_distil", **flags)
    run = root / "runs" / "student_bert_qqp"
    bert = tiny_weights(root / "bert")
    first, second = tiny.load(run / "model-1.pt"), tiny.load(run / "model-2.pt")
    assert torch.equal(first["encoder.embeddings.word_embeddings.weight"], bert["embeddings.word_embeddings.weight"])
    assert any(not torch.equal(first[name], second[name]) for name in first)
    gate = tiny.load(run / "gate-1-1.pt")
    assert (gate["layernorm.weight"] == 1).all()
    assert (gate["layernorm.bias"] == 0).all()
    assert any(not torch.equal(gate[name], value) for name, value in tiny.load(run / "gate-1-2.pt").items())
    for name, peak in (("lr", 1e-3), ("gate_lr", 1e-2)):
        rates = tiny.curve(root / "runs", "student_bert_qqp", f"qqp/train/bert/{name}")
        assert rates == pytest.approx({1: 0, 2: peak / 2})


def tiny_weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("script", ["run_fine_tune", "run_lad_distil"])
def test_accumulation_changes_no_number(root: Path, script: str) -> None:
    """Batch 8 as 1 x 8, 2 x 4 and 4 x 2, within an epoch of 24 examples: the same losses and weights."""
    tiny.make_qqp(root / "even", train=24)
    flags = tiny.teacher_flags(root) if script == "run_fine_tune" else tiny.student_flags(root, gate_lr=1e-2)
    # A gradient that is 0 but for rounding (a key's bias) is all noise after Adam's division, unless eps is large.
    flags |= {"data_dir": root / "even", "batch_size": 8, "total_step": 3, "dropout": 0, "lr": 1e-2, "eps": 1e-2}
    tag = "qqp/train/loss" if script == "run_fine_tune" else "qqp/train/bert/loss"
    curves, weights = [], []
    for accum_step in (1, 2, 4):
        name = f"accum{accum_step}"
        tiny.run_script(script, **flags | {"accum_step": accum_step, "experiment": name})
        curves.append(list(tiny.curve(root / "runs", f"{name}_bert_qqp", tag).values()))
        weights.append(tiny.load(root / "runs" / f"{name}_bert_qqp" / "model-3.pt"))
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
    assert curves[2] == pytest.approx(curves[0], rel=1e-5)
    assert curves[0][0] != pytest.approx(curves[0][2], rel=1e-3)  # it trains, so equal curves say something
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(weights[2][name], value, rtol=1e-4, atol=1e-6)


def test_each_module_is_clipped_on_its_own() -> None:
    """Two modules, gradients of norm 10 and 0.1: the first is cut to the limit, the second stays."""
    modules = [nn.Linear(4, 4, bias=False) for _ in range(2)]
    group = optimizer(*modules, betas=(0.0, 0.0), eps=1)
    for module, norm in zip(modules, (10.0, 0.1), strict=True):
        module.weight.grad = torch.full((4, 4), norm / 4)
    kept = [module.weight.grad for module in modules]
    group.clip()
    group.step(1, torch.tensor(0.0))
    assert kept[0].norm().item() == pytest.approx(1, rel=1e-5)
    assert kept[1].norm().item() == pytest.approx(0.1, rel=1e-5)
    assert all(module.weight.grad is None for module in modules)


def test_the_student_is_clipped_as_a_whole() -> None:
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    group = optimizer(module, betas=(0.0, 0.0), eps=1)
    kept = []
    for parameter, norm in zip(module.parameters(), (3.0, 4.0), strict=True):
        parameter.grad = torch.full((4, 4), norm / 4)
        kept.append(parameter.grad)
    group.clip()
    group.step(1, torch.tensor(0.0))
    assert [grad.norm().item() for grad in kept] == pytest.approx([0.6, 0.8], rel=1e-5)


@pytest.mark.parametrize("scale", [None, 1024.0])
def test_clipping_is_the_librarys(scale: float | None) -> None:
    """To the last bit, module by module, the one without a gradient too; a loss that was scaled scales gradients."""
    modules = [nn.Sequential(nn.Linear(9, 7), nn.LayerNorm(7), nn.Linear(7, 3)) for _ in range(4)]
    modules[2].requires_grad_(False)
    others, group = deepcopy(modules), optimizer(*modules)
    generator, norms = torch.Generator().manual_seed(0), []
    for size, module, other in zip((3.0, 0.01, 0.0, 0.5), modules, others, strict=True):
        for one, two in zip(module.parameters(), other.parameters(), strict=True):
            if one.requires_grad:
                two.grad = size * torch.randn(one.shape, generator=generator)
                one.grad = two.grad * (scale or 1)
        norms.append(nn.utils.clip_grad_norm_(other.parameters(), 1))
    assert norms[0] > 1 > norms[1]
    assert group.clip(None if scale is None else torch.tensor(scale)) == max(norms)
    for module, other in zip(modules, others, strict=True):
        for one, two in zip(module.parameters(), other.parameters(), strict=True):
            assert (one.grad is None) == (two.grad is None) == (module is modules[2])
            assert one.grad is None or torch.equal(one.grad / (scale or 1), two.grad)
    assert optimizer(modules[2]).clip() == 0


def test_no_decay_for_biases_and_layer_norms() -> None:
    from fine_tune.methods.gate import Gate
    from fine_tune.models.bert import empty_encoder

    sizes = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "vocab_size": 9,
    }
    modules = [empty_encoder(sizes), Gate(3, 8)]
    group = optimizer(*modules, weight_decay=0.3, total_step=2)
    decay = {id(p): each["weight_decay"] for each in group.optimizer.param_groups for p in each["params"]}
    norms = {id(p) for m in modules for n in m.modules() if isinstance(n, nn.LayerNorm) for p in n.parameters()}
    for module in modules:
        for name, parameter in module.named_parameters():
            free = id(parameter) in norms or name.endswith("bias")
            assert decay[id(parameter)] == (0 if free else 0.3), name


def test_schedule_is_the_librarys() -> None:
    from transformers import get_linear_schedule_with_warmup

    for warmup, total in ((0, 5), (3, 10), (4, 4), (1, 1)):
        sgd = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = get_linear_schedule_with_warmup(sgd, warmup, total)
        for done in range(total + 3):
            assert warmup_factor(done, warmup, total) == pytest.approx(schedule.get_last_lr()[0]), (
                warmup,
                total,
                done,
            )
            sgd.step()
            schedule.step()


@pytest.mark.parametrize("name", golden.RUNS)
def test_teacher_stays_as_it_was(root: Path, name: str) -> None:
    teacher = root / "runs" / "teacher_bert_qqp"
    before = {path.name: path.read_bytes() for path in teacher.glob("*.*")}
    script, changes = golden.RUNS[name]
    tiny.run_script(script, **tiny.student_flags(root, **changes))
    assert {path.name: path.read_bytes() for path in teacher.glob("*.*")} == before


def test_the_same_seed_gives_the_same_run_and_another_seed_another(root: Path) -> None:
    for name, seed in (("one", 7), ("two", 7), ("three", 8)):
        tiny.run_script("run_lad_distil", **tiny.student_flags(root, experiment=name, seed=seed, dropout=0.3))
    one, two, three = (tiny.load(root / "runs" / f"{name}_bert_qqp" / "model-8.pt") for name in ("one", "two", "three"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not np.array_equal(one["linear_layer.weight"], three["linear_layer.weight"])
