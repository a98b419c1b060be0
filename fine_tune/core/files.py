"""Files: whole ones or none, checksums, locks; and files of others' making, which are read with care.

What is read is a regular file, or it is refused: into a pipe nobody may ever write.
"""

import errno
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fine_tune.core import interrupt, torchrun
from fine_tune.core.errors import UserError
from fine_tune.core.shapes import Shape, misfit

MOST_JSON = 64 * 2**20  # bytes; what is written here is far below
LACKING = (errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK)  # a file system cannot do what it was asked
HOLDER = re.compile(rb"process [0-9]+ on [!-~]+\n")  # what a lock file says of who locked it last


# --- reading ----------------------------------------------------------------------------------------------------------


def reason(error: OSError) -> str:
    """Return in words why the system refused."""
    return error.strerror or str(error)


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file for reading; raises UserError naming `path` when it is none, or the system refuses."""
    try:
        file = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from error
    return require_regular(file, path)


def require_regular(file: IO[bytes], path: Path) -> IO[bytes]:
    """Return the open `file`; raises UserError naming `path` when it is a pipe or a device."""
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise UserError(f"{path}: is no regular file, but a pipe or a device")
    return file


@contextmanager
def reading(path: Path) -> Iterator[IO[bytes]]:
    """Yield a regular file, open for reading; raises UserError naming `path` when the system refuses, then or later."""
    with open_file(path) as file:
        try:
            yield file
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({reason(error)})") from error


def read_bytes(path: Path) -> bytes:
    """Return the content of a regular file; raises UserError naming `path` when it cannot be read."""
    with reading(path) as file:
        return file.read()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex; raises UserError naming `path` when it cannot be read."""
    with reading(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> str:
    """Return a checksum of the files in `folder`, by name and content; hidden ones are not of its maker.

    Raises UserError naming the first that cannot be read.
    """
    whole = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        whole.update(f"{hashlib.sha256(read_bytes(path)).hexdigest()}  {path.name}\n".encode())
    return whole.hexdigest()


def read_json(path: Path, shape: Shape = None) -> dict[str, Any]:
    """Read a JSON object of a shape; raises UserError naming `path` when it is missing or holds anything else."""
    content = read_bytes(path)
    try:
        if len(content) > MOST_JSON:
            raise ValueError(f"{len(content)} bytes are too many")
        value = json.loads(content, parse_int=whole_number, parse_constant=float)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()  # nothing that could not be written again
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    problem = misfit(value, shape or {})
    if problem:
        raise UserError(f"{path}: {problem}")
    return value


def whole_number(text: str) -> int:
    """Read a whole number of 64 bits; ValueError says that it is another."""
    if len(text) > 19:
        raise ValueError(f"{text[:10]}... has too many digits")
    return int(text)


# --- writing ----------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes the place of `path` when the block ends well; until then `path` stays as it was.

    The file's `name` is that of the unfinished file; what killed processes left of such ones goes. Raises UserError
    naming `path` when the system refuses (no space, no permission).
    """
    remove_parts(path.parent, path.name)
    try:
        with new_part(path) as file:
            try:
                yield file
                file.flush()
                sync(file.fileno())
                os.replace(file.name, path)
            finally:
                with suppress(OSError):
                    os.unlink(file.name)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({reason(error)}); nothing was replaced") from error
    sync_rename(path.parent)


def new_part(path: Path) -> IO[bytes]:
    """Open an unfinished file for `path`, beside it: no rename crosses file systems. It is locked while it is open."""
    while True:
        file = open(part_of(path), "xb")  # x: never through a link that somebody else has put there
        try_lock(file.fileno())
        if os.fstat(file.fileno()).st_nlink:
            return file
        file.close()  # taken for a killed process's, and removed before it was locked


def part_of(path: Path) -> Path:
    """Return a new name for what is to become `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder`, new or empty, when the block ends well; else nothing is left.

    Raises UserError naming `folder` when the system refuses.
    """
    part = part_of(folder)
    make_folder(folder.parent)
    remove_parts(folder.parent, folder.name)
    try:
        part.mkdir()
        with held(part):
            yield part
        for path in (*part.rglob("*"), part):
            sync_path(path)
        os.replace(part, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({reason(error)}); nothing was") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_rename(folder.parent)


def sync_rename(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut; raises UserError when the disk fails."""
    try:
        sync_path(folder)
    except OSError as error:
        raise UserError(f"{folder}: what was written may not survive a power cut ({reason(error)})") from error


def sync_path(path: Path) -> None:
    """Bring a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        sync(descriptor)
    finally:
        os.close(descriptor)


def sync(descriptor: int) -> None:
    """Bring an open file or folder to the disk, where the file system can."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in LACKING:
            raise


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents; raises UserError naming it when that is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({reason(error)})") from error


def write_json(path: Path, value: Any) -> None:
    """Write `value` as JSON, atomically."""
    with atomic_write(path) as file:
        file.write(json_bytes(value))


def rewrite_json(path: Path, value: Any) -> None:
    """Write `value` in place of the JSON file at `path`, which keeps its time: that tells others which file it is."""
    before = path.stat()
    with atomic_write(path) as file:
        file.write(json_bytes(value))
        file.flush()
        os.utime(file.fileno(), ns=(before.st_atime_ns, before.st_mtime_ns))


def json_bytes(value: Any) -> bytes:
    """Return `value` as readable JSON; nan, which JSON does not know, must be None by now."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def remove_parts(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left of unfinished files, of all or of one `name`; who writes one has it locked."""
    pattern = name if name == "*" else glob.escape(name)
    for path in folder.glob(f".{pattern}.*.part"):
        with suppress(OSError), held(path, os.O_RDONLY if path.is_dir() else os.O_RDWR) as locked:
            if locked:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextmanager
def held(path: Path, mode: int = os.O_RDONLY) -> Iterator[bool]:
    """Lock an unfinished file or folder; tell whether that was possible, which it is not where somebody writes it."""
    descriptor = os.open(path, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield try_lock(descriptor)
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder; tell whether that was possible."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # another process has it, or it lies on a file system without locks
        return False
    return True


# --- locks ------------------------------------------------------------------------------------------------------------


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone, by a lock beside it; the system frees that of a process that dies.

    The lock's file says who holds it. Raises UserError when another process trains in the folder.
    """
    path = folder.with_name(f".{folder.name}.lock")
    with open_for_lock(path) as file:
        if not lock(file, path):
            said = file.read(300)
            holder = f" ({said.decode().strip()})" if HOLDER.fullmatch(said) else ""
            raise UserError(f"{folder}: another process is training here{holder}; wait for it or use another name")
        say_holder(file)
        yield


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock file at `path` for this process alone, after waiting for others; a signal ends the wait."""
    with open_for_lock(path) as file:
        while not lock(file, path):
            interrupt.poll("what was done before stays")
            time.sleep(0.05)
        yield


def lock(file: IO[bytes], path: Path) -> bool:
    """Lock the open `file` at `path`; tell whether no other process had. Goes on, with a note, where no lock works.

    Raises UserError naming `path` when the system refuses for another reason.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in LACKING:
            raise UserError(f"{path}: cannot be locked ({reason(error)})") from error
        if torchrun.is_main_process():
            cure = "see to it yourself that no other process works there"
            print(f"note: {path.parent} is on a file system without locks ({reason(error)}); {cure}", file=sys.stderr)
    return True


def say_holder(file: IO[bytes]) -> None:
    """Write into a lock's file who holds it, unless it is not ours: it holds something else, or has other names."""
    said = file.read(300)
    if os.fstat(file.fileno()).st_nlink == 1 and (not said or HOLDER.fullmatch(said)):
        with suppress(OSError):  # a full disk
            file.seek(0)
            file.truncate()
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())


def open_for_lock(path: Path) -> IO[bytes]:
    """Open a file to be locked, made if need be; never through a link, and without a change to what it holds.

    Raises UserError naming `path` when the system refuses.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = open(path, "r+b", buffering=0, opener=lambda name, _: os.open(name, flags, 0o666))
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({reason(error)})") from error
    return require_regular(file, path)
