"""What the disk refuses, or holds in place of a file, is one line with its path; and tensorboard's costs no run."""

import ctypes
import errno
import fcntl
import os
import shutil
import signal
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from fine_tune import evaluate  # noqa: F401 - before any process is forked: scikit-learn takes a second to import
from fine_tune.core import files
from fine_tune.training import log
from tests import tiny
from tests.interruptions import Patch, before_update, flags_of, in_child

SECONDS = 60  # after which a command hangs
VERSION_3 = 0x20080522  # of Linux' capset


def drop_privileges() -> None:
    """Let the modes of files count, whoever runs the tests."""
    header, nothing = (ctypes.c_uint32 * 2)(VERSION_3, 0), (ctypes.c_uint32 * 6)()
    assert ctypes.CDLL(None).capset(header, nothing) == 0


def guarded(action: Callable[[], None], *patches: Patch) -> tuple[int, str]:
    """Call `action` as a script's main in a process that modes hold and that a hang ends."""

    def limited() -> None:
        signal.alarm(SECONDS)
        drop_privileges()
        action()

    return in_child(limited, *patches)


def student(root: Path) -> None:
    tiny.run_script("run_pkd_distill", **tiny.student_flags(root))


def teacher(root: Path) -> None:
    """Go on with a run that has a state, of step 5."""
    script, flags = flags_of(root, "teacher", "broken")
    tiny.run_script(script, **flags)


def evaluation(root: Path) -> None:
    tiny.run_script("run_fine_tune_eval", experiment="teacher", task="qqp", dataset="dev", **tiny.paths(root))


def prediction(root: Path) -> None:
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "test", "ckpt": 4} | tiny.paths(root)
    tiny.run_script("generate_test_prediction", **flags)


def closed(mode: int) -> Callable[[Path], None]:
    """Return what sets the mode of a file or folder; a file that is not there is made."""

    def change(path: Path) -> None:
        if not path.exists():
            path.touch()
        path.chmod(mode)

    return change


def empty_and_read_only(path: Path) -> None:
    shutil.rmtree(path)
    path.mkdir(0o555)


