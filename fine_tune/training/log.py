"""What a user sees of a run: lines of information, the progress line and tensorboard."""

import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fine_tune.core.errors import UserError
from fine_tune.core.files import make_folder
from fine_tune.core.torchrun import is_main_process


def print0(line: str) -> None:
    """Print a line where the progress line goes, in the main process only; standard output stays for results."""
    if is_main_process():
        tqdm.write(line, file=sys.stderr)


def progress(total: int, initial: int, what: str) -> tqdm:
    """Return a progress line with rate and time left; in a log file it is written twice a minute."""
    interval = 0.1 if sys.stderr.isatty() else 30
    hidden = not is_main_process()
    return tqdm(total=total, initial=initial, unit=what, mininterval=interval, dynamic_ncols=True, disable=hidden)


def open_writer(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    """Open a tensorboard folder; its readers forget what was logged there before from `purge_step` on."""
    make_folder(folder)
    date_back(folder)
    return SummaryWriter(str(folder), purge_step=purge_step)


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
    """Shows the losses of a run on the progress line, and every `log_step` steps in tensorboard under `tag`.

    `before` is called before values are read, to raise if they are not worth showing. Only the main process shows any.
    """

    def __init__(
        self, folder: Path, tag: str, start: int, total_step: int, log_step: int, before: Callable[[], None]
    ) -> None:
        self.folder, self.writer = folder, None
        with self.survived():
            self.writer = open_writer(folder, purge_step=start + 1) if is_main_process() else None
        self.progress = progress(total_step, start, "step")
        self.tag, self.log_step, self.before = tag, log_step, before

    def __call__(self, step: int, losses: dict[str, torch.Tensor], lrs: dict[str, float]) -> None:
        """Take the scalars and the learning rates of a step."""
        due = step % self.log_step == 0
        if due or losses["loss"].device.type == "cpu":  # reading a value waits for a GPU, so there only when due
            self.before()
            values = dict(zip(losses, torch.stack(list(losses.values())).tolist(), strict=True))
            self.progress.set_description(" ".join(f"{k}: {v:.6f}" for k, v in values.items()), refresh=False)
            if due:
                self.write(step, values | lrs)
        self.progress.update()

    def write(self, step: int, values: dict[str, float]) -> None:
        """Put the values of a step into tensorboard."""
        with self.survived():
            for name, value in values.items() if self.writer else ():
                self.writer.add_scalar(f"{self.tag}/{name}", value, step)

    @contextmanager
    def survived(self) -> Iterator[None]:
        """Go on without tensorboard, after a note, when the system refuses what the block writes: it costs no run."""
        try:
            yield
        except (OSError, UserError) as error:
            print0(f"note: nothing is logged in {self.folder} from here on ({error})")
            self.writer = None

    def flush(self) -> None:
        """Put every point of tensorboard on disk: what is lost from memory later is not logged again by a resume.

        For the main process alone.
        """
        with self.survived():
            if self.writer:
                self.writer.flush()

    def close(self) -> None:
        """Write what is still in memory."""
        self.progress.close()
        with self.survived():
            if self.writer:
                self.writer.close()
