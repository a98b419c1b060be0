"""Predictions for texts as they come in, line by line.

Shapes: n examples, C classes.
"""

import os
import select
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fine_tune.cli.runs import own_folder
from fine_tune.core import interrupt
from fine_tune.core.errors import UserError
from fine_tune.core.files import atomic_write
from fine_tune.core.memory import needs_memory
from fine_tune.data.tasks import TaskSpec, task_spec
from fine_tune.data.tokens import CHUNK, tokenise
from fine_tune.data.tsv import Example, line_text
from fine_tune.training import checkpoint
from fine_tune.training.log import print0
from fine_tune.training.saved_run import load_model
from fine_tune.training.scoring import predict

BLOCK, PATIENCE = 2**16, 0.2  # bytes at a time; seconds between looks for a signal


@needs_memory("in prediction")
def predict_lines(flags: Namespace) -> None:
    """Write a line for every line of --in or standard input, in order; a chunk at a time, so that a pipe flows.

    Raises UserError naming the line that cannot be read; a file --out is then not written.
    """
    source, spec, path = getattr(flags, "in"), task_spec(flags), own_folder(flags) / f"model-{flags.ckpt}.pt"
    if flags.choice:
        print0(flags.choice)
    with ExitStack() as opened:
        texts = opened.enter_context(open_texts(source)) if source else sys.stdin.buffer
        model, tokenizer = load_model(flags)
        checkpoint.load_weights(model, path)
        file = opened.enter_context(atomic_write(Path(flags.out))) if flags.out else sys.stdout.buffer
        count, name = 0, source or "standard input"

        def written() -> str:
            return "nothing was written" if flags.out else f"{count} predictions were written"

        examples = read_lines(lines_of(texts, name, written), name, spec)
        while chunk := list(islice(examples, CHUNK)):
            tokens = tokenise(chunk, tokenizer.backend_tokenizer, flags.max_seq_len, regression=not spec.labels)
            file.write(answers(spec, predict(model, tokens, flags.batch_size, path, written())))
            file.flush()
            count += len(chunk)
    print0(f"{count} predictions" + (f"; written: {flags.out}" if flags.out else ""))


def open_texts(path: str) -> BinaryIO:
    """Open a file of texts; raises UserError when that is refused."""
    try:
        return open(path, "rb")
    except OSError as error:
        raise UserError(f"--in {path}: cannot be read ({error.strerror})") from error


def lines_of(file: BinaryIO, source: str, written: Callable[[], str]) -> Iterator[bytes]:
    """Yield the lines of a file or pipe as they come; a signal ends the wait for them, and says what was `written`."""
    held: list[bytes] = []
    while True:
        try:
            while not select.select([file], [], [], PATIENCE)[0]:
                interrupt.poll(written())
            block = os.read(file.fileno(), BLOCK)
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({error.strerror})") from error
        if not block:
            break
        held.append(block)
        if b"\n" in block:
            *lines, rest = b"".join(held).split(b"\n")
            held = [rest]
            yield from (line + b"\n" for line in lines)
    if rest := b"".join(held):
        yield rest


def read_lines(lines: Iterable[bytes], source: str, spec: TaskSpec) -> Iterator[Example]:
    """Yield an example for every line: one text, or two with a TAB between them, as the task reads."""
    texts = 1 + spec.reads_pairs
    for number, line in enumerate(lines, start=1):
        try:
            columns = line_text(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line).split("\t")
            if len(columns) != texts:
                raise ValueError(f"has {len(columns)} texts, separated by TAB, but the task reads {texts}")
        except ValueError as error:
            raise UserError(f"{source}:{number}: {error}") from error
        yield Example(columns[0], columns[1] if texts == 2 else None, None)


def answers(spec: TaskSpec, logits: np.ndarray) -> bytes:
    """Return the lines for logits (n, C): label TAB probability, or the score within the task's limits."""
    if not spec.labels:
        return "".join(f"{score:.4f}\n" for score in logits[:, 0].clip(*spec.limits)).encode()
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    highest = (exponents / exponents.sum(1, keepdims=True)).max(1)
    labels = (spec.labels[index] for index in logits.argmax(1))
    return "".join(f"{label}\t{chance:.4f}\n" for label, chance in zip(labels, highest, strict=True)).encode()
