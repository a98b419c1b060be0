"""--cache_teacher: the same numbers without the teacher, and never a stale or damaged file."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fine_tune.core.errors import UserError
from fine_tune.models import bert
from fine_tune.training import teacher_cache
from tests import golden, tiny

ALLOWED = {
    "alp-kd": golden.RUNS["alp-kd"],
    "lad_cls": golden.RUNS["lad_cls"],
    "pkd": ("run_pkd_distill", {"mu": 0}),
    "lad": ("run_lad_distil", {"mu": 0, "gate_lr": 1e-3}),
}
RUNS = {"dropout": 0.2, "accum_step": 2}  # dropout: the cache must not touch the random stream


def losses(root: Path, name: str, *switches: str, **changes: object) -> list[float]:
    script, own = ALLOWED[name]
    flags = RUNS | {"experiment": f"{name}{len(list((root / 'runs').iterdir()))}"} | own | changes
    tiny.run_script(script, *switches, **tiny.student_flags(root, **flags))
    return list(tiny.curve(root / "runs", f"{flags['experiment']}_bert_qqp", "qqp/train/bert/loss").values())


def kept(root: Path) -> list[Path]:
    return sorted((root / "runs" / "cache").glob("teacher-*.npy"))


def fail(*args: object) -> None:
    raise AssertionError("the teacher was computed again")


@pytest.mark.parametrize("name", ALLOWED)
def test_the_numbers_are_the_same(root: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = losses(root, name)
    assert not kept(root)
    assert losses(root, name, "--cache_teacher") == pytest.approx(plain, rel=1e-6)
    [path] = kept(root)
    before = path.read_bytes()
    monkeypatch.setattr(teacher_cache, "write", fail)
    monkeypatch.setattr(bert, "empty_classifier", fail)  # the teacher is not even loaded
    assert losses(root, name, "--cache_teacher") == pytest.approx(plain, rel=1e-6)
    assert kept(root) == [path]
    assert path.read_bytes() == before


def test_what_is_kept_is_the_librarys(root: Path) -> None:
    """[CLS] of every layer and logits of every example, from transformers' own forward pass."""
    from tests import reference

    losses(root, "alp-kd", "--cache_teacher", total_step=1)
    [path] = kept(root)
    answers = np.load(path, mmap_mode="r")
    config = reference.BertConfig.from_pretrained(root / "bert")
    teacher = reference.Classifier(config, 2, 0.0).eval()
    teacher.load_state_dict(torch.load(root / "runs" / "teacher_bert_qqp" / "model-4.pt"))
    tokenizer = reference.BertTokenizer.from_pretrained(root / "bert")
    rows = [line.split("\t") for line in (root / "data" / "QQP" / "train.tsv").read_text().splitlines()[1:]]
    with torch.no_grad():
        logits, hiddens = teacher(dict(reference.encode(tokenizer, rows, tiny.SEQ_LEN)), everything=True)
    expected = torch.cat([logits, *(hidden[:, 0] for hidden in hiddens[1:])], 1)
    torch.testing.assert_close(torch.from_numpy(np.array(answers)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "foreign"])
def test_a_damaged_file_is_made_again(root: Path, damage: str) -> None:
    plain = losses(root, "alp-kd", "--cache_teacher")
    [path] = kept(root)
    content = path.read_bytes()
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :]
    broken = {"flip": flipped, "cut": content[:-1000], "empty": b"", "foreign": b"hello, this is no array at all"}
    path.write_bytes(broken[damage])
    assert losses(root, "alp-kd", "--cache_teacher") == plain
    assert path.read_bytes() == content


def test_another_teacher_text_or_length_has_a_file_of_its_own(root: Path) -> None:
    losses(root, "alp-kd", "--cache_teacher", total_step=1)
    losses(root, "alp-kd", "--cache_teacher", total_step=1)
    losses(root, "lad_cls", "--cache_teacher", total_step=1)  # keeps the same as alp-kd
    assert len(kept(root)) == 1
    losses(root, "pkd", "--cache_teacher", total_step=1)  # logits only
    assert len(kept(root)) == 2
    losses(root, "pkd", "--cache_teacher", total_step=1, tckpt=2)
    assert len(kept(root)) == 3
    path = root / "data" / "QQP" / "train.tsv"
    path.write_text(path.read_text().replace("w1 ", "w2 "))
    losses(root, "pkd", "--cache_teacher", total_step=1)
    assert len(kept(root)) == 4


def test_refused_where_every_position_is_read(root: Path) -> None:
    for name in ("lad", "lad_no", "partial_lad", "lad_user_defined", "alp-kd-hidden", "pkd"):
        script, changes = golden.RUNS[name]
        with pytest.raises(
            UserError, match="^--cache_teacher: this method reads the teacher's state at every position"
        ):
            tiny.run_script(script, "--cache_teacher", **tiny.student_flags(root, **changes))
    assert not kept(root)
    assert not list((root / "runs").glob("student*"))


def test_an_interruption_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fine_tune.core import interrupt

    monkeypatch.setattr(interrupt, "received", [15])
    with pytest.raises(interrupt.Interrupted):
        losses(root, "alp-kd", "--cache_teacher")
    assert not [path for path in (root / "runs" / "cache").iterdir() if "teacher" in path.name]
