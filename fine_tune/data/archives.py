"""GLUE's archives: where they lie, how a download goes on, what is taken out of them, and how many rows that gives.

Sizes and checksums are those of the Hugging Face `glue` data set's metadata for these addresses.
"""

import http.client
import shutil
import socket
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tqdm import tqdm

from fine_tune.core import interrupt
from fine_tune.core.errors import UserError
from fine_tune.core.files import atomic_write, make_folder, open_file, read_bytes, sha256, waiting_lock
from fine_tune.data.tasks import TASKS

GLUE = "https://dl.fbaipublicfiles.com/glue/data/"
SENTEVAL = "https://dl.fbaipublicfiles.com/senteval/senteval_data/"
CHUNK = 1 << 20  # bytes read at a time
TIMEOUT = 60  # seconds without an answer
BOMB = 20  # times its own size that an archive may unpack to; text makes 4


@dataclass(frozen=True)
class Archive:
    """A file to download, with its size in bytes and its SHA-256; `members` are what of a zip is unpacked."""

    name: str
    size: int
    sha256: str
    members: tuple[str, ...] = ()
    base: str = GLUE


def three(folder: str) -> tuple[str, ...]:
    """Return the members of an archive that holds train, dev and test in one folder."""
    return tuple(f"{folder}/{split}.tsv" for split in ("train", "dev", "test"))


MNLI = tuple(f"MNLI/{split}.tsv" for split in TASKS["mnli"].splits if split != "ax")
AX = "AX/AX.tsv"  # where AX.tsv goes
TRAIN_TEXT, TEST_TEXT, DEV_IDS = "msr_paraphrase_train.txt", "msr_paraphrase_test.txt", "mrpc_dev_ids.tsv"

ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "qqp": (
        Archive(
            "QQP-clean.zip", 41696084, "40e7c862c04eb26ee04b67fd900e76c45c6ba8e6d8fab4f8f1f8072a1a3fbae0", three("QQP")
        ),
    ),
    "mnli": (
        Archive("MNLI.zip", 312783507, "e7c1d896d26ed6caf700110645df426cc2d8ebf02a5ab743d5a5c68ac1c83633", MNLI),
        Archive("AX.tsv", 222257, "0e13510b1bb14436ff7e2ee82338f0efb0133ecf2e73507a697dc210db3f05fd"),
    ),
    "qnli": (
        Archive(
            "QNLIv2.zip", 10627589, "e634e78627a29adaecd4f955359b22bf5e70f2cbd93b493f2d624138a0c0e5f5", three("QNLI")
        ),
    ),
    "rte": (
        Archive("RTE.zip", 697150, "6bf86de103ecd335f3441bd43574d23fef87ecc695977a63b82d5efb206556ee", three("RTE")),
    ),
    "mrpc": (
        Archive(TRAIN_TEXT, 1047044, "60a9b09084528f0673eedee2b69cb941920f0b8cd0eeccefc464a98768457f89", base=SENTEVAL),
        Archive(TEST_TEXT, 441275, "a04e271090879aaba6423d65b94950c089298587d9c084bf9cd7439bd785f784", base=SENTEVAL),
        Archive(DEV_IDS, 6222, "971d7767d81b997fd9060ade0ec23c4fc31cbb226a55d1bd4a1bac474eb81dc7"),
    ),
    "sst2": (
        Archive(
            "SST-2.zip", 7439277, "d67e16fb55739c1b32cdce9877596db1c127dc322d93c082281f64057c16deaa", three("SST-2")
        ),
    ),
    "cola": (
        Archive("CoLA.zip", 376971, "f212fcd832b8f7b435fb991f101abf89f96b933ab400603bf198960dfc32cbff", three("CoLA")),
    ),
    "stsb": (
        Archive(
            "STS-B.zip", 802872, "e60a6393de5a8b5b9bac5020a1554b54e3691f9d600b775bd131e613ac179c85", three("STS-B")
        ),
    ),
    "wnli": (
        Archive("WNLI.zip", 28999, "ae0e8e4d16f4d46d4a0a566ec7ecceccfd3fbfaa4a7a4b4e02848c0f2561ac46", three("WNLI")),
    ),
}

