"""The bundled sample: what its generator writes, that counting words does not solve it, and that its BERT reads it."""

from pathlib import Path

import pytest

from fine_tune import sample
from fine_tune.data import read_examples
from fine_tune.tasks import TASKS

FOLDER = Path(__file__).resolve().parent.parent / "data" / "sample"


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[sample.Pair]]:
    """Generate the pairs of all splits."""
    return {split: sample.make_pairs(split) for split in sample.SIZES}


def test_bundled_files_are_what_the_generator_writes(pairs: dict[str, list[sample.Pair]], tmp_path: Path) -> None:
    for split, made in pairs.items():
        sample.write_pairs(tmp_path, split, made)
        name = f"{split}.tsv"
        assert (tmp_path / name).read_bytes() == (FOLDER / "QQP" / name).read_bytes()
        examples = read_examples(tmp_path / name, TASKS["qqp"], TASKS["qqp"].splits[split])
        assert [(e.text, e.pair) for e in examples] == [pair[:2] for pair in made]


def test_no_question_is_in_two_splits(pairs: dict[str, list[sample.Pair]]) -> None:
    questions = [{question for pair in made for question in pair[:2]} for made in pairs.values()]
    assert sum(map(len, questions)) == len(set.union(*questions))


@pytest.mark.parametrize("split", ["train", "dev"])
def test_word_overlap_does_not_tell_the_label(pairs: dict[str, list[sample.Pair]], split: str) -> None:
    labels = [pair.label for pair in pairs[split]]
    assert sum(labels) * 2 == len(labels)
    assert sample.best_threshold(pairs[split]) < 0.55


def test_roles_decide(pairs: dict[str, list[sample.Pair]]) -> None:
    alike = [p for p in pairs["train"] if sorted(sample.words(p.first)) == sorted(sample.words(p.second))]
    assert {pair.label for pair in alike} == {0, 1}  # the very same words, in another order


def test_tokenizer_knows_every_word(pairs: dict[str, list[sample.Pair]]) -> None:
    from transformers import AutoConfig, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "bert", local_files_only=True)
    assert len(tokenizer) == AutoConfig.from_pretrained(FOLDER / "bert").vocab_size
    every = [pair for made in pairs.values() for pair in made]
    encoded = tokenizer([pair.first for pair in every], [pair.second for pair in every])["input_ids"]
    assert max(map(len, encoded)) <= sample.LONGEST
    assert tokenizer.unk_token_id not in {token for row in encoded for token in row}


def test_files_are_small_and_readable_by_all() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert {"config.json", "model.safetensors", "vocab.txt", "train.tsv"} <= {path.name for path in files}
    assert sum(path.stat().st_size for path in files) < 6e6
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in files)