def pipe(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


READ_ONLY, UNREADABLE = closed(0o555), closed(0)
TROUBLE: dict[str, tuple[Callable[[Path], None], str, Callable[[Path], None]]] = {
    "a read-only folder of runs": (student, "runs", READ_ONLY),
    "a folder of runs that cannot be entered": (student, "runs", UNREADABLE),
    "a read-only cache": (student, "runs/cache", empty_and_read_only),
    "a read-only lock": (student, "runs/.student_bert_qqp.lock", closed(0o444)),
    "a pipe as a lock": (student, "runs/.student_bert_qqp.lock", pipe),
    "a folder as a lock": (student, "runs/.student_bert_qqp.lock", folder),
    "a read-only run": (teacher, "broken/run_bert_qqp", READ_ONLY),
    "a pipe as a state": (teacher, "broken/run_bert_qqp/state.pt", pipe),
    "a folder as a state": (teacher, "broken/run_bert_qqp/state.pt", folder),
    "an unreadable state": (teacher, "broken/run_bert_qqp/state.pt", UNREADABLE),
    "a pipe as a config": (teacher, "broken/run_bert_qqp/config.json", pipe),
    "a folder as a config": (teacher, "broken/run_bert_qqp/config.json", folder),
    "a folder as a checkpoint to write": (teacher, "broken/run_bert_qqp/model-10.pt", folder),
    "a pipe as a tokenizer": (evaluation, "runs/teacher_bert_qqp/tokenizer/tokenizer.json", pipe),
    "a pipe as a checkpoint": (evaluation, "runs/teacher_bert_qqp/model-2.pt", pipe),
    "a folder as a checkpoint": (evaluation, "runs/teacher_bert_qqp/model-2.pt", folder),
    "an unreadable checkpoint": (student, "runs/teacher_bert_qqp/model-4.pt", UNREADABLE),
    "unreadable data": (student, "data/QQP/train.tsv", UNREADABLE),
    "data that cannot be reached": (evaluation, "data/QQP", UNREADABLE),
    "a folder as an evaluation": (evaluation, "runs/teacher_bert_qqp/eval-dev.json", folder),
    "a read-only run to evaluate": (evaluation, "runs/teacher_bert_qqp", READ_ONLY),
    "a read-only run to predict with": (prediction, "runs/teacher_bert_qqp", READ_ONLY),
    "a folder as a prediction": (prediction, "runs/teacher_bert_qqp/QQP.tsv", folder),
}


@pytest.mark.parametrize("name", TROUBLE)
def test_what_the_system_refuses_is_one_line(root: Path, name: str) -> None:
    command, place, spoil = TROUBLE[name]
    if command is teacher:
        assert in_child(lambda: teacher(root), before_update(8))[0] == -signal.SIGKILL
        kept = (root / "broken" / "run_bert_qqp" / "model-5.pt").read_bytes()
    path = root / place
    spoil(path)
    code, said = guarded(lambda: command(root))
    path.chmod(0o755)
    assert (code, "Traceback" in said) == (2, False), said
    last = said.splitlines()[-1]
    assert "error: " in last and str(path) in last
    if command is teacher:
        assert (root / "broken" / "run_bert_qqp" / "model-5.pt").read_bytes() == kept


def test_a_data_file_that_is_a_pipe_is_missing(root: Path) -> None:
    pipe(root / "data" / "QQP" / "train.tsv")
    code, said = guarded(lambda: student(root))
    assert code == 2
    assert "train.tsv does not exist; " in said


@pytest.mark.parametrize("name", ["cache", "logits"])
def test_what_can_be_made_again_is_made_again(root: Path, name: str) -> None:
    """A pipe is there in its place."""
    evaluation(root)
    pattern = {"cache": "cache/*dev*.npz", "logits": "teacher_bert_qqp/logits-dev-4.npy"}[name]
    [path] = (root / "runs").glob(pattern)
    pipe(path)
    code, said = guarded(lambda: evaluation(root))
    assert code == 0, said
    assert path.is_file()


def test_a_current_folder_that_is_gone_is_one_line(root: Path) -> None:
    def stray() -> None:
        (root / "gone").mkdir()
        os.chdir(root / "gone")
        (root / "gone").rmdir()
        tiny.run_script("run_pkd_distill", **tiny.student_flags(root, experiment_dir="runs"))

    code, said = guarded(stray)
    assert (code, said.count("\n")) == (2, 1)
    assert "--experiment_dir 'runs': is relative to the current folder, which is gone" in said


# --- tensorboard ------------------------------------------------------------------------------------------------------


def at_step(step: int, do: Callable[[log.Log], None]) -> Patch:
    """Do something to the log of a run before it shows a step."""
    show = log.Log.__call__

    def changed(self: log.Log, now: int, *rest: object) -> None:
        if now == step:
            do(self)
        show(self, now, *rest)

    return log.Log, "__call__", changed


def full(shown: log.Log) -> None:
    os.dup2(os.open("/dev/full", os.O_WRONLY), shown.events.file.fileno())


BOARDS: dict[str, tuple[Callable[[Path], None], tuple[Patch, ...]]] = {
    "a full disk": (lambda folder: None, (at_step(3, full),)),
    "its folder is deleted": (lambda folder: None, (at_step(3, lambda shown: shutil.rmtree(shown.events.folder)),)),
    "a file in its way": (lambda folder: folder.touch(), ()),
    "a read-only folder": (lambda folder: (folder.mkdir(parents=True), folder.chmod(0o555)), ()),
}


@pytest.mark.parametrize("name", BOARDS)
def test_tensorboard_costs_no_run(root: Path, name: str) -> None:
    spoil, patches = BOARDS[name]
    tiny.run_script("run_pkd_distill", **tiny.student_flags(root, experiment="undisturbed"))
    spoil(root / "runs" / "log" / "student_bert_qqp")
    code, said = guarded(lambda: student(root), *patches)
    assert (code, "Traceback" in said, said.count("note: nothing is logged in ")) == (0, False, 1), said
    one, two = (tiny.load(root / "runs" / f"{run}_bert_qqp" / "model-8.pt") for run in ("undisturbed", "student"))
    assert all(one[key].equal(two[key]) for key in one)


def test_tensorboard_costs_no_evaluation(root: Path) -> None:
    (root / "runs" / "log" / "teacher_bert_qqp").chmod(0o555)
    code, said = guarded(lambda: evaluation(root))
    assert (code, "note: nothing is logged in " in said) == (0, True), said
    assert (root / "runs" / "teacher_bert_qqp" / "eval-dev.json").is_file()


# --- what a file system cannot do -------------------------------------------------------------------------------------


def refuse(number: int, *kinds: Callable[[int], bool]) -> Callable[..., None]:
    """Return a call of the system that is refused, of `kinds` of files alone if any are given."""

    def call(file: int, *rest: object) -> None:
        if all(kind(os.fstat(file if isinstance(file, int) else file.fileno()).st_mode) for kind in kinds):
            raise OSError(number, os.strerror(number))

    return call


def test_no_use_of_the_folder_for_temporary_files(root: Path) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    code, said = guarded(lambda: (student(root), evaluation(root)), (tempfile, "gettempdir", none))
    assert code == 0, said


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_a_note(root: Path, number: int) -> None:
    code, said = guarded(lambda: (student(root), evaluation(root)), (fcntl, "flock", refuse(number)))
    assert code == 0, said
    assert f"note: {root / 'runs'} is on a file system without locks ({os.strerror(number)}); see to it" in said
    code, said = guarded(lambda: student(root), (fcntl, "flock", refuse(errno.EIO)))
    assert (code, "is finished" in said) == (0, True)
    code, said = guarded(lambda: evaluation(root), (fcntl, "flock", refuse(errno.EIO)))
    assert (code, said.splitlines()[-1].endswith("cannot be locked (Input/output error)")) == (2, True), said


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_folder_that_cannot_be_synchronised_is_none_the_worse(tmp_path: Path, number: int) -> None:
    def write() -> None:
        with files.atomic_write(tmp_path / "file") as file:
            file.write(b"new")

    assert in_child(write, (os, "fsync", refuse(number, stat.S_ISDIR))) == (0, "")
    (tmp_path / "file").write_text("old")
    code, said = in_child(write, (os, "fsync", refuse(errno.EIO, stat.S_ISREG)))
    assert (code, (tmp_path / "file").read_text()) == (2, "old")
    assert said.endswith("file: cannot be written (Input/output error); nothing was replaced\n")
    code, said = in_child(write, (os, "fsync", refuse(errno.EIO, stat.S_ISDIR)))
    assert (code, (tmp_path / "file").read_text()) == (2, "new")
    assert said.endswith("what was written may not survive a power cut (Input/output error)\n")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


# --- locks and leftovers ----------------------------------------------------------------------------------------------


def test_the_refusal_names_the_process_that_holds_the_lock(tmp_path: Path) -> None:
    path = tmp_path / ".run.lock"
    for _ in range(2):  # what an earlier holder wrote is written over
        with files.locked(tmp_path / "run"):
            code, said = in_child(lambda: files.locked(tmp_path / "run").__enter__())
            assert (code, f"is training here (process {os.getpid()} on " in said) == (2, True), said
            assert path.read_text().count("\n") == 1
        path.write_text("process 123456789 on elsewhere\n")


def test_a_lock_with_another_name_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    os.link(tmp_path / "precious", tmp_path / ".run.lock")
    with files.locked(tmp_path / "run"):
        assert (tmp_path / "precious").read_bytes() == b""


def test_a_signal_ends_the_wait_for_a_lock(tmp_path: Path) -> None:
    def wait() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        with files.waiting_lock(tmp_path / "lock"):
            raise AssertionError

    with files.waiting_lock(tmp_path / "lock"):
        code, said = in_child(wait)
    assert (code, "stopped: SIGTERM: " in said) == (143, True)


def test_what_a_killed_process_left_of_a_folder_goes(tmp_path: Path) -> None:
    def killed() -> None:
        with files.atomic_folder(tmp_path / "folder") as part:
            (part / "file").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(killed)[0] == -signal.SIGKILL
    assert len([*tmp_path.iterdir()]) == 1
    with files.atomic_folder(tmp_path / "folder"):
        files.remove_parts(tmp_path)
        assert len([*tmp_path.iterdir()]) == 1  # the new one's, which is being written
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_part_that_was_removed_before_it_was_locked_is_opened_anew(tmp_path: Path) -> None:
    real, first = files.try_lock, []

    def late(descriptor: int) -> bool:
        if not first:
            first.append(True)
            [part] = tmp_path.iterdir()
            part.unlink()
        return real(descriptor)

    def write() -> None:
        with files.atomic_write(tmp_path / "file") as file:
            file.write(b"content")

    assert in_child(write, (files, "try_lock", late)) == (0, "")
    assert (tmp_path / "file").read_bytes() == b"content"
