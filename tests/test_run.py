"""The order of a run: what is read and hashed, when a folder is opened, and what stays as it is while a task trains."""

import hashlib
import signal
from argparse import Namespace
from collections import Counter
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import torch

from fine_tune import finetune
from fine_tune.core import files
from fine_tune.core.errors import UserError
from fine_tune.training import run
from tests import tiny
from tests.built import METHODS, classifier, distillation, make_tokens
from tests.interruptions import before_update, in_child


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Counter]:
    """Count by path how often a file's content is hashed, and how often a config.json is read."""
    counts = {"hashed": Counter(), "read": Counter()}
    digest, read_bytes = hashlib.file_digest, files.read_bytes

    def file_digest(file: IO[bytes], *args: Any) -> Any:
        counts["hashed"][Path(file.name)] += 1
        return digest(file, *args)

    def counting(path: Path) -> bytes:
        counts["read"][path] += path.name == "config.json"
        return read_bytes(path)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    monkeypatch.setattr(files, "read_bytes", counting)
    return counts


def test_a_file_is_hashed_once_and_a_config_read_once(root: Path, counted: dict[str, Counter]) -> None:
    """By a new run, by one that goes on, by one that is finished, and by an evaluation."""
    teacher, data = root / "runs" / "teacher_bert_qqp", root / "data" / "QQP"
    flags = tiny.student_flags(root, total_step=2)
    own = root / "runs" / "student_bert_qqp" / "config.json"
    start = Path(tiny.config(teacher)["ptrain_ver"]) / "model.safetensors"
    for hashed, read in (
        ({teacher / "model-4.pt", data / "train.tsv", start}, {teacher / "config.json"}),
        (set(), {teacher / "config.json", own}),
    ):
        tiny.run_script("run_lad_distil", **flags)
        assert counted["hashed"] == dict.fromkeys(hashed, 1)
        assert +counted["read"] == dict.fromkeys(read, 1)
        counted["hashed"].clear(), counted["read"].clear()
    torch.save({}, root / "runs" / "student_bert_qqp" / "state.pt")  # as if it had not come to its end
    with pytest.raises(UserError, match="state.pt: does not fit this run"):
        tiny.run_script("run_lad_distil", **flags)
    assert counted["hashed"] == dict.fromkeys((teacher / "model-4.pt", data / "train.tsv", start), 1)
    assert +counted["read"] == dict.fromkeys((teacher / "config.json", own), 1)
    counted["hashed"].clear(), counted["read"].clear()
    tiny.run_script("run_fine_tune_eval", experiment="teacher", task="qqp", dataset="dev", **tiny.paths(root))
    assert counted["hashed"] == dict.fromkeys((data / "dev.tsv", teacher / "model-2.pt", teacher / "model-4.pt"), 1)
    assert +counted["read"] == {teacher / "config.json": 1}


def test_a_run_that_another_process_has_begun_meanwhile_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not there when this one looked; it is when this one has built its task and holds the lock."""
    flags, build = tiny.teacher_flags(root, experiment="new"), finetune.build_task
    path = root / "runs" / "new_bert_qqp" / "config.json"

    def slow(flags: Namespace, devices: run.Devices) -> run.BuiltTask:
        built = build(flags, devices)
        path.parent.mkdir()
        path.write_text("{}")
        return built

    monkeypatch.setattr(finetune, "build_task", slow)
    with pytest.raises(UserError, match="config.json: was written by another process just now; give the command again"):
        tiny.run_script("run_fine_tune", **flags)
    assert path.read_text() == "{}"


def test_a_run_that_another_process_has_finished_meanwhile_stays(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was unfinished when this one looked, and is done when this one holds the lock."""
    flags, build = tiny.teacher_flags(root, experiment="new"), finetune.build_task
    code, _ = in_child(lambda: tiny.run_script("run_fine_tune", **flags), before_update(3))
    assert code == -signal.SIGKILL
    folder = root / "runs" / "new_bert_qqp"

    def slow(flags: Namespace, devices: run.Devices) -> run.BuiltTask:
        built = build(flags, devices)
        other = tiny.teacher_flags(root, experiment="new")
        code, said = in_child(lambda: tiny.run_script("run_fine_tune", **other), (finetune, "build_task", build))
        assert code == 0, said
        return built

    monkeypatch.setattr(finetune, "build_task", slow)
    with pytest.raises(UserError, match="another process has finished this run just now"):
        tiny.run_script("run_fine_tune", **flags)
    assert (folder / "model-4.pt").exists()


@pytest.mark.parametrize("name", METHODS)
def test_the_teacher_stays_in_eval_mode_and_without_gradient(name: str) -> None:
    """Whatever train() is called on; the student and the gates do change."""
    task, tokens, rows = distillation(name, "all"), make_tokens(), np.arange(4)
    task.train()
    task.teacher.train()
    task.teacher.encoder.train()
    task.teacher.encoder.encoder.layer[0].attention.output.dropout.train()
    assert not any(part.training for part in task.teacher.modules())
    assert all(part.training for part in [*task.student.modules(), *task.method.modules()])
    task(tokens.batch(rows, task.layout(tokens.lengths(rows), rows, 1))).loss.backward()
    assert all(parameter.grad is None for parameter in task.teacher.parameters())
    assert any(parameter.grad is not None for parameter in task.student.parameters())


def test_negative_control_a_classifier_that_is_not_frozen_changes_its_mode() -> None:
    model = classifier(2, 1)
    assert not model.training
    model.train()
    assert all(part.training for part in model.modules())
