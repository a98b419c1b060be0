"""Tables that users bring, CSV, TSV or JSONL by their suffix, and the folder that makes a task of them.

CSV may hold anything within quotes, as RFC 4180 has it; TSV knows no quotes, as everywhere in GLUE; a line of JSONL is
an object. UTF-8, a BOM allowed.
"""

import csv
import io
import json
import math
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fine_tune.core.errors import UserError
from fine_tune.core.files import atomic_folder, read_bytes, sha256, write_json
from fine_tune.data.tasks import TASK_FILE, one_line
from fine_tune.data.tsv import LONGEST, NUMBER

SUFFIXES = (".csv", ".tsv", ".jsonl")
MOST_LABELS = 1000  # more are no classes; a classifier of so many outputs would still be computed

Row = tuple[int, dict[str, Any]]  # the line on which it begins, and its values by column


@dataclass(frozen=True)
class Record:
    """One example of a table: where it stands, its one or two texts, and its label or None."""

    where: str
    texts: tuple[str, ...]
    label: str | None


def read_table(path: Path, texts: list[str], label: str, labelled: bool) -> list[Record]:
    """Read the columns `texts` and `label` of a table; one that need not be `labelled` may lack the latter in all rows.

    Raises UserError `path:line: reason` at the first row that cannot be used.
    """
    rows = READERS[path.suffix.lower()](path, decoded(path))
    records: list[Record] = []
    for line, row in rows:
        where = f"{path}:{line}"
        has_label = label in row if labelled or not records else records[0].label is not None
        for name in [*texts, *[label] * (labelled or has_label)]:
            if name not in row:
                raise UserError(f"{where}: has no column {name!r}, but {', '.join(map(repr, row))}")
        if not has_label and label in row:
            raise UserError(f"{where}: has a label, which the rows before it lack")
        found = tuple(as_text(row[name], where, name) for name in texts)
        records.append(Record(where, found, as_text(row[label], where, label).strip() if has_label else None))
        if has_label and not records[-1].label:
            raise UserError(f"{where}: column {label!r} is empty; without labels a test file must not have it")
    if not records:
        raise UserError(f"{path}: holds no rows")
    return records


def decoded(path: Path) -> str:
    """Return the text of a file in UTF-8 without its BOM; raises UserError naming the line that is something else."""
    content, problem = read_bytes(path), None
    try:
        text = content.decode("utf-8-sig")
        if "\0" not in text:
            return text
        at, problem = content.index(b"\0"), "holds a NUL byte; the file is damaged, or UTF-16: save it as UTF-8"
    except UnicodeDecodeError as error:
        at, problem = error.start, f"is not UTF-8 (byte {content[error.start]:#04x}); save the file as UTF-8"
    line = content.count(b"\n", 0, at) + 1
    raise UserError(f"{path}:{line}: {problem}")


def csv_rows(path: Path, text: str) -> Iterator[Row]:
    """Yield the rows of a CSV file, whose first line names the columns."""
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for cells in reader:
            if header and cells:
                yield line, named_cells(path, line, header, cells)
            header = header or named_header(path, cells)
            line = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{line}: is no CSV ({error}); quotes within a quoted field are doubled") from error


def tsv_rows(path: Path, text: str) -> Iterator[Row]:
    """Yield the rows of a TSV file, whose first line names the columns."""
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    header = named_header(path, lines[0].split("\t"))
    for number, line in enumerate(lines[1:], start=2):
        yield number, named_cells(path, number, header, line.split("\t"))


