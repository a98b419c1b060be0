"""Tiny random BERTs and question pairs made on the spot, and the scripts run on them."""

import importlib
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import BertConfig, BertModel, BertTokenizer

WORDS = [f"w{index}" for index in range(40)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "?"]
SEQ_LEN = 16


def make_bert(folder: Path, layers: int = 4, d_model: int = 16, dropout: float = 0.0) -> Path:
    """Write a random BertModel with its vocabulary, as a pre-trained model lies in a local folder."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=d_model,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=2 * d_model,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        initializer_range=0.2,  # wide, so that a tiny model's outputs differ visibly
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    BertTokenizer.from_pretrained(folder).save_pretrained(folder)
    return folder


def make_qqp(data: Path, train: int = 21, dev: int = 13, test: int = 7) -> Path:
    """Write the three QQP files with random question pairs of different lengths."""
    generator = random.Random(0)

    def question() -> str:
        return " ".join(generator.choices(WORDS, k=generator.randint(1, 9))) + " ?"

    (data / "QQP").mkdir(parents=True)
    for name, count in (("train", train), ("dev", dev)):
        rows = [f"{i}\t{i}\t{i}\t{question()}\t{question()}\t{generator.randint(0, 1)}" for i in range(count)]
        header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
        (data / "QQP" / f"{name}.tsv").write_text("\n".join([header, *rows]) + "\n")
    rows = [f"{i}\t{question()}\t{question()}" for i in range(test)]
    (data / "QQP" / "test.tsv").write_text("\n".join(["id\tquestion1\tquestion2", *rows]) + "\n")
    return data


def run_script(name: str, *arguments: object, **flags: object) -> None:
    """Call the main() of a script with `--flag value` for each of `flags`."""
    words = [str(word) for word in arguments] + [str(w) for flag, value in flags.items() for w in (f"--{flag}", value)]
    before, sys.argv = sys.argv, [f"{name}.py", *words]
    try:
        importlib.import_module(name).main()
    finally:
        sys.argv = before


def teacher_flags(root: Path, **changes: object) -> dict[str, object]:
    """Return the flags of a short teacher run in `root`, which holds bert/ and data/."""
    flags = {
        "experiment": "teacher",
        "task": "qqp",
        "dataset": "train",
        "num_class": 2,
        "ptrain_ver": root / "bert",
        "max_seq_len": SEQ_LEN,
        "batch_size": 4,
        "lr": 1e-3,
        "total_step": 4,
        "warmup_step": 1,
        "ckpt_step": 2,
        "log_step": 1,
        "device_id": -1,
    }
    return flags | paths(root) | changes


def student_flags(root: Path, **changes: object) -> dict[str, object]:
    """Return the flags of a short distillation of the teacher that `teacher_flags` describe."""
    flags = {name: value for name, value in teacher_flags(root).items() if name not in ("num_class", "ptrain_ver")}
    del flags["dataset"], flags["max_seq_len"]
    flags |= {
        "experiment": "student",
        "teacher_exp": "teacher",
        "tckpt": 4,
        "num_hidden_layers": 2,
        "d_model": 16,
        "d_ff": 32,
        "num_attention_heads": 2,
        "softmax_temp": 3,
        "soft_weight": 0.7,
        "hard_weight": 0.3,
        "mu": 50,
        "total_step": 8,
    }
    return flags | changes


def paths(root: Path) -> dict[str, object]:
    """Return the flags that say where data and runs lie in `root`."""
    return {"data_dir": root / "data", "experiment_dir": root / "runs"}


def config(folder: Path) -> dict[str, Any]:
    """Return the config.json of a run or a pre-trained model."""
    return json.loads((folder / "config.json").read_text())


def change_config(folder: Path, **changes: object) -> None:
    """Change such a config.json as somebody would who vouches for it: without the checksum of a run's."""
    rest = {name: value for name, value in config(folder).items() if name != "config_sha256"}
    (folder / "config.json").write_text(json.dumps(rest | changes))


def load(path: Path) -> Any:
    """Read a checkpoint file."""
    return torch.load(path, weights_only=True)


def curves(runs: Path, run: str) -> dict[str, dict[int, float]]:
    """Return the tensorboard values of a run by tag and step; a step that a tag has twice is an error."""
    board = EventAccumulator(str(runs / "log" / run))
    board.Reload()
    found = {}
    for tag in board.Tags()["scalars"]:
        events = board.Scalars(tag)
        found[tag] = {event.step: event.value for event in events}
        assert len(found[tag]) == len(events), f"{tag} shows a step twice"
    return found


def curve(runs: Path, run: str, tag: str) -> dict[int, float]:
    """Return the tensorboard values of one tag of a run by step."""
    return curves(runs, run)[tag]
