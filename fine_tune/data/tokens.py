"""Examples to batches: token arrays (made once, cached), the order of an epoch, batches of tensors.

Shapes: n examples, T word pieces in all, B batch, R rows of a batch.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from fine_tune.core import interrupt
from fine_tune.core.files import atomic_write, make_folder, open_file
from fine_tune.data.layout import Layout, moved
from fine_tune.data.tasks import Split, TaskSpec
from fine_tune.data.tsv import Example, read_examples

CACHE_FORMAT = "2"  # part of the key: raise it whenever the arrays change their meaning
CHUNK, CHARACTERS = 4096, 4_000_000  # most examples, and about the most characters, tokenised at a time


@dataclass
class Batch:
    """B examples as the R rows of `layout`: ids and segment ids (R,), 0 where a row is padding; labels (B,).

    `examples` (B,) are their numbers in the split; `fraction` is the part that they are of the micro-batch; of a
    `watched` one more is logged.
    """

    input_ids: torch.Tensor
    token_type_ids: torch.Tensor
    labels: torch.Tensor
    layout: Layout
    examples: np.ndarray
    fraction: float = 1.0
    watched: bool = False

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on `device`."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        there = {name: moved(tensor, device) for name, tensor in tensors.items()}
        return replace(self, layout=self.layout.to(device), **there)


@dataclass
class Tokens:
    """All examples of a split, without padding: example i is `ids[offsets[i]:offsets[i + 1]]`.

    ids (T,) int32; offsets (n + 1,) int64; first_segment (n,) int32: the first text's length with [CLS] and [SEP];
    labels (n,) int64 ids or float32 scores, zeros in a split without labels.
    """

    ids: np.ndarray
    offsets: np.ndarray
    first_segment: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def lengths(self, chosen: np.ndarray | slice = slice(None)) -> np.ndarray:
        """Return the number of tokens of the examples `chosen`, all by default."""
        return self.offsets[1:][chosen] - self.offsets[:-1][chosen]

    def every(self, stride: int) -> "Tokens":
        """Return examples 0, stride, 2 * stride, ... alone."""
        chosen = np.arange(0, len(self), stride)
        ids = np.concatenate([self.ids[self.offsets[index] : self.offsets[index + 1]] for index in chosen])
        offsets = np.concatenate([[0], np.cumsum(self.lengths(chosen))])
        return Tokens(ids, offsets, self.first_segment[chosen], self.labels[chosen])

    def batch(self, chosen: np.ndarray, layout: Layout, fraction: float = 1.0) -> Batch:
        """Return the examples `chosen` (B,) in the rows of `layout`."""
        rows = layout.token_rows.numpy()[layout.is_token.numpy()]
        example, position = layout.batch_index.numpy()[rows], layout.position_ids.numpy()[rows]
        ids, types = np.zeros((2, len(layout)), np.int64)
        ids[rows] = self.ids[self.offsets[chosen][example] + position]
        types[rows] = position >= self.first_segment[chosen][example]
        return Batch(*map(torch.from_numpy, (ids, types, self.labels[chosen])), layout, chosen, fraction)


def load(
    path: Path,
    sha256: str,
    spec: TaskSpec,
    split: Split,
    tokenizer: Any,
    max_seq_len: int,
    cache: Path,
    keep: bool = True,
) -> Tokens:
    """Return the token arrays of a task's file, from the folder `cache` if they were made before; else `keep` them.

    The key covers the file's content by its checksum `sha256`, the columns read, the tokenizer and max_seq_len, so
    nothing stale is ever used.
    """
    backend = tokenizer.backend_tokenizer
    backend.no_padding()
    backend.no_truncation()  # a tokenizer.json may carry settings of its own
    parts = (CACHE_FORMAT, sha256, repr(split), repr(spec.labels), backend.to_str(), str(max_seq_len))
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
    name = cache / f"{path.parent.name}-{path.stem}-{max_seq_len}-{key[:16]}.npz"
    tokens = read_cache(name, key)
    if tokens is None:
        examples = read_examples(path, spec, split)
        tokens = tokenise(examples, backend, max_seq_len, regression=not spec.labels)
        if keep:
            make_folder(cache)
            with atomic_write(name) as file:
                np.savez(file, key=np.array(key), **vars(tokens))
    return tokens


def read_cache(path: Path, key: str) -> Tokens | None:
    """Return the arrays in `path`, or None when it is missing, half-written, damaged or made from something else."""
    try:
        # The zip's own checksums are verified on reading.
        with open_file(path) as file, np.load(file, allow_pickle=False) as arrays:
            if str(arrays["key"]) != key:
                return None
            tokens = Tokens(arrays["ids"], arrays["offsets"], arrays["first_segment"], arrays["labels"])
    except Exception:  # zipfile alone has a dozen ways to be surprised by one flipped byte
        return None
    whole = len(tokens.offsets) == len(tokens.first_segment) + 1 == len(tokens) + 1 and tokens.offsets[-1] == len(
        tokens.ids
    )
    return tokens if whole else None


def tokenise(examples: list[Example], backend: Any, max_seq_len: int, regression: bool) -> Tokens:
    """Turn texts into token arrays; pairs are truncated as the library's `longest_first` does.

    Each text is cut into word pieces on its own: of the library's truncation of a pair, time and memory grow with the
    square of its length.
    """
    cls, sep = backend.encode("").ids
    ids, lengths, first = [], [], []
    with tqdm(total=len(examples), desc="tokenising", unit="ex", disable=len(examples) < CHUNK) as progress:
        for chunk in chunks(examples):
            sides = [[e.text for e in chunk], [e.pair for e in chunk]][: 1 if chunk[0].pair is None else 2]
            pieces = [backend.encode_batch_fast(side, add_special_tokens=False) for side in sides]
            counts = np.array([list(map(len, side)) for side in pieces])
            kept = longest_first(counts, max_seq_len - 1 - len(sides))
            for texts, limits in zip(zip(*pieces, strict=True), kept.T.tolist(), strict=True):
                own = [cls]
                for text, limit in zip(texts, limits, strict=True):
                    own += [*text.ids[:limit], sep]
                ids.append(np.array(own, np.int32))
            lengths.append(kept.sum(0) + 1 + len(sides))
            first.append(kept[0] + 2)
            progress.update(len(chunk))
            interrupt.poll()
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    labels = np.array([e.label or 0 for e in examples], np.float32 if regression else np.int64)
    return Tokens(np.concatenate(ids), offsets, np.concatenate(first).astype(np.int32), labels)


def chunks(examples: list[Example]) -> Iterator[list[Example]]:
    """Yield all examples, some at a time: at most CHUNK, or what makes up CHARACTERS."""
    start = size = 0
    for index, example in enumerate(examples, 1):
        size += len(example.text) + len(example.pair or "")
        if index - start == CHUNK or size >= CHARACTERS or index == len(examples):
            yield examples[start:index]
            start, size = index, 0


def longest_first(counts: np.ndarray, room: int) -> np.ndarray:
    """Return how many of `counts` (T, n) word pieces of n examples of T = 1 or 2 texts are kept, to fit into `room`.

    The longer text is cut to the length of the other, then both alike; of an odd rest the second text gets more, unless
    it was the shorter one.
    """
    if len(counts) == 1:
        return np.minimum(counts, room)
    first, second = counts
    shorter = np.minimum(first, second)
    both = 2 * shorter > room
    low = np.where(both, room // 2, shorter)
    high = np.minimum(np.maximum(first, second), room - low)
    return np.where(first <= second, [low, high], [high, low])


# --- order ------------------------------------------------------------------------------------------------------------


def epoch_order(seed: int, epoch: int, examples: int) -> np.ndarray:
    """Return the order of an epoch: a permutation that depends on nothing but (seed, epoch)."""
    return np.random.default_rng((seed, epoch)).permutation(examples)


def micro_batches(examples: int, size: int, seed: int, start: int) -> Iterator[np.ndarray]:
    """Yield the rows of micro-batch `start`, `start` + 1, ... without end; an epoch's last one may be short."""
    per_epoch = -(-examples // size)
    order, known = np.empty(0), -1
    for index in count(start):
        epoch, batch = divmod(index, per_epoch)
        if epoch != known:
            order, known = epoch_order(seed, epoch, examples), epoch
        yield order[batch * size : (batch + 1) * size]


def by_length(lengths: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield the rows of all examples in batches of similar length, so that little of a batch is padding."""
    order = np.argsort(lengths, kind="stable")
    for start in range(0, len(order), size):
        yield order[start : start + size]