def jsonl_rows(path: Path, text: str) -> Iterator[Row]:
    """Yield the objects of a JSONL file."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path}:{number}: is no JSON ({error})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: must be a JSON object, with the columns' names as keys")
            yield number, row


READERS = dict(zip(SUFFIXES, (csv_rows, tsv_rows, jsonl_rows), strict=True))


def named_header(path: Path, cells: list[str]) -> list[str]:
    """Return the names of the columns; raises UserError when one stands there twice."""
    twice = [name for name, count in Counter(cells).items() if count > 1]
    if twice:
        raise UserError(f"{path}:1: names column {twice[0]!r} twice")
    return cells


def named_cells(path: Path, line: int, header: list[str], cells: list[str]) -> dict[str, str]:
    """Return the cells of a row by column; raises UserError when there are more or fewer than columns."""
    if len(cells) != len(header):
        raise UserError(f"{path}:{line}: has {len(cells)} fields instead of {len(header)}, the columns of line 1")
    return dict(zip(header, cells, strict=True))


def as_text(value: Any, where: str, column: str) -> str:
    """Return a cell as text, that the task can hold: JSON's numbers and truth values as JSON writes them."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise UserError(f"{where}: column {column!r} holds half a character (a lone surrogate)") from None
        if "\0" in value:
            raise UserError(f"{where}: column {column!r} holds a NUL character")
        if len(value) > LONGEST:
            raise UserError(f"{where}: column {column!r} holds {len(value):,} characters, more than {LONGEST:,}")
        return value
    if isinstance(value, bool | int) or isinstance(value, float) and math.isfinite(value):
        return json.dumps(value)
    raise UserError(f"{where}: column {column!r} must be a text or a number, not {json.dumps(value)[:40]}")


# --- from tables to a task --------------------------------------------------------------------------------------------


def split_off(records: list[Record], share: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Return `records` without a random `share` of them, and that share, both in their order."""
    count = round(len(records) * share)
    taken = set(random.Random(seed).sample(range(len(records)), count))
    kept = [record for index, record in enumerate(records) if index not in taken]
    return kept, [records[index] for index in sorted(taken)]


def label_words(train: list[Record], column: str) -> list[str]:
    """Return the labels of `train` by id: numbers by their value, then words by the alphabet.

    Raises UserError when they are no classes.
    """
    words = {one_line(record.label) for record in train}
    path = train[0].where.rpartition(":")[0]
    if len(words) == 1:
        raise UserError(f"{path}: column {column!r} has one value only, {words.pop()!r}; there is nothing to learn")
    if len(words) > MOST_LABELS:
        raise UserError(f"{path}: column {column!r} has {len(words)} different values; are they scores (--regression)?")
    return sorted(words, key=lambda word: (0, float(word), word) if re.fullmatch(NUMBER, word) else (1, 0.0, word))


def check_labels(records: list[Record], labels: list[str]) -> None:
    """Raise UserError at the first record whose label is none of `labels`, or no number where there are none."""
    for record in records:
        if record.label is None:
            continue
        if labels and one_line(record.label) not in labels:
            known = ", ".join(labels[:10]) + ", ..." * (len(labels) > 10)
            raise UserError(f"{record.where}: label {record.label!r} does not occur in the training data: {known}")
        if not labels and not (re.fullmatch(NUMBER, record.label) and math.isfinite(float(record.label))):
            raise UserError(f"{record.where}: score {record.label!r} is not a finite number")


def write_task(
    folder: Path, splits: dict[str, list[Record]], labels: list[str], metrics: list[str], source: dict[str, Any]
) -> None:
    """Write the task's files and its task.json into the new `folder`: all of them, or nothing.

    Raises UserError when the system refuses, or when there is something of that name.
    """
    with atomic_folder(folder) as part:
        for name, records in splits.items():
            (part / f"{name}.tsv").write_bytes(tsv(records, labels).encode())
        entries = {name: entry(records, part / f"{name}.tsv") for name, records in splits.items()}
        texts = len(splits["train"][0].texts)
        saved = {"labels": labels, "metrics": metrics, "texts": texts, "splits": entries, "made_from": source}
        write_json(part / TASK_FILE, saved)


def entry(records: list[Record], path: Path) -> dict[str, Any]:
    """Return what task.json says of the split whose `records` were written to `path`."""
    return {"labelled": records[0].label is not None, "rows": len(records), "sha256": sha256(path)}


def tsv(records: list[Record], labels: list[str]) -> str:
    """Return the lines of a split: text, pair, label; without labels index, text, pair."""
    name = "label"
    while name in labels:  # a header that could be an example would be refused
        name += "_"
    header = ["text", "pair"][: len(records[0].texts)]
    if records[0].label is None:
        rows = [["index", *header], *([str(index), *record.texts] for index, record in enumerate(records))]
    else:
        rows = [[*header, name], *([*record.texts, record.label] for record in records)]
    return "".join("\t".join(map(one_line, row)) + "\n" for row in rows)
