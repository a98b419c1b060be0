"""Standard output and standard error: nobody listening ends no run."""

import os
import sys
from collections.abc import Callable
from typing import IO, Any

from fine_tune.core.errors import UserError


class Stream:
    """A stream that goes nowhere from the first failure on; that of results is an error unless the reader left.

    Raises BrokenPipeError, or UserError on a full disk, where what is written is `needed`.
    """

    def __init__(self, stream: IO[Any], needed: bool) -> None:
        self.stream, self.needed = stream, needed

    @property
    def buffer(self) -> "Stream":
        """The stream of bytes below one of text."""
        return Stream(self.stream.buffer, self.needed)

    def write(self, content: str | bytes) -> int:
        """Write `content`, with escapes for the letters that the encoding lacks."""
        try:
            return self.attempt(self.stream.write, content) or 0
        except UnicodeEncodeError as error:
            known = content.encode(error.encoding, "backslashreplace").decode(error.encoding)
            return self.attempt(self.stream.write, known) or 0

    def flush(self) -> None:
        """Write what is still in memory."""
        self.attempt(self.stream.flush)

    def attempt(self, write: Callable[..., Any], *args: str | bytes) -> Any:
        """Call `write`; where the system refuses, all that is still to come goes nowhere."""
        try:
            return write(*args)
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
            if not self.needed:
                return None
            if isinstance(error, BrokenPipeError):
                raise
            raise UserError(f"standard output cannot be written ({error.strerror})") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def prepare() -> None:
    """Put streams in place that survive their readers; one that was closed goes nowhere."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number: no file of ours may become standard output
    sys.stdin = sys.stdin or open(0, closefd=False)
    sys.stdout = Stream(sys.stdout or open(1, "w", closefd=False), needed=True)
    sys.stderr = Stream(sys.stderr or open(2, "w", closefd=False), needed=False)
