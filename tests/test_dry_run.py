"""--dry_run and --eval_step: what they say is true, and neither leaves a trace in the run."""

import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from fine_tune.core.errors import NotFinite, UserError
from fine_tune.training import dry_run, scoring
from tests import tiny
from tests.built import distillation, make_tokens
from tests.interruptions import before_update, difference, flags_of, in_child, killed_when

STUDENTS = {
    "run_lad_distil": {"accum_step": 2},
    "run_alp_distil": {"alp_exp": "alp-kd"},
    "run_probing_lad": {"probing_exp": "lad_cls"},
    "run_lad_no_distil": {},
    "run_pkd_distill": {},
}


def listing(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return size and time of everything below `folder`, folders included."""
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in [folder, *folder.rglob("*")]}


@pytest.mark.parametrize("script", ["run_fine_tune", *STUDENTS])
def test_a_dry_run_leaves_the_disk_as_it_was(
    root: Path, script: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "STEPS", 2)
    shutil.rmtree(root / "runs" / "cache")
    before, switches = listing(root), ["--dry_run"]
    if script == "run_fine_tune":
        flags = tiny.teacher_flags(root, experiment="dry")
    else:
        flags = tiny.student_flags(root, experiment="dry", **STUDENTS[script])
        switches += ["--cache_teacher"] if script in ("run_alp_distil", "run_probing_lad") else []
    tiny.run_script(script, *switches, **flags)
    assert listing(root) == before
    said = capsys.readouterr().out
    assert re.match(
        r"a step: \d+ ms \(median of \d+, after a first one\); memory: [\d.]+ [MG]iB on cpu\nthe run: ", said
    )
    assert ("  hidden " in said) == (script != "run_fine_tune")
    assert said.endswith("nothing was written\n")
    tiny.run_script(script, *switches[1:], **flags)  # the control: the run itself does leave something
    assert listing(root) != before


def test_a_dry_run_makes_all_checks(root: Path) -> None:
    with pytest.raises(UserError, match="--num_hidden_layers 3: must divide the teacher's 4 layers"):
        tiny.run_script("run_lad_distil", "--dry_run", **tiny.student_flags(root, num_hidden_layers=3))
    flags = tiny.student_flags(root, lr=1e30, warmup_step=0)
    with pytest.raises(NotFinite, match="step 2 at lr .*loss nan"):
        tiny.run_script("run_lad_distil", "--dry_run", **flags)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler")
def test_a_compiled_dry_run_has_the_same_terms(
    root: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "STEPS", 2)
    found = []
    for switches in (["--compile"], []):
        tiny.run_script(
            "run_lad_distil", "--dry_run", *switches, **tiny.student_flags(root, experiment="dry", dropout=0)
        )
        said = capsys.readouterr().out
        assert said.startswith("a step: ")
        found.append(said[said.index("at the start:") :])
    assert found[0] == found[1]
    assert "  hidden " in found[0]


@pytest.mark.parametrize("name", ["lad", "alp-kd-hidden", "pkd"])
def test_the_shares_are_those_of_separate_backward_passes(name: str) -> None:
    """Each term alone, with the weights of the others 0, over two micro-batches; the even mu makes the norms equal."""
    tokens, halves = make_tokens(), [np.array([0, 1]), np.array([2, 3])]

    def batches(task: torch.nn.Module) -> list:
        return [tokens.batch(rows, task.layout(tokens.lengths(rows), rows, 1)) for rows in halves]

    def alone(**weights: float) -> tuple[float, float]:
        task = distillation(name, "all")
        vars(task.config).update({"hard_weight": 0.0, "soft_weight": 0.0, "mu": 0.0} | weights)
        losses = [task(batch).loss / 2 for batch in batches(task)]
        sum(losses).backward()
        squares = [p.grad.square().sum() for p in task.student.parameters() if p.grad is not None]
        return sum(loss.item() for loss in losses), torch.stack(squares).sum().sqrt().item()

    task = distillation(name, "all")
    found = dry_run.gradients(task, batches(task))
    expected = {"hard": alone(hard_weight=0.3), "soft": alone(soft_weight=0.7), "hidden": alone(mu=9.0)}
    assert all(parameter.grad is None for parameter in task.parameters())
    assert found.keys() == expected.keys()
    for term, (loss, norm) in expected.items():
        assert found[term].loss == pytest.approx(loss, rel=1e-5)
        assert dry_run.length(found[term].gradient) == pytest.approx(norm, rel=1e-4)

    said = dry_run.weights(found, mu=9.0)
    losses, norms = (np.array(column) for column in zip(*expected.values(), strict=True))
    for line, loss, norm in zip(said[1:4], losses / losses.sum(), norms / norms.sum(), strict=True):
        shares = [float(cell) / 100 for cell in re.findall(r"([\d.]+)%", line)]
        assert shares == pytest.approx([loss, norm], abs=6e-4)
    even = float(re.search(r"at --mu (\S+) ", said[4])[1])
    assert alone(mu=even)[1] == pytest.approx(alone(hard_weight=0.3, soft_weight=0.7)[1], rel=1e-2)


# --- evaluation beside training ---------------------------------------------------------------------------------------


def test_eval_step_changes_no_number_and_scores_as_evaluation_does(root: Path) -> None:
    script, flags = flags_of(root, "lad", "plain")
    tiny.run_script(script, **flags)
    script, flags = flags_of(root, "lad", "scored")
    tiny.run_script(script, **flags, eval_step=5)
    dev = {f"qqp/dev/{name}" for name in ("accuracy", "f1_score", "eval_loss")}
    assert set(difference(root / "plain", root / "scored")) == dev
    curves = tiny.curves(root / "scored", "run_bert_qqp")
    paths = {"data_dir": root / "data", "experiment_dir": root / "scored"}
    tiny.run_script("run_fine_tune_eval", experiment="run", task="qqp", dataset="dev", batch_size=2, **paths)
    after = tiny.curves(root / "scored", "run_bert_qqp/eval")
    for tag in dev:
        assert list(curves[tag]) == [5, 10, 12]  # every fifth step, and the last
        assert curves[tag] == pytest.approx(after[tag], rel=1e-5)


def test_a_killed_run_with_eval_step_ends_bit_equal(root: Path) -> None:
    for runs, kills in (("whole", []), ("broken", [before_update(8)])):
        script, flags = flags_of(root, "lad", runs)
        action = lambda: tiny.run_script(script, **flags, eval_step=2)  # noqa: B023, E731
        for kill in kills:
            assert in_child(action, kill)[0] == -signal.SIGKILL
        assert in_child(action)[0] == 0
    assert difference(root / "whole", root / "broken") == []


def test_a_signal_in_an_evaluation_beside_training_loses_nothing(root: Path) -> None:
    script, flags = flags_of(root, "lad", "whole")
    tiny.run_script(script, **flags)
    script, flags = flags_of(root, "lad", "broken")
    action = lambda: tiny.run_script(script, **flags, eval_step=7)  # noqa: E731
    status, said = in_child(action, killed_when(scoring, "by_length", lambda *_: True, signal.SIGTERM))
    assert status == 143
    assert "note: the evaluation after step 7 was left out" in said
    assert said.splitlines()[-1].endswith("saved after step 7; the same command goes on from there")
    assert in_child(action)[0] == 0
    assert not any("qqp/dev" not in name for name in difference(root / "whole", root / "broken"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"eval_dataset": "dev"}, "--eval_dataset dev: has no meaning without --eval_step; leave it out"),
        ({"eval_step": 1, "eval_dataset": "test"}, r"--eval_dataset test: --task qqp has train, dev \(with labels\)"),
        ({"eval_step": 1, "data_dir": "/nowhere"}, "/nowhere/QQP/dev.tsv does not exist"),
    ],
)
def test_mistakes_about_evaluation_beside_training(root: Path, changes: dict, expected: str) -> None:
    before = listing(root)
    with pytest.raises(UserError, match=expected):
        tiny.run_script("run_pkd_distill", **tiny.student_flags(root) | changes)
    assert listing(root) == before
