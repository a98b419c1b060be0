"""Reading GLUE files, token arrays and their cache, and the order of training."""

import os
import random
import resource
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any, Never

import numpy as np
import pytest
import torch
import transformers
from transformers import BertTokenizer

from fine_tune.cli.runs import data_file
from fine_tune.core.errors import UserError
from fine_tune.core.files import sha256
from fine_tune.data import tokens as token_arrays
from fine_tune.data.layout import full
from fine_tune.data.tasks import TASKS, Split, TaskSpec
from fine_tune.data.tokens import Tokens
from fine_tune.data.tsv import Example, read_examples

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared" / "data"

# --- the layout of the files, written down from the GLUE archives and not from tasks.py -------------------------------
# (task, split): file, header or None, one row; A, B, L stand for text, second text and label, | for TAB

NLI_PARSES = "sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse|sentence1|sentence2"
MNLI_HEAD = f"index|promptID|pairID|genre|{NLI_PARSES}"
MNLI_ROW = "0|63735|63735n|slate|( a )|( b )|(ROOT a)|(ROOT b)|A|B"
ONE_TO_FIVE = "|label1|label2|label3|label4|label5|gold_label"
MRPC_IDS = "#1 ID|#2 ID|#1 String|#2 String"
STSB_HEAD = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
STSB_ROW = "0|main-captions|MSRvid|2012test|0001|none|none|A|B"
QQP_HEAD = "id|qid1|qid2|question1|question2|is_duplicate"
GLUE = {
    ("qqp", "train"): ("QQP/train.tsv", QQP_HEAD, "133273|213221|213222|A|B|L"),
    ("qqp", "dev"): ("QQP/dev.tsv", QQP_HEAD, "133273|213221|213222|A|B|L"),
    ("qqp", "test"): ("QQP/test.tsv", "id|question1|question2", "0|A|B"),
    ("mnli", "train"): ("MNLI/train.tsv", f"{MNLI_HEAD}|label1|gold_label", f"{MNLI_ROW}|neutral|L"),
    ("mnli", "dev_matched"): ("MNLI/dev_matched.tsv", MNLI_HEAD + ONE_TO_FIVE, f"{MNLI_ROW}|a|b|c|d|e|L"),
    ("mnli", "dev_mismatched"): ("MNLI/dev_mismatched.tsv", MNLI_HEAD + ONE_TO_FIVE, f"{MNLI_ROW}|a|b|c|d|e|L"),
    ("mnli", "test_matched"): ("MNLI/test_matched.tsv", MNLI_HEAD, MNLI_ROW),
    ("mnli", "test_mismatched"): ("MNLI/test_mismatched.tsv", MNLI_HEAD, MNLI_ROW),
    ("mnli", "ax"): ("AX/test.tsv", "index|sentence1|sentence2", "0|A|B"),
    ("qnli", "train"): ("QNLI/train.tsv", "index|question|sentence|label", "0|A|B|L"),
    ("qnli", "dev"): ("QNLI/dev.tsv", "index|question|sentence|label", "0|A|B|L"),
    ("qnli", "test"): ("QNLI/test.tsv", "index|question|sentence", "0|A|B"),
    ("rte", "train"): ("RTE/train.tsv", "index|sentence1|sentence2|label", "0|A|B|L"),
    ("rte", "dev"): ("RTE/dev.tsv", "index|sentence1|sentence2|label", "0|A|B|L"),
    ("rte", "test"): ("RTE/test.tsv", "index|sentence1|sentence2", "0|A|B"),
    ("mrpc", "train"): ("MRPC/train.tsv", f"\ufeffQuality|{MRPC_IDS}", "L|702876|702977|A|B"),
    ("mrpc", "dev"): ("MRPC/dev.tsv", f"\ufeffQuality|{MRPC_IDS}", "L|702876|702977|A|B"),
    ("mrpc", "test"): ("MRPC/test.tsv", f"\ufeffindex|{MRPC_IDS}", "0|702876|702977|A|B"),
    ("sst2", "train"): ("SST-2/train.tsv", "sentence|label", "A|L"),
    ("sst2", "dev"): ("SST-2/dev.tsv", "sentence|label", "A|L"),
    ("sst2", "test"): ("SST-2/test.tsv", "index|sentence", "0|A"),
    ("cola", "train"): ("CoLA/train.tsv", None, "gj04|L|*|A"),
    ("cola", "dev"): ("CoLA/dev.tsv", None, "gj04|L||A"),
    ("cola", "test"): ("CoLA/test.tsv", "index|sentence", "0|A"),
    ("stsb", "train"): ("STS-B/train.tsv", f"{STSB_HEAD}|score", f"{STSB_ROW}|L"),
    ("stsb", "dev"): ("STS-B/dev.tsv", f"{STSB_HEAD}|score", f"{STSB_ROW}|L"),
    ("stsb", "test"): ("STS-B/test.tsv", STSB_HEAD, STSB_ROW),
    ("wnli", "train"): ("WNLI/train.tsv", "index|sentence1|sentence2|label", "0|A|B|L"),
    ("wnli", "dev"): ("WNLI/dev.tsv", "index|sentence1|sentence2|label", "0|A|B|L"),
    ("wnli", "test"): ("WNLI/test.tsv", "index|sentence1|sentence2", "0|A|B"),
}
BINARY = {"0": 0, "1": 1}
LABELS = {
    "qqp": BINARY,
    "mnli": {"entailment": 0, "neutral": 1, "contradiction": 2},
    "qnli": {"not_entailment": 0, "entailment": 1},
    "rte": {"not_entailment": 0, "entailment": 1},
    "mrpc": BINARY,
    "sst2": BINARY,
    "cola": BINARY,
    "stsb": {"0.000": 0.0, "3.8": 3.8, "2": 2.0, "5.000": 5.0},
    "wnli": BINARY,
}
QQP_TOP = QQP_HEAD.replace("|", "\t").encode() + b"\n"
QQP_ROW = b"7\t11\t12\thow ?\twhy ?\t1\n"


