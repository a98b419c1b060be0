"""The zip for the leaderboard, against the table of files and rows, which is written down here once more."""

import json
import random
import zipfile
from pathlib import Path

import pytest

from fine_tune import submission
from fine_tune.core.errors import UserError
from fine_tune.training import leaderboard
from tests import tiny

ELEVEN = {
    "AX.tsv": (1104, {"entailment", "neutral", "contradiction"}),
    "CoLA.tsv": (1063, {"0", "1"}),
    "MNLI-m.tsv": (9796, {"entailment", "neutral", "contradiction"}),
    "MNLI-mm.tsv": (9847, {"entailment", "neutral", "contradiction"}),
    "MRPC.tsv": (1725, {"0", "1"}),
    "QNLI.tsv": (5463, {"entailment", "not_entailment"}),
    "QQP.tsv": (390965, {"0", "1"}),
    "RTE.tsv": (3000, {"entailment", "not_entailment"}),
    "SST-2.tsv": (1821, {"0", "1"}),
    "STS-B.tsv": (1379, {"0.000"}),
    "WNLI.tsv": (146, {"0", "1"}),
}


def make_wnli(root: Path, test: int) -> None:
    """Write WNLI's files, with `test` rows in the test split."""
    generator = random.Random(0)
    folder = root / "data" / "WNLI"
    folder.mkdir(exist_ok=True)
    for name, count in (("train", 12), ("dev", 8), ("test", test)):
        texts = [" ".join(generator.choices(tiny.WORDS, k=4)) for _ in range(2 * count)]
        rows = [f"{i}\t{texts[2 * i]}\t{texts[2 * i + 1]}" + f"\t{i % 2}" * (name != "test") for i in range(count)]
        header = "index\tsentence1\tsentence2" + "\tlabel" * (name != "test")
        (folder / f"{name}.tsv").write_text("\n".join([header, *rows]) + "\n")


def submit(root: Path, out: Path, *runs: str) -> None:
    words = [str(word) for name, value in tiny.paths(root).items() for word in (f"--{name}", value)]
    submission.main(["--out", str(out), *runs, *words])


def refused(root: Path, out: Path, *runs: str) -> str:
    with pytest.raises(UserError) as error:
        submit(root, out, *runs)
    return str(error.value)


def test_eleven_files_with_their_rows(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_wnli(root, 146)
    given = {"task": "wnli", "experiment": "winograd"} | tiny.paths(root)
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(root) | given)
    tiny.run_script("run_fine_tune_eval", **given, dataset="dev")
    capsys.readouterr()
    submit(root, tmp_path / "a.zip", "winograd:best")
    said = capsys.readouterr()
    step = json.loads((root / "runs/winograd_bert_wnli/eval-dev.json").read_text())["best"]["accuracy"]["step"]
    assert f"WNLI.tsv        146 rows  winograd, step {step}" in said.out
    assert "note: qqp, mnli, qnli, rte, mrpc, sst2, cola, stsb: no run was given" in said.err
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert set(archive.namelist()) == set(ELEVEN)
        found = {name: archive.read(name).decode().splitlines() for name in ELEVEN}
    for name, (rows, values) in ELEVEN.items():
        header, *lines = found[name]
        assert header == "index\tprediction" and len(lines) == rows
        assert [line.split("\t")[0] for line in lines] == [str(index) for index in range(rows)]
        assert {line.split("\t")[1] for line in lines} <= values
        assert name == "WNLI.tsv" or f"{name:<11}{rows:>8} rows  placeholder" in said.out
    tiny.run_script("generate_test_prediction", **given, dataset="test", ckpt=step)
    assert (root / "runs/winograd_bert_wnli/WNLI.tsv").read_text().splitlines() == found["WNLI.tsv"]
    submit(root, tmp_path / "b.zip", f"winograd:{step}")
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "a.zip").read_bytes()
    # and what is refused
    assert "a.zip: exists already" in refused(root, tmp_path / "a.zip", "winograd:best")
    out = tmp_path / "c.zip"
    assert "wnli is winograd's already" in refused(root, out, "winograd:2", "winograd:4")
    assert "RUNS nobody: no folder nobody_bert_<task>" in refused(root, out, "nobody:4")
    assert "model-3.pt does not exist" in refused(root, out, "winograd:3")
    assert "RUNS 'winograd': must be a run and its checkpoint" in refused(root, out, "winograd")
    assert "RUNS: at least one is required" in refused(root, out)
    assert "must end in .zip" in refused(root, tmp_path / "c.tar", "winograd:4")
    # before anything is predicted
    monkeypatch.delattr(leaderboard, "predict")
    assert "c.zip: cannot be written" in refused(root, tmp_path / "nowhere" / "c.zip", "winograd:4")
    make_wnli(root, 145)
    assert "wnli test has 145 rows instead of the leaderboard's 146" in refused(root, out, "winograd:4")
    assert not out.exists()
