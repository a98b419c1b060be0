"""A run outlives whoever reads what it says."""

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fine_tune.core import output
from tests import tiny
from tests.interruptions import in_child, in_step
from tests.processes import ROOT


def close_both() -> None:
    os.close(1), os.close(2)
    sys.stdout = sys.stderr = None


def nobody_reads(number: int) -> None:
    """Make the stream `number` a pipe whose reader is gone."""
    read, write = os.pipe()
    os.dup2(write, number)
    os.close(read)


def full(number: int) -> None:
    """Make the stream `number` a full disk."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), number)


def run_with(code: str, *words: str, **environment: str) -> subprocess.CompletedProcess:
    """Run Python on `code`, whose argument are `words`, with standard input closed."""
    command = shlex.join([sys.executable, "-c", code, *words]) + " <&-"
    return subprocess.run(command, shell=True, cwd=ROOT, env=os.environ | environment, capture_output=True)


def test_a_closed_standard_input_is_an_empty_one() -> None:
    code = "from fine_tune.core.output import prepare; prepare(); import sys; print(sys.stdin.buffer.read())"
    done = run_with(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"b''\n", b"")


def test_a_letter_that_the_terminal_lacks_is_escaped() -> None:
    code = "from fine_tune.core.output import prepare; prepare(); print('1 \xb1 2 \u2019')"
    done = run_with(code, PYTHONIOENCODING="latin-1")
    assert (done.returncode, done.stdout, done.stderr) == (0, b"1 \xb1 2 \\u2019\n", b"")


LOSSES: dict[str, Callable[[], object]] = {
    "both closed": close_both,
    "nobody reads errors": lambda: nobody_reads(2),
    "nobody reads anything": lambda: (nobody_reads(1), nobody_reads(2)),
    "a full disk": lambda: full(2),
}


def with_streams(lose: Callable[[], object], action: Callable[[], None]) -> tuple[int, str]:
    """Call `action` as a script's main in a process whose streams are lost; return its exit status and stderr."""
    prepare = output.prepare

    def lost() -> None:
        sys.stdout = open(1, "w", closefd=False)  # pytest's own is no file
        lose()
        prepare()

    return in_child(action, (output, "prepare", lost))


@pytest.mark.parametrize("name", LOSSES)
def test_a_training_goes_on_without_a_reader(root: Path, name: str) -> None:
    def train(experiment: str) -> None:
        tiny.run_script("run_pkd_distill", **tiny.student_flags(root, experiment=experiment))

    train("heard")
    assert with_streams(LOSSES[name], lambda: train("silent")) == (0, "")
    heard, silent = (tiny.load(root / "runs" / f"{run}_bert_qqp" / "model-8.pt") for run in ("heard", "silent"))
    assert heard.keys() == silent.keys() and all(heard[key].equal(silent[key]) for key in heard)


def test_results_that_cannot_be_written_are_an_error(root: Path) -> None:
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "dev"} | tiny.paths(root)
    code, said = with_streams(lambda: full(1), lambda: tiny.run_script("run_fine_tune_eval", **flags))
    assert code == 2
    assert said.splitlines()[-1].endswith("error: standard output cannot be written (No space left on device)")
    assert (root / "runs" / "teacher_bert_qqp" / "eval-dev.json").is_file()


@pytest.mark.parametrize("times", [1, 2])
def test_a_terminal_that_closes_stops_in_good_order(root: Path, times: int) -> None:
    """It may send its signal twice, and takes standard error along."""
    step = in_step(5, number=signal.SIGHUP)

    def train() -> None:
        if times == 2:
            os.kill(os.getpid(), signal.SIGHUP)
        tiny.run_script("run_pkd_distill", **tiny.student_flags(root, accum_step=2))

    code, said = in_child(train, step)
    assert code == 129
    assert "stopped: SIGHUP: saved after step " in said
    assert (root / "runs" / "student_bert_qqp" / "state.pt").is_file()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_the_caller_ignores_stays_ignored(root: Path, number: int) -> None:
    """As nohup and a shell's background do."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        flags = tiny.student_flags(root, accum_step=2)
        code, said = in_child(lambda: tiny.run_script("run_pkd_distill", **flags), in_step(5, number=number))
    finally:
        signal.signal(number, before)
    assert code == 0, said
    assert (root / "runs" / "student_bert_qqp" / "model-8.pt").is_file()


class PanicException(BaseException):
    """As PyO3 raises it when Rust panics; not an Exception."""


PanicException.__module__ = "pyo3_runtime"


def test_a_panic_of_the_tokenizer_is_a_line() -> None:
    def panic() -> None:
        raise PanicException("index out of bounds")

    code, said = in_child(panic)
    assert code == 2
    assert said.rstrip().endswith(
        "error: the tokenizers library broke off (index out of bounds); is the tokenizer damaged?"
    )


def test_a_file_that_nobody_thought_of_is_a_line(tmp_path: Path) -> None:
    code, said = in_child(lambda: (tmp_path / "there" / "is  none").read_text())
    assert code == 2
    assert said.rstrip().endswith(f"error: {tmp_path}/there/is  none: No such file or directory")