def put(path: Path, content: bytes) -> Path:
    """Write `content` to `path` in a folder that is made for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def read(path: Path, task: str = "qqp", split: str = "train") -> list[Example]:
    """Read `path` as a split of a task."""
    return read_examples(path, TASKS[task], TASKS[task].splits[split])


def test_the_table_knows_every_split_and_no_other() -> None:
    assert {(task, split) for task in TASKS for split in TASKS[task].splits} == set(GLUE)


@pytest.mark.parametrize("task, split", GLUE)
def test_every_layout_is_read(tmp_path: Path, task: str, split: str) -> None:
    name, header, row = GLUE[task, split]
    labels = LABELS[task] if "L" in row.split("|") else {"-": None, "--": None}
    rows, expected = [] if header is None else [header.split("|")], []
    for number, (word, label) in enumerate(labels.items()):
        texts = {"A": f"first {number} ", "B": f" second {number}", "L": word}
        rows.append([texts.get(cell, cell) for cell in row.split("|")])
        expected.append((texts["A"], texts["B"] if "B" in row.split("|") else None, label))
    put(tmp_path / name, "".join("\t".join(cells) + "\n" for cells in rows).encode())

    path = data_file(Namespace(data_dir=str(tmp_path)), TASKS[task].splits[split])
    assert path == tmp_path / name
    found = read(path, task, split)
    assert [tuple(example) for example in found] == expected
    assert [type(example.label) for example in found] == [type(label) for *_, label in expected]


def test_ax_is_found_under_the_name_of_its_download(tmp_path: Path) -> None:
    put(tmp_path / "AX.tsv", b"index\tsentence1\tsentence2\n0\ta\tb\n")
    path = data_file(Namespace(data_dir=str(tmp_path)), TASKS["mnli"].splits["ax"])
    assert read(path, "mnli", "ax") == [("a", "b", None)]


# --- what plain TSV means ---------------------------------------------------------------------------------------------


def sst2(*texts: str) -> bytes:
    """Return an SST-2 file with a row of label 1 for each text."""
    return ("sentence\tlabel\n" + "".join(f"{text}\t1\n" for text in texts)).encode()


@pytest.mark.parametrize(
    "text",
    [
        'he said "stop"',
        '"quoted as a whole"',
        '"unbalanced',
        'unbalanced"',
        '""',
        "it 's ''",
        " spaces kept  ",
        "nbsp kept\u00a0",
        "control \x12 kept",
        "vertical \x0b tab",
        "form \x0c feed",
        "next \x85 line",
        "separators \x1c\x1d\x1e here",
        "line \u2028 separator",
        "paragraph \u2029 separator",
        "inner \r return",
        "bom \ufeff inside",
        "astral 😀 and 漢字 and é",
        "backslash \\t \\n",
        "# no comment",
        "",
    ],
)
def test_a_text_is_taken_as_it_stands(tmp_path: Path, text: str) -> None:
    """No quoting, no stripping, and no line end but LF and CRLF."""
    path = put(tmp_path / "f.tsv", sst2("before", text, "after"))
    assert read(path, "sst2") == [("before", None, 1), (text, None, 1), ("after", None, 1)]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.replace(b"\n", b"\r\n"),
        lambda content: content.replace(b"\n", b"\r\n", 2),
        lambda content: content.removesuffix(b"\n"),
        lambda content: content.replace(b"\n", b"\r\n").removesuffix(b"\n"),
        lambda content: content + b"\n",
        lambda content: content + b"\r\n\r\n\n",
        lambda content: b"\xef\xbb\xbf" + content,
        lambda content: b"\xef\xbb\xbf" + content.replace(b"\n", b"\r\n"),
    ],
    ids=["crlf", "mixed", "no-final-newline", "final-cr", "two-final", "many-final", "bom", "bom-crlf"],
)
@pytest.mark.parametrize("task, content", [("sst2", sst2("a ", "b ")), ("cola", b"x\t1\t\ta \nx\t1\t*\tb \n")])
def test_line_ends_and_bom_change_nothing(
    tmp_path: Path, change: Callable[[bytes], bytes], task: str, content: bytes
) -> None:
    path = put(tmp_path / "f.tsv", change(content))
    assert read(path, task) == [("a ", None, 1), ("b ", None, 1)]


# --- malformed files --------------------------------------------------------------------------------------------------

QQP_LABEL = "label {} is not one of 0, 1"
RTE_LABEL = "label {} is not one of not_entailment, entailment"
NO_HEADER = "is an example, but the first line must be the header"
NO_EXAMPLE = "the file ends without a single example"
NUL = "holds a NUL byte; the file is damaged"
BLANK = "blank line inside the file; remove it"
SCORE = "score {} is not a number from 0 to 5"


MEANING = {  # of the columns, by their number: SST-2, a test split, RTE, QQP, MNLI
    2: "text in 1, label in 2",
    3: "text in 2, second text in 3",
    4: "text in 2, second text in 3, label in 4",
    6: "text in 4, second text in 5, label in 6",
    12: "text in 9, second text in 10, label in 12",
}


def counted(found: int, wanted: int) -> str:
    return f"has {found} columns instead of {wanted}, separated by TAB: {MEANING[wanted]}"


def tsv(task: str, split: str, *labels: str, header: bool = True) -> bytes:
    """Return a file in the layout of GLUE with a row for each label; in a test split the index counts up."""
    _, head, row = GLUE[task, split]
    rows = [head.split("|")] if head and header else []
    for number, label in enumerate(labels):
        cells = [{"A": "some text", "B": "more", "L": label}.get(cell, cell) for cell in row.split("|")]
        rows.append([str(number), *cells[1:]] if "L" not in row.split("|") else cells)
    return "".join("\t".join(cells) + "\n" for cells in rows).encode()


def qqp(*rows: bytes) -> bytes:
    return QQP_TOP + b"".join(rows)


MALFORMED = {
    # name: (task, split, content, line, reason)
    "short row": ("qqp", "train", qqp(QQP_ROW, b"7\t11\t12\thow ?\t1\n", QQP_ROW), 3, counted(5, 6)),
    "long row": ("qqp", "train", qqp(QQP_ROW, QQP_ROW, b"7\t11\t12\ta\tb\t1\t\n"), 4, counted(7, 6)),
    "short header": ("qqp", "train", b"id\tqid1\n" + QQP_ROW, 1, counted(2, 6)),
    "long header": ("qqp", "train", QQP_TOP[:-1] + b"\tx\n" + QQP_ROW, 1, counted(7, 6)),
    "long row of a test split": ("qqp", "test", tsv("qqp", "test", "") + b"1\ta\tb\tc\n", 3, counted(4, 3)),
    "spaces for tabs": ("qqp", "train", qqp(QQP_ROW.replace(b"\t", b"    ")), 2, counted(1, 6)),
    "commas for tabs": ("sst2", "train", b"sentence,label\na fine film,1\n", 1, counted(1, 2)),
    "two rows on a line": ("qqp", "train", qqp(QQP_ROW, QQP_ROW.strip() + b"\t" + QQP_ROW), 3, counted(12, 6)),
    "a text broken in two": (
        "rte",
        "dev",
        tsv("rte", "dev", "entailment") + b"1\ta\nb\tc\tentailment\n",
        3,
        counted(2, 4),
    ),
    "cr line ends": ("qqp", "train", qqp(QQP_ROW).replace(b"\n", b"\r"), 1, counted(11, 6)),
    "a web page": ("qqp", "train", b"<!DOCTYPE html>\n<html></html>\n", 1, counted(1, 6)),
    "label out of range": ("qqp", "train", tsv("qqp", "train", "0", "1", "2"), 4, QQP_LABEL.format("'2'")),
    "negative label": ("qqp", "dev", tsv("qqp", "dev", "0", "-1"), 3, QQP_LABEL.format("'-1'")),
    "label as a float": ("mrpc", "train", tsv("mrpc", "train", "1.0"), 2, QQP_LABEL.format("'1.0'")),
    "label with a zero in front": ("wnli", "train", tsv("wnli", "train", "01"), 2, QQP_LABEL.format("'01'")),
    "label in other digits": ("sst2", "train", tsv("sst2", "train", "\u0661"), 2, QQP_LABEL.format("'\u0661'")),
    "empty label": ("qqp", "train", tsv("qqp", "train", "1", ""), 3, QQP_LABEL.format("''")),
    "space after a label": ("qqp", "train", tsv("qqp", "train", "1", "1 "), 3, QQP_LABEL.format("'1 '")),
    "space before a label": ("cola", "train", tsv("cola", "train", "1", " 1"), 2, QQP_LABEL.format("' 1'")),
    "quoted label": ("qqp", "train", tsv("qqp", "train", "1", '"1"'), 3, QQP_LABEL.format("'\"1\"'")),
    "return inside a label": ("qqp", "train", tsv("qqp", "train", "1", "1\r\r"), 3, QQP_LABEL.format("'1\\r'")),
    "label id for a word": ("rte", "train", tsv("rte", "train", "entailment", "1"), 3, RTE_LABEL.format("'1'")),
    "label in capitals": (
        "qnli",
        "dev",
        tsv("qnli", "dev", "entailment", "Entailment"),
        3,
        RTE_LABEL.format("'Entailment'"),
    ),
    "no gold label": (
        "mnli",
        "dev_matched",
        tsv("mnli", "dev_matched", "neutral", "-"),
        3,
        "label '-' is not one of entailment, neutral, contradiction",
    ),
    "header where none is": ("cola", "train", b"source\tlabel\tmark\tsentence\n", 1, QQP_LABEL.format("'label'")),
    "a second header": ("qqp", "train", qqp(QQP_ROW) + qqp(QQP_ROW), 3, QQP_LABEL.format("'is_duplicate'")),
    "score above 5": ("stsb", "train", tsv("stsb", "train", "5.0", "5.001"), 3, SCORE.format("'5.001'")),
    "score below 0": ("stsb", "train", tsv("stsb", "train", "0", "-0.5"), 3, SCORE.format("'-0.5'")),
    "score with an underscore": ("stsb", "train", tsv("stsb", "train", "5.0", "0_1"), 3, SCORE.format("'0_1'")),
    "score nan": ("stsb", "dev", tsv("stsb", "dev", "1", "nan"), 3, SCORE.format("'nan'")),
    "score infinite": ("stsb", "dev", tsv("stsb", "dev", "1", "inf"), 3, SCORE.format("'inf'")),
    "score with a comma": ("stsb", "dev", tsv("stsb", "dev", "1", "3,5"), 3, SCORE.format("'3,5'")),
    "empty score": ("stsb", "dev", tsv("stsb", "dev", "1", ""), 3, SCORE.format("''")),
    "score as a word": ("stsb", "dev", tsv("stsb", "dev", "1", "high"), 3, SCORE.format("'high'")),
    "latin-1": ("sst2", "train", sst2("a") + b"caf\xe9\t1\n", 3, "is not UTF-8 (byte 0xe9 at column 4)"),
    "cut inside a letter": ("sst2", "train", sst2("a") + b"\xe6\xbc\t1\n", 3, "is not UTF-8 (byte 0xe6 at column 1)"),
    "latin-1 header": ("sst2", "train", b"sent\xe9nce\tlabel\na\t1\n", 1, "is not UTF-8 (byte 0xe9 at column 5)"),
    "utf-16": ("sst2", "train", sst2("a").decode().encode("utf-16"), 1, "is not UTF-8 (byte 0xff at column 1)"),
    "utf-16 big end first": (
        "sst2",
        "train",
        b"\xfe\xff" + sst2("a").decode().encode("utf-16-be"),
        1,
        "is not UTF-8 (byte 0xfe at column 1)",
    ),
    "utf-16 without bom": ("sst2", "train", sst2("a").decode().encode("utf-16-le"), 1, NUL),
    "nul in a text": ("sst2", "train", sst2("a", "b\0c", "d"), 3, NUL),
    "nul in a header": ("sst2", "train", b"sentence\0\tlabel\na\t1\n", 1, NUL),
    "a lost disk block": ("sst2", "train", sst2("a", "b") + bytes(512), 4, NUL),
    "a zip": ("qqp", "train", b"PK\x03\x04\x14\x00\x00\x00\x08\x00", 1, NUL),
    "blank line": ("qqp", "train", qqp(QQP_ROW, b"\n", QQP_ROW), 3, BLANK),
    "blank crlf line": ("qqp", "train", qqp(QQP_ROW, b"\n", QQP_ROW).replace(b"\n", b"\r\n"), 3, BLANK),
    "blank first line": ("qqp", "train", b"\n" + qqp(QQP_ROW), 1, BLANK),
    "blank line after the header": ("qqp", "train", qqp(b"\n", QQP_ROW), 2, BLANK),
    "no header": ("qqp", "train", QQP_ROW * 3, 1, NO_HEADER),
    "no header after a bom": ("mrpc", "train", b"\xef\xbb\xbf" + tsv("mrpc", "train", "1", header=False), 1, NO_HEADER),
    "no header before words": ("rte", "train", tsv("rte", "train", "entailment", header=False), 1, NO_HEADER),
    "no header before scores": ("stsb", "train", tsv("stsb", "train", "3.2", header=False), 1, NO_HEADER),
    "no header, qqp test": ("qqp", "test", tsv("qqp", "test", "", "", header=False), 1, NO_HEADER),
    "no header, sst2 test": ("sst2", "test", tsv("sst2", "test", "", "", header=False), 1, NO_HEADER),
    "no header, stsb test": ("stsb", "test", tsv("stsb", "test", "", "", header=False), 1, NO_HEADER),
    "no header, ax": ("mnli", "ax", tsv("mnli", "ax", "", "", header=False), 1, NO_HEADER),
    "empty": ("qqp", "train", b"", 1, NO_EXAMPLE),
    "empty, no header wanted": ("cola", "train", b"", 1, NO_EXAMPLE),
    "bom only": ("qqp", "train", b"\xef\xbb\xbf", 1, NO_EXAMPLE),
    "newlines only": ("cola", "dev", b"\n\r\n\n", 1, NO_EXAMPLE),
    "header only": ("qqp", "train", QQP_TOP, 2, NO_EXAMPLE),
    "header only, no newline": ("qqp", "test", b"id\tquestion1\tquestion2", 2, NO_EXAMPLE),
    "test file as train": ("qqp", "train", tsv("qqp", "test", "", ""), 1, counted(3, 6)),
    "train file as test": ("qqp", "test", tsv("qqp", "train", "1", "0"), 1, counted(6, 3)),
    "dev file as train": ("mnli", "train", tsv("mnli", "dev_matched", "neutral"), 1, counted(16, 12)),
    "train file of another task": ("rte", "train", tsv("qqp", "train", "1"), 1, counted(6, 4)),
    "test file as train, as wide": ("mrpc", "train", tsv("mrpc", "test", "", "", ""), 4, QQP_LABEL.format("'2'")),
    "test file as dev, as wide": ("sst2", "dev", tsv("sst2", "test", ""), 2, QQP_LABEL.format("'some text'")),
    "last row cut in a text": ("qqp", "train", qqp(QQP_ROW, QQP_ROW[:12]), 3, counted(4, 6)),
    "last row cut before the label": ("qqp", "train", qqp(QQP_ROW, QQP_ROW[:-2]), 3, QQP_LABEL.format("''")),
    "last row cut in the label": ("rte", "dev", tsv("rte", "dev", "entailment")[:-4], 2, RTE_LABEL.format("'entailm'")),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_one_line_that_names_the_place(tmp_path: Path, case: str) -> None:
    task, split, content, line, reason = MALFORMED[case]
    path = put(tmp_path / "a file.tsv", content)
    with pytest.raises(UserError) as error:
        read(path, task, split)
    assert str(error.value) == f"{path}:{line}: {reason}"


def test_a_train_file_in_the_place_of_a_test_file_is_found(tmp_path: Path) -> None:
    """Both SST-2 files have two columns: without a check every text to predict would be "0" or "1"."""
    path = put(tmp_path / "test.tsv", sst2("a fine film ", "a dull one "))
    with pytest.raises(UserError) as error:
        read(path, "sst2", "test")
    assert str(error.value).startswith(f"{path}:")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        read(tmp_path / "gone.tsv")
    assert str(error.value) == f"{tmp_path / 'gone.tsv'}: cannot be read (No such file or directory)"
    with pytest.raises(UserError) as error:
        read(tmp_path)
    assert str(error.value) == f"{tmp_path}: cannot be read (Is a directory)"


ROWS = {"QQP": (29975, 5000, 999), "RTE": (2490, 277, 3000), "MRPC": (3668, 408, 1725)}
ROWS |= {"SST-2": (67349, 872, 1821), "STS-B": (5749, 1500, 1379)}


@pytest.mark.parametrize("folder", ROWS)
def test_real_files(folder: str) -> None:
    """Every row of the real files is read, and none is invented."""
    if not (SHARED / folder).is_dir():
        pytest.skip(f"{SHARED / folder} is not there")
    task = folder.lower().replace("-", "")
    found = {split: read(SHARED / folder / f"{split}.tsv", task, split) for split in ("train", "dev", "test")}
    assert tuple(len(examples) for examples in found.values()) == ROWS[folder]
    for split, examples in found.items():
        kinds = {type(example.label) for example in examples}
        assert kinds == {type(None) if split == "test" else float if task == "stsb" else int}
        assert all(example.text.strip() for example in examples)
        assert {example.pair is None for example in examples} == {task == "sst2"}
    if task == "mrpc":
        assert sum("\x12" in example.text + example.pair for rows in found.values() for example in rows) == 1


# --- token arrays -----------------------------------------------------------------------------------------------------

WORDS = "how why is the cat dog sat on mat ##s ##ing run play good bad ? ! . , ' \" a b c e ##e ##a 漢 字".split()


def make_tokenizer(folder: Path, words: list[str] | None = None) -> transformers.PreTrainedTokenizerFast:
    """Return a BERT tokenizer with a small vocabulary of its own in `folder`."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(words or WORDS)]
    put(folder / "vocab.txt", "".join(f"{word}\n" for word in vocabulary).encode())
    tokenizer = transformers.BertTokenizerFast.from_pretrained(folder)
    assert len(tokenizer) == len(vocabulary)
    return tokenizer


