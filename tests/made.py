"""Runs made without training: config.json, evaluation and logits as a finished run leaves them."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny

ENCODER = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "initializer_range": 0.02,
}
STUDENT = {
    "kind": "student",
    "method": "lad",
    "teacher_exp": "teacher",
    "tmodel": "bert",
    "tckpt": 4,
    "teacher_sha256": "teacher's",
    "num_hidden_layers": 2,
    "lr": 1e-4,
    "mu": 500.0,
}


def labels(root: Path) -> np.ndarray:
    """Return the labels of dev."""
    return np.array([int(line[-1]) for line in (root / "data/QQP/dev.tsv").read_text().splitlines()[1:]])


def logits_with(root: Path, right: list[int]) -> np.ndarray:
    """Return logits (n, 2) that are right for the examples `right` alone."""
    truth = labels(root)
    guesses = np.where(np.isin(np.arange(len(truth)), right), truth, 1 - truth)
    return np.eye(2, dtype=np.float32)[guesses]


def run(
    root: Path,
    experiment: str,
    scores: dict[int, float | None],
    logits: dict[int, np.ndarray] | None = None,
    facts: dict[str, Any] | None = None,
    **config: Any,
) -> Path:
    """Write a finished run with the accuracy of each step; return its folder."""
    folder = root / "runs" / f"{experiment}_bert_qqp"
    folder.mkdir(parents=True)
    last = max(scores)
    saved = {"experiment": experiment, "task": "qqp", "model": "bert", "dataset": "train", "max_seq_len": 16}
    saved |= {"num_class": 2, "device_id": -1, "ptrain_ver": "bert", "labels": ["0", "1"], "total_step": last}
    saved |= {"data_sha256": "train's", "encoder": ENCODER, "versions": {"torch": "2.13.0"}, "seed": 42}
    (folder / "config.json").write_text(json.dumps(saved | STUDENT | config))
    digest = hashlib.sha256((root / "data/QQP/dev.tsv").read_bytes()).hexdigest()
    split = {"rows": len(labels(root)), "data_sha256": digest, "majority": {"accuracy": 0.5}, "finished": True}
    rows = [{"step": step, "accuracy": score, "f1_score": score} for step, score in scores.items()]
    (folder / "eval-dev.json").write_text(json.dumps({"checkpoints": rows} | split | (facts or {})))
    for step in scores:
        (folder / f"model-{step}.pt").touch()
        default = logits_with(root, list(range(step)))
        np.save(folder / f"logits-dev-{step}.npy", (logits or {}).get(step, default))
    return folder


def teacher(root: Path, **config: Any) -> Path:
    """Write the run that taught those of `run`: step 4, accuracy 0.92."""
    flags = {"kind": "teacher", "method": None, "encoder": ENCODER | {"num_hidden_layers": 4}, "lr": 2e-5}
    return run(root, "teacher", {4: 0.92}, **flags | config)


def data(root: Path) -> Path:
    """Write question pairs into `root`; return it."""
    tiny.make_qqp(root / "data")
    return root
