"""What --pad_loss leaves out of the hidden-state loss, and where padding is left out because nobody reads it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fine_tune.data import layout
from fine_tune.data.tokens import epoch_order
from fine_tune.distil import Distillation
from tests import golden, reference, tiny
from tests.built import LENGTHS, METHODS, S, distillation, make_tokens


def losses(what: Distillation, chosen: list[int]) -> dict[str, float]:
    tokens, rows = make_tokens(), np.array(chosen)
    batch = tokens.batch(rows, what.layout(tokens.lengths(rows), rows, 1))
    return {name: value.item() for name, value in what(batch).losses.items()}


@pytest.mark.parametrize("name", METHODS)
def test_masked_is_the_contract_of_each_example_at_its_own_length(name: str) -> None:
    """An example of n word pieces counts as if max_seq_len were n; then the mean over the examples."""
    found = losses(distillation(name, "masked"), [0, 1, 2, 3])
    alone = [losses(distillation(name, "all", int(n)), [row]) for row, n in enumerate(LENGTHS)]
    for key, value in found.items():
        assert value == pytest.approx(np.mean([one[key] for one in alone]), rel=1e-5), key
    everything = losses(distillation(name, "all"), [0, 1, 2, 3])["hidden_loss"]
    cls_only = name in ("lad_cls", "alp-kd")
    assert (found["hidden_loss"] == pytest.approx(everything, rel=1e-3)) == cls_only


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("pad_loss", ["masked", "sampled"])
def test_batch_mates_do_not_matter(name: str, pad_loss: str) -> None:
    what = distillation(name, pad_loss)
    together = losses(what, [0, 1, 2, 3])
    halves = [losses(what, half) for half in ([3, 1], [2, 0])]
    for key, value in together.items():
        assert value == pytest.approx(np.mean([half[key] for half in halves]), rel=1e-5), key


@pytest.mark.parametrize("name", METHODS)
def test_a_sample_of_all_padding_is_the_contract(name: str) -> None:
    everything, rest = losses(distillation(name, "all"), [0, 1, 2, 3]), [0, 1, 2, 3]
    assert losses(distillation(name, "sampled", pad_samples=9), rest) == pytest.approx(everything, rel=1e-5)


@pytest.mark.parametrize("name", ["alp-kd-hidden", "pkd"])
def test_the_sampled_loss_is_the_contracts_in_expectation(name: str) -> None:
    """Over many steps; these two methods have no gate, whose statistics are estimated with a bias of their own."""
    what, tokens, rows = distillation(name, "sampled"), make_tokens(), np.arange(4)
    found = []
    with torch.no_grad():
        for step in range(400):
            batch = tokens.batch(rows, what.layout(LENGTHS, rows, step))
            found.append(what(batch).losses["hidden_loss"].item())
    expected = losses(distillation(name, "all"), [0, 1, 2, 3])["hidden_loss"]
    error = np.std(found) / len(found) ** 0.5
    assert 0 < error < 0.02 * expected
    assert abs(np.mean(found) - expected) < 4 * error


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("pad_loss", "mu"), [("all", 9), ("masked", 9)])
@pytest.mark.parametrize(("longest", "together"), [(5, 16), (16, 128)])
def test_rows_that_only_fill_up_count_nothing(
    name: str, pad_loss: str, mu: float, longest: int, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and gradients, where some cells of the grid of examples and positions stay empty, and where none does."""
    monkeypatch.setattr(layout, "LONGEST", longest), monkeypatch.setattr(layout, "TOGETHER", together)
    found, rows, tokens = [], np.arange(4), make_tokens()
    for few_shapes in (False, True):
        what = distillation(name, pad_loss, mu=mu)
        what.few_shapes = few_shapes
        batch = tokens.batch(rows, what.layout(LENGTHS, rows, 1))
        output = what(batch)
        output.loss.backward()
        values = output.losses | output.vectors
        values |= {key: p.grad for key, p in what.named_parameters() if p.grad is not None}
        found.append({key: value.detach() for key, value in values.items()})
        assert len(batch.layout.token_rows) == ({16: 32, 128: 48}[together] if few_shapes else LENGTHS.sum())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lad", "alp-kd-hidden-v2"])
def test_nothing_is_computed_that_nobody_reads(name: str) -> None:
    """With mu 0, and for methods on [CLS], a batch has its real rows only, whatever --pad_loss says."""
    chosen = np.arange(4)
    for what in (distillation(name, "all", mu=0), distillation("lad_cls", "sampled"), distillation("alp-kd", "all")):
        assert len(what.layout(LENGTHS, chosen, 1)) == LENGTHS.sum()
    assert len(distillation(name, "all").layout(LENGTHS, chosen, 1)) == 4 * S
    assert len(distillation(name, "masked").layout(LENGTHS, chosen, 1)) == LENGTHS.sum()
    assert len(distillation(name, "sampled").layout(LENGTHS, chosen, 1)) == (LENGTHS + [2, 0, 2, 2]).sum()


def test_mu_0_equals_the_plain_loop(root: Path) -> None:
    """Where nothing but logits is learned: losses, student, and the gates' weight decay of the plain loop."""
    changes = {"dropout": 0, "warmup_step": 3, "ckpt_step": 1, "gate_lr": 1e-1, "lr": 1e-2, "mu": 0}
    flags = tiny.student_flags(root, experiment="lad", accum_step=1, **changes)
    tiny.run_script("run_lad_distil", **flags)
    run, teacher = root / "runs" / "lad_bert_qqp", root / "runs" / "teacher_bert_qqp"
    order = [epoch_order(42, m // 6, 21)[m % 6 * 4 :][:4].tolist() for m in range(8)]  # 21 examples, batches of 4
    gates = {index: tiny.load(run / f"gate-{index}-1.pt") for index in (1, 2, 3)}
    plain = reference.lad_losses(flags, teacher, order, tiny.load(run / "model-1.pt"), gates)
    ours = tiny.curve(root / "runs", "lad_bert_qqp", "qqp/train/bert/loss")
    assert list(ours.values()) == pytest.approx(plain, rel=1e-5)
    assert set(tiny.curve(root / "runs", "lad_bert_qqp", "qqp/train/bert/hidden_loss").values()) == {0}
    rates = tiny.curve(root / "runs", "lad_bert_qqp", "qqp/train/bert/gate_lr")
    left = np.prod([1 - 0.01 * rate for rate in rates.values()])
    assert left < 0.999
    torch.testing.assert_close(tiny.load(run / "gate-1-8.pt")["linear.weight"], gates[1]["linear.weight"] * left)


@pytest.mark.parametrize("name", [name for name, (_, own) in golden.RUNS.items() if "pad_loss" not in own])
def test_a_run_that_samples_all_padding_has_the_golden_losses(golden_root: Path, name: str) -> None:
    changes = {"experiment": f"{name}-all-drawn", "pad_loss": "sampled", "pad_samples": 16}
    found = golden.student_losses(golden_root, name, **changes)
    assert found == pytest.approx(golden.read(name), rel=1e-5)


def test_masked_does_not_depend_on_accumulation(root: Path) -> None:
    tiny.make_qqp(root / "even", train=24)
    flags = tiny.student_flags(root, data_dir=root / "even", batch_size=8, total_step=3, dropout=0, pad_loss="masked")
    curves = []
    for accum_step in (1, 4):
        name = f"accum{accum_step}"
        tiny.run_script("run_lad_distil", **flags | {"accum_step": accum_step, "experiment": name, "eps": 1e-2})
        curves.append(list(tiny.curve(root / "runs", f"{name}_bert_qqp", "qqp/train/bert/loss").values()))
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