def sentences(count: int, longest: int, seed: int) -> list[str]:
    """Return random texts of 0 to `longest` words: known, in pieces, unknown, accented, Chinese, and punctuation."""
    rng = random.Random(seed)
    words = 'how Why is the cats dogs playing runs good, bad? zebra café éa 漢字 [SEP] it\'s "a" \x12 \u2028 b'.split(
        " "
    )
    return [" ".join(rng.choices(words, k=rng.randint(0, longest))) for _ in range(count)]


def write_rte(path: Path, texts: list[str], pairs: list[str]) -> Path:
    rows = "".join(f"{i}\t{a}\t{b}\tentailment\n" for i, (a, b) in enumerate(zip(texts, pairs, strict=True)))
    return put(path, b"index\tsentence1\tsentence2\tlabel\n" + rows.encode())


def load(
    path: Path, tokenizer: Any, length: int, cache: Path, task: str = "rte", split: str = "train"
) -> token_arrays.Tokens:
    return token_arrays.load(path, sha256(path), TASKS[task], TASKS[task].splits[split], tokenizer, length, cache)


def padded(tokens: token_arrays.Tokens, chosen: np.ndarray, length: int | None = None) -> Namespace:
    """Return a batch as (B, S) arrays: all `length` positions of every example, or up to the longest one."""
    lengths = tokens.lengths(chosen)
    batch = tokens.batch(chosen, full(lengths, length or lengths.max()))
    mask = torch.zeros(len(batch.layout), dtype=torch.bool)
    mask[batch.layout.token_rows] = True
    shape = (len(chosen), -1)
    ids, types = batch.input_ids.view(shape), batch.token_type_ids.view(shape)
    return Namespace(input_ids=ids, token_type_ids=types, attention_mask=mask.view(shape), labels=batch.labels)


