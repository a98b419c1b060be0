"""The rank of this process among those that torchrun started. Without torchrun there is one rank.

Only torchrun's own variable makes ranks: clusters set RANK and WORLD_SIZE for other reasons.
"""

import ctypes
import os
import signal

VARIABLES = os.environ if "TORCHELASTIC_RUN_ID" in os.environ else {}
RANK = int(VARIABLES.get("RANK", 0))
WORLD_SIZE = int(VARIABLES.get("WORLD_SIZE", 1))
LOCAL_RANK = int(VARIABLES.get("LOCAL_RANK", 0))  # on this machine
LOCAL_WORLD_SIZE = int(VARIABLES.get("LOCAL_WORLD_SIZE", 1))
PR_SET_PDEATHSIG = 1  # Linux' number of this wish of a process


def is_main_process() -> bool:
    """Tell whether this is rank 0, the process that writes and speaks."""
    return RANK == 0


def end_with_parent() -> None:
    """Let this rank hear SIGTERM when torchrun dies without a word to it, as by kill -9: none trains on alone."""
    if VARIABLES:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
