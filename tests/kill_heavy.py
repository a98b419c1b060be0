"""`python -m tests.kill_heavy`: kills training 20 times at random moments, script by script; it must end bit-equal.

So are two processes as torchrun starts them, 20 times each by kill -9 of one, by SIGTERM to one, and by both at once.
Takes some minutes, so it is no part of the test suite, which kills at chosen moments. Words choose what is killed.
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
from tests.processes import Ranks

KILLS = 20
LONG = {"total_step": 400, "ckpt_step": 7, "keep_last": 3, "log_step": 3}
UNDER_TORCHRUN = {"total_step": 150, "ckpt_step": 7, "keep_last": 3, "log_step": 3}
ORDERS = {  # (rank, signal) one right after the other; SIGKILL is a machine that is lost
    "kill -9 of one": ((1, signal.SIGKILL),),
    "SIGTERM to one": ((1, signal.SIGTERM),),
    "SIGTERM to both": ((0, signal.SIGTERM), (1, signal.SIGTERM)),
    "SIGTERM and kill -9": ((0, signal.SIGTERM), (1, signal.SIGKILL)),
}


def run_until(script: str, flags: dict[str, object], seconds: float | None, twice: bool = False) -> int:
    """Run a command in a forked process and kill it after `seconds`; return its exit status.

    Where it is interrupted `twice`, SIGTERM comes just before, as when a cluster's time is over.
    """
    child = os.fork()
    if child == 0:
        status = 1
        try:
            sys.stderr = open(os.devnull, "w")
            if twice:
                from fine_tune.cli import parser

                parser.run_script(lambda: tiny.run_script(script, **flags))
            tiny.run_script(script, **flags)
            status = 0
        except SystemExit as stop:
            status = stop.code
        finally:
            os._exit(status)
    if seconds is not None:
        time.sleep(seconds)
        if twice:
            os.kill(child, signal.SIGTERM)
            time.sleep(random.uniform(0, 0.02))
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kill_one_process(root: Path, name: str, twice: bool) -> list[str]:
    """Kill a script, go on with it, and compare; return in what its end differs from the undisturbed run's."""
    script, flags = flags_of(root, name, f"whole-{name}-{twice}")
    start = time.monotonic()
    assert run_until(script, flags | LONG, None) == 0
    whole = time.monotonic() - start
    broken = root / f"broken-{name}-{twice}"
    kills, found, codes = 0, [], (-signal.SIGKILL, 128 + signal.SIGTERM)
    while kills < KILLS:
        _, flags = flags_of(root, name, broken.name)
        done = run_until(script, flags | LONG, random.uniform(0.1, max(0.2, whole / 12)), twice)
        assert done in (0, *codes)
        kills += done in codes
        if done == 0:  # it came to its end between two kills: once more from the start
            found += difference(root / f"whole-{name}-{twice}", broken)
            shutil.rmtree(broken)
    assert run_until(script, flags | LONG, None) == 0
    found += difference(root / f"whole-{name}-{twice}", broken)
    print(f"{script} ({name}): {kills} kills{' after SIGTERM' * twice}, {found or 'bit-equal'}", flush=True)
    return found


def kill_ranks(root: Path, order: str) -> list[str]:
    """Interrupt two processes of one run; return in what its end differs from the undisturbed run's."""
    whole, broken = root / "whole-ranks", root / f"broken-{order.replace(' ', '-')}"
    script, flags = flags_of(root, "lad", whole.name)
    if not (whole / "run_bert_qqp").exists():
        codes, _, said = Ranks(script, **flags | UNDER_TORCHRUN).wait()
        assert codes == [0, 0], said
    _, flags = flags_of(root, "lad", broken.name)
    kills = 0
    while kills < KILLS:
        ranks = Ranks(script, **flags | UNDER_TORCHRUN)
        time.sleep(random.uniform(1, 4))
        for rank, number in ORDERS[order]:
            if ranks.processes[rank].poll() is None:
                os.kill(ranks.processes[rank].pid, number)
        codes, _, said = ranks.wait()
        kills += codes != [0, 0]
        if codes == [0, 0]:
            assert difference(whole, broken) == []
            shutil.rmtree(broken)
            _, flags = flags_of(root, "lad", broken.name)
    codes, _, said = Ranks(script, **flags | UNDER_TORCHRUN).wait()
    assert codes == [0, 0], said
    found = difference(whole, broken)
    print(f"two processes, {order}: {kills} times, {found or 'bit-equal'}", flush=True)
    return found


def main() -> None:
    """Kill, resume and compare, one after the other."""
    torch.set_num_threads(1)
    random.seed(0)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it says of each resume what it forgets
    tqdm.monitor_interval = 0  # its thread may hold a lock while we fork, and the child would wait for it for ever
    names, chosen = ("teacher", *SCRIPTS), sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tiny.make_bert(root / "bert")
        tiny.make_qqp(root / "data")
        assert run_until("run_fine_tune", tiny.teacher_flags(root), None) == 0
        found = [kill_one_process(root, name, False) for name in names if name in chosen or not chosen]
        if not chosen or "twice" in chosen:
            found.append(kill_one_process(root, "lad", True))
        found += [kill_ranks(root, order) for order in ORDERS if order in chosen or not chosen]
    assert not any(found)


if __name__ == "__main__":
    main()
