"""A change that should change no number shows the same losses."""

from pathlib import Path

import pytest

from tests import golden


@pytest.mark.parametrize("name", golden.RUNS)
def test_losses_are_the_golden_ones(golden_root: Path, name: str) -> None:
    losses = golden.student_losses(golden_root, name)
    assert losses == pytest.approx(golden.read(name), rel=1e-5)
    assert len(set(losses.values())) == len(losses) == 8  # it trains: no two steps alike
