"""The scripts end to end on a tiny BERT."""

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics
from transformers import BertConfig, BertModel, BertTokenizer

from fine_tune import evaluate
from fine_tune.core.errors import NotFinite, UserError
from tests import golden, tiny
from tests.interruptions import in_child
from tests.processes import ROOT, Process, arguments


def test_the_whole_way_in_real_processes(tmp_path: Path) -> None:
    root = tmp_path
    tiny.make_bert(root / "bert")
    tiny.make_qqp(root / "data")
    code, _, said = Process("run_fine_tune", **tiny.teacher_flags(root)).wait()
    assert code == 0, said
    assert "loss: " in said
    command = [sys.executable, "run_lad_distil.py", *arguments(**tiny.student_flags(root))]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in ("logits_loss: ", "hidden_loss: "):
        assert name in done.stderr
    run = root / "runs" / "student_bert_qqp"
    names = {f"{part}-{step}.pt" for part in ("model", "gate-1", "gate-2", "gate-3") for step in (2, 4, 6, 8)}
    assert {path.name for path in run.iterdir()} == names | {"config.json", "tokenizer"}

    flags = {"experiment": "student", "task": "qqp"} | tiny.paths(root)
    code, out, said = Process("run_fine_tune_eval", dataset="dev", ckpt=4, **flags).wait()
    assert code == 0, said
    lines = out.splitlines()
    assert lines[0].split() == ["step", "accuracy", "f1_score", "eval_loss"]
    assert [line.split()[0] for line in lines[1:5]] == ["majority", "4", "6", "8"]
    saved = json.loads((run / "eval-dev.json").read_text())
    assert [row["step"] for row in saved["checkpoints"]] == [4, 6, 8]
    for tag in ("accuracy", "f1_score", "eval_loss"):
        shown = tiny.curve(root / "runs", "student_bert_qqp/eval", f"qqp/dev/{tag}")
        assert shown == pytest.approx({row["step"]: row[tag] for row in saved["checkpoints"]}, rel=1e-6)

    code, _, said = Process("generate_test_prediction", dataset="test", ckpt=8, **flags).wait()
    assert code == 0, said
    rows = (run / "QQP.tsv").read_text().split("\n")
    assert rows[0] == "index\tprediction"
    assert [row.split("\t")[0] for row in rows[1:-1]] == [str(index) for index in range(7)]
    assert {row.split("\t")[1] for row in rows[1:-1]} <= {"0", "1"}


