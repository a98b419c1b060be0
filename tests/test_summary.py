"""The first and last lines of a run, and what config.json keeps of its end."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fine_tune.core.errors import UserError
from fine_tune.training import run, summary
from tests import tiny
from tests.interruptions import before_update, flags_of, in_child


def test_a_time_beyond_all_measure_is_one_too() -> None:
    assert summary.duration(3723.4) == "1:02:03"
    assert summary.duration(1e18).endswith(" days, 17:46:40")


def write_scores(root: Path, rows: Any, **more: Any) -> None:
    """Write the teacher's evaluation on dev."""
    path = root / "runs" / "teacher_bert_qqp" / "eval-dev.json"
    path.write_text(json.dumps({"checkpoints": rows} | more))


def first_lines(root: Path, capsys: pytest.CaptureFixture, *switches: str, **changes: object) -> str:
    """Distil with LAD for two steps; return what is said."""
    flags = tiny.student_flags(root, total_step=2, warmup_step=1, **changes)
    tiny.run_script("run_lad_distil", *switches, **flags)
    return capsys.readouterr().err


def test_first_lines(root: Path, capsys: pytest.CaptureFixture) -> None:
    said = first_lines(root, capsys, batch_size=7, student_init="first").splitlines()
    teacher = root / "runs" / "teacher_bert_qqp" / "config.json"
    lengths = (root / "data" / "QQP" / "train.tsv").read_text().count("\n") - 1
    assert said[:3] == [
        f"student student: qqp train, {lengths} examples, in {root / 'runs' / 'student_bert_qqp'}",
        f"method lad: 4 -> 2 layers; starts from layers 1, 2 of {json.loads(teacher.read_text())['ptrain_ver']}",
        "sizes: --d_model 16 --d_ff 32 --num_attention_heads 2 --type_vocab_size 2",
    ]
    paths = f"--data_dir {root / 'data'} --experiment_dir {root / 'runs'}"
    command = f"python run_fine_tune_eval.py --experiment teacher --task qqp --dataset dev {paths}"
    assert said[3] == f"teacher teacher, step 4: not evaluated: {command}"
    assert said[5] == "2 steps of 7 examples (1 x 7), 0.7 epochs; 1 thread"
    assert said[6].startswith("texts: 14 word pieces in the median; 42.9% fill --max_seq_len 16")
    assert any(line.startswith("done: ") and "iB on cpu at most" in line for line in said)


def test_a_rate_that_lacks_its_minus_is_said(root: Path, capsys: pytest.CaptureFixture) -> None:
    said = first_lines(root, capsys, lr="2e5", gate_lr=0.1)
    assert "note: --lr 200000: what trains a BERT lies around 1e-5 to 1e-4; is a minus missing?" in said
    assert "note: --gate_lr 0.1: " in said
    assert "note: --" not in first_lines(root, capsys, experiment="usual", lr=0.01)


def test_a_weak_teacher_is_refused_unless_it_is_wanted(root: Path, capsys: pytest.CaptureFixture) -> None:
    """13 dev rows, 8 of the more frequent label: 0.6154, by hand."""
    labels = [line.split("\t")[5] for line in (root / "data" / "QQP" / "dev.tsv").read_text().splitlines()[1:]]
    assert sorted((labels.count("0"), labels.count("1"))) == [5, 8]
    write_scores(root, [{"step": 2, "accuracy": 0.99}, {"step": 4, "accuracy": 8 / 13}])
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    with pytest.raises(UserError, match="teacher: at --tckpt 4 its accuracy on dev is 0.6154, no better than"):
        first_lines(root, capsys)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    assert "accuracy 0.6154 on dev (majority class 0.6154)" in first_lines(root, capsys, "--weak_teacher")
    assert "accuracy 0.9900 on dev" in first_lines(root, capsys, tckpt=2, experiment="other")


def test_the_teacher_of_a_run_that_has_begun_is_not_refused_any_more(root: Path) -> None:
    script, flags = flags_of(root, "lad", "broken")
    assert in_child(lambda: tiny.run_script(script, **flags), before_update(8))[0] < 0
    write_scores(root, [{"step": 4, "accuracy": 0.1}])
    assert in_child(lambda: tiny.run_script(script, **flags))[0] == 0


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"checkpoints": [{"step": 4, "accuracy": 0.5}], "majority": {"accuracy": 0.6}}, (0.5, 0.6)),
        ({"checkpoints": [{"step": 4, "accuracy": 0.5, "more": [1]}]}, (None, None)),
        ({"checkpoints": [{"step": 4, "accuracy": 0.5}], "majority": 0.25}, (None, None)),
        ({"checkpoints": [{"step": 2, "accuracy": 0.5}]}, (None, None)),
        ({"checkpoints": "nonsense"}, (None, None)),
        ({}, (None, None)),
    ],
)
def test_a_file_that_cannot_be_read_is_as_good_as_none(tmp_path: Path, content: dict, expected: tuple) -> None:
    path = tmp_path / "eval-dev.json"
    path.write_text(json.dumps(content))
    assert summary.evaluated(path, 4, "accuracy") == expected
    path.write_text("{")
    assert summary.evaluated(path, 4, "accuracy") == (None, None)


def test_the_end_is_kept_and_config_json_keeps_its_time(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluation beside training knows the run by that time."""
    fit, path, seen = run.fit, root / "runs" / "student_bert_qqp" / "config.json", []

    def watched(*args: Any) -> None:
        seen.append((path.stat().st_mtime_ns, json.loads(path.read_text())))
        fit(*args)

    monkeypatch.setattr(run, "fit", watched)
    tiny.run_script("run_lad_distil", **tiny.student_flags(root))
    [(time, before)] = seen
    after = json.loads(path.read_text())
    assert path.stat().st_mtime_ns == time
    assert {name: after.pop(name) for name in ("wall_seconds", "peak_memory_gib")}["peak_memory_gib"]["cpu"] > 0.1
    assert after.pop("config_sha256") != before.pop("config_sha256")  # of all else
    assert after == before


def test_wall_time_is_that_of_all_sessions(root: Path) -> None:
    script, flags = flags_of(root, "lad", "broken")
    assert in_child(lambda: tiny.run_script(script, **flags), before_update(8))[0] < 0
    folder = root / "broken" / "run_bert_qqp"
    state = tiny.load(folder / "state.pt")
    assert 0 < state["seconds"] < 100
    torch.save(state | {"seconds": 5000.0}, folder / "state.pt")
    tiny.run_script(script, **flags)
    assert 5000 < tiny.config(folder)["wall_seconds"] < 5100
