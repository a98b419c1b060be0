"""What a user sees of a run: lines of information, the progress line and tensorboard."""

import os
import re
import shutil
import socket
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard.summary import text
from tqdm import tqdm

from fine_tune.core.errors import UserError
from fine_tune.core.files import make_folder
from fine_tune.core.torchrun import is_main_process
from fine_tune.methods.method import SHARES
from fine_tune.training import pictures, provenance

WIDE = 110  # columns from which a progress line with a bar fits
TITLES = {SHARES: "how much of a teacher layer is in a student layer's target"}  # of matrices by name


def read(named: dict[str, torch.Tensor]) -> dict[str, float | np.ndarray]:
    """Return the values of scalars and matrices; a GPU is waited for once."""
    device = next(iter(named.values())).device
    flat = torch.cat([tensor.detach().flatten().to(device) for tensor in named.values()]).cpu()
    pieces = zip(named.items(), flat.split([tensor.numel() for tensor in named.values()]), strict=True)
    return {name: piece.view_as(tensor).numpy() if tensor.ndim else piece.item() for (name, tensor), piece in pieces}


def print0(line: str) -> None:
    """Print a line where the progress line goes, in the main process only; standard output stays for results."""
    if is_main_process():
        tqdm.write(line, file=sys.stderr)


def progress(total: int, initial: int, what: str) -> tqdm:
    """Return a progress line with rate and time left; in a log file it is written twice a minute.

    Where it is narrow, the bar gives way to the numbers.
    """
    same = {"unit": what, "mininterval": 0.1 if sys.stderr.isatty() else 30, "disable": not is_main_process()}
    if shutil.get_terminal_size().columns < WIDE:
        same["bar_format"] = "{desc} {n_fmt}/{total_fmt} {elapsed}<{remaining}"
    return tqdm(total=total, initial=initial, dynamic_ncols=True, **same)


class EventFile:
    """A file of tensorboard's in `folder`, by the main process; readers forget the earlier ones from `purge_step` on.

    It costs no run: when the system refuses it, a note says so and nothing more is written.
    """

    def __init__(self, folder: Path, purge_step: int | None = None) -> None:
        self.folder, self.file = folder, None
        with self.survived():
            if is_main_process():
                make_folder(folder)
                date_back(folder)
                name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
                self.file = open(folder / name, "xb")
        self.add(file_version="brain.Event:2")
        if purge_step is not None:
            self.add(step=purge_step, session_log=SessionLog(status=SessionLog.START))

    def add(self, **content: Any) -> None:
        """Write an event through to the system: what is lost from memory later is not logged again by a resume."""
        with self.survived():
            if self.file:
                RecordWriter(self.file).write(Event(wall_time=time.time(), **content).SerializeToString())
                self.file.flush()
                if not os.fstat(self.file.fileno()).st_nlink:
                    raise FileNotFoundError("its file was removed")

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Write values by tag."""
        if values:
            points = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
            self.add(step=step, summary=Summary(value=points))

    @contextmanager
    def survived(self) -> Iterator[None]:
        """Go on without the file, after a note, when the system refuses what the block does."""
        try:
            yield
        except (OSError, UserError) as error:
            print0(f"note: nothing is logged in {self.folder} from here on ({error})")
            self.close()

    def close(self) -> None:
        """Write no more."""
        file, self.file = self.file, None
        with suppress(OSError):
            if file:
                file.close()


def date_back(folder: Path) -> None:
    """Give the event files in `folder` times before now: readers take files in the order of the time in their names.

    Only a clock that was set back, or a start in the same second, leaves something to do.
    """
    limit = int(time.time())
    for path in sorted(folder.glob("events.out.tfevents.*"), reverse=True):
        match = re.fullmatch(r"(events\.out\.tfevents\.)([0-9]{10})(\..*)", path.name)
        if match:
            limit = min(limit - 1, int(match[2]))
            path.rename(path.with_name(f"{match[1]}{limit:010d}{match[3]}"))


class Log:
    """Shows a run on the progress line, and in tensorboard under `tag`, every `log_step` steps and after the last one.

    `before` is called before values are read, to raise if they are not worth showing. Only the main process shows any.
    """

    def __init__(
        self, folder: Path, tag: str, start: int, total_step: int, log_step: int, before: Callable[[], None]
    ) -> None:
        self.events = EventFile(folder, purge_step=start + 1)
        self.progress = progress(total_step, start, "step")
        self.tag, self.log_step, self.total_step, self.before = tag, log_step, total_step, before
        self.first = start + 1  # where a resume begins to log anew
        self.steps, self.tokens, self.since = 0, 0, time.perf_counter()

    def describe(self, config: Namespace) -> None:
        """Put the run's command, settings and versions into tensorboard, and its row under HPARAMS."""
        for name, content in provenance.texts(config).items():
            self.events.add(step=self.first, summary=text(name, content))
        self.events.add(step=self.first, summary=provenance.hparams(config))

    def due(self, step: int) -> bool:
        """Tell whether a step goes into tensorboard."""
        return step % self.log_step == 0 or step == self.total_step

    def expect(self, step: int, tokens: int) -> bool:
        """Take the number of tokens of a micro-batch of `step`; tell whether the step goes into tensorboard."""
        self.tokens += tokens
        return self.due(step)

    def __call__(
        self, step: int, losses: dict[str, torch.Tensor], lrs: dict[str, float], shown: dict[str, torch.Tensor]
    ) -> None:
        """Take the losses and learning rates of a step, and for tensorboard alone further scalars and matrices."""
        self.steps += 1
        due = self.due(step)
        if due or losses["loss"].device.type == "cpu":  # reading a value waits for a GPU, so there only when due
            self.before()
            values = read(losses | shown if due else losses)
            self.progress.set_description_str(" ".join(f"{k}: {values[k]:.4g}" for k in losses), refresh=False)
            if due:
                named = values | lrs | self.rates()
                self.write(step, {f"{self.tag}/{name}": value for name, value in named.items()})
        self.progress.update()

    def rates(self) -> dict[str, float]:
        """Return the speed since it was asked for the last time."""
        now = time.perf_counter()
        seconds, self.since = now - self.since, now
        rates = {"time/steps_per_s": self.steps / seconds, "time/tokens_per_s": self.tokens / seconds}
        self.steps = self.tokens = 0
        return rates

    def write(self, step: int, values: dict[str, float | np.ndarray]) -> None:
        """Put values by tag into tensorboard: scalars, and about ten times a run matrices, as pictures."""
        matrices = {tag: value for tag, value in values.items() if isinstance(value, np.ndarray)}
        self.events.scalars(step, {tag: value for tag, value in values.items() if tag not in matrices})
        for tag, value in matrices.items():
            if self.is_pictured(step):
                title = TITLES[tag.rpartition("/")[2]]
                self.events.add(step=step, summary=pictures.summary(tag, value, title))

    def is_pictured(self, step: int) -> bool:
        """Tell whether a step that is due is the first one, the last one, or the first in a tenth of the run."""
        tenth, before = (10 * each // self.total_step for each in (step, step - self.log_step))
        return step in (self.log_step, self.total_step) or tenth > before

    def close(self) -> None:
        """End the progress line and the file."""
        self.progress.close()
        self.events.close()
