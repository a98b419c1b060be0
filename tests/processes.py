"""Scripts in processes of their own: forked from this one, which has torch and transformers loaded, and so at once.

What is ours is loaded anew there, under the environment that the process is given, and the script runs as `__main__`.
"""

import atexit
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parent.parent
OURS = ("fine_tune", "benchmarks", "tests")


class Process:
    """A script that runs in a process of its own."""

    def __init__(self, script: str, *switches: str, environment: dict[str, str] | None = None, **flags: object) -> None:
        self.out, self.err = tempfile.TemporaryFile("w+"), tempfile.TemporaryFile("w+")
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            run_as_main(script, arguments(*switches, **flags), environment or {}, self.out, self.err)

    def poll(self) -> int | None:
        """Return the exit code if the process has ended; that of one killed by a signal is the signal's negative."""
        if self.returncode is None:
            process_id, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if process_id else None
        return self.returncode

    def wait(self) -> tuple[int, str, str]:
        """Wait for the end; return exit code, standard output and standard error."""
        while self.poll() is None:
            time.sleep(0.005)
        return self.returncode, read(self.out), read(self.err)


class Ranks:
    """A script in several processes with the environment that torchrun gives its own, and ended like these."""

    def __init__(self, script: str, *switches: str, ranks: int = 2, **flags: object) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "none"}
        shared |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
        of_rank = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(ranks)]
        self.processes = [Process(script, *switches, environment=environment, **flags) for environment in of_rank]

    def wait(self) -> tuple[list[int], str, str]:
        """Wait for all, and end them all when one fails; return their exit codes, output and standard error."""
        running = list(self.processes)
        while running:
            running = [process for process in running if process.poll() is None]
            if any(process.returncode for process in self.processes):
                for process in running:
                    os.kill(process.pid, signal.SIGTERM)
                break
            time.sleep(0.005)
        codes, outs, errs = zip(*(process.wait() for process in self.processes), strict=True)
        return list(codes), "".join(outs), "".join(errs)


def arguments(*switches: str, **flags: object) -> list[str]:
    """Return the words of a command line."""
    return [*switches, *(str(word) for flag, value in flags.items() for word in (f"--{flag}", value))]


def read(file: IO[str]) -> str:
    """Return all that a process wrote, and close the file."""
    with file:
        file.seek(0)
        return file.read()


def run_as_main(script: str, words: list[str], environment: dict[str, str], out: IO[str], err: IO[str]) -> None:
    """Become the script; never returns."""
    status = 70
    try:
        os.dup2(out.fileno(), 1), os.dup2(err.fileno(), 2)
        sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
        os.environ.update(environment)
        atexit._clear()  # what this process does at its exit is none of the script's
        for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
            del sys.modules[name]
        sys.argv = [f"{script}.py", *words]
        runpy.run_path(str(ROOT / f"{script}.py"), run_name="__main__")
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)