ROWS = {
    "qqp": {"train": 363846, "dev": 40430, "test": 390965},
    "mnli": {
        "train": 392702,
        "dev_matched": 9815,
        "dev_mismatched": 9832,
        "test_matched": 9796,
        "test_mismatched": 9847,
        "ax": 1104,
    },
    "qnli": {"train": 104743, "dev": 5463, "test": 5463},
    "rte": {"train": 2490, "dev": 277, "test": 3000},
    "mrpc": {"train": 3668, "dev": 408, "test": 1725},
    "sst2": {"train": 67349, "dev": 872, "test": 1821},
    "cola": {"train": 8551, "dev": 1043, "test": 1063},
    "stsb": {"train": 5749, "dev": 1500, "test": 1379},
    "wnli": {"train": 635, "dev": 71, "test": 146},
}

TERMS = {
    "qqp": "Quora's terms of service hold: for non-commercial use",
    "mrpc": "Microsoft's terms for its research corpora hold",
}
ANY_TERMS = "its makers' terms hold, as a rule research only: https://gluebenchmark.com/tasks"


# --- fetching ---------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """Where a file is had from: `place`, as a URL or a path, and whether it is one on this machine."""

    place: str
    local: bool


def source_of(archive: Archive, given: str | None) -> Source:
    """Return where `archive` comes from: its own address, or the file, folder, URL or base URL `given`."""
    if given is None:
        return Source(archive.base + archive.name, False)
    if "://" in given:
        return Source(given if given.endswith(archive.name) else f"{given.rstrip('/')}/{archive.name}", False)
    path = Path(given)
    return Source(str(path / archive.name if path.is_dir() else path), True)


def fetch(archive: Archive, source: Source, folder: Path) -> Path:
    """Return the whole and right file of `archive`, downloaded into `folder` unless it lies on this machine.

    What was cut off goes on where it ended. Raises UserError naming the file when size or checksum are not the known.
    """
    if source.local:
        check(archive, Path(source.place), "--from: ")
        return Path(source.place)
    make_folder(folder)
    path = folder / archive.name
    with waiting_lock(folder / f".{archive.name}.lock"):
        if not path.is_file():
            part = folder / f"{archive.name}.part"
            if part.is_file() and part.stat().st_size > archive.size:
                part.unlink()
            download(archive, source.place, part)
            try:
                check(archive, part, f"{source.place}: ")
            except UserError:
                part.unlink()
                raise
            part.rename(path)
        check(archive, path, "")
    return path


def check(archive: Archive, path: Path, source: str) -> None:
    """Raise UserError unless the file at `path` has the size and checksum of `archive`."""
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"{source}{path}: cannot be read ({error.strerror})") from error
    if size != archive.size:
        raise UserError(f"{source}{path} has {size} bytes instead of {archive.size}: it is another or a damaged file")
    found = sha256(path)
    if found != archive.sha256:
        raise UserError(
            f"{source}{path} has the SHA-256 {found} instead of {archive.sha256}: it is another or a damaged file"
        )


def download(archive: Archive, url: str, part: Path) -> None:
    """Bring the file at `part` up to the size of `archive` from `url`, from where it ends, if the server can."""
    have = part.stat().st_size if part.is_file() else 0
    if have == archive.size:
        return
    by_hand = f"by hand: get it with a browser or wget, then --from {archive.name}"
    try:
        with answered(url, have) as reply:
            resumed = have > 0 and reply.status == http.client.PARTIAL_CONTENT
            with writable(part, "ab" if resumed else "wb") as file:
                progress = tqdm(total=archive.size, initial=have * resumed, unit="B", unit_scale=True)
                with progress as bar:
                    bar.set_description(archive.name)
                    copy(reply, file, archive.size - have * resumed, bar)
    except HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            part.unlink()  # it is no beginning of what the server has
        raise UserError(f"{url}: the server says {error.code} {error.reason}; {by_hand}") from error
    except (URLError, http.client.HTTPException, TimeoutError, ConnectionError, socket.gaierror, ValueError) as error:
        raise UserError(f"{url}: cannot be had ({getattr(error, 'reason', error)}); {by_hand}") from error
    if part.stat().st_size < archive.size:
        raise UserError(
            f"{url}: the connection ended after {part.stat().st_size} bytes; the same command goes on there"
        )


