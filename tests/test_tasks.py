"""Every GLUE task from its files to the file that is handed in, on a tiny BERT."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics

from fine_tune.cli import checks, flags, parser, runs
from fine_tune.cli.evaluations import scored
from fine_tune.core.errors import UserError
from fine_tune.data.tasks import TASKS
from fine_tune.training import checkpoint
from fine_tune.training.saved_run import load_run
from fine_tune.training.scoring import leaderboard_values, predict, scores
from tests import golden, tiny

# Written from GLUE's own files, not from tasks.py: (columns, text, pair, label, header) of a split.
USUAL = {"columns": 4, "text": 1, "pair": 2, "label": 3}
LABELLED = {
    "qqp": {"columns": 6, "text": 3, "pair": 4, "label": 5},
    "mnli": {"columns": 12, "text": 8, "pair": 9, "label": 11},
    "qnli": USUAL,
    "rte": USUAL,
    "mrpc": {"columns": 5, "text": 3, "pair": 4, "label": 0},
    "sst2": {"columns": 2, "text": 0, "pair": None, "label": 1},
    "cola": {"columns": 4, "text": 3, "pair": None, "label": 1},
    "stsb": {"columns": 10, "text": 7, "pair": 8, "label": 9},
    "wnli": USUAL,
}
UNLABELLED = {
    "qqp": (3, 1, 2),
    "mnli": (10, 8, 9),
    "qnli": (3, 1, 2),
    "rte": (3, 1, 2),
    "mrpc": (5, 3, 4),
    "sst2": (2, 1, None),
    "cola": (2, 1, None),
    "stsb": (9, 7, 8),
    "wnli": (3, 1, 2),
}
FOLDERS = dict(qqp="QQP", mnli="MNLI", qnli="QNLI", rte="RTE", mrpc="MRPC", sst2="SST-2", cola="CoLA", stsb="STS-B")
FOLDERS["wnli"] = "WNLI"
WORDS = {
    "mnli": ["entailment", "neutral", "contradiction"],
    "qnli": ["not_entailment", "entailment"],
    "rte": ["not_entailment", "entailment"],
}
UPLOADS = {task: {"test": f"{folder}.tsv"} for task, folder in FOLDERS.items()}
UPLOADS["mnli"] = {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv", "ax": "AX.tsv"}


def write(path: Path, columns: int, filled: dict[int | None, list[str]], header: bool = True) -> None:
    count = len(next(iter(filled.values())))
    lines = ["\t".join(["index", *["x"] * (columns - 1)])] if header else []
    for row in range(count):
        cells = [str(row)] + ["-"] * (columns - 1)
        for column, values in filled.items():
            if column is not None:
                cells[column] = values[row]
        lines.append("\t".join(cells))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def make_task(data: Path, task: str) -> None:
    """Write the files of a task with 12 examples for training, 9 of each dev split and 5 of each test split."""
    generator = random.Random(0)
    texts = lambda n: [" ".join(generator.choices(tiny.WORDS, k=6)) for _ in range(n)]  # noqa: E731
    names = WORDS.get(task, ["0", "1"])
    label = lambda n: [f"{generator.uniform(0, 5):.3f}" if task == "stsb" else names[i % len(names)] for i in range(n)]  # noqa: E731
    folder, layout = data / FOLDERS[task], LABELLED[task]
    devs = ["dev_matched", "dev_mismatched"] if task == "mnli" else ["dev"]
    for name in ["train", *devs]:
        n = 12 if name == "train" else 9
        shift = 4 if task == "mnli" and name != "train" else 0  # MNLI's dev files have 16 columns
        filled = {layout["text"]: texts(n), layout["pair"]: texts(n), layout["label"] + shift: label(n)}
        write(folder / f"{name}.tsv", layout["columns"] + shift, filled, header=task != "cola")
    columns, text, pair = UNLABELLED[task]
    for name in ["test_matched", "test_mismatched"] if task == "mnli" else ["test"]:
        write(folder / f"{name}.tsv", columns, {text: texts(5), pair: texts(5)})
    if task == "mnli":
        write(data / "AX" / "test.tsv", 3, {1: texts(5), 2: texts(5)})


@pytest.mark.parametrize("task", FOLDERS)
def test_a_task_from_its_files_to_the_leaderboard(fine_tuned: Path, tmp_path: Path, task: str) -> None:
    make_task(tmp_path / "data", task)
    num_class = {"mnli": 3, "stsb": 1}.get(task, 2)
    paths = {"data_dir": tmp_path / "data", "experiment_dir": tmp_path / "runs", "task": task}
    short = {"total_step": 2, "warmup_step": 1, "ckpt_step": 2}
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(fine_tuned, num_class=num_class, **paths, **short))
    tiny.run_script("run_lad_distil", **tiny.student_flags(fine_tuned, tckpt=2, **paths, **short))
    devs = ["dev_matched", "dev_mismatched"] if task == "mnli" else ["dev"]
    named = {"qqp": {"accuracy", "f1_score"}, "mrpc": {"accuracy", "f1_score"}, "cola": {"matthews"}}
    named["stsb"] = {"pearson", "spearman"}
    run = tmp_path / "runs" / f"student_bert_{task}"
    for dev in devs:
        tiny.run_script("run_fine_tune_eval", experiment="student", dataset=dev, **paths)
        [row] = json.loads((run / f"eval-{dev}.json").read_text())["checkpoints"]
        assert set(scored(row)) == {"eval_loss"} | named.get(task, {"accuracy"})
    for split, upload in UPLOADS[task].items():
        tiny.run_script("generate_test_prediction", experiment="student", dataset=split, ckpt=2, **paths)
        header, *rows = (run / upload).read_text().splitlines()
        assert header == "index\tprediction"
        assert [row.split("\t")[0] for row in rows] == list("01234")
        values = [row.split("\t")[1] for row in rows]
        if task == "stsb":
            assert all(re.fullmatch(r"[0-5]\.[0-9]{3}", value) for value in values)
        else:
            assert set(values) <= set(WORDS.get(task, ["0", "1"]))


@pytest.mark.parametrize("name", golden.RUNS)
def test_every_distiller_learns_scores(fine_tuned: Path, tmp_path: Path, name: str) -> None:
    """STS-B: logits_loss of the first step is hard * MSE to the scores + soft * MSE to the teacher's, nothing else."""
    make_task(tmp_path / "data", "stsb")
    paths = {"data_dir": tmp_path / "data", "experiment_dir": tmp_path / "runs", "task": "stsb"}
    short = {"total_step": 1, "warmup_step": 1, "ckpt_step": 1, "batch_size": 12}
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(fine_tuned, num_class=1, **paths, **short))
    script, changes = golden.RUNS[name]
    tiny.run_script(script, **tiny.student_flags(fine_tuned, tckpt=1, **paths, **short, dropout=0, **changes))
    found = tiny.curve(tmp_path / "runs", "student_bert_stsb", "stsb/train/bert/logits_loss")[1]
    logits = {}
    for run in ("teacher", "student"):
        logits[run] = predicted({"experiment": run, "dataset": "train", "ckpt": 1} | paths)
    rows = (tmp_path / "data/STS-B/train.tsv").read_text().splitlines()[1:]
    wanted = np.array([float(row.split("\t")[9]) for row in rows])
    hard, soft = np.mean((logits["student"] - wanted) ** 2), np.mean((logits["student"] - logits["teacher"]) ** 2)
    assert found == pytest.approx(0.3 * hard + 0.7 * soft, rel=1e-4)