def test_evaluation_against_the_library(root: Path) -> None:
    """Accuracy, F1 and loss from transformers' own model, one padded example at a time, and scikit-learn."""
    tiny.run_script(
        "run_fine_tune_eval", experiment="teacher", task="qqp", dataset="dev", batch_size=4, **tiny.paths(root)
    )
    folder = root / "runs" / "teacher_bert_qqp"
    saved = json.loads((folder / "eval-dev.json").read_text())
    rows = [line.split("\t") for line in (root / "data/QQP/dev.tsv").read_text().splitlines()[1:]]
    tokenizer = BertTokenizer.from_pretrained(root / "bert")
    bert = BertModel(BertConfig.from_pretrained(root / "bert", attn_implementation="eager")).eval()
    for found in saved["checkpoints"]:
        weights = torch.load(folder / f"model-{found['step']}.pt", weights_only=True)
        bert.load_state_dict({k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")})
        logits = []
        for row in rows:
            inputs = tokenizer(
                row[3], row[4], truncation=True, max_length=16, padding="max_length", return_tensors="pt"
            )
            with torch.no_grad():
                pooled = bert(**inputs).pooler_output
            logits.append(pooled @ weights["linear_layer.weight"].T + weights["linear_layer.bias"])
        logits, labels = torch.cat(logits), [int(row[5]) for row in rows]
        guesses = logits.argmax(1).numpy()
        assert found["accuracy"] == pytest.approx(metrics.accuracy_score(labels, guesses))
        assert found["f1_score"] == pytest.approx(metrics.f1_score(labels, guesses))
        probabilities = torch.softmax(logits.double(), 1).numpy()
        assert found["eval_loss"] == pytest.approx(metrics.log_loss(labels, probabilities), rel=1e-4)


def test_evaluation_merges_by_step(root: Path) -> None:
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "dev"} | tiny.paths(root)
    tiny.run_script("run_fine_tune_eval", **flags, ckpt=4)
    path = root / "runs" / "teacher_bert_qqp" / "eval-dev.json"
    last = json.loads(path.read_text())["checkpoints"]
    tiny.run_script("run_fine_tune_eval", **flags)
    merged = json.loads(path.read_text())
    assert [row["step"] for row in merged["checkpoints"]] == [2, 4]
    assert merged["checkpoints"][1:] == last
    tiny.run_script("run_fine_tune_eval", **flags | {"dataset": "train", "batch_size": 3})
    assert path.with_name("eval-train.json").is_file()


def test_what_an_evaluation_leaves_for_the_report(root: Path, capsys: pytest.CaptureFixture) -> None:
    """The logits against scikit-learn and the table; nothing twice unless a weight, the data or the logits changed."""
    folder, data = root / "runs" / "teacher_bert_qqp", root / "data" / "QQP" / "dev.tsv"
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "dev"} | tiny.paths(root)

    def scored(*words: str) -> tuple[dict[str, Any], str, str]:
        tiny.run_script("run_fine_tune_eval", *words, **flags)
        out, err = capsys.readouterr()
        return json.loads((folder / "eval-dev.json").read_text()), out, err.partition("not scored again")[2]

    found, out, before = scored()
    assert before == ""
    labels = np.array([int(line.split("\t")[5]) for line in data.read_text().splitlines()[1:]])
    most = max(0, 1, key=list(labels).count)
    assert found["rows"] == len(labels)
    assert found["data_sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
    majority = {"accuracy": np.mean(labels == most), "f1_score": metrics.f1_score(labels, np.full_like(labels, most))}
    assert found["majority"] == pytest.approx(majority)
    assert found["finished"] is True
    for row in found["checkpoints"]:
        logits = np.load(folder / f"logits-dev-{row['step']}.npy")
        assert (logits.dtype, logits.shape) == (np.float32, (len(labels), 2))
        assert row["accuracy"] == metrics.accuracy_score(labels, logits.argmax(1))
        assert row["predicted"] == [int((logits.argmax(1) == label).sum()) for label in (0, 1)]
        assert row["sha256"] == hashlib.sha256((folder / f"model-{row['step']}.pt").read_bytes()).hexdigest()
        assert (row["device"], row["threads"]) == ("cpu", torch.get_num_threads())
    assert out.splitlines()[1].split() == ["majority", *(f"{value:.4f}" for value in majority.values()), "-"]

    again, out_again, before = scored()
    assert (again, out_again) == (found, out)  # seconds and all: nothing was computed
    assert ": step 2, 4\n" in before
    assert scored("--again")[2] == ""
    (folder / "logits-dev-2.npy").write_bytes(b"damaged")
    assert ": step 4\n" in scored()[2]
    weights = tiny.load(folder / "model-4.pt")
    weights["linear_layer.bias"] = torch.tensor([1e3, -1e3])
    torch.save(weights, folder / "model-4.pt")
    found, out, before = scored()
    assert ": step 2\n" in before
    assert found["checkpoints"][1]["predicted"] == [len(labels), 0]
    assert [line.endswith("every prediction is 0") for line in out.splitlines()] == [False, False, False, True, False]

    data.write_text(data.read_text().rpartition("\n")[0].rpartition("\n")[0] + "\n")
    (folder / "model-2.pt").unlink()  # its score was for the longer file
    changed, _, before = scored()
    assert before == ""
    assert changed["rows"] == len(labels) - 1
    assert [row["step"] for row in changed["checkpoints"]] == [4]


def test_an_evaluation_file_of_an_older_version_is_read(root: Path) -> None:
    """It has scores alone; a row whose checkpoint has gone stays."""
    path = root / "runs" / "teacher_bert_qqp" / "eval-dev.json"
    old = [{"step": step, "accuracy": 0.25, "f1_score": None, "eval_loss": 0.5} for step in (1, 2)]
    path.write_text(json.dumps({"checkpoints": old, "best": {}}))
    tiny.run_script("run_fine_tune_eval", experiment="teacher", task="qqp", dataset="dev", **tiny.paths(root))
    found = json.loads(path.read_text())
    assert found["checkpoints"][0] == old[0]
    assert [row.get("threads") for row in found["checkpoints"]] == [None, 1, 1]


def test_an_evaluation_beside_training_is_marked_unfinished(root: Path, capsys: pytest.CaptureFixture) -> None:
    """Until it is given again after the end: then nothing is scored, and the mark goes."""
    folder = root / "runs" / "teacher_bert_qqp"
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "dev"} | tiny.paths(root)
    (folder / "state.pt").touch()
    for finished in (False, True):
        tiny.run_script("run_fine_tune_eval", **flags)
        assert json.loads((folder / "eval-dev.json").read_text())["finished"] is finished
        assert ("unfinished" in capsys.readouterr().err) is not finished
        (folder / "state.pt").unlink(missing_ok=True)


