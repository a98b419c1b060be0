"""What a user sees of a run: the summary before the first step, the progress line and tensorboard."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tensorboard.compat.proto import event_pb2
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fine_tune import distributed
from fine_tune.files import make_folder, remove_parts, replacing

TRAINING = ".train"  # ends the names of the event files that training writes; evaluation has files of its own


def writer(folder: Path, suffix: str = "") -> SummaryWriter:
    """Open a tensorboard folder."""
    make_folder(folder)
    return SummaryWriter(str(folder), filename_suffix=suffix)


def forget_after(folder: Path, step: int) -> None:
    """Drop the points that training logged after `step`, which a resumed run logs again; nothing else is touched.

    Tensorboard's own purge would drop the evaluation points of those steps, too.
    """
    remove_parts(folder)  # tensorboard would read them: it takes every name that holds "tfevents"
    for path in folder.glob(f"*{TRAINING}"):
        kept = [record for record, event_step in records(path.read_bytes()) if event_step <= step]
        with replacing(path) as file:
            file.write(b"".join(kept))


def records(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield each whole record of an event file with its step: length (8 bytes), its CRC (4), event, the event's CRC."""
    start = 0
    while start + 16 <= len(content):
        end = start + 16 + int.from_bytes(content[start : start + 8], "little")
        if end > len(content):  # a killed process left half a record
            return
        yield content[start:end], event_pb2.Event.FromString(content[start + 12 : end - 4]).step
        start = end


def say(line: str) -> None:
    """Print a line of information where the progress line goes, so that standard output stays for results."""
    if distributed.is_main_process():
        tqdm.write(line, file=sys.stderr)


def progress(total: int, initial: int, what: str) -> tqdm:
    """Return a progress line with rate and time left; in a log file it is written twice a minute."""
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm(
        total=total,
        initial=initial,
        unit=what,
        mininterval=interval,
        dynamic_ncols=True,
        disable=not distributed.is_main_process(),
    )


class Log:
    """Shows the losses of a run on the progress line, and every `log_step` steps in tensorboard under `prefix`.

    `before` is called before values are read, to raise if they are not worth showing. Only the first rank shows any.
    """

    def __init__(
        self, folder: Path, prefix: str, start: int, total_step: int, log_step: int, before: Callable[[], None]
    ) -> None:
        self.before, self.writer = before, None
        if distributed.is_main_process():
            forget_after(folder, start)
            self.writer = writer(folder, TRAINING)
        self.progress = progress(total_step, start, "step")
        self.prefix, self.log_step = prefix, log_step

    def __call__(self, step: int, named: dict[str, torch.Tensor], rates: dict[str, float]) -> None:
        """Take the scalars of `named` and the learning rates of a step; what is no scalar is not shown."""
        scalars = {name: value for name, value in named.items() if value.ndim == 0}
        due = step % self.log_step == 0
        if due or scalars["loss"].device.type == "cpu":  # reading a value waits for a GPU, so there only when due
            self.before()
            values = dict(zip(scalars, torch.stack(list(scalars.values())).tolist(), strict=True))
            self.progress.set_description(" ".join(f"{k}: {v:.6f}" for k, v in values.items()), refresh=False)
            if due and self.writer:
                for name, value in (values | rates).items():
                    self.writer.add_scalar(f"{self.prefix}/{name}", value, step)
        self.progress.update()

    def flush(self) -> None:
        """Put every point of tensorboard on disk: what is lost from memory later is not logged again by a resume.

        For the first rank alone.
        """
        self.writer.flush()

    def close(self) -> None:
        """Write what is still in memory."""
        self.progress.close()
        if self.writer:
            self.writer.close()
