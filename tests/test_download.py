"""Downloads from a server on this machine, with archives made on the spot."""

import hashlib
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from fine_tune import download
from fine_tune.core.errors import UserError
from fine_tune.data import archives
from fine_tune.data.archives import Archive
from fine_tune.data.tasks import TASKS

GOOD = {
    "RTE/train.tsv": "index\ts1\ts2\tlabel\n0\ta\tb\tentailment\n1\tc\td\tnot_entailment\n",
    "RTE/dev.tsv": "index\ts1\ts2\tlabel\n0\ta\tb\tentailment\n",
    "RTE/test.tsv": "index\ts1\ts2\n0\ta\tb\n",
}


class Server:
    """Serves `files` by name; `cut` is after how many bytes of a reply the connection breaks off, once."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut: int | None = None
        self.knows_ranges = True
        self.asked: list[str | None] = []
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:  # noqa: N802, http.server's name
                served.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/glue"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Send a file, or what of it the Range header asks for."""
        content = self.files.get(request.path.rpartition("/")[2])
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        if content is None:
            request.send_error(404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and self.knows_ranges else 0
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        end, self.cut = (len(content) if self.cut is None else self.cut), None
        request.wfile.write(content[start:end])


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.http.shutdown()
    made.http.server_close()


def zipped(files: dict[str, str | bytes]) -> bytes:
    """Return a zip of `files`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def known(monkeypatch: pytest.MonkeyPatch, content: bytes, rows: tuple[int, int, int] = (2, 1, 1)) -> None:
    """Write RTE.zip of this content, with these rows, into the table of what is known."""
    [real] = archives.ARCHIVES["rte"]
    made = Archive(real.name, len(content), hashlib.sha256(content).hexdigest(), real.members)
    monkeypatch.setitem(archives.ARCHIVES, "rte", (made,))
    monkeypatch.setitem(archives.ROWS, "rte", dict(zip(("train", "dev", "test"), rows, strict=True)))


def get(data: Path, source: object, task: str = "rte", *more: str) -> None:
    download.main(["--task", task, "--data_dir", str(data), "--from", str(source), *more])


def refused(data: Path, source: object, task: str = "rte") -> str:
    with pytest.raises(UserError) as error:
        get(data, source, task)
    assert error.value.exit_code == 2
    return str(error.value)


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_what_was_cut_off_goes_on(
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    knows_ranges: bool,
) -> None:
    content = zipped(GOOD)
    known(monkeypatch, content)
    server.files["RTE.zip"], server.cut, server.knows_ranges = content, len(content) // 2, knows_ranges
    assert f"ended after {len(content) // 2} bytes; the same command goes on" in refused(tmp_path, server.url)
    assert not (tmp_path / "RTE").exists()
    get(tmp_path, server.url)
    assert server.asked == [None, f"bytes={len(content) // 2}-"]
    for name, text in GOOD.items():
        assert (tmp_path / name).read_text() == text
    said = capsys.readouterr()
    assert re.findall(r"rte +(\w+) +(\d) rows", said.out) == [("train", "2"), ("dev", "1"), ("test", "1")]
    assert said.err.count("its makers' terms") == 1
    assert [path.name for path in (tmp_path / "download").iterdir()] == [".RTE.zip.lock"]  # nothing is kept twice
    get(tmp_path, server.url)
    assert len(server.asked) == 2 and "rte is there already" in capsys.readouterr().err


def test_only_the_known_file_is_unpacked(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zipped(GOOD)
    known(monkeypatch, content)
    spoilt = bytearray(content)
    spoilt[len(content) // 2] ^= 1
    server.files["RTE.zip"] = bytes(spoilt)
    assert re.search(r"RTE.zip.part has the SHA-256 \w{64} instead of", refused(tmp_path, server.url))
    server.files["RTE.zip"] = content + b"more"
    assert f"has {len(content) + 4} bytes instead of {len(content)}" in refused(tmp_path, server.url)
    server.files.clear()
    assert "the server says 404 Not Found; by hand: get it with a browser" in refused(tmp_path, server.url)
    (tmp_path / "RTE.zip").write_bytes(spoilt)
    assert "--from: " in refused(tmp_path, tmp_path / "RTE.zip")
    assert (tmp_path / "RTE.zip").exists()  # the user's own file stays
    (tmp_path / "RTE.zip").write_bytes(content)
    assert not (tmp_path / "RTE").exists()
    get(tmp_path, tmp_path)  # a folder that holds it
    assert (tmp_path / "RTE/dev.tsv").read_text() == GOOD["RTE/dev.tsv"]
    (tmp_path / "RTE/dev.tsv").write_text(GOOD["RTE/dev.tsv"] * 2)
    with pytest.raises(UserError, match="dev.tsv:3: label 'label' is not one of"):
        get(tmp_path, tmp_path, "rte", "--check")


def test_a_zip_writes_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "inside" / "data", tmp_path / "inside"
    evil = {"../x": "1", str(tmp_path / "inside" / "y"): "2", "RTE/../../z": "3", "RTE/other.tsv": "4"}
    content = zipped(GOOD | evil)
    known(monkeypatch, content)
    (tmp_path / "RTE.zip").write_bytes(content)
    get(inside, tmp_path / "RTE.zip")
    assert sorted(path.name for path in outside.rglob("*") if path.is_file()) == ["dev.tsv", "test.tsv", "train.tsv"]


@pytest.mark.parametrize(
    "files, message",
    [
        (GOOD | {"RTE/dev.tsv": b"\0" * 10_000_000}, "unpacks to more than 20 times its size"),
        ({"RTE/train.tsv": "x"}, "There is no item named 'RTE/dev.tsv'"),
    ],
)
def test_a_zip_that_is_not_what_it_should_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str | bytes], message: str
) -> None:
    content = zipped(files)
    known(monkeypatch, content)
    (tmp_path / "RTE.zip").write_bytes(content)
    assert message in refused(tmp_path, tmp_path / "RTE.zip")
    assert not (tmp_path / "RTE/dev.tsv").exists()


def test_a_dead_address_and_a_full_disk(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zipped(GOOD)
    known(monkeypatch, content)
    server.files["RTE.zip"] = content
    (tmp_path / "download").mkdir()
    (tmp_path / "download" / "RTE.zip.part").symlink_to("/dev/full")
    assert "cannot be written (No space left on device)" in refused(tmp_path, server.url)
    server.http.shutdown()
    server.http.server_close()
    assert re.search(r"cannot be had \(.*refused.*\); by hand: get it", refused(tmp_path, server.url))
    assert "unknown url type" in refused(tmp_path, "gopherus://x")
    assert "--from .*nothing: no such file".replace(".*", f"{tmp_path}/") in refused(tmp_path, tmp_path / "nothing")
    assert "is one file, but more are needed" in refused(tmp_path, __file__, "mrpc")


def test_mrpc_is_train_without_the_dev_ids(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """4076 rows of Microsoft's, 408 of them dev: the counts of the table that is checked."""
    header = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    rows = [f'{number % 2}\t{number}\t{number + 9000}\ttext "{number}\tother {number}\r\n' for number in range(4076)]
    taken = rows[::7][:408]
    content = {
        archives.TRAIN_TEXT: header + "".join(rows),
        archives.TEST_TEXT: header + "".join(rows[:1725]),
        archives.DEV_IDS: "".join("\t".join(row.split("\t")[1:3]) + "\n" for row in taken),
    }
    files = {name: text.encode() for name, text in content.items()}
    server.files |= files
    table = [
        Archive(each.name, len(files[each.name]), hashlib.sha256(files[each.name]).hexdigest())
        for each in archives.ARCHIVES["mrpc"]
    ]
    monkeypatch.setitem(archives.ARCHIVES, "mrpc", tuple(table))
    get(tmp_path, server.url, "mrpc")
    found = {split: (tmp_path / "MRPC" / f"{split}.tsv").read_text().splitlines() for split in ("train", "dev", "test")}
    assert {split: len(lines) - 1 for split, lines in found.items()} == {"train": 3668, "dev": 408, "test": 1725}
    assert found["dev"][1:] == [row.rstrip() for row in taken]
    assert sorted(found["train"][1:] + found["dev"][1:]) == sorted(row.rstrip() for row in rows)
    assert found["test"][2] == '1\t1\t9001\ttext "1\tother 1'


def test_the_table_has_every_task_and_split() -> None:
    assert archives.ARCHIVES.keys() == archives.ROWS.keys() == TASKS.keys()
    for task, spec in TASKS.items():
        assert archives.ROWS[task].keys() == spec.splits.keys()
        members = {name for archive in archives.ARCHIVES[task] for name in archive.members}
        files = {split.files[0] for name, split in spec.splits.items() if name != "ax"}
        assert task == "mrpc" or members == files
        assert all(re.fullmatch("[0-9a-f]{64}", archive.sha256) for archive in archives.ARCHIVES[task])


def test_tasks_may_be_named_several_times(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        download.main(["--task", "rte", "--check", "--task", "wnli", "--data_dir", str(tmp_path)])
    assert "RTE/train.tsv is missing" in str(error.value) and "WNLI/test.tsv is missing" in str(error.value)
    with pytest.raises(UserError, match="--task 'rte,xyz': must be all, or one of qqp"):
        download.main(["--task", "rte", "--task", "xyz"])


@pytest.mark.parametrize("task", ["rte", "mrpc", "sst2", "stsb"])
def test_real_files_have_the_rows_of_the_table(task: str) -> None:
    data = Path(__file__).parents[2] / "shared" / "data"
    if not data.is_dir():
        pytest.skip("the real data is not here")
    download.main(["--task", task, "--check", "--data_dir", str(data)])
