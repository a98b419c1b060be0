"""The report: on runs that were trained, and on made ones whose scores are known."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertModel

from fine_tune.core.errors import UserError
from fine_tune.models import bert
from fine_tune.models.cost import cost
from fine_tune.reporting.analysis import agreement
from fine_tune.reporting.collect import Run
from tests import made, tiny
from tests.processes import ROOT

LAD = {1: 0.9091, 2: 0.9104, 3: 0.9083, 4: 0.9095, 5: 0.9105}
PKD = {1: 0.9060, 2: 0.9071, 3: 0.9066, 4: 0.9049, 5: 0.9075}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with data and an evaluated teacher."""
    made.teacher(made.data(tmp_path))
    return tmp_path


@pytest.fixture
def printed(root: Path, capsys: pytest.CaptureFixture) -> Any:
    """Return a function that gives the report on runs in `root`: of form json the content, else what is printed."""

    def report(*words: str, form: str = "json", **flags: object) -> Any:
        tiny.run_script("fine_tune.report", *words, task="qqp", format=form, **flags, **tiny.paths(root))
        out = capsys.readouterr().out
        return json.loads(out) if form == "json" else out

    return report


def make(root: Path, name: str, scores: dict[int, float], **config: Any) -> None:
    """Write a run for each seed, with the score at step 8 and a worse one before."""
    for seed, score in scores.items():
        made.run(root, f"{name}_{seed}", {4: score - 0.1, 8: score}, seed=seed, **config)


def both(root: Path, lad: dict[int, float], pkd: dict[int, float]) -> None:
    make(root, "LAD", lad)
    make(root, "PKD", pkd, method="pkd")