def test_the_best_checkpoint_is_predicted_with(root: Path, capsys: pytest.CaptureFixture) -> None:
    folder = root / "runs" / "teacher_bert_qqp"
    flags = {"experiment": "teacher", "task": "qqp"} | tiny.paths(root)
    tiny.run_script("run_fine_tune_eval", dataset="dev", **flags)
    step = json.loads((folder / "eval-dev.json").read_text())["best"]["accuracy"]["step"]
    tiny.run_script("generate_test_prediction", dataset="dev", ckpt="best", **flags)
    assert f"--ckpt best: step {step}, accuracy " in capsys.readouterr().err
    chosen = (folder / "QQP-dev.tsv").read_text()
    tiny.run_script("generate_test_prediction", dataset="dev", ckpt=step, **flags)
    assert (folder / "QQP-dev.tsv").read_text() == chosen


def test_an_undefined_metric_is_null_in_the_file(tmp_path: Path) -> None:
    from fine_tune.evaluate import save_scores

    path = tmp_path / "eval-dev.json"
    save_scores(path, [{"step": 1, "pearson": math.nan, "eval_loss": 0.5}])
    save_scores(path, [{"step": 2, "pearson": 0.5, "eval_loss": 0.7}])
    text = path.read_text()
    assert "NaN" not in text
    assert json.loads(text) == {
        "checkpoints": [
            {"step": 1, "pearson": None, "eval_loss": 0.5},
            {"step": 2, "pearson": 0.5, "eval_loss": 0.7},
        ],
        "best": {"pearson": {"step": 2, "value": 0.5}, "eval_loss": {"step": 1, "value": 0.5}},
    }


def test_best_prefers_the_earliest_and_the_lowest_loss() -> None:
    from fine_tune.evaluate import best, table

    rows = [
        {"step": 1, "accuracy": 0.5, "pearson": math.nan, "eval_loss": 0.4},
        {"step": 2, "accuracy": 0.9, "pearson": math.nan, "eval_loss": 0.3},
        {"step": 3, "accuracy": 0.9, "pearson": math.nan, "eval_loss": 0.3},
    ]
    assert best(rows) == {"accuracy": {"step": 2, "value": 0.9}, "eval_loss": {"step": 2, "value": 0.3}}
    assert [line.count("*") for line in table(rows).splitlines()] == [0, 0, 2, 0, 1]


@pytest.mark.parametrize("name", golden.RUNS)
def test_every_method_trains_evaluates_and_predicts(root: Path, name: str) -> None:
    script, changes = golden.RUNS[name]
    tiny.run_script(script, **tiny.student_flags(root, **changes, total_step=3, ckpt_step=2, dropout=0.1))
    run = root / "runs" / "student_bert_qqp"
    parts = {path.name.rsplit("-", 1)[0] for path in run.glob("*-3.pt")}
    gates = {"lad": 3, "lad_no": 2, "partial_lad": 1, "lad_user_defined": 3, "lad_cls": 3}.get(name.split("-")[0], 0)
    first = 0 if name == "lad_no" else 1
    attention = {"attn-0", "attn-1"} if name.startswith("alp") else set()
    assert parts == {"model"} | attention | {f"gate-{index}" for index in range(first, first + gates)}
    for index in sorted(attention):
        weights = torch.load(run / f"{index}-3.pt", weights_only=True)
        assert weights.shape == (4,)
        assert weights.sum().item() == pytest.approx(1, rel=1e-5)
    tiny.run_script("run_fine_tune_eval", experiment="student", task="qqp", dataset="dev", **tiny.paths(root))
    flags = {"experiment": "student", "task": "qqp", "dataset": "dev", "ckpt": 3}
    tiny.run_script("generate_test_prediction", **flags, **tiny.paths(root))
    predicted = [line.split("\t")[1] for line in (run / "QQP-dev.tsv").read_text().splitlines()[1:]]
    labels = [line.split("\t")[5] for line in (root / "data/QQP/dev.tsv").read_text().splitlines()[1:]]
    accuracy = np.mean([a == b for a, b in zip(predicted, labels, strict=True)])
    assert json.loads((run / "eval-dev.json").read_text())["checkpoints"][-1]["accuracy"] == pytest.approx(accuracy)


