"""The tables and the picture of our own results, against the files that they were made from."""

import json
import re
import runpy
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import stats

from tests.processes import ROOT
from tests.test_readme import blocks, called, parsed

TABLES = runpy.run_path(str(ROOT / "results/tables.py"))
MAPS = runpy.run_path(str(ROOT / "results/maps.py"))
README, PAGE = ((ROOT / name).read_text() for name in ("README.md", "results/README.md"))
TASKS = list(TABLES["TASKS"])
CHANGES = TABLES["CHANGES"]
FIVE = {"run-lad", *(f"switch-lad-{name}" for name in ("all", "sampled", "embeddings", "first", "random"))}
CHANGE_SEEDS = {run: 5 if run in FIVE else 4 for runs in CHANGES.values() for run in runs}
SEEDS = {"sst2": 5, "stsb": 5, "mrpc": 3}


def test_the_tables_are_those_of_the_files() -> None:
    assert TABLES["summary"]() in README
    for table in (
        *map(TABLES["methods"], TASKS),
        TABLES["tuning"](),
        *map(TABLES["changes"], CHANGES),
        TABLES["gates"](),
    ):
        assert table in PAGE


@pytest.mark.parametrize("task", TASKS)
def test_the_means_and_intervals_are_those_of_the_seeds(task: str) -> None:
    """What the report made of each seed's score, made anew: the same seeds of every method."""
    found, seeds = TABLES["read"](task), range(1, SEEDS[task] + 1)
    scores = {name: {seed["seed"]: seed["score"] for seed in group["seeds"]} for name, group in found["groups"].items()}
    assert set(scores) == set(TABLES["METHODS"])
    assert {tuple(sorted(each)) for each in scores.values()} == {tuple(seeds)}
    for name, each in scores.items():
        known = found["groups"][name]["mean"]
        values = np.array([each[seed] for seed in seeds])
        assert known["mean"] == pytest.approx(values.mean())
        assert known["sd"] == pytest.approx(values.std(ddof=1))
        if name != "logits only":
            apart = values - [scores["logits only"][seed] for seed in seeds]
            interval = stats.ttest_1samp(apart, 0).confidence_interval()
            assert found["comparisons"][name]["difference"]["interval"] == pytest.approx(list(interval))


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_of_the_same_seeds(name: str) -> None:
    """A file has each change over the same seeds, the first ones; differences are between runs of the same seed."""
    found = json.loads((ROOT / f"results/{name}.json").read_text())
    scores = {group["name"]: {seed["seed"]: seed["score"] for seed in group["seeds"]} for group in found["groups"]}
    names = {seed["experiment"]: seed["seed"] for group in found["groups"] for seed in group["seeds"]}
    assert names == {f"{run}-{seed}": seed for run in CHANGES[name] for seed in range(1, CHANGE_SEEDS[run] + 1)}
    base = scores[found["baseline"]]
    assert len(found["comparisons"]) == len(scores) - 1
    for one in found["comparisons"]:
        apart = [score - base[seed] for seed, score in scores[one["group"]].items()]
        interval = stats.ttest_1samp(apart, 0).confidence_interval()
        assert one["difference"]["interval"] == pytest.approx(list(interval))


def test_the_first_result_is_the_tables() -> None:
    sentence = (
        r"On SST-2, students .* reach ([\d.]+) % by BERT-PKD and ([\d.]+) by LAD, of its ([\d.]+); ([\d.]+) without"
    )
    said = re.search(sentence, " ".join(README.split()))
    found = TABLES["read"]("sst2")
    means = [found["groups"][name]["mean"]["mean"] for name in ("pkd", "lad", "labels only")]
    assert said.groups() == tuple(f"{score:.1f}" for score in (*means[:2], found["teachers"][0]["score"], means[2]))


def test_what_changes_cost_is_the_files() -> None:
    said = re.search(
        r"`--pad_loss masked` costs nothing that five seeds of SST-2 show; random embeddings cost ([\d.]+) points, "
        r"`--layer_map reverse` (\d+\.\d)\.",
        " ".join(README.split()),
    )
    costs, apart, verdict = [], {}, {}
    for name in CHANGES:
        found = TABLES["read"](name)
        for one in found["comparisons"].values():
            apart[one["group"]], verdict[one["group"]] = one["difference"]["difference"], TABLES["verdict"](one)
    assert verdict["lad pad_loss=all"] == "not distinguishable"
    for group in ("lad embedding_init=random", "pkd layer_map=reverse"):
        assert verdict[group] == "worse"
        costs.append(f"{-apart[group]:.1f}")
    assert list(said.groups()) == costs


def verdicts(name: str) -> dict[str, str]:
    """Return the verdict of every method that has a hidden loss."""
    found = TABLES["read"](name)["comparisons"]
    return {method: TABLES["verdict"](one) for method, one in found.items() if not method.endswith(" only")}


Condition = Callable[[str], bool]
SAID: dict[str, tuple[list[str], Condition]] = {  # sentences of README, and what makes them true, on which tasks
    "every hidden loss beats logits only on SST-2 and STS-B": (
        ["sst2", "stsb"],
        lambda task: set(verdicts(task).values()) == {"better"},
    ),
    "MRPC's three seeds cannot tell": (
        ["mrpc"],
        lambda task: set(verdicts(task).values()) == {"not distinguishable"},
    ),
    "none can be told from BERT-PKD": (
        TASKS,
        lambda task: set(verdicts(f"{task}-against-pkd").values()) == {"not distinguishable"},
    ),
}


@pytest.mark.parametrize("sentence", SAID)
def test_what_is_said_follows(sentence: str) -> None:
    assert sentence in " ".join(README.split())
    tasks, holds = SAID[sentence]
    assert all(map(holds, tasks))


def test_mu_100_is_never_far_from_the_best() -> None:
    found = re.search(r"mu 100 was at most ([\d.]+) points below the best", " ".join(README.split()))
    behind = []
    for task in TASKS:
        groups = json.loads((ROOT / f"results/{task}-tune.json").read_text())["groups"]
        score = {group["name"]: group["mean"]["mean"] for group in groups}
        for method in {name.partition(" mu=")[0] for name in score}:
            tried = [value for name, value in score.items() if name.startswith(f"{method} mu=")]
            assert len(tried) == 3
            behind.append(max(tried) - score[f"{method} mu=100"])
    assert float(found[1]) == round(max(behind), 1)


def test_the_commands_are_those_of_a_comparison(tmp_path: Path) -> None:
    """Per task a teacher, 6 methods x 3 mu, 8 methods x all seeds, a report; 11 changes and 2 reports: all parse."""
    [block] = blocks(ROOT / "results/README.md")
    block = block.replace("EXPERIMENT_DIR=data/compare", f"EXPERIMENT_DIR={tmp_path}")
    done = subprocess.run(["bash", "-ec", f"export PRINT=1\n{block}"], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    lines = done.stdout.splitlines()
    assert len(lines) == sum(1 + 18 + 8 * seeds + 1 for seeds in SEEDS.values()) + 11 * SEEDS["sst2"] + 2
    for words in called([shlex.split(command) for line in lines for command in line.split(" && ")]):
        parsed(words)


@pytest.mark.parametrize("name", MAPS["RUNS"])
def test_the_pictures_are_of_the_values(name: str) -> None:
    picture = Image.open(MAPS["target"](name))
    assert json.loads(picture.text["values"]) == json.loads(MAPS["values"](name).read_text())
    assert picture.size == MAPS["picture"](name).size
