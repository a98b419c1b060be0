"""How many threads compute, by what a machine, a container and a user grant; and how they wait."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fine_tune.core import threads
from fine_tune.models import precision
from tests.processes import ROOT


@pytest.mark.parametrize(
    ("own", "files", "granted"),
    [
        ("0::/\n", {"cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "max 100000\n"}, float("inf")),
        ("0::/\n", {}, float("inf")),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/cpu.max": "400000 100000\n", "a/b/cpu.max": "50000 100000\n"}, 0.5),
        ("4:memory:/x\n2:cpu,cpuacct:/\n", {"cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
                                            "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 3),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, float("inf")),
        ("2:cpuset:/\n0::/\n", {"cpuset/cpu.max": "100000 100000\n"}, float("inf")),
    ],
)  # fmt: skip
def test_what_control_groups_grant(tmp_path: Path, own: str, files: dict[str, str], granted: float) -> None:
    groups = tmp_path / "cgroup"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    (tmp_path / "own").write_text(own)
    assert threads.cpu_quota(groups, tmp_path / "own") == granted


@pytest.mark.parametrize(("quota", "given", "number"), [(1.9, False, "1"), (0.5, False, "1"), (1.9, True, None)])
def test_a_container_gets_no_more_threads_than_it_is_granted(
    monkeypatch: pytest.MonkeyPatch, quota: float, given: bool, number: str | None
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(threads, "cpu_quota", lambda *where: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(64))
    monkeypatch.setattr(threads, "GIVEN", given)
    note = threads.prepare()
    assert os.environ.get("OMP_NUM_THREADS") == number
    assert note == ("" if given else f"threads: 1, since this container is granted {quota} of 64 CPUs "
                    "(OMP_NUM_THREADS sets another number)")  # fmt: skip


@pytest.mark.parametrize(
    ("users", "policy", "spins"),
    [
        ({}, "PASSIVE", "1000"),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, "PASSIVE", "0"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE", "30000000000"),
        ({"GOMP_SPINCOUNT": "7"}, "PASSIVE", "7"),
    ],
)
def test_waiting_threads_soon_give_their_core_away_unless_the_user_wants_it_otherwise(
    users: dict[str, str], policy: str, spins: str
) -> None:
    """OpenMP itself shows what it has read when torch starts it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE"} | users
    program = "from fine_tune.cli import parser; parser.run_script(lambda: __import__('torch').ones(1).sum())"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert f"OMP_WAIT_POLICY = '{policy}'" in done.stderr
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr


@pytest.mark.parametrize(("hidden_size", "given", "number"), [(64, False, 1), (65, False, 2), (64, True, 2)])
def test_a_small_model_has_one_thread(
    monkeypatch: pytest.MonkeyPatch, hidden_size: int, given: bool, number: int
) -> None:
    monkeypatch.setattr(threads, "GIVEN", given)
    torch.set_num_threads(2)
    try:
        precision.choose_threads(hidden_size)
        assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(1)