def test_mu_0_trains_on_logits_alone(root: Path) -> None:
    tiny.run_script("run_lad_distil", **tiny.student_flags(root, mu=0))
    hidden = tiny.curve(root / "runs", "student_bert_qqp", "qqp/train/bert/hidden_loss")
    assert set(hidden.values()) == {0.0}


def spoilt(root: Path) -> Path:
    """Put nan into one weight of the teacher's first checkpoint; return its path."""
    path = root / "runs" / "teacher_bert_qqp" / "model-2.pt"
    weights = tiny.load(path)
    weights["linear_layer.weight"][0, 0] = math.nan
    torch.save(weights, path)
    return path


def test_a_checkpoint_that_is_not_finite_gives_no_score_and_no_prediction(root: Path) -> None:
    path = spoilt(root)
    before = snapshot(path.parent)
    flags = {"experiment": "teacher", "task": "qqp"} | tiny.paths(root)
    for script, more in (("run_fine_tune_eval", {"dataset": "dev"}), ("generate_test_prediction", {"dataset": "test"})):
        with pytest.raises(NotFinite, match=r"model-2.pt: .*linear_layer.weight holds numbers that are not finite"):
            tiny.run_script(script, **flags, **more, ckpt=2)
    assert snapshot(path.parent) == before
    with pytest.raises(NotFinite, match="model-2.pt: "):  # the teacher is named, no loss of a student
        tiny.run_script("run_pkd_distill", **tiny.student_flags(root, tckpt=2))


def test_logits_that_are_not_finite_are_no_result(root: Path) -> None:
    """Finite weights may still overflow."""
    path = root / "runs" / "teacher_bert_qqp" / "model-2.pt"
    weights = tiny.load(path)
    weights["linear_layer.weight"].fill_(3e38)
    torch.save(weights, path)
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "dev"} | tiny.paths(root)
    with pytest.raises(NotFinite, match="model-2.pt: gives logits that are not finite, so nothing is written"):
        tiny.run_script("run_fine_tune_eval", **flags)
    assert not (path.parent / "eval-dev.json").exists()


