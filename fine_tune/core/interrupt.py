"""SIGTERM, SIGINT and SIGHUP as a request to stop at the next good moment; a second one ends the process at once.

A signal that the caller had ignored, as nohup does with SIGHUP, stays ignored. SIGHUP is no second request: a terminal
that closes may send it twice.

Under torchrun a rank may hear one request several times: from the cluster, and from torchrun, which passes its own on
and grants GRACE seconds before it kills. What comes within these is no second request.
"""

import os
import signal
import time
from types import FrameType

from fine_tune.core import torchrun
from fine_tune.core.errors import Stop

GRACE = 30.0

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
received: list[int] = []  # numbers of the signals that came since `listen`, here or to another process of the run
caught: list[float] = []  # when those came that came here, in seconds


class Interrupted(Stop):
    """A signal asked the script to stop, and it did so in good order; exit code 128 + its number."""

    word = "stopped"

    def __init__(self, message: str) -> None:
        super().__init__(f"{signal.Signals(received[0]).name}: {message}")
        self.exit_code = 128 + received[0]


def listen() -> None:
    """From now on note the signals instead of dying from them."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, note)


def note(number: int, _: FrameType | None) -> None:
    """Remember the first signal; leave at once on the second."""
    now = time.monotonic()
    if caught and number != signal.SIGHUP and not (torchrun.VARIABLES and now - caught[0] < GRACE):
        os._exit(128 + number)
    caught.append(now)
    received.append(number)


def poll(message: str = "nothing was written") -> None:
    """Raise Interrupted if a signal has come; for places where stopping loses nothing."""
    if received:
        raise Interrupted(message)
