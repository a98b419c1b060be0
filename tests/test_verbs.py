"""Every verb that is called as python -m fine_tune.<verb> answers -h at once, with its flags and an example."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
VERBS = sorted(path.stem for path in ROOT.glob("fine_tune/*.py") if "run_script" in path.read_text())


def test_the_verbs_are_known() -> None:
    expected = {"add_task", "download", "export", "import_teacher", "predict", "report", "submission"}
    assert set(VERBS) == expected


@pytest.mark.parametrize("verb", VERBS)
def test_help_needs_no_library(verb: str, tmp_path: Path) -> None:
    for name in ("torch", "transformers", "numpy", "huggingface_hub"):
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")
    done = subprocess.run(
        [sys.executable, "-m", f"fine_tune.{verb}", "-h"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: python -m fine_tune.{verb} ")
    assert "(required)" in done.stdout and f"python -m fine_tune.{verb}" in done.stdout.partition("example:")[2]