def test_a_report_on_trained_runs(fine_tuned: Path, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    """Evaluation leaves all that it takes; sizes are those of the models, agreement that of the logits."""
    paths = {"data_dir": fine_tuned / "data", "experiment_dir": tmp_path / "runs"}
    shutil.copytree(fine_tuned / "runs" / "teacher_bert_qqp", tmp_path / "runs" / "teacher_bert_qqp")
    student = tiny.student_flags(fine_tuned, total_step=2, experiment="PKD", **paths)
    tiny.run_script("run_pkd_distill", **student)
    for experiment in ("teacher", "PKD"):
        tiny.run_script("run_fine_tune_eval", experiment=experiment, task="qqp", dataset="dev", **paths)
    capsys.readouterr()
    tiny.run_script("fine_tune.report", "*", "--measure", task="qqp", format="json", **paths)
    found = json.loads(capsys.readouterr().out)
    assert found["missing"] == found["warnings"] == []
    [group], [teacher] = found["groups"], found["teachers"]
    assert (group["name"], group["layers"], teacher["name"], teacher["step"]) == ("pkd", 2, "teacher", 4)
    folder = tmp_path / "runs" / "PKD_bert_qqp"
    own = np.load(folder / "logits-dev-2.npy").argmax(1)
    others = np.load(tmp_path / "runs/teacher_bert_qqp/logits-dev-4.npy").argmax(1)
    assert group["agreement"] == pytest.approx(100 * np.mean(own == others))
    saved = json.loads((folder / "eval-dev.json").read_text())
    assert group["mean"]["mean"] == pytest.approx(100 * saved["checkpoints"][0]["accuracy"])
    assert found["majority"] == pytest.approx(100 * saved["majority"]["accuracy"])
    weights = tiny.load(folder / "model-2.pt")
    assert group["cost"]["params"] == sum(weight.numel() for weight in weights.values())
    embeddings = sum(weight.numel() for name, weight in weights.items() if ".embeddings." in name)
    assert group["cost"]["params_without_embeddings"] == group["cost"]["params"] - embeddings
    assert set(group["milliseconds"]) == set(teacher["milliseconds"]) == {"1", "32"}
    assert "cpu, 1 thread, " in found["measured_on"]


@pytest.mark.parametrize(("layers", "gflops", "million"), [(12, 21.74, 109.48), (6, 10.87, 66.96)])
def test_the_cost_of_bert_base(layers: int, gflops: float, million: float) -> None:
    """Two operations for each of 12 D^2 weights of a layer and position; attention's two products by hand."""
    found = cost(bert.sizes(BertConfig(num_hidden_layers=layers)), 2, 128)
    assert found.gflops == pytest.approx(gflops, abs=0.005)
    assert found.attention_gflops == pytest.approx(layers * 2 * 2 * 128 * 128 * 768 / 1e9)
    assert found.params / 1e6 == pytest.approx(million, abs=0.005)


def test_a_gpu_that_is_not_there_is_said_first(tmp_path: Path) -> None:
    """Before the runs are looked for, of which there are none."""
    flags = {"task": "qqp", "device_id": 99} | tiny.paths(tmp_path)
    with pytest.raises(UserError, match="--device_id 99: no such GPU"):
        tiny.run_script("fine_tune.report", "*", "--measure", **flags)


def test_the_cost_is_what_torch_counts_in_the_library() -> None:
    sizes = {"vocab_size": 60, "hidden_size": 12, "num_hidden_layers": 3, "intermediate_size": 20}
    sizes |= {"max_position_embeddings": 40, "type_vocab_size": 2}
    config = BertConfig(**sizes, num_attention_heads=2, attn_implementation="eager")
    model = nn.ModuleDict({"bert": BertModel(config).eval(), "head": nn.Linear(12, 5)})
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model["head"](model["bert"](torch.ones(1, 30, dtype=torch.int64)).pooler_output)
    products = {str(name): count for name, count in counter.get_flop_counts()["Global"].items()}
    assert products.keys() == {"aten.addmm", "aten.bmm"}
    found = cost(sizes, 5, 30)
    assert found.gflops * 1e9 == pytest.approx(products["aten.addmm"])
    assert found.attention_gflops * 1e9 == pytest.approx(products["aten.bmm"])
    assert found.params == sum(parameter.numel() for parameter in model.parameters())
    embeddings = sum(parameter.numel() for parameter in model["bert"].embeddings.parameters())
    assert found.params_without_embeddings == found.params - embeddings


# --- groups and their numbers -----------------------------------------------------------------------------------------


def test_two_groups_against_scipy(root: Path, printed: Any) -> None:
    both(root, LAD, PKD)
    found = printed("LAD_*", "PKD_*", baseline="pkd")
    lad, pkd = found["groups"]
    a, b = (100 * np.array(list(scores.values())) for scores in (LAD, PKD))
    assert (lad["mean"]["mean"], lad["mean"]["sd"]) == pytest.approx((a.mean(), a.std(ddof=1)))
    assert lad["mean"]["interval"] == pytest.approx(list(stats.t.interval(0.95, 4, a.mean(), stats.sem(a))))
    assert (lad["to_teacher"], pkd["kept"]) == pytest.approx((a.mean() - 92, 100 * b.mean() / 92))
    known = stats.ttest_rel(a, b)
    [comparison] = found["comparisons"]
    assert comparison["difference"]["interval"] == pytest.approx(list(known.confidence_interval(0.95)))
    assert comparison["p_holm"] == pytest.approx(known.pvalue)
    assert (comparison["group"], comparison["verdict"]) == ("lad", "better")
    assert found["signature"] == "qqp/dev/accuracy|best2|n5|paired-t+holm|torch 2.13.0"
    assert found["warnings"] == found["missing"] == []
    assert {line["step"] for line in lad["seeds"]} == {8}
    assert printed("LAD_*", select="4")["groups"][0]["mean"]["mean"] == pytest.approx(a.mean() - 10)


def test_a_missing_seed_leaves_the_pairs_that_there_are(root: Path, printed: Any) -> None:
    both(root, LAD, {seed: PKD[seed] for seed in (1, 2, 4)})
    found = printed("*", baseline="pkd")
    known = stats.ttest_rel([100 * LAD[seed] for seed in (1, 2, 4)], [100 * PKD[seed] for seed in (1, 2, 4)])
    assert found["comparisons"][0]["difference"]["p"] == pytest.approx(known.pvalue)
    assert found["warnings"] == ["pkd has no run of seeds 3, 5"]
    text = printed("*", form="text", baseline="pkd")
    assert re.search(r"^pkd +90.60 +90.71 +- +90.49 +-$", text, re.MULTILINE)
    assert "3 of 3" in text


def test_few_seeds_promise_nothing(root: Path, printed: Any) -> None:
    """Two: both scores and no interval; what is not shown says how many seeds it would take."""
    both(root, {1: 0.91, 2: 0.90}, {1: 0.905, 2: 0.90})
    text = printed("*", form="text", baseline="pkd")
    assert re.search(r"^lad +2 +2 +91.00, 90.00 +-1.50 ", text, re.MULTILINE)
    assert "±" in text and "Welch" in text
    assert re.search(r"^lad: not distinguishable; about \d+ seeds would be needed; smallest", text, re.MULTILINE)


def test_two_single_runs_are_no_methods(root: Path, printed: Any) -> None:
    n = len(made.labels(root))
    right = {"LAD": list(range(9)), "PKD": [0, 1, *range(9, n)]}
    for name, method in (("LAD", "lad"), ("PKD", "pkd")):
        score = len(right[name]) / n
        made.run(root, name, {8: score}, {8: made.logits_with(root, right[name])}, method=method)
    [comparison] = printed("*", baseline="pkd")["comparisons"]
    p = stats.binomtest(7, 7 + n - 9, 0.5).pvalue
    assert comparison["mcnemar"] == [7, n - 9, pytest.approx(p)]
    assert comparison["verdict"] == "no test: one seed is no sample"
    text = " ".join(printed("*", form="text", baseline="pkd").split())
    assert f"7 examples only it gets right, {n - 9} only the baseline, exact McNemar p" in text
    assert "these two runs, not the methods" in text


def test_groups_are_called_by_their_flags_where_the_method_is_the_same(root: Path, printed: Any) -> None:
    make(root, "A", {1: 0.9, 2: 0.91}, mu=100.0)
    make(root, "B", {1: 0.9, 2: 0.91}, mu=500.0)
    make(root, "C", {1: 0.9}, method="alp", alp_exp="alp-kd-hidden", device_id=3, log_step=7)
    found = printed("*", baseline="lad mu=100")
    assert [group["name"] for group in found["groups"]] == ["alp-kd-hidden", "lad mu=100", "lad mu=500"]
    assert "lad mu=500 differs from lad mu=100 in more than the method: mu 500 (there 100)" in found["warnings"]
    with pytest.raises(UserError, match="--baseline lad: the groups are alp-kd-hidden, lad mu=100, lad mu=500"):
        printed("*", baseline="lad")


def test_of_single_changes_a_group_is_called_by_its_own(root: Path, printed: Any) -> None:
    """What most groups have goes without saying; of two values one each, neither does."""
    plain = {"mu": 100.0, "pad_loss": "masked"}
    make(root, "A", {1: 0.9}, **plain)
    make(root, "B", {1: 0.9}, **plain | {"mu": 10.0})
    make(root, "C", {1: 0.9}, **plain | {"pad_loss": "all"})
    names = [group["name"] for group in printed("*")["groups"]]
    assert names == ["lad", "lad mu=10", "lad pad_loss=all"]
    names = [group["name"] for group in printed("B_*", "C_*")["groups"]]
    assert names == ["lad mu=10 pad_loss=masked", "lad mu=100 pad_loss=all"]


def test_no_group_takes_the_place_of_another(root: Path, printed: Any) -> None:
    """Two pre-trained BERTs of one name, which no flag tells apart, and two values of mu: four groups."""
    for name, mu, weights in (("A", 10.0, "x"), ("B", 10.0, "y"), ("C", 100.0, "x"), ("D", 100.0, "y")):
        make(root, name, {1: 0.9, 2: 0.8}, mu=mu, ptrain_sha256=weights)
    names = [group["name"] for group in printed("*")["groups"]]
    assert names == ["lad mu=10 (A_1)", "lad mu=10 (B_1)", "lad mu=100 (C_1)", "lad mu=100 (D_1)"]
    assert [group["name"] for group in printed("A_**", "C**")["groups"]] == ["lad mu=10", "lad mu=100"]


def test_the_same_run_twice_is_one_sample(root: Path, printed: Any) -> None:
    make(root, "LAD", {1: 0.9})
    made.run(root, "copy", {4: 0.8, 8: 0.9}, seed=1)
    found = printed("LAD_1", "copy")
    assert found["groups"][0]["mean"]["n"] == 1
    assert found["warnings"] == ["copy repeats LAD_1, seed and all, and is left out"]


def test_agreement_of_scores_is_their_correlation() -> None:
    rng = np.random.default_rng(0)
    own, other = (rng.normal(size=(20, 1)).astype(np.float32) for _ in range(2))
    config = Namespace(kind="student", num_class=1)
    run, teacher, silent = (Run("run", config, 8, 90.0, 1, {}, logits) for logits in (own, other, None))
    assert agreement(run, teacher) == pytest.approx(100 * np.corrcoef(own[:, 0], other[:, 0])[0, 1], rel=1e-4)
    assert agreement(run, silent) is agreement(run, None) is None


# --- what is missing or unfair ----------------------------------------------------------------------------------------


def test_what_is_missing_is_named_with_its_cure(root: Path, printed: Any) -> None:
    both(root, LAD, PKD)
    folders = {seed: root / "runs" / f"LAD_{seed}_bert_qqp" for seed in LAD}
    (folders[1] / "eval-dev.json").unlink()
    (folders[2] / "state.pt").touch()
    (folders[2] / "model-8.pt").unlink()
    for seed, changes in ((2, {"checkpoints": [{"step": 4, "accuracy": 0.8}]}), (3, {"finished": False})):
        path = folders[seed] / "eval-dev.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    (folders[4] / "logits-dev-8.npy").unlink()
    (folders[5] / "model-6.pt").touch()
    (root / "runs/teacher_bert_qqp/eval-dev.json").unlink()
    found = printed("*")

    def cure(name: str) -> str:
        paths = f"--data_dir {root / 'data'} --experiment_dir {root / 'runs'}"
        return f"python run_fine_tune_eval.py --experiment {name} --task qqp --dataset dev {paths}"

    assert sorted(found["missing"]) == [
        f"lad seed 1 (LAD_1) has no eval-dev.json: {cure('LAD_1')}",
        "lad seed 2 (LAD_2) is unfinished, at step 4 of 8, and left out: give its training command again",
        f"lad seed 3 (LAD_3) was evaluated before its end: {cure('LAD_3')}",
        f"lad seed 4 (LAD_4) has no logits of step 8: {cure('LAD_4')}",
        f"lad seed 5 (LAD_5) has checkpoints without a score, 6: {cure('LAD_5')}",
        f"teacher teacher has no score of step 4: {cure('teacher')}",
    ]
    assert [line["seed"] for line in found["groups"][0]["seeds"]] == [4, 5]
    assert "to teacher" not in printed("*", form="text")


def test_an_undefined_score_is_left_out_and_said(root: Path, printed: Any) -> None:
    make(root, "LAD", {1: 0.9, 2: 0.91})
    made.run(root, "LAD_3", {4: None, 8: None}, seed=3)
    found = printed("*")
    assert [line["seed"] for line in found["groups"][0]["seeds"]] == [1, 2]
    [line] = found["missing"]
    assert line.startswith("lad seed 3 (LAD_3): accuracy is not defined (constant predictions), so it is left out")


def test_more_checkpoints_to_choose_from_are_warned_of(root: Path, printed: Any) -> None:
    make(root, "LAD", {1: 0.9})
    made.run(root, "PKD", {2: 0.7, 4: 0.8, 8: 0.9}, seed=1, method="pkd")
    [warning] = printed("*")["warnings"]
    assert warning.startswith("best of 3 checkpoints against best of 2")
    assert printed("*", select="last")["warnings"] == []


@pytest.mark.parametrize(
    ("config", "facts", "expected"),
    [
        (
            {"teacher_sha256": "other", "tckpt": 6},
            {},
            "the runs had different teachers (teacher step 4, teacher step 6)",
        ),
        ({"data_sha256": "other"}, {}, "the runs were trained on different data (PKD_1, LAD_1)"),
        ({}, {"data_sha256": "other"}, "the runs were evaluated on different data (PKD_1, LAD_1)"),
    ],
    ids=["teacher", "training data", "evaluated data"],
)
def test_unfair_comparisons_are_refused(root: Path, printed: Any, config: dict, facts: dict, expected: str) -> None:
    make(root, "LAD", {1: 0.9})
    made.run(root, "PKD_1", {4: 0.8, 8: 0.9}, facts=facts, seed=1, method="pkd", **config)
    with pytest.raises(UserError) as refused:
        printed("LAD*", "PKD*")
    assert str(refused.value) == f"{expected}: no fair comparison; --anyway makes it"
    assert expected in printed("LAD*", "PKD*", "--anyway")["warnings"]


def test_evaluations_of_older_versions_give_what_they_can(root: Path, printed: Any) -> None:
    make(root, "LAD", {1: 0.9, 2: 0.91, 3: 0.92})
    for path in (root / "runs").glob("*/eval-dev.json"):
        path.write_text(json.dumps({"checkpoints": json.loads(path.read_text())["checkpoints"], "best": {}}))
    for path in (root / "runs").glob("*/logits-*"):
        path.unlink()
    found = printed("*")
    assert found["groups"][0]["mean"]["mean"] == pytest.approx(91)
    assert found["groups"][0]["to_teacher"] == pytest.approx(-1)
    assert found["majority"] is found["groups"][0]["agreement"] is found["groups"][0]["to_teacher_interval"] is None


# --- formats ----------------------------------------------------------------------------------------------------------


def test_every_format_says_the_same(root: Path, printed: Any) -> None:
    both(root, LAD, PKD)
    mean = "90.96 ± 0.09"
    shown = {form: printed("*", form=form, baseline="pkd") for form in ("text", "markdown", "latex", "csv")}
    assert mean in shown["text"] and f"| {mean} |" in shown["markdown"] and "90.96 $\\pm$ 0.09" in shown["latex"]
    assert max(map(len, shown["text"].splitlines())) <= 100
    for block in re.findall(r"(?:^\|.*\n)+", shown["markdown"], re.MULTILINE):
        assert len({line.count("|") for line in block.splitlines()}) == 1
    body = [line for line in shown["latex"].splitlines() if line[:1] != "%"]
    assert len({line.count(" & ") for line in body if line.endswith("\\\\")}) == 1
    assert not re.search(r"(?<!\\)[_%#]", "\n".join(body))
    rows = list(csv.DictReader(io.StringIO(shown["csv"])))
    assert [float(row["score"]) for row in rows if row["group"] == "pkd"] == pytest.approx(
        [100 * s for s in PKD.values()]
    )
    assert [row["experiment"] for row in rows if row["group"] == "teacher"] == ["teacher"]


@pytest.mark.parametrize(
    ("words", "flags", "expected"),
    [
        (["LADY*"], {}, r"EXPERIMENT LADY\*: there is no run .*LADY\*_bert_qqp \(check"),
        (["*"], {"metric": "matthews"}, "--metric matthews: --task qqp has accuracy, f1_score"),
        (["*"], {"dataset": "test"}, r"--dataset test: --task qqp has train, dev \(with labels\)"),
        (["*"], {"plot": "x.gif"}, "--plot .*x.gif: must end in .png, .pdf or .svg"),
        (["*"], {"plot": "x.png"}, "--plot .*x.png: needs matplotlib: pip install matplotlib"),
        (["*"], {"select": "7"}, r"no run is left to report: .* has no score of step 7, only of 4, 8"),
    ],
)
def test_mistakes(
    root: Path, printed: Any, monkeypatch: pytest.MonkeyPatch, words: list[str], flags: dict, expected: str
) -> None:
    make(root, "LAD", {1: 0.9})
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=expected):
        printed(*words, **flags)


def test_a_picture(root: Path, printed: Any) -> None:
    pytest.importorskip("matplotlib")
    both(root, LAD, PKD)
    printed("*", plot=root / "figure.png")
    assert (root / "figure.png").read_bytes().startswith(b"\x89PNG")


def imports_of(*words: object) -> tuple[str, set[str]]:
    """Return what a report in a process of its own prints, and the packages that it imports."""
    command = [sys.executable, "-X", "importtime", "-m", "fine_tune.report", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "fine_tune" in imported
    return done.stdout, imported


def test_the_help_comes_without_a_package() -> None:
    out, imported = imports_of("-h")
    assert out.startswith("usage: python -m fine_tune.report EXPERIMENT [...] --task TASK [more flags]\n")
    assert not imported & {"torch", "numpy", "scipy", "transformers"}


def test_a_report_comes_without_torch(root: Path) -> None:
    """Torch takes longer to import than all of a report's numbers."""
    both(root, LAD, PKD)
    paths = [word for name, value in tiny.paths(root).items() for word in (f"--{name}", value)]
    out, imported = imports_of("*", "--task", "qqp", *paths)
    assert "GFLOPs" in out
    assert not imported & {"torch", "transformers"}
