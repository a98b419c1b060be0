"""A task's file to examples: plain TSV in UTF-8, checked line by line."""

import math
import re
from pathlib import Path
from typing import NamedTuple

from fine_tune.core.errors import UserError
from fine_tune.core.files import read_bytes
from fine_tune.data.tasks import Split, TaskSpec

LONGEST = 100_000  # characters of a field: what is longer was once many lines
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"


class Example(NamedTuple):
    """One row of a file: its text, its second text or None, and its label (None in a test split)."""

    text: str
    pair: str | None
    label: int | float | None


def read_examples(path: Path, spec: TaskSpec, split: Split) -> list[Example]:
    """Read a file of a task: plain TSV in UTF-8, no quoting, a BOM and CRLF allowed.

    Raises UserError `path:line: reason` at the first malformed line.
    """
    lines = read_bytes(path).removeprefix(b"\xef\xbb\xbf").split(b"\n")
    while lines and not lines[-1].strip(b"\r"):
        lines.pop()  # a missing or doubled final newline loses nothing
    examples = []
    for number, line in enumerate(lines, start=1):
        try:
            columns = line_columns(line, split)
            if number == 1 and split.header:
                check_header(columns, spec, split)
            else:
                if split.label is None and not columns[0].isdigit():
                    raise ValueError(f"index {columns[0]!r} is not a number; is this a file with labels?")
                label = None if split.label is None else read_label(columns[split.label], spec)
                pair = None if split.pair is None else columns[split.pair]
                examples.append(Example(columns[split.text], pair, label))
        except ValueError as error:
            raise UserError(f"{path}:{number}: {error}") from error
    if not examples:
        raise UserError(f"{path}:{len(lines) + 1}: the file ends without a single example")
    return examples


def line_columns(line: bytes, split: Split) -> list[str]:
    """Split one line into its columns; ValueError says what is wrong with it."""
    columns = line_text(line).split("\t")
    if columns == [""]:
        raise ValueError("blank line inside the file; remove it")
    if len(columns) != split.columns:
        named = {"text": split.text, "second text": split.pair, "label": split.label}
        wanted = ", ".join(f"{name} in {number + 1}" for name, number in named.items() if number is not None)
        raise ValueError(f"has {len(columns)} columns instead of {split.columns}, separated by TAB: {wanted}")
    return columns


def line_text(line: bytes) -> str:
    """Return one line as text, without its end; ValueError says what is wrong with it."""
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {line[error.start]:#04x} at column {error.start + 1})") from error
    if "\0" in text:
        raise ValueError("holds a NUL byte; the file is damaged")
    if len(text) > LONGEST:
        longest = max(map(len, text.split("\t")))
        if longest > LONGEST:
            raise ValueError(f"holds a text of {longest:,} characters, more than {LONGEST:,}; is a line end missing?")
    return text


def check_header(columns: list[str], spec: TaskSpec, split: Split) -> None:
    """Raise ValueError when the first line is an example: it carries a valid label, or an index in a test split."""
    if split.label is None:
        missing = columns[0].isdigit()
    else:
        try:
            read_label(columns[split.label], spec)
            missing = True
        except ValueError:
            missing = False
    if missing:
        raise ValueError("is an example, but the first line must be the header")


def read_label(text: str, spec: TaskSpec) -> int | float:
    """Return the id of a label, or the score of the regression task; ValueError names what is allowed."""
    if spec.labels:
        if text not in spec.labels:
            raise ValueError(f"label {text!r} is not one of {', '.join(spec.labels)}")
        return spec.labels.index(text)
    low, high = spec.limits
    score = float(text) if re.fullmatch(NUMBER, text) else math.nan
    if not low <= score <= high or math.isinf(score):  # nan fails every comparison
        raise ValueError(f"score {text!r} is not a number" + (f" from {low} to {high}" if high < math.inf else ""))
    return score
