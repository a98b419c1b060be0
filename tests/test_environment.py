"""The files that make an environment, and those that say whose work this is, agree with each other."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
RANGES = ["requirements.txt", "tests/requirements.txt"]
SHELL = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("scripts/*.sh"), ROOT / ".ci/run"])
FAKE_PYTHON = '#!/bin/sh\necho "$0 $*"\n'


def requirements(name: str) -> dict[str, Requirement]:
    """Return the requirements of a file by package name."""
    lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text().splitlines()]
    found = [Requirement(line) for line in lines if line]
    return {requirement.name: requirement for requirement in found}


def pins() -> dict[str, str]:
    """Return the version of every package in constraints.txt, where each has exactly one."""
    found = {}
    for name, requirement in requirements("constraints.txt").items():
        [specifier] = requirement.specifier
        assert specifier.operator == "==", name
        found[name] = specifier.version
    return found


def test_every_required_package_is_pinned_and_no_other() -> None:
    assert set(pins()) == {name for file in RANGES for name in requirements(file)}


@pytest.mark.parametrize("file", RANGES)
def test_pins_lie_in_the_ranges(file: str) -> None:
    for name, requirement in requirements(file).items():
        assert requirement.specifier.contains(pins()[name]), f"{requirement} excludes {pins()[name]}"


def test_what_the_code_needs_has_a_floor_and_a_ceiling() -> None:
    for name, requirement in requirements("requirements.txt").items():
        assert {specifier.operator for specifier in requirement.specifier} == {">=", "<"}, name


def test_the_citation_names_the_papers() -> None:
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    dois = {reference["doi"] for reference in citation["references"]}
    assert dois == {"10.3390/s23031483", "10.1609/aaai.v35i15.17610", "10.18653/v1/D19-1441"}


@pytest.mark.parametrize("script", SHELL)
def test_bash_accepts(script: str) -> None:
    done = subprocess.run(["bash", "-n", ROOT / script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a folder with our scripts and requirements, and a .venv whose python only says how it was called."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return tmp_path


def run(project: Path, script: str, **environment: str) -> list[str]:
    """Return the lines that a script of the project prints."""
    command = ["bash", f"scripts/{script}"]
    done = subprocess.run(
        command, cwd=project, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout.splitlines()


def test_setup_installs_once_and_again_when_a_version_changes(project: Path) -> None:
    [install] = run(project, "setup.sh", PYTHON=sys.executable)
    assert install.endswith("-r requirements.txt -c constraints.txt")
    assert run(project, "setup.sh", PYTHON=sys.executable) == []
    for name in ("requirements.txt", "constraints.txt"):
        with (project / name).open("a") as file:
            file.write("# changed\n")
        assert run(project, "setup.sh", PYTHON=sys.executable) == [install]


def test_task_files_take_the_environment_that_is_there(project: Path) -> None:
    calls = run(project, "qqp.sh")
    assert calls
    assert all(call.startswith(f"{project}/.venv/bin/python run_") for call in calls)


def test_task_files_take_python_as_found_where_there_is_none(project: Path) -> None:
    (project / ".venv").rename(project / "other")
    calls = run(project, "qqp.sh", PATH=f"{project}/other/bin:{os.environ['PATH']}")
    assert calls
    assert all(call.startswith(f"{project}/other/bin/python run_") for call in calls)
