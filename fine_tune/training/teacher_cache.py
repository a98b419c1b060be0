"""--cache_teacher: the teacher's logits and [CLS] states, computed once and then read from a memory-mapped file.

The teacher is in eval mode, so they are the same in every epoch and run.

Shapes: n examples of the split, B batch, C classes, L layers, D hidden size.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from fine_tune.core import interrupt
from fine_tune.core.files import atomic_write, make_folder, sha256
from fine_tune.data.layout import moved, packed
from fine_tune.data.tokens import Batch, Tokens
from fine_tune.models.bert import BertClassifier
from fine_tune.models.precision import autocast
from fine_tune.training.log import print0, progress

FORMAT = "1"  # part of the key: raise it whenever the numbers change their meaning
CHUNK = 256  # examples computed at a time


class CachedTeacher:
    """Stands in for a teacher of which only [CLS] is read: `outputs` (n, C), or (n, C + L * D) with its states."""

    def __init__(self, outputs: np.ndarray, num_class: int, d_model: int) -> None:
        self.outputs, self.num_class, self.d_model = outputs, num_class, d_model

    def __call__(self, batch: Batch, cls_only: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return logits (B, C) and the kept states, L times (B, D) or none, on the device of the batch."""
        assert cls_only
        found = moved(torch.from_numpy(self.outputs[batch.examples]), batch.labels.device)
        logits, states = found[:, : self.num_class], found[:, self.num_class :]
        return logits, list(states.split(self.d_model, 1)) if states.shape[1] else []


def cached_outputs(
    load: Callable[[], BertClassifier], tokens: Tokens, states: bool, precision: str, identity: str, cache: Path
) -> np.ndarray:
    """Return the outputs (n, C) or, with `states`, (n, C + L * D) of the teacher that `load` returns.

    They come from the folder `cache` if they were kept there. `identity` is the checksum of the teacher's file; the
    key covers it, all tokens, what is kept, and the precision, so nothing stale is ever used.
    """
    content = hashlib.sha256()
    for array in (tokens.ids, tokens.offsets, tokens.first_segment):
        content.update(array)
    parts = (FORMAT, identity, content.hexdigest(), str(states), precision)
    path = cache / f"teacher-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]}.npy"
    if is_whole(path):
        print0(f"the teacher's outputs: read from {path}")
    else:
        make_folder(cache)
        write(path, load(), tokens, states, precision)
    return np.load(path, mmap_mode="r")


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
def write(path: Path, teacher: BertClassifier, tokens: Tokens, states: bool, precision: str) -> None:
    """Compute the outputs for all examples, in their order, and write them to `path` as little-endian fp32."""
    bert = teacher.encoder.config
    width = teacher.linear_layer.out_features + states * bert.num_hidden_layers * bert.hidden_size
    device = teacher.linear_layer.weight.device
    print0(f"the teacher's outputs: {len(tokens) * width * 4 / 2**30:.2f} GiB, kept in {path}")
    with atomic_write(path) as file, progress(len(tokens), 0, "ex") as bar:
        outputs = np.lib.format.open_memmap(file.name, "w+", "<f4", (len(tokens), width))
        bar.set_description("teacher")
        for start in range(0, len(tokens), CHUNK):
            chosen = np.arange(start, min(start + CHUNK, len(tokens)))
            lengths = tokens.lengths(chosen)
            batch = tokens.batch(chosen, packed(lengths, lengths.max())).to(device)
            with autocast(precision, [device]):
                logits, hiddens = teacher(batch, cls_only=True)
            outputs[chosen] = torch.cat([logits, *hiddens] if states else [logits], 1).cpu().numpy()
            bar.update(len(chosen))
            interrupt.poll()
        outputs.flush()
        del outputs  # unmaps it, before it gets its name
    with atomic_write(checksum_file(path)) as file:
        file.write(f"{sha256(path)}  {path.name}\n".encode())