def answered(url: str, have: int) -> http.client.HTTPResponse:
    """Open `url` from byte `have` on."""
    headers = {"User-Agent": "fine_tune.download"} | ({"Range": f"bytes={have}-"} if have else {})
    return urlopen(Request(url, headers=headers), timeout=TIMEOUT)


@contextmanager
def writable(path: Path, mode: str) -> Iterator[IO[bytes]]:
    """Open a file; a refusal of the system (no space, no permission) becomes a UserError naming it."""
    try:
        file = open(path, mode, buffering=0)  # what closing would still have to write could fail out of sight
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    with file:
        yield file


def copy(reply: IO[bytes], file: IO[bytes], limit: int, bar: tqdm) -> None:
    """Copy a reply of at most `limit` bytes, and a few more for its size to be seen as wrong, into a file."""
    left = limit + CHUNK
    while left > 0 and (block := reply.read(min(CHUNK, left))):
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise UserError(f"{file.name}: cannot be written ({error.strerror}); what came so far stays") from error
        left -= len(block)
        bar.update(len(block))
        interrupt.poll("what came so far stays; the same command goes on from there")


# --- unpacking --------------------------------------------------------------------------------------------------------


def unpack(archive: Archive, path: Path, data_dir: Path) -> None:
    """Write the task's files in the zip at `path` below `data_dir`, whole or not at all; all else in it is left.

    Names come from our own table, never from the zip, so none can lead elsewhere. Raises UserError for a damaged zip,
    one that lacks a file, and one that unpacks to more than text could.
    """
    budget = BOMB * archive.size
    try:
        with open_file(path) as packed, zipfile.ZipFile(packed) as opened:
            for name in archive.members:
                target = data_dir / name
                make_folder(target.parent)
                with opened.open(name) as member, atomic_write(target) as file:
                    budget -= copy_within(member, file, budget, path)
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]}") from error
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        raise UserError(f"{path}: is damaged ({error}); delete it and give the command again") from error


def copy_within(packed: IO[bytes], file: IO[bytes], budget: int, path: Path) -> int:
    """Copy one member of a zip; return its size. Raises UserError when that is above `budget`."""
    size = 0
    while block := packed.read(CHUNK):
        size += len(block)
        if size > budget:
            raise UserError(f"{path}: unpacks to more than {BOMB} times its size; it is not what it should be")
        file.write(block)
    return size


def place(path: Path, target: Path) -> None:
    """Copy a file that is no archive to `target`, whole or not at all."""
    make_folder(target.parent)
    with open_file(path) as source, atomic_write(target) as file:
        shutil.copyfileobj(source, file)


def assemble_mrpc(files: dict[str, Path], data_dir: Path) -> None:
    """Write MRPC's train, dev and test from Microsoft's two texts and the pairs of ids that GLUE took for dev."""
    ids = {tuple(line.split("\t")) for line in lines(files[DEV_IDS])}
    header, *rows = lines(files[TRAIN_TEXT])
    dev = [tuple(row.split("\t")[1:3]) in ids for row in rows]
    numbered = lines(files[TEST_TEXT])[1:]
    test = [f"{index}\t" + row.partition("\t")[2] for index, row in enumerate(numbered)]  # without their labels
    splits = {
        "train": [header, *(row for row, taken in zip(rows, dev, strict=True) if not taken)],
        "dev": [header, *(row for row, taken in zip(rows, dev, strict=True) if taken)],
        "test": ["index\t#1 ID\t#2 ID\t#1 String\t#2 String", *test],
    }
    make_folder(data_dir / "MRPC")
    for name, found in splits.items():
        with atomic_write(data_dir / "MRPC" / f"{name}.tsv") as file:
            file.write("".join(f"{line}\n" for line in found).encode())


def lines(path: Path) -> list[str]:
    """Return the lines of a text in UTF-8 without BOM and line ends, whatever these are."""
    text = read_bytes(path).decode("utf-8-sig", errors="strict")
    return [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
