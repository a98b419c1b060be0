"""`python -m tests.kill_heavy`: every training script is killed 20 times at random moments and must end bit-equal.

Takes some minutes, so it is no part of the test suite, which kills at chosen moments.
"""

import logging
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from tqdm import tqdm

from tests import tiny
from tests.interruptions import SCRIPTS, difference, flags_of

KILLS = 20


def run_until(script: str, flags: dict[str, object], seconds: float | None) -> int:
    """Run a command in a forked process and kill it after `seconds`; return its exit status."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.stderr = open(os.devnull, "w")
            tiny.run_script(script, **flags)
            status = 0
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    """Kill, resume and compare, one script after the other."""
    torch.set_num_threads(1)
    random.seed(0)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it says of each resume what it forgets
    tqdm.monitor_interval = 0  # its thread may hold a lock while we fork, and the child would wait for it for ever
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tiny.make_bert(root / "bert")
        tiny.make_qqp(root / "data")
        assert run_until("run_fine_tune", tiny.teacher_flags(root), None) == 0
        for name in ("teacher", *SCRIPTS):
            long = {"total_step": 400, "ckpt_step": 7, "keep_last": 3, "log_step": 3}
            script, flags = flags_of(root, name, f"whole-{name}")
            start = time.monotonic()
            assert run_until(script, flags | long, None) == 0
            whole = time.monotonic() - start
            _, flags = flags_of(root, name, f"broken-{name}")
            kills, found = 0, []
            while kills < KILLS:
                done = run_until(script, flags | long, random.uniform(0.1, max(0.2, whole / 12)))
                kills += done == -signal.SIGKILL
                if done == 0:  # it came to its end between two kills: once more from the start
                    found += difference(root / f"whole-{name}", root / f"broken-{name}")
                    shutil.rmtree(root / f"broken-{name}")
                    _, flags = flags_of(root, name, f"broken-{name}")
            assert run_until(script, flags | long, None) == 0
            found += difference(root / f"whole-{name}", root / f"broken-{name}")
            print(f"{script} ({name}): {kills} kills, {'bit-equal' if not found else found}", flush=True)
            assert not found


if __name__ == "__main__":
    main()