def same(batch: Namespace, reference: transformers.BatchEncoding) -> None:
    """Assert that a batch equals what transformers returns."""
    for name in ("input_ids", "token_type_ids", "attention_mask"):
        found = getattr(batch, name)
        assert found.shape == reference[name].shape, name
        assert torch.equal(found.long(), reference[name]), name
    assert batch.input_ids.dtype == batch.token_type_ids.dtype == torch.int64


@pytest.mark.parametrize("length", [8, 9, 16, 64])
def test_pairs_equal_the_library(tmp_path: Path, length: int) -> None:
    texts, pairs = sentences(200, 20, seed=length), sentences(200, 20, seed=length + 1000)
    tokenizer, reference = make_tokenizer(tmp_path / "a"), make_tokenizer(tmp_path / "b")
    tokens = load(write_rte(tmp_path / "RTE" / "train.tsv", texts, pairs), tokenizer, length, tmp_path / "cache")

    options = {"truncation": "longest_first", "max_length": length, "return_tensors": "pt"}
    expected = reference(texts, pairs, padding="max_length", **options)
    real = expected["attention_mask"].sum(1)
    assert (real == length).any() and (real < length).any()  # some are cut, some are not
    same(padded(tokens, np.arange(200), length), expected)
    assert tokens.lengths().tolist() == real.tolist() and len(tokens) == 200

    for rows in ([3], [7, 3, 199, 0], [5, 5, 6]):
        picked = [texts[row] for row in rows], [pairs[row] for row in rows]
        same(padded(tokens, np.array(rows)), reference(*picked, padding="longest", **options))
        same(padded(tokens, np.array(rows), length), reference(*picked, padding="max_length", **options))


