"""--cache_teacher: what the teacher says, computed once and then read from a memory-mapped file.

The teacher is in eval mode, so that is the same in every epoch and run: all runs of a sweep share one file.

Shapes: n examples of the split, B batch, C classes, L layers, D hidden size, X kept rows of all examples, R of a batch.
"""

import hashlib
import os
import shutil
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from fine_tune.core import interrupt
from fine_tune.core.errors import UserError
from fine_tune.core.files import atomic_write, make_folder, remove_parts, sha256, waiting_lock
from fine_tune.core.memory import size_words
from fine_tune.data.layout import full, packed
from fine_tune.data.tokens import Batch, Tokens
from fine_tune.models.bert import BertClassifier
from fine_tune.models.precision import autocast
from fine_tune.training.log import print0, progress

FORMAT = "2"  # part of the key: raise it whenever the numbers change their meaning
CHUNK = 8192  # positions computed at a time, padding included
READS = ("logits", "cls", "tokens", "all")  # what may be read of the states: nothing, [CLS], no padding, or all


@dataclass(frozen=True)
class Kept:
    """The place of each number in a file: logits (n, C), then the states (X, L, D), little-endian fp32.

    first_row (n + 1,): the first row of each example, which has as many as `reads` says; L is 0 where it says none.
    """

    reads: str
    first_row: np.ndarray
    num_class: int
    layers: int
    d_model: int

    @property
    def sizes(self) -> tuple[tuple[int, int], tuple[int, int, int]]:
        """The shapes of both arrays."""
        examples = (len(self.first_row) - 1, self.num_class)
        return examples, (int(self.first_row[-1]), self.layers, self.d_model)

    def __len__(self) -> int:
        """Count the numbers."""
        return sum(int(np.prod(size)) for size in self.sizes)

    def arrays(self, flat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return both arrays, which lie one after the other in `flat`."""
        logits, states = self.sizes
        border = int(np.prod(logits))
        return flat[:border].reshape(logits), flat[border:].reshape(states)

    def rows(self, batch: Batch, cls_only: bool) -> np.ndarray:
        """Return where the rows (R,) of a batch on the CPU lie; with `cls_only` those of position 0, (B,)."""
        layout = batch.layout.cls if cls_only else batch.layout
        return self.first_row[batch.examples[layout.batch_index.numpy()]] + layout.position_ids.numpy()


def what_is_kept(reads: str, tokens: Tokens, config: Namespace, num_class: int, sizes: dict[str, int]) -> Kept:
    """Return what is kept of a teacher of the given sizes where `reads`, one of READS, is read of its states."""
    first_row = {
        "logits": np.zeros_like(tokens.offsets),
        "cls": np.arange(len(tokens) + 1),
        "tokens": tokens.offsets,
        "all": np.arange(len(tokens) + 1) * config.max_seq_len,
    }[reads]
    layers = 0 if reads == "logits" else sizes["num_hidden_layers"]
    return Kept(reads, first_row, num_class, layers, sizes["hidden_size"])


class CachedTeacher(nn.Module):
    """Stands in for a teacher: `flat` holds what it says, in the order of `kept`. It reads on the CPU."""

    def __init__(self, flat: np.ndarray, kept: Kept) -> None:
        super().__init__()
        self.kept = kept
        self.logits, self.states = kept.arrays(flat)

    def forward(self, batch: Batch, cls_only: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits (B, C) and the kept states, L times (R, D) or none."""
        logits = torch.from_numpy(self.logits[batch.examples])
        if not self.kept.layers:
            return logits, []
        states = torch.from_numpy(self.states[self.kept.rows(batch, cls_only)])
        return logits, list(states.transpose(0, 1).contiguous())


def cached_outputs(
    load: Callable[[], BertClassifier], tokens: Tokens, kept: Kept, config: Namespace, identity: str, cache: Path
) -> np.ndarray:
    """Return what the teacher that `load` returns says, in the order of `kept`.

    It comes from the folder `cache` if it was kept there. `identity` is the checksum of the teacher's file; the key
    covers it, all tokens, what is kept, and the precision, so nothing stale is ever used. Raises UserError when it
    would be too much.
    """
    content = hashlib.sha256()
    for array in (tokens.ids, tokens.offsets, tokens.first_segment):
        content.update(array)
    parts = (FORMAT, identity, content.hexdigest(), kept.reads, str(config.max_seq_len), config.precision)
    path = cache / f"teacher-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}.npy"
    make_folder(cache)
    with waiting_lock(cache / f".{path.name}.lock"):  # one computes, the other runs of a sweep wait for it
        if is_whole(path):
            print0(f"the teacher's outputs: read from {path}")
        else:
            remove_parts(cache)
            require_room(4 * len(kept), config.cache_limit, cache)
            write(path, load(), tokens, kept, config)
    return np.load(path, mmap_mode="r")


def require_room(size: int, limit: float, cache: Path) -> None:
    """Raise UserError unless `size` bytes are within `limit` GiB, and fit on the disk of the folder `cache`."""
    wanted = f"--cache_teacher: the teacher's outputs take {size_words(size)}, but"
    if size > limit * 2**30:
        raise UserError(f"{wanted} --cache_limit is {limit:g} GiB; raise it, or leave --cache_teacher out")
    free = shutil.disk_usage(cache).free
    if size > free:
        raise UserError(f"{wanted} {cache} has {size_words(free)} left; make room, or leave --cache_teacher out")


def checksum_file(path: Path) -> Path:
    """Return the file that holds the checksum of the array at `path`, in sha256sum's format."""
    return path.with_suffix(".sha256")


def is_whole(path: Path) -> bool:
    """Tell whether the array at `path` is there as it was written."""
    known = checksum_file(path)
    if not path.is_file() or not known.is_file():
        return False
    return known.read_bytes() == f"{sha256(path)}  {path.name}\n".encode()


@torch.inference_mode()
def write(path: Path, teacher: BertClassifier, tokens: Tokens, kept: Kept, config: Namespace) -> None:
    """Compute what is kept of all examples, in their order, and write it to `path`."""
    device = teacher.linear_layer.weight.device
    at_once, cls_only = max(1, CHUNK // config.max_seq_len), kept.reads in ("logits", "cls")
    layout = full if kept.reads == "all" else packed
    print0(f"the teacher's outputs: {size_words(4 * len(kept))}, kept in {path}")
    with atomic_write(path) as file, progress(len(tokens), 0, "ex") as bar:
        flat = np.lib.format.open_memmap(file.name, "w+", "<f4", (len(kept),))
        os.posix_fallocate(file.fileno(), 0, os.path.getsize(file.name))  # a full disk is an error, not a SIGBUS later
        logits, states = kept.arrays(flat)
        bar.set_description("teacher")
        for start in range(0, len(tokens), at_once):
            chosen = np.arange(start, min(start + at_once, len(tokens)))
            batch = tokens.batch(chosen, layout(tokens.lengths(chosen), config.max_seq_len))
            with autocast(config.precision, [device]):
                said, hiddens = teacher(batch.to(device), cls_only)
            logits[chosen] = said.float().cpu().numpy()
            if kept.layers:
                states[kept.rows(batch, cls_only)] = torch.stack(hiddens, 1).float().cpu().numpy()
            bar.update(len(chosen))
            interrupt.poll()
        flat.flush()
        del flat, logits, states  # unmaps it, before it gets its name
    with atomic_write(checksum_file(path)) as file:
        file.write(f"{sha256(path)}  {path.name}\n".encode())
