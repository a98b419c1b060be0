"""A change that should change no number shows the same losses."""

from pathlib import Path

import pytest

from tests import golden, tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the golden teacher was trained."""
    root = tmp_path_factory.mktemp("golden")
    tiny.make_bert(root / "bert")
    tiny.make_qqp(root / "data")
    assert golden.teacher_losses(root) == pytest.approx(golden.read("teacher"), rel=1e-5)
    return root


@pytest.mark.parametrize("name", golden.RUNS)
def test_losses_are_the_golden_ones(root: Path, name: str) -> None:
    losses = golden.student_losses(root, name)
    assert losses == pytest.approx(golden.read(name), rel=1e-5)
    assert len(set(losses.values())) == len(losses) == 8  # it trains: no two steps alike
