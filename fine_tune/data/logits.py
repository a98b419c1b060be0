"""The logits that a checkpoint gives on a split, as evaluation keeps them beside it.

Shapes: n examples of the split, C classes.
"""

from pathlib import Path

import numpy as np

from fine_tune.core.files import atomic_write


def write_logits(path: Path, logits: np.ndarray) -> None:
    """Write logits (n, C), atomically."""
    with atomic_write(path) as file:
        np.save(file, logits)


def read_logits(path: Path, num_class: int, rows: int | None) -> np.ndarray | None:
    """Return the logits (n, C) in a file, None when it is missing, damaged or of another shape.

    `rows` is n, None where it is not known.
    """
    try:
        logits = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    fits = logits.ndim == 2 and logits.shape[1] == num_class and rows in (None, len(logits))
    return logits if fits else None
