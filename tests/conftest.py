"""Fixtures: one thread, so that numbers are the same on every machine, and a fine-tuned tiny teacher."""

import os
import shutil
import signal
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test may reach for the network

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from tests import golden, tiny  # noqa: E402


def pytest_configure() -> None:
    """Hear signals that whoever started the tests, as nohup does, had ignored: that is inherited."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Keep torch to one thread."""
    torch.set_num_threads(1)
    tqdm.monitor_interval = 0  # some tests fork, and its thread may hold a lock just then


@pytest.fixture(scope="session")
def fine_tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with bert/, data/ and a teacher in runs/, fine-tuned by the real script; do not write into it."""
    root = tmp_path_factory.mktemp("fine_tuned")
    tiny.make_bert(root / "bert")
    tiny.make_qqp(root / "data")
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(root))
    return root


@pytest.fixture(scope="session")
def golden_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the golden teacher was trained."""
    root = tmp_path_factory.mktemp("golden")
    tiny.make_bert(root / "bert")
    tiny.make_qqp(root / "data")
    assert golden.teacher_losses(root) == pytest.approx(golden.read("teacher"), rel=1e-5)
    return root


@pytest.fixture
def root(fine_tuned: Path, tmp_path: Path) -> Path:
    """Return a copy of `fine_tuned` to work in."""
    shutil.copytree(fine_tuned, tmp_path / "root")
    return tmp_path / "root"
