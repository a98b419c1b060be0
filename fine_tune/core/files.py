"""Files that are whole or not there: atomic replacement, checksums and the lock of a run."""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from fine_tune.core.errors import UserError

LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a binary file that takes the place of `path` when the block ends well; until then `path` stays as it was.

    The file's `name` is that of the unfinished file. Raises UserError naming `path` when the system refuses (no space,
    no permission).
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")  # beside it: no rename crosses file systems
    try:
        with open(part, "xb") as file:  # x: never through a link that somebody else has put there
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); nothing was replaced") from error
    finally:
        part.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `folder`, new or empty, when the block ends well; else nothing is left.

    Raises UserError naming `folder` when the system refuses.
    """
    part = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.part")
    make_folder(folder.parent)
    try:
        part.mkdir()
        yield part
        os.rename(part, folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror or error}); nothing was") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power cut, where the file system can; raises UserError when it fails."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EACCES):  # some do not know it, some folders hide
            raise UserError(f"{folder}: cannot be synced ({error.strerror}); what was written is there") from error


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents; raises UserError naming it when that is refused."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror})") from error


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


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises UserError naming `path` when it is missing or holds anything else."""
    require_file(path)
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: must hold a JSON object, not a {type(value).__name__}")
    return value


def require_file(path: Path) -> None:
    """Raise UserError when something else than a file lies at `path`: to open a pipe would wait for its writer."""
    if os.path.lexists(path) and not os.path.isfile(path):
        raise UserError(f"{path}: is no file")


def remove_parts(folder: Path) -> None:
    """Remove what killed processes left of unfinished files; who still writes one holds a lock on it."""
    for path in folder.glob(".*.part"):
        with suppress(OSError, UserError), open_for_lock(path) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hex; raises UserError naming `path` when it cannot be read."""
    require_file(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def folder_digest(folder: Path) -> str:
    """Return a SHA-256 of the names and contents of all files in a folder of small ones."""
    content = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        require_file(path)
        content.update(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return content.hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process alone, by a lock beside it; the system frees that of a process that dies.

    Raises UserError when another process trains in the folder.
    """
    with open_for_lock(folder.with_name(f".{folder.name}.lock")) as file:
        if not lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB):
            who = f"another process{holder(file)}"
            raise UserError(f"{folder}: {who} is training here; wait for it or use another name")
        yield


def holder(file: IO[bytes]) -> str:
    """Return the number of the process that holds a lock on `file`, in brackets; "" if it is on another machine."""
    inode = f":{os.fstat(file.fileno()).st_ino}"
    try:
        lines = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return ""
    return next((f" ({words[4]})" for words in lines if words[1] == "FLOCK" and words[5].endswith(inode)), "")


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Hold the lock file at `path` for this process alone, after waiting for others."""
    with open_for_lock(path) as file:
        lock(file, fcntl.LOCK_EX)
        yield


def lock(file: IO[bytes], how: int) -> bool:
    """Lock a file; tell whether that was done. A file system without locks does not stop anybody, after a note."""
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK):
            return False
        print(f"note: {file.name} cannot be locked ({error.strerror}); nothing else may write here", file=sys.stderr)
    return True


def open_for_lock(path: Path) -> IO[bytes]:
    """Open a file to be locked, made if need be; never through a link, and without a change to what it holds.

    Raises UserError naming `path` when the system refuses.
    """
    try:
        return open(path, "r+b", buffering=0, opener=lambda name, _: os.open(name, LOCK_FLAGS, 0o666))
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({error.strerror})") from error
