"""The bundled sample: it is what its generator writes, counting words does not solve it, and its BERT reads it."""

import re
from pathlib import Path

import pytest

from scripts import make_sample

FOLDER = Path(__file__).parent.parent / "data" / "sample"


def rows(split: str) -> list[list[str]]:
    return [line.split("\t") for line in (FOLDER / "QQP" / f"{split}.tsv").read_text().splitlines()[1:]]


@pytest.mark.parametrize("split", make_sample.PAIRS)
def test_bundled_files_are_what_the_generator_writes(split: str, tmp_path: Path) -> None:
    make_sample.write_pairs(tmp_path, split)
    assert (tmp_path / f"{split}.tsv").read_bytes() == (FOLDER / "QQP" / f"{split}.tsv").read_bytes()


def test_no_question_is_in_two_splits() -> None:
    columns = {"train": (3, 4), "dev": (3, 4), "test": (1, 2)}
    questions = [{row[column] for row in rows(split) for column in columns[split]} for split in columns]
    assert sum(map(len, questions)) == len(set.union(*questions))


@pytest.mark.parametrize("split", ["train", "dev"])
def test_word_overlap_does_not_tell_the_label(split: str) -> None:
    """The best threshold on the Jaccard index stays far below what a model reaches that compares the questions."""
    scored = []
    for row in rows(split):
        first, second = (set(re.findall(r"\w+", text.lower())) for text in row[3:5])
        scored.append((len(first & second) / len(first | second), int(row[5])))
    shares = []
    for limit in {score for score, _ in scored}:
        right = sum((score >= limit) == bool(label) for score, label in scored) / len(scored)
        shares += [right, 1 - right]
    assert 0.5 < max(shares) < 0.66
    assert 0.45 < sum(label for _, label in scored) / len(scored) < 0.55


def test_the_bert_reads_every_word() -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "bert", local_files_only=True)
    assert len(tokenizer) == AutoConfig.from_pretrained(FOLDER / "bert").vocab_size
    pairs = [row[3:5] for split in ("train", "dev") for row in rows(split)] + [row[1:3] for row in rows("test")]
    encoded = tokenizer(pairs)["input_ids"]
    assert tokenizer.unk_token_id not in {token for row in encoded for token in row}
    assert max(map(len, encoded)) <= 40


def test_files_are_small_and_readable_by_all() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 6e6
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in files)
