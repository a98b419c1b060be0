"""The smallest spoilt input of each kind that tests/fuzz.py tries by the hundred; and that a bad end is seen."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fuzz, tiny

TEACHER = "runs/teacher_bert_qqp"
SMALLEST = {
    "a config that is empty": (f"{TEACHER}/config.json", b"", fuzz.evaluating, 2),
    "a config of another type": (f"{TEACHER}/config.json", b"[]", fuzz.distilling, 2),
    "a config without anything": (f"{TEACHER}/config.json", b"{}", fuzz.predicting, 2),
    "a config beyond the recursion limit": (f"{TEACHER}/config.json", fuzz.nested(100_000), fuzz.evaluating, 2),
    "scores of a wrong type": (f"{TEACHER}/eval-dev.json", b'{"checkpoints": [{"step": "4"}]}', fuzz.predicting, 2),
    "scores of another type": (f"{TEACHER}/eval-dev.json", b"[]", fuzz.evaluating, 2),
    "a row without its scores": (f"{TEACHER}/eval-dev.json", b'{"checkpoints": [{"step": 4}]}', fuzz.evaluating, 0),
    "a step twice": (f"{TEACHER}/eval-dev.json", b'{"checkpoints": [{"step": 4}, {"step": 4}]}', fuzz.predicting, 2),
    "a checkpoint that is empty": (f"{TEACHER}/model-4.pt", b"", fuzz.evaluating, 2),
    "logits that are empty": (f"{TEACHER}/logits-dev-4.npy", b"", fuzz.evaluating, 0),
    "a model's config without anything": ("bert/config.json", b"{}", fuzz.starting, 2),
    "a model's number that is none": ("bert/config.json", b'{"layer_norm_eps": NaN}', fuzz.starting, 2),
    "a model's tokenizer without anything": ("bert/tokenizer.json", b"{}", fuzz.starting, 2),
    "a model's weights that are empty": ("bert/model.safetensors", b"", fuzz.starting, 2),
    "data that are empty": ("data/QQP/train.tsv", b"", fuzz.starting, 2),
}


@pytest.mark.parametrize("name", SMALLEST)
def test_a_spoilt_input_is_a_line(root: Path, name: str) -> None:
    path, content, command, code = SMALLEST[name]
    (root / path).write_bytes(content)
    assert fuzz.attempt(root, command) == (code, "")


def test_a_whole_number_stands_for_a_real_one(root: Path) -> None:
    folder = root / TEACHER
    tiny.change_config(folder, encoder=tiny.config(folder)["encoder"] | {"initializer_range": 0})
    assert fuzz.attempt(root, fuzz.evaluating) == (0, "")


def fail(root: Path) -> None:
    raise KeyError("a bug")


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        (fail, 70, "Traceback"),
        (lambda root: os.kill(os.getpid(), 9), -9, "ends with -9"),
        (lambda root: time.sleep(9), -14, "hangs"),
    ],
)
def test_negative_control_a_bad_end_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[[Path], None], code: int, said: str
) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 1)
    found, problem = fuzz.attempt(tmp_path, command)
    assert (found, said in problem) == (code, True)
