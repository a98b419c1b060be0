"""What a user sees of a run: the summary before the first step, the progress line and tensorboard."""

import sys
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from fine_tune.files import make_folder


def writer(folder: Path) -> SummaryWriter:
    """Open a tensorboard folder."""
    make_folder(folder)
    return SummaryWriter(str(folder))


def say(line: str) -> None:
    """Print a line of information where the progress line goes, so that standard output stays for results."""
    tqdm.write(line, file=sys.stderr)


def progress(total: int, initial: int, what: str) -> tqdm:
    """Return a progress line with rate and time left; in a log file it is written twice a minute."""
    interval = 0.1 if sys.stderr.isatty() else 30
    return tqdm(total=total, initial=initial, unit=what, mininterval=interval, dynamic_ncols=True)


class Log:
    """Shows the losses of a run on the progress line, and every `log_step` steps in tensorboard under `prefix`."""

    def __init__(self, folder: Path, prefix: str, start: int, total_step: int, log_step: int) -> None:
        self.writer = writer(folder)
        self.progress = progress(total_step, start, "step")
        self.prefix, self.log_step = prefix, log_step

    def __call__(self, step: int, named: dict[str, torch.Tensor], rates: dict[str, float]) -> None:
        """Take the scalars of `named` and the learning rates of a step; what is no scalar is not shown."""
        scalars = {name: value for name, value in named.items() if value.ndim == 0}
        due = step % self.log_step == 0
        if due or scalars["loss"].device.type == "cpu":  # reading a value waits for a GPU, so there only when due
            values = dict(zip(scalars, torch.stack(list(scalars.values())).tolist(), strict=True))
            self.progress.set_description(" ".join(f"{k}: {v:.6f}" for k, v in values.items()), refresh=False)
            if due:
                for name, value in (values | rates).items():
                    self.writer.add_scalar(f"{self.prefix}/{name}", value, step)
        self.progress.update()

    def close(self) -> None:
        """Write what is still in memory."""
        self.progress.close()
        self.writer.close()
