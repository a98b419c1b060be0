"""How many threads compute, and how they wait for each other.

Must be set before torch is imported. OMP_NUM_THREADS, OMP_WAIT_POLICY and GOMP_SPINCOUNT have the last word.
"""

import os
from pathlib import Path

GIVEN = "OMP_NUM_THREADS" in os.environ  # by the user, or by torchrun
SPINS = 1000  # rounds in which a thread looks whether the others are there


def prepare() -> str:
    """Set what OpenMP reads when it starts; return a note if a container grants less than its machine has, or "".

    A thread that waits spins for a moment, since to sleep and to wake costs more than most waits last. Then it gives
    its core away: where others want the core too, threads that spin on cost them all most of their time.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    cores = len(os.sched_getaffinity(0))
    granted = cpu_quota(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
    if GIVEN or granted >= cores:
        return ""
    os.environ["OMP_NUM_THREADS"] = str(max(1, int(granted)))
    grant = f"this container is granted {granted:g} of {cores} CPUs (OMP_NUM_THREADS sets another number)"
    return f"threads: {os.environ['OMP_NUM_THREADS']}, since {grant}"


def cpu_quota(cgroups: Path, own: Path) -> float:
    """Return how many CPUs the control groups of this process grant it, inf without a limit.

    `cgroups` is where they are mounted, `own` the file that names the groups of this process, a line
    `<id>:<controllers>:<group>` each; of a group and all above it the smallest grant counts.
    """
    smallest = float("inf")
    for line in read(own).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        folder = cgroups / controllers / group.lstrip("/")
        while folder != cgroups.parent:
            smallest = min(smallest, grant(folder))
            folder = folder.parent
    return smallest


def grant(folder: Path) -> float:
    """Return the CPUs that one control group grants, by version 2 (`cpu.max`) or 1 of their files, inf without one."""
    text = read(folder / "cpu.max") or read(folder / "cpu.cfs_quota_us") + " " + read(folder / "cpu.cfs_period_us")
    words = text.split()
    if not all(map(str.isdigit, words)) or len(words) != 2:  # `max`, -1, or no such file
        return float("inf")
    return int(words[0]) / int(words[1])


def read(path: Path) -> str:
    """Return what a small file of the system says, "" where there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""
