"""--cache_teacher: what the teacher says of [CLS], computed once and read from a memory-mapped file from then on.

The teacher is in eval mode, so it says the same in every epoch and run.

Shapes: n examples of the split, B batch, C classes, L layers, D hidden size.
"""

import hashlib
import io
import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from fine_tune import interrupt
from fine_tune.data import Batch, Tokens
from fine_tune.files import make_folder, replacing
from fine_tune.layout import moved, packed
from fine_tune.log import progress, say
from fine_tune.models import BertClassifier
from fine_tune.precision import autocast

FORMAT = "1"  # part of the key: raise it whenever the numbers change their meaning
SIZE = 256  # examples computed at a time
DIGEST = hashlib.sha256().digest_size  # the checksum that ends the file; numpy does not map what follows the array


class CachedTeacher:
    """Answers for a teacher of which only [CLS] is read, from `answers` (n, C), or (n, C + L * D) with its states."""

    def __init__(self, answers: np.ndarray, num_class: int, width: int) -> None:
        self.answers, self.num_class, self.width = answers, num_class, width

    def __call__(self, batch: Batch, cls_only: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits (B, C) and the kept states, L times (B, D) or none, on the device of the batch."""
        assert cls_only
        found = moved(torch.from_numpy(self.answers[batch.examples]), batch.labels.device)
        logits, states = found[:, : self.num_class], found[:, self.num_class :]
        return logits, list(states.split(self.width, 1)) if states.shape[1] else []


def cached_answers(
    load: Callable[[], BertClassifier], tokens: Tokens, states: bool, precision: str, identity: str, cache: Path
) -> np.ndarray:
    """Return the answers (n, C) or, with `states`, (n, C + L * D) of the teacher that `load` returns.

    They come from the folder `cache` if they were kept there. `identity` is the checksum of the teacher's file; the
    key covers it, all tokens, what is kept, and the precision, so nothing stale is ever used.
    """
    content = hashlib.sha256()
    for array in (tokens.ids, tokens.offsets, tokens.first_segment):
        content.update(array)
    parts = (FORMAT, identity, content.hexdigest(), str(states), precision)
    path = cache / f"teacher-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}.npy"
    answers = read(path)
    if answers is not None:
        say(f"the teacher's answers: read from {path}")
    else:
        make_folder(cache)
        write(path, load(), tokens, states, precision)
        answers = np.load(path, mmap_mode="r")
    return answers


def read(path: Path) -> np.ndarray | None:
    """Map the array at `path`; None when it is missing, damaged or not whole."""
    try:
        with open(path, "rb") as file:
            digest, left = hashlib.sha256(), os.path.getsize(path) - DIGEST
            while left > 0:
                block = file.read(min(left, 1 << 24))
                digest.update(block)
                left -= len(block)
            whole = digest.digest() == file.read()
        return np.load(path, mmap_mode="r") if whole else None
    except OSError:
        return None


def write(path: Path, teacher: BertClassifier, tokens: Tokens, states: bool, precision: str) -> None:
    """Compute the answers for all examples, in their order, and write them to `path` atomically."""
    bert = teacher.encoder.config
    width = teacher.linear_layer.out_features + states * bert.num_hidden_layers * bert.hidden_size
    say(f"the teacher's answers: {len(tokens) * width * 4 / 2**30:.2f} GiB, kept in {path}")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        header, {"descr": "<f4", "fortran_order": False, "shape": (len(tokens), width)}
    )
    digest = hashlib.sha256()
    with replacing(path) as file:
        for block in chain([header.getvalue()], computed(teacher, tokens, states, precision)):
            file.write(block)
            digest.update(block)
        file.write(digest.digest())


@torch.inference_mode()
def computed(teacher: BertClassifier, tokens: Tokens, states: bool, precision: str) -> Iterator[bytes]:
    """Yield the answers for SIZE examples at a time, as little-endian fp32."""
    device = teacher.linear_layer.weight.device
    with progress(len(tokens), 0, "ex") as shown:
        shown.set_description("teacher")
        for start in range(0, len(tokens), SIZE):
            chosen = np.arange(start, min(start + SIZE, len(tokens)))
            lengths = tokens.lengths(chosen)
            batch = tokens.batch(chosen, packed(lengths, lengths.max())).to(device)
            with autocast(precision, [device]):
                logits, hiddens = teacher(batch, cls_only=True)
            yield torch.cat([logits, *hiddens] if states else [logits], 1).cpu().numpy().astype("<f4").tobytes()
            shown.update(len(chosen))
            interrupt.poll()