@pytest.mark.parametrize("length", [8, 16, 64])
def test_single_sentences_equal_the_library(tmp_path: Path, length: int) -> None:
    texts = sentences(200, 60, seed=length)
    content = "sentence\tlabel\n" + "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(texts))
    path = put(tmp_path / "SST-2" / "train.tsv", content.encode())
    tokens = load(path, make_tokenizer(tmp_path / "a"), length, tmp_path / "cache", "sst2")

    options = {"truncation": "longest_first", "max_length": length, "return_tensors": "pt"}
    reference = make_tokenizer(tmp_path / "b")
    expected = reference(texts, padding="max_length", **options)
    assert (expected["attention_mask"].sum(1) == length).any()
    batch = padded(tokens, np.arange(200), length)
    same(batch, expected)
    assert not batch.token_type_ids.any()
    same(padded(tokens, np.array([9, 2])), reference([texts[9], texts[2]], padding="longest", **options))
    assert batch.labels.tolist() == [i % 2 for i in range(200)]


@pytest.mark.parametrize(
    "first, second, kept",
    [(5, 5, (2, 3)), (9, 1, (4, 1)), (1, 9, (1, 4)), (3, 2, (3, 2)), (4, 2, (3, 2)), (0, 9, (0, 5)), (2, 9, (2, 3))],
)
def test_truncation_by_hand(tmp_path: Path, first: int, second: int, kept: tuple[int, int]) -> None:
    """8 places less [CLS] and two [SEP] leave 5; the longer text is cut first, the first one on a tie."""
    a, b = "cat dog sat mat run play good bad the".split(), "how why is on a b c e bad".split()
    path = write_rte(tmp_path / "train.tsv", [" ".join(a[:first])], [" ".join(b[:second])])
    tokenizer = make_tokenizer(tmp_path)
    batch = padded(load(path, tokenizer, 8, tmp_path / "cache"), np.array([0]), 10)

    words = ["[CLS]", *a[: kept[0]], "[SEP]", *b[: kept[1]], "[SEP]"]
    padding = 10 - len(words)
    ids = {word: number for number, word in enumerate((tmp_path / "vocab.txt").read_text().split("\n"))}
    assert batch.input_ids.tolist() == [[ids[word] for word in words] + [ids["[PAD]"]] * padding]
    assert batch.token_type_ids.tolist() == [[0] * (kept[0] + 2) + [1] * (kept[1] + 1) + [0] * padding]
    assert batch.attention_mask.long().tolist() == [[1] * len(words) + [0] * padding]


def by_library(backend: Any, examples: list[Example], length: int) -> list[list[int]]:
    """Return the ids that the library's own `longest_first` leaves."""
    backend.enable_truncation(length, strategy="longest_first")
    found = [e.ids for e in backend.encode_batch([e.text if e.pair is None else (e.text, e.pair) for e in examples])]
    backend.no_truncation()
    return found


def ids_of(tokens: Tokens) -> list[list[int]]:
    return [tokens.ids[start:end].tolist() for start, end in pairwise(tokens.offsets)]


