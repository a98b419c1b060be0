"""The logits that a checkpoint gives on a split, as evaluation keeps them beside it.

Shapes: n examples of the split, C classes.
"""

from pathlib import Path

import numpy as np

from fine_tune.core.files import atomic_write, open_file


def write_logits(path: Path, logits: np.ndarray) -> None:
    """Write logits (n, C), atomically."""
    with atomic_write(path) as file:
        np.save(file, logits)


def read_logits(path: Path, num_class: int, rows: int | None) -> np.ndarray | None:
    """Return the logits (n, C) in a file, None when it is missing, damaged or of another shape.

    `rows` is n, None where it is not known.
    """
    try:
        with open_file(path) as file:
            logits = np.load(file, allow_pickle=False)
    except Exception:  # a damaged or foreign file makes numpy raise nearly anything
        return None
    fits = logits.ndim == 2 and logits.shape[1] == num_class and rows in (None, len(logits))
    return logits if fits else None