def test_a_checkpoint_that_goes_under_the_evaluation_is_left_out(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder, steps = root / "runs" / "teacher_bert_qqp", evaluate.checkpoint_steps

    def pruned(folder: Path) -> list[int]:
        found = steps(folder)
        (folder / "model-2.pt").unlink()
        return found

    monkeypatch.setattr(evaluate, "checkpoint_steps", pruned)
    tiny.run_script("run_fine_tune_eval", experiment="teacher", task="qqp", dataset="dev", **tiny.paths(root))
    assert f"note: {folder / 'model-2.pt'} has gone meanwhile and is left out" in capsys.readouterr().err
    assert [row["step"] for row in json.loads((folder / "eval-dev.json").read_text())["checkpoints"]] == [4]


def test_the_score_of_a_run_that_was_overwritten_meanwhile_is_not_recorded(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, predict = root / "runs" / "teacher_bert_qqp", evaluate.predict

    def slow(*args: Any) -> np.ndarray:
        logits = predict(*args)
        tiny.run_script("run_fine_tune", "--overwrite", **tiny.teacher_flags(root, seed=1))
        return logits

    monkeypatch.setattr(evaluate, "predict", slow)
    with pytest.raises(UserError, match="is another run by now, so step 2 is not recorded; give the command again"):
        tiny.run_script("run_fine_tune_eval", experiment="teacher", task="qqp", dataset="dev", **tiny.paths(root))
    assert not (folder / "eval-dev.json").exists()


def test_two_evaluations_at_once_lose_no_row(root: Path) -> None:
    """Each scores one checkpoint, and takes half a second between reading the file of scores and writing it."""
    folder = root / "runs" / "teacher_bert_qqp"
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "dev"} | tiny.paths(root)
    evaluate.save_scores(folder / "eval-dev.json", [{"step": 1, "accuracy": 0.5, "f1_score": 0.5, "eval_loss": 0.5}])
    read_evaluation = evaluate.read_evaluation

    def slow(path: Path) -> evaluate.Evaluation:
        content = read_evaluation(path)
        time.sleep(0.5)
        return content

    children = []
    for step in (2, 4):
        only = (evaluate, "checkpoint_steps", lambda folder, step=step: [step])
        action = lambda: tiny.run_script("run_fine_tune_eval", **flags)  # noqa: E731
        thread = threading.Thread(target=in_child, args=(action, only, (evaluate, "read_evaluation", slow)))
        thread.start()
        children.append(thread)
    for thread in children:
        thread.join()
    rows = json.loads((folder / "eval-dev.json").read_text())["checkpoints"]
    assert [row["step"] for row in rows] == [1, 2, 4]


# --- the same command twice, and mistakes -----------------------------------------------------------------------------


def snapshot(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_is_left_alone(fine_tuned: Path, capsys: pytest.CaptureFixture) -> None:
    before = snapshot(fine_tuned)
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(fine_tuned))
    assert "is finished (4 steps); nothing to do" in capsys.readouterr().err
    assert snapshot(fine_tuned) == before


def test_other_flags_under_the_same_name_are_refused(fine_tuned: Path) -> None:
    before = snapshot(fine_tuned)
    with pytest.raises(UserError, match=r"--lr was 0\.001, now 0\.5, --seed was 42, now 43; use another name"):
        tiny.run_script("run_fine_tune", **tiny.teacher_flags(fine_tuned, lr=0.5, seed=43, log_step=7))
    assert snapshot(fine_tuned) == before


def test_overwrite_moves_the_old_run_aside(root: Path) -> None:
    old = root / "runs" / "teacher_bert_qqp"
    weights = (old / "model-4.pt").read_bytes()
    tiny.run_script("run_fine_tune", "--overwrite", **tiny.teacher_flags(root, total_step=3))
    assert old.with_name("teacher_bert_qqp.old-1").joinpath("model-4.pt").read_bytes() == weights
    assert sorted(path.name for path in old.glob("model-*")) == ["model-2.pt", "model-3.pt"]
    assert set(tiny.curve(root / "runs", "teacher_bert_qqp", "qqp/train/loss")) == {1, 2, 3}


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_gpu_is_one_line(root: Path) -> None:
    before = snapshot(root)
    code, _, said = Process("run_lad_distil", **tiny.student_flags(root, device_id=0, tdevice_id=1)).wait()
    assert code == 2
    expected = "--tdevice_id 1: no such GPU; --device_id 0: no such GPU; --gate_device_id 0: no such GPU; this machine "
    assert said == f"run_lad_distil.py: error: {expected}has 0 GPUs; -1 is the CPU\n"
    assert snapshot(root) == before


@pytest.mark.parametrize(
    ("script", "changes", "expected"),
    [
        (
            "run_fine_tune_eval",
            {"experiment": "nobody", "dataset": "dev"},
            "--experiment: .*nobody_bert_qqp/config.json",
        ),
        (
            "run_fine_tune_eval",
            {"ckpt": 5, "dataset": "dev"},
            "--ckpt 5: .* holds no model-<step>.pt from that step on",
        ),
        ("generate_test_prediction", {"ckpt": 3, "dataset": "test"}, "--ckpt 3: .*model-3.pt does not exist"),
        ("run_fine_tune_eval", {"dataset": "test"}, "--dataset test: --task qqp has train, dev"),
    ],
)
def test_mistakes_in_evaluation(root: Path, script: str, changes: dict, expected: str) -> None:
    before = snapshot(root)
    with pytest.raises(UserError, match=expected):
        tiny.run_script(script, **{"experiment": "teacher", "task": "qqp"} | changes | tiny.paths(root))
    assert snapshot(root) == before


def test_a_broken_data_file_writes_nothing(root: Path) -> None:
    path = root / "data" / "QQP" / "train.tsv"
    path.write_text(path.read_text() + "1\t2\t3\n")
    before = snapshot(root)
    code, _, said = Process("run_lad_distil", **tiny.student_flags(root)).wait()
    assert code == 2
    expected = f"{path}:23: has 3 columns instead of 6, separated by TAB: text in 4, second text in 5, label in 6"
    assert said == f"run_lad_distil.py: error: {expected}\n"
    assert snapshot(root) == before