@pytest.mark.parametrize("length", [8, 9, 11])
def test_every_pair_of_lengths_is_cut_as_by_the_library(tmp_path: Path, length: int) -> None:
    backend = make_tokenizer(tmp_path).backend_tokenizer
    examples = [Example("cat " * n, "dog " * m, 0) for n in range(length + 4) for m in range(length + 4)]
    found = token_arrays.tokenise(examples, backend, length, False)
    assert ids_of(found) == by_library(backend, examples, length)


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the real data")
@pytest.mark.parametrize("task", ["qqp", "rte", "mrpc", "stsb", "sst2"])
def test_real_texts_are_cut_as_by_the_library(task: str) -> None:
    vocabulary = str(SHARED / "bert-base-uncased-vocab.txt")
    backend = BertTokenizer(vocabulary).backend_tokenizer
    split = TASKS[task].splits["train"]
    examples = read_examples(data_file(Namespace(data_dir=str(SHARED)), split), TASKS[task], split)[:3000]
    for length in (32, 128):
        found = token_arrays.tokenise(examples, backend, length, not TASKS[task].labels)
        assert ids_of(found) == by_library(backend, examples, length)


def test_two_long_texts_take_no_more_than_their_length(tmp_path: Path) -> None:
    """The library pairs all pieces of one with all of the other: 5.7 GB for texts of 4,000 words."""
    backend = make_tokenizer(tmp_path).backend_tokenizer
    example = Example("cat " * 20_000, "dog " * 20_000, 0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = token_arrays.tokenise([example], backend, 8, False)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    assert found.lengths().tolist() == [8]


def test_texts_are_taken_by_their_size_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_arrays, "CHUNK", 3)
    monkeypatch.setattr(token_arrays, "CHARACTERS", 10)
    sizes = [1, 1, 1, 1, 9, 12, 1, 1]
    examples = [Example("x" * size, None, 0) for size in sizes]
    found = [[len(e.text) for e in chunk] for chunk in token_arrays.chunks(examples)]
    assert found == [[1, 1, 1], [1, 9], [12], [1, 1]]


def test_a_field_that_was_once_many_lines_is_refused(tmp_path: Path) -> None:
    path = put(tmp_path / "f.tsv", sst2("a" * 100_000, "b" * 100_001))
    with pytest.raises(
        UserError, match=":3: holds a text of 100,001 characters, more than 100,000; is a line end miss"
    ):
        read(path, "sst2")
    assert len(read(put(tmp_path / "f.tsv", sst2("a" * 100_000)), "sst2")[0].text) == 100_000