def predicted(given: dict[str, object]) -> np.ndarray:
    """Return the raw outputs (n,) of a checkpoint, before they are clipped for the leaderboard."""
    words = [str(word) for flag, value in given.items() for word in (f"--{flag}", value)]
    ckpt = flags.Flag("ckpt", flags.integer(0), "")
    read = parser.parse("", flags.evaluation(ckpt), checks.PREDICTION, "", words)
    model, tokens = load_run(read)
    path = runs.own_folder(read) / f"model-{read.ckpt}.pt"
    checkpoint.load_weights(model, path)
    return predict(model, tokens, 4, path)[:, 0]


def test_metrics_are_the_librarys() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(50, 2).numpy(), np.arange(50) % 2
    guesses = logits.argmax(1)
    found = scores(TASKS["mrpc"], logits, labels)
    assert found["accuracy"] == pytest.approx((guesses == labels).mean())
    assert found["f1_score"] == pytest.approx(metrics.f1_score(labels, guesses))
    assert scores(TASKS["cola"], logits, labels)["matthews"] == pytest.approx(np.corrcoef(labels, guesses)[0, 1])
    values, wanted = torch.randn(50, 1).numpy(), np.linspace(0, 5, 50, dtype=np.float32)
    found = scores(TASKS["stsb"], values, wanted)
    assert found["pearson"] == pytest.approx(np.corrcoef(values[:, 0], wanted)[0, 1], rel=1e-5)
    ranks = stats.rankdata(values[:, 0]), stats.rankdata(wanted)
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1], rel=1e-5)
    assert found["eval_loss"] == pytest.approx(((values[:, 0] - wanted) ** 2).mean(), rel=1e-5)


def test_degenerate_predictions() -> None:
    constant, labels = np.tile(np.float32([1, 0]), (6, 1)), np.array([0, 1, 1, 0, 1, 0])
    assert scores(TASKS["cola"], constant, labels)["matthews"] == 0
    assert scores(TASKS["mrpc"], constant, labels)["f1_score"] == 0
    found = scores(TASKS["stsb"], np.ones((6, 1), np.float32), labels.astype(np.float32))
    assert np.isnan([found["pearson"], found["spearman"]]).all()


def test_what_is_handed_in() -> None:
    assert leaderboard_values(TASKS["stsb"], np.float32([[-1], [2.34567], [7]])) == ["0.000", "2.346", "5.000"]
    assert leaderboard_values(TASKS["mnli"], np.eye(3, dtype=np.float32)) == ["entailment", "neutral", "contradiction"]


def test_labels_in_another_order_are_refused(root: Path) -> None:
    path = root / "runs" / "teacher_bert_qqp" / "config.json"
    saved = json.loads(path.read_text())
    del saved["config_sha256"]
    unnamed = {name: value for name, value in saved.items() if name != "labels"}
    for spoilt in (saved | {"labels": ["1", "0"]}, unnamed | {"id2label": {"0": "1", "1": "0"}}):
        path.write_text(json.dumps(spoilt))
        with pytest.raises(UserError, match=r"--teacher_exp: .*config.json: has the labels 1, 0, but qqp has 0, 1"):
            tiny.run_script("run_lad_distil", **tiny.student_flags(root))
