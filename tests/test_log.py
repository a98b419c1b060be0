"""Tensorboard: what its own reader shows of a run, live and after a resume."""

import re
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from fine_tune.training.log import EventFile, Log
from tests import tiny
from tests.processes import Process


def write(events: EventFile, tag: str, steps: list[int], value: float = 0.0) -> None:
    """Write a point for each of `steps`, through to the disk."""
    for step in steps:
        events.scalars(step, {tag: value})


def write_as_before(writer: SummaryWriter, tag: str, steps: list[int]) -> None:
    """Write points as older versions did."""
    for step in steps:
        writer.add_scalar(tag, 0.0, step)
    writer.close()


@pytest.mark.parametrize(("folder", "seen"), [("run/eval", [1, 2, 3, 4]), ("run", [1, 2])])
def test_an_evaluation_hides_no_training_point_from_a_live_reader(tmp_path: Path, folder: str, seen: list[int]) -> None:
    """A reader that is open while both write; in one folder, the negative control, it would leave training's file."""
    training = EventFile(tmp_path / "log" / "run", purge_step=1)
    write(training, "qqp/train/loss", [1, 2])
    reader = EventAccumulator(str(tmp_path / "log" / "run"))
    reader.Reload()
    write(EventFile(tmp_path / "log" / folder), "qqp/dev/accuracy", [2])
    reader.Reload()
    write(training, "qqp/train/loss", [3, 4])
    reader.Reload()
    assert [event.step for event in reader.Scalars("qqp/train/loss")] == seen


def test_a_resumed_run_shows_a_repeated_step_once_and_as_it_came_out_last(tmp_path: Path) -> None:
    write(EventFile(tmp_path / "log" / "run", purge_step=1), "loss", [1, 2, 3, 4], value=1.0)
    write(EventFile(tmp_path / "log" / "run", purge_step=3), "loss", [3, 4, 5], value=2.0)
    assert tiny.curve(tmp_path, "run", "loss") == {1: 1, 2: 1, 3: 2, 4: 2, 5: 2}


def test_a_log_of_an_older_version_stays_readable(tmp_path: Path) -> None:
    """There evaluation wrote beside training, whose files ended in .train; a run that goes on keeps both."""
    folder = tmp_path / "log" / "run"
    write_as_before(SummaryWriter(str(folder), filename_suffix=".train"), "qqp/train/loss", [1, 2, 3, 4])
    write_as_before(SummaryWriter(str(folder)), "qqp/dev/accuracy", [2])
    assert list(tiny.curve(tmp_path, "run", "qqp/train/loss")) == [1, 2, 3, 4]
    assert list(tiny.curve(tmp_path, "run", "qqp/dev/accuracy")) == [2]
    write(EventFile(folder, purge_step=3), "qqp/train/loss", [3, 4, 5])
    assert list(tiny.curve(tmp_path, "run", "qqp/train/loss")) == [1, 2, 3, 4, 5]
    assert list(tiny.curve(tmp_path, "run", "qqp/dev/accuracy")) == [2]


def test_a_half_written_point_loses_no_other(tmp_path: Path) -> None:
    """A kill may leave half a record at the end of a file."""
    write(EventFile(tmp_path / "log" / "run", purge_step=1), "loss", [1, 2, 3])
    [path] = (tmp_path / "log" / "run").iterdir()
    path.write_bytes(path.read_bytes()[:-5])
    write(EventFile(tmp_path / "log" / "run", purge_step=3), "loss", [3, 4])
    assert list(tiny.curve(tmp_path, "run", "loss")) == [1, 2, 3, 4]


def test_progress_fits_eighty_columns(root: Path) -> None:
    """With losses of a big run and the time left; a wide terminal has the bar and the rate, too."""
    flags = tiny.student_flags(root, mu=500, total_step=4)
    for columns, wide in ((80, False), (140, True)):
        environment = {"COLUMNS": str(columns), "LINES": "24"}
        code, _, said = Process(
            "run_lad_distil", **flags | {"experiment": f"wide{columns}"}, environment=environment
        ).wait()
        assert code == 0
        shown = [part for part in re.split(r"[\r\n]", said) if part.startswith("loss: ")]
        assert shown and max(map(len, shown)) <= columns
        assert re.search(r"hidden_loss: [\d.]+:? .*4/4 .*\d\d:\d\d<\d\d:\d\d", shown[-1])
        assert ("step/s" in shown[-1]) == wide


def test_a_long_run_fits_too(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    log = Log(tmp_path / "log" / "run", "tag", 0, 56850, 1000, lambda: None)
    log.progress.start_t -= 9.9 * 3600
    log.progress.n = 34109
    log(34110, {name: torch.tensor(523.456) for name in ("loss", "logits_loss", "hidden_loss")}, {}, {})
    log.close()
    shown = capsys.readouterr().err.rstrip("\n").split("\r")[-1]
    assert re.fullmatch(r"loss: 523.5 logits_loss: 523.5 hidden_loss: 523.5 34110/56850 9:54:\d\d<6:\d\d:\d\d", shown)
    assert len(shown) <= 80
