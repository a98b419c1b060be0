"""--cache_teacher: the same numbers without the teacher, and never a stale or damaged file."""

import shutil
import threading
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from fine_tune.core.errors import UserError
from fine_tune.models import bert
from fine_tune.training import teacher_cache
from tests import golden, tiny
from tests.built import D, S, classifier, make_tokens

CASES = golden.RUNS | {"pkd-logits": ("run_pkd_distill", {"mu": 0})}
RUNS = {"dropout": 0.2, "accum_step": 2}  # dropout: the cache must not touch the random stream


def losses(root: Path, name: str, *switches: str, **changes: object) -> list[float]:
    script, own = CASES[name]
    flags = RUNS | {"experiment": f"{name}{len(list((root / 'runs').iterdir()))}"} | own | changes
    tiny.run_script(script, *switches, **tiny.student_flags(root, **flags))
    return list(tiny.curve(root / "runs", f"{flags['experiment']}_bert_qqp", "qqp/train/bert/loss").values())


def kept(root: Path) -> list[Path]:
    return sorted((root / "runs" / "cache").glob("teacher-*.npy"))


def fail(*args: object) -> None:
    raise AssertionError("the teacher was computed again")


@pytest.mark.parametrize("name", golden.RUNS)
def test_the_losses_are_the_golden_ones(golden_root: Path, name: str) -> None:
    found = golden.student_losses(golden_root, name, "--cache_teacher", experiment=f"{name}-cached")
    assert found == pytest.approx(golden.read(name), rel=1e-5)


@pytest.mark.parametrize("name", ["lad", "lad-masked", "alp-kd", "pkd-logits"])
def test_dropout_masks_stay_and_the_teacher_is_loaded_once(
    root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("name", ["alp-kd", "lad-masked", "lad"])
def test_what_is_kept_is_the_librarys(root: Path, name: str) -> None:
    """Logits of every example, then every layer's states of [CLS], of its tokens, or of all positions."""
    from tests import reference

    losses(root, name, "--cache_teacher", total_step=1)
    [path] = kept(root)
    config = reference.BertConfig.from_pretrained(root / "bert")
    teacher = reference.Classifier(config, 2, 0.0).eval()
    teacher.load_state_dict(torch.load(root / "runs" / "teacher_bert_qqp" / "model-4.pt"))
    tokenizer = reference.BertTokenizer.from_pretrained(root / "bert")
    texts = [line.split("\t") for line in (root / "data" / "QQP" / "train.tsv").read_text().splitlines()[1:]]
    inputs = dict(reference.encode(tokenizer, texts, tiny.SEQ_LEN))
    with torch.no_grad():
        logits, hiddens = teacher(inputs, everything=True)
    states = torch.stack(hiddens[1:], 2)  # (n, S, L, D)
    counts = {"alp-kd": 1, "lad": tiny.SEQ_LEN}.get(name, inputs["attention_mask"].sum(1))
    read = torch.arange(tiny.SEQ_LEN) < torch.as_tensor(counts).expand(len(logits))[:, None]
    expected = [logits.flatten(), states[read].flatten()]
    torch.testing.assert_close(torch.from_numpy(np.load(path)), torch.cat(expected), rtol=1e-5, atol=1e-5)


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
    for name in ("alp-kd", "alp-kd", "lad_cls"):  # the latter keeps the same
        losses(root, name, "--cache_teacher", total_step=1)
    assert len(kept(root)) == 1
    losses(root, "pkd-logits", "--cache_teacher", total_step=1)
    assert len(kept(root)) == 2
    for name in ("lad", "pkd", "alp-kd-hidden", "partial_lad", "lad-sampled"):  # one sweep, one file
        losses(root, name, "--cache_teacher", total_step=1, seed=3)
    assert len(kept(root)) == 3
    for name in ("lad-masked", "alp-kd-hidden-masked"):
        losses(root, name, "--cache_teacher", total_step=1)
    assert len(kept(root)) == 4
    losses(root, "pkd-logits", "--cache_teacher", total_step=1, tckpt=2)
    assert len(kept(root)) == 5
    path = root / "data" / "QQP" / "train.tsv"
    path.write_text(path.read_text().replace("w1 ", "w2 "))
    losses(root, "pkd-logits", "--cache_teacher", total_step=1)
    assert len(kept(root)) == 6


def test_a_size_that_would_not_fit_is_said_and_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kibibytes = 4 * 21 * (2 + tiny.SEQ_LEN * 4 * 16) / 2**10
    said = f"^--cache_teacher: the teacher's outputs take {kibibytes:.3g} KiB, but "
    with pytest.raises(UserError, match=said + "--cache_limit is 1e-05 GiB; raise it, or leave --cache_teacher out$"):
        losses(root, "lad", "--cache_teacher", cache_limit=1e-5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Namespace(free=1000))
    with pytest.raises(UserError, match=said + r".*/cache has 1,000 B left; make room, or leave"):
        losses(root, "lad", "--cache_teacher")
    assert not kept(root)
    assert not list((root / "runs").glob("lad*"))


def test_runs_that_start_together_compute_it_once(root: Path) -> None:
    tokens, config = make_tokens(), Namespace(max_seq_len=S, precision="fp32", cache_limit=1)
    sizes = {"num_hidden_layers": 4, "hidden_size": D}
    kept_of = teacher_cache.what_is_kept("tokens", tokens, config, 2, sizes)
    computed, together = [], threading.Barrier(3)

    def load() -> bert.BertClassifier:
        computed.append(1)
        return classifier(4, 1)

    def ask(_: int) -> np.ndarray:
        together.wait()
        return teacher_cache.cached_outputs(load, tokens, kept_of, config, "teacher", root / "cache")

    with ThreadPoolExecutor(3) as pool:
        first, *others = pool.map(ask, range(3))
    assert computed == [1]
    assert all(np.array_equal(first, other) for other in others)


def test_an_interruption_leaves_nothing_behind(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fine_tune.core import interrupt

    monkeypatch.setattr(interrupt, "received", [15])
    with pytest.raises(interrupt.Interrupted):
        losses(root, "alp-kd", "--cache_teacher")
    assert [path.suffix for path in (root / "runs" / "cache").iterdir() if "teacher" in path.name] == [".lock"]