def test_labels_are_ids_scores_or_zeros(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(tmp_path)
    ids = put(tmp_path / "RTE" / "dev.tsv", tsv("rte", "dev", "entailment", "not_entailment", "entailment"))
    found = padded(load(ids, tokenizer, 16, tmp_path, split="dev"), np.array([0, 1, 2])).labels
    assert found.dtype == torch.int64 and found.tolist() == [1, 0, 1]
    score = put(tmp_path / "STS-B" / "dev.tsv", tsv("stsb", "dev", "0", "2.5", "5.0"))
    found = padded(load(score, tokenizer, 16, tmp_path, "stsb", "dev"), np.array([2, 1, 0])).labels
    assert found.dtype == torch.float32 and found.tolist() == [5.0, 2.5, 0.0]
    none = put(tmp_path / "STS-B" / "test.tsv", tsv("stsb", "test", "", ""))
    assert padded(load(none, tokenizer, 16, tmp_path, "stsb", "test"), np.array([0, 1])).labels.tolist() == [0, 0]


def test_more_examples_than_a_chunk(tmp_path: Path) -> None:
    """Texts are tokenised in chunks; their seams must not show."""
    count = 2 * token_arrays.CHUNK + 3
    texts, pairs = sentences(count, 3, seed=1), sentences(count, 3, seed=2)
    tokens = load(write_rte(tmp_path / "train.tsv", texts, pairs), make_tokenizer(tmp_path), 16, tmp_path / "cache")
    reference = make_tokenizer(tmp_path / "b")(
        texts, pairs, padding="max_length", truncation="longest_first", max_length=16, return_tensors="pt"
    )
    same(padded(tokens, np.arange(count), 16), reference)


# --- the cache --------------------------------------------------------------------------------------------------------


class Corpus:
    """An RTE file, a tokenizer, a cache folder, and a count of how often texts were tokenised."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.cache, self.tokenised = folder, folder / "experiments" / "cache", 0
        self.texts, self.pairs = sentences(12, 9, seed=3), sentences(12, 9, seed=4)
        self.path = write_rte(folder / "RTE" / "train.tsv", self.texts, self.pairs)
        self.tokenizer = make_tokenizer(folder)
        original = token_arrays.tokenise

        def counting(*args: Any, **options: Any) -> token_arrays.Tokens:
            self.tokenised += 1
            return original(*args, **options)

        monkeypatch.setattr(token_arrays, "tokenise", counting)

    def load(
        self,
        length: int = 12,
        tokenizer: Any = None,
        split: Split | None = None,
        spec: TaskSpec | None = None,
        path: Path | None = None,
    ) -> token_arrays.Tokens:
        rte = spec or TASKS["rte"]
        path = path or self.path
        return token_arrays.load(
            path, sha256(path), rte, split or rte.splits["train"], tokenizer or self.tokenizer, length, self.cache
        )

    def file(self) -> Path:
        [path] = self.cache.iterdir()  # nothing but the one cache file: no temporary ones
        return path

    def right(self, tokens: token_arrays.Tokens) -> None:
        """Assert that `tokens` are those of the corpus at length 12."""
        expected = make_tokenizer(self.folder / "reference")(
            self.texts,
            self.pairs,
            padding="max_length",
            truncation="longest_first",
            max_length=12,
            return_tensors="pt",
        )
        batch = padded(tokens, np.arange(12), 12)
        same(batch, expected)
        assert batch.labels.tolist() == [1] * 12


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    return Corpus(tmp_path, monkeypatch)


def test_a_second_load_tokenises_nothing(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus.right(corpus.load())
    before = corpus.file().read_bytes()

    def fail(*args: object, **options: object) -> Never:
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(token_arrays, "tokenise", fail)
    monkeypatch.setattr(token_arrays, "read_examples", fail)
    os.utime(corpus.path, (1, 1))  # another time stamp is no other content
    corpus.right(corpus.load())
    corpus.right(corpus.load(tokenizer=make_tokenizer(corpus.folder / "again")))
    assert corpus.file().read_bytes() == before


def test_settings_that_a_caller_left_on_the_tokenizer_do_not_matter(corpus: Corpus) -> None:
    corpus.load()
    corpus.tokenizer(["how why"] * 2, padding="max_length", max_length=5, truncation="only_first")
    corpus.right(corpus.load())
    corpus.cache.joinpath(corpus.file()).unlink()
    corpus.tokenizer(["how why"] * 2, padding="max_length", max_length=5, truncation="only_first")
    corpus.right(corpus.load())
    assert corpus.tokenised == 2


def test_changed_content_is_read_again(corpus: Corpus) -> None:
    corpus.load()
    stamp = corpus.path.stat()
    content = corpus.path.read_bytes()
    corpus.path.write_bytes(content.replace(b"\tentailment\n", b"\tnot_entailment\n", 1))
    os.utime(corpus.path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert corpus.load().labels.tolist() == [0] + [1] * 11
    assert corpus.tokenised == 2
    corpus.path.write_bytes(content)
    corpus.right(corpus.load())


def test_another_vocabulary_is_tokenised_again(corpus: Corpus) -> None:
    corpus.load()
    swapped = [*WORDS[1::-1], *WORDS[2:]]
    tokens = corpus.load(tokenizer=make_tokenizer(corpus.folder / "swapped", swapped))
    assert corpus.tokenised == 2
    expected = make_tokenizer(corpus.folder / "b", swapped)(
        corpus.texts, corpus.pairs, padding=True, truncation="longest_first", max_length=12, return_tensors="pt"
    )
    same(padded(tokens, np.arange(12)), expected)
    corpus.right(corpus.load())


def test_another_length_is_tokenised_again(corpus: Corpus) -> None:
    corpus.load()
    assert corpus.load(length=8).lengths().max() == 8
    assert corpus.tokenised == 2
    corpus.right(corpus.load())


def test_other_columns_or_labels_are_tokenised_again(corpus: Corpus) -> None:
    corpus.load()
    rte = TASKS["rte"]
    one = corpus.load(split=replace(rte.splits["train"], pair=None))
    assert not padded(one, np.arange(12)).token_type_ids.any()
    assert corpus.load(spec=replace(rte, labels=rte.labels[::-1])).labels.tolist() == [0] * 12
    turned = corpus.load(split=replace(rte.splits["train"], text=2, pair=1))
    assert turned.lengths().sum() == corpus.load().lengths().sum()
    assert not np.array_equal(turned.ids, corpus.load().ids)
    assert corpus.tokenised == 4
    corpus.right(corpus.load())


def test_files_of_one_name_do_not_share_a_cache(corpus: Corpus) -> None:
    corpus.load()
    other = write_rte(corpus.folder / "other" / "RTE" / "train.tsv", ["how"], ["why"])
    assert len(corpus.load(path=other)) == 1
    corpus.right(corpus.load())


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return (Path.touch, (self.marker,))


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    with np.load(path) as arrays:
        place = content.index(arrays["ids"].tobytes())
    content[place] ^= 1
    path.write_bytes(content)


def rewritten(path: Path, **changes: np.ndarray) -> None:
    with np.load(path) as arrays:
        kept = dict(arrays) | changes
    with open(path, "wb") as file:
        np.savez(file, **{name: value for name, value in kept.items() if value is not None})


DAMAGE = {
    "half-written": half,
    "zero bytes": lambda path: path.write_bytes(b""),
    "all zero": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "last byte lost": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped byte": flipped,
    "text": lambda path: path.write_bytes(b"not an archive\n"),
    "foreign npz": lambda path: np.savez(path, weights=np.ones(3)),
    "foreign npz of the same names": lambda path: np.savez(
        path, **{name: np.array(1) for name in ("key", "ids", "offsets", "first_segment", "labels")}
    ),
    "npy": lambda path: np.save(open(path, "wb"), np.ones(3)),  # noqa: SIM115
    "another key": lambda path: rewritten(path, key=np.array("0" * 64)),
    "no key": lambda path: rewritten(path, key=None),
    "no labels": lambda path: rewritten(path, labels=None),
    "fewer ids": lambda path: rewritten(path, ids=np.zeros(3, np.int32)),
    "fewer labels": lambda path: rewritten(path, labels=np.zeros(3, np.int64)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_again(corpus: Corpus, damage: str) -> None:
    corpus.load()
    DAMAGE[damage](corpus.file())
    corpus.right(corpus.load())
    assert corpus.tokenised == 2
    corpus.right(corpus.load())
    assert corpus.tokenised == 2  # it was mended
    assert corpus.file().suffix == ".npz"


@pytest.mark.parametrize("where", ["key", "ids", "labels", "instead"])
def test_a_cache_never_runs_code(corpus: Corpus, where: str) -> None:
    corpus.load()
    marker = corpus.folder / "it ran"
    trap = np.array([Trap(marker)], dtype=object)
    if where == "instead":
        trap.dump(corpus.file())
    else:
        rewritten(corpus.file(), **{where: trap})
    corpus.right(corpus.load())
    assert not marker.exists() and corpus.tokenised == 2
    with np.load(corpus.file(), allow_pickle=False) as arrays:  # the trap is gone from the file too
        assert arrays["ids"].dtype == np.int32
    np.load(put(corpus.folder / "t.npy", trap.dumps()), allow_pickle=True)
    assert marker.exists()  # the trap is a real one


def test_every_flipped_byte_is_found_or_harmless(corpus: Corpus) -> None:
    """Whatever one damaged byte makes of the file, the arrays are right or there are none; nothing else is raised."""
    good = corpus.load()
    path = corpus.file()
    content = path.read_bytes()
    with np.load(path) as arrays:
        key = str(arrays["key"])
    assert token_arrays.read_cache(path, key) is not None
    file = os.open(path, os.O_WRONLY)
    wrong, raised, directory = [], {}, content.index(b"PK\x01\x02")
    for place in range(len(content)):
        for bits in (0x01, 0x08, 0xFF) if place >= directory else (0xFF,):
            os.pwrite(file, bytes([content[place] ^ bits]), place)
            try:
                found = token_arrays.read_cache(path, key)
            except Exception as error:
                raised.setdefault(type(error).__name__, f"byte {place} ^ {bits:#x}: {error}")
                continue
            if found is not None and not all(
                np.array_equal(value, getattr(good, name)) and value.dtype == getattr(good, name).dtype
                for name, value in vars(found).items()
            ):
                wrong.append((place, bits))
        os.pwrite(file, content[place : place + 1], place)
    os.close(file)
    assert path.read_bytes() == content
    assert not wrong
    assert not raised


def test_an_interrupted_write_leaves_nothing(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(file: IO[bytes], **arrays: object) -> Never:
        file.write(b"PK half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", interrupted)
        with pytest.raises(KeyboardInterrupt):
            corpus.load()
    assert list(corpus.cache.iterdir()) == []
    corpus.right(corpus.load())


def test_a_cache_folder_that_cannot_be_made_is_named(corpus: Corpus) -> None:
    put(corpus.cache, b"a file")
    with pytest.raises(UserError) as error:
        corpus.load()
    assert str(error.value) == f"{corpus.cache}: cannot be created (File exists)"


RACER = """
import sys, time
from pathlib import Path
from typing import IO, Any
from typing import Any
from types import SimpleNamespace
import numpy as np, tokenizers
from fine_tune.core.files import sha256
from fine_tune.data import tokens as token_arrays
from fine_tune.data.tasks import TASKS, Split, TaskSpec

path, saved, cache, meeting, me, other = map(Path, sys.argv[1:7])
tokenizer = SimpleNamespace(backend_tokenizer=tokenizers.Tokenizer.from_file(str(saved)))
tokenise = token_arrays.tokenise

def meet(length):  # both have found no cache and are about to write one
    (meeting / f"{me}-{length}").touch()
    limit = time.monotonic() + 60
    while not (meeting / f"{other}-{length}").exists():
        assert time.monotonic() < limit, "the other process did not come"
        time.sleep(0.001)

def slow(examples, backend, length, regression):
    tokens = tokenise(examples, backend, length, regression)
    meet(length)
    return tokens

token_arrays.tokenise = slow
for length in range(8, 16):
    tokens = token_arrays.load(path, sha256(path), TASKS["rte"], TASKS["rte"].splits["train"], tokenizer, length, cache)
    np.savez(meeting / f"{me}-{length}.npz", **vars(tokens))
"""


def test_two_processes_make_one_cache(corpus: Corpus) -> None:
    meeting = corpus.folder / "meeting"
    meeting.mkdir()
    saved = put(corpus.folder / "tokenizer.json", corpus.tokenizer.backend_tokenizer.to_str().encode())
    arguments = [str(corpus.path), str(saved), str(corpus.cache), str(meeting)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, *arguments, *names], env=environment, stderr=subprocess.PIPE)
        for names in (("one", "two"), ("two", "one"))
    ]
    for racer in racers:
        _, complaint = racer.communicate(timeout=120)
        assert racer.returncode == 0, complaint.decode()
    assert corpus.tokenised == 0
    for length in range(8, 16):
        expected = token_arrays.tokenise(
            read_examples(corpus.path, TASKS["rte"], TASKS["rte"].splits["train"]),
            corpus.tokenizer.backend_tokenizer,
            length,
            regression=False,
        )
        for name in ("one", "two"):
            with np.load(meeting / f"{name}-{length}.npz") as found:
                assert all(np.array_equal(found[key], value) for key, value in vars(expected).items())
    tokenised = corpus.tokenised
    corpus.right(corpus.load())
    for length in range(8, 16):
        corpus.load(length)
    assert corpus.tokenised == tokenised  # what they left serves a third
    left = sorted(path.name for path in corpus.cache.iterdir())
    assert len(left) == 8 and all(name.startswith("RTE-train-") and name.endswith(".npz") for name in left)


# --- order ------------------------------------------------------------------------------------------------------------


def test_the_order_of_an_epoch_is_a_permutation() -> None:
    for examples in (1, 2, 7, 1000):
        for epoch in range(3):
            assert sorted(token_arrays.epoch_order(42, epoch, examples).tolist()) == list(range(examples))


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    first = token_arrays.epoch_order(42, 3, 500)
    np.random.seed(1)
    torch.manual_seed(1)
    states = np.random.get_state()[1].copy(), torch.get_rng_state()
    token_arrays.epoch_order(42, 4, 500)
    token_arrays.epoch_order(7, 3, 100)
    assert np.array_equal(token_arrays.epoch_order(42, 3, 500), first)
    assert np.array_equal(np.random.get_state()[1], states[0]) and torch.equal(torch.get_rng_state(), states[1])


def test_orders_differ_between_epochs_and_seeds() -> None:
    orders = {token_arrays.epoch_order(seed, epoch, 100).tobytes() for seed in range(20) for epoch in range(20)}
    assert len(orders) == 400


SIZES = [(10, 3), (9, 3), (1, 1), (1, 8), (5, 8), (8, 8), (64, 1), (100, 7)]


@pytest.mark.parametrize("examples, size", SIZES)
def test_micro_batches_cover_each_epoch_once(examples: int, size: int) -> None:
    per_epoch = (examples + size - 1) // size
    batches = token_arrays.micro_batches(examples, size, 42, 0)
    for epoch in range(3):
        rows = [batch.tolist() for batch in islice(batches, per_epoch)]
        assert sum(rows, []) == token_arrays.epoch_order(42, epoch, examples).tolist()
        assert sorted(sum(rows, [])) == list(range(examples))
        last = examples % size or size
        assert [len(batch) for batch in rows] == [size] * (per_epoch - 1) + [last]


@pytest.mark.parametrize("examples, size", SIZES)
def test_starting_later_is_dropping_the_first(examples: int, size: int) -> None:
    count = 3 * ((examples + size - 1) // size) + 2
    whole = [batch.tolist() for batch in islice(token_arrays.micro_batches(examples, size, 7, 0), count)]
    for start in range(count):
        rest = islice(token_arrays.micro_batches(examples, size, 7, start), count - start)
        assert [batch.tolist() for batch in rest] == whole[start:]


@pytest.mark.parametrize("examples, size", SIZES)
def test_by_length_takes_every_row_once_and_sorts(examples: int, size: int) -> None:
    lengths = np.random.default_rng(examples).integers(3, 20, examples)
    batches = [rows.tolist() for rows in token_arrays.by_length(lengths, size)]
    assert sorted(sum(batches, [])) == list(range(examples))
    assert all(len(rows) == size for rows in batches[:-1]) and 0 < len(batches[-1]) <= size
    order = [lengths[row] for row in sum(batches, [])]
    assert order == sorted(order)
