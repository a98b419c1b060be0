"""What ends a run early: each error is one line for the user and carries the exit code of its script."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a question after the name that a mistyped `word` may mean, "" where none is near."""
    found = get_close_matches(word, list(known), n=1, cutoff=0.75)
    return f" (did you mean {found[0]}?)" if found else ""


class Stop(Exception):
    """End the script with one line `<script>: <word>: <message>` and `exit_code`."""

    exit_code = 1
    word = "error"

    def __str__(self) -> str:
        return " ".join(map(str.strip, super().__str__().splitlines()))  # whatever a library put into its message


class UserError(Stop):
    """A mistake of the user: a flag, a file or a device. The message names it, its value and the cure."""

    exit_code = 2


class OutOfMemory(Stop):
    """The memory of the CPU or of a GPU does not suffice."""

    exit_code = 4


class NotFinite(Stop):
    """A loss, gradient, weight or logit is not a finite number."""

    exit_code = 3
