"""scripts/compare.sh: the lines that it prints, carried out in order, are the whole comparison."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from tests.processes import ROOT

GROUPS = {  # what the report calls the methods
    "labels": "labels only",
    "logits": "logits only",
} | {name: name for name in "pkd alp-kd-hidden alp-kd-hidden-v2 lad_no partial_lad lad".split()}
METHODS = list(GROUPS)
SWITCHES = {name: ("pkd", "layer_map", name) for name in ("last", "reverse", "top")}
SWITCHES |= {name: ("lad", "gate_lr", name) for name in ("1e-5", "1e-4", "1e-3")}
SWITCHES |= {"embeddings": ("lad", "embedding_init", "random")}
SWITCHES |= {name: ("lad", "student_init", name) for name in ("first", "random")}
SWITCHES |= {name: ("lad", "pad_loss", name) for name in ("sampled", "all")}


def lines(root: Path, *stage: str, **variables: object) -> list[str]:
    """Return what the script would do, a line for each run, on the bundled sample with a tiny BERT."""
    chosen = {"TASK": "qqp", "DATA_DIR": ROOT / "data/sample", "EXPERIMENT_DIR": root / "runs", "DEVICE": -1}
    chosen |= {"PTRAIN_VER": root / "bert", "MAX_SEQ_LEN": 16, "LAYERS": 2, "PARTIAL": 2, "SEEDS": "1 2"}
    chosen |= {"TEACHER_STEPS": 10, "STEPS": 10, "LR": 3e-2, "FLAGS": "--weak_teacher"} | variables
    environment = {"PRINT": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MUS": "1 1000"}
    environment |= {name: str(value) for name, value in chosen.items()}
    done = subprocess.run(
        ["bash", "scripts/compare.sh", *stage],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0
    return done.stdout.splitlines()


def carry_out(line: str) -> None:
    """Call the scripts of a line in this process."""
    for command in line.split(" && "):
        python, *words = shlex.split(command)
        assert python == "python"
        if words[0] == "-m":
            tiny.run_script(*words[1:])
        else:
            tiny.run_script(words[0].removesuffix(".py"), *words[1:])


def test_its_lines_are_the_comparison(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Of two seeds the first is trained; the second's lines say the same with another number. Folders have blanks."""
    tmp_path /= "two words"
    tmp_path.mkdir()
    tiny.make_bert(tmp_path / "bert")
    carry_out(*lines(tmp_path, "teacher"))
    assert lines(tmp_path, "teacher") == []  # done
    tuned = lines(tmp_path, "tune")
    assert len(tuned) == 2 * len(METHODS[2:])
    for line in tuned:
        if "-pkd-" in line or "-lad-" in line:
            carry_out(line)

    best = dict.fromkeys(METHODS, {"1"}) | {"labels": {"0"}, "logits": {"0"}}  # 1: what is not tuned takes the first
    for method in ("pkd", "lad"):
        found = (tmp_path / "runs").glob(f"tune-{method}-mu*/eval-dev.json")
        scores = {path.parent.name: json.loads(path.read_text())["checkpoints"][0]["accuracy"] for path in found}
        assert len(scores) == 2
        winners = [name for name, score in scores.items() if score == max(scores.values())]
        best[method] = {re.search(r"-mu(\d+)_", name)[1] for name in winners}
    assert any(mus == {"1000"} for mus in best.values())  # the second: not just any
    runs = lines(tmp_path, "runs")
    assert len(runs) == 2 * len(METHODS)
    for method, first, second in zip(METHODS, runs, runs[len(METHODS) :], strict=False):
        assert re.search(r" --mu (\d+) ", first)[1] in best[method]
        assert second == first.replace(f"{method}-1 ", f"{method}-2 ").replace("--seed 1 ", "--seed 2 ")
        carry_out(first)
    assert lines(tmp_path, "runs") == runs[len(METHODS) :]

    capsys.readouterr()
    carry_out(lines(tmp_path, "report")[0] + " --format json")
    found = json.loads(capsys.readouterr().out)
    assert {group["name"].partition(" mu=")[0] for group in found["groups"]} == set(GROUPS.values())
    assert len(found["comparisons"]) == len(METHODS) - 1

    for line in lines(tmp_path, "switches"):
        if re.search("--experiment switch-(lad-all|lad-1e-3|pkd-top)-1 ", line):
            carry_out(line)
    capsys.readouterr()
    for line, changed in zip(lines(tmp_path, "effects"), ("gate_lr=0.001", "layer_map=top"), strict=True):
        carry_out(line + " --format json")
        found = json.loads(capsys.readouterr().out)
        assert any(changed in one["group"] for one in found["comparisons"])


def test_a_method_that_it_does_not_know_is_named(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(AssertionError):
        lines(tmp_path, "tune", METHODS="lad lap")
    assert capfd.readouterr() == ("", "METHODS: lap is not known here\n")


def test_a_mu_that_nobody_chose_is_said(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """A user who gives one mu chose it."""
    runs = lines(tmp_path, "runs")
    assert [line.split()[0] for line in capfd.readouterr().err.splitlines()] == [f"{name}:" for name in METHODS[2:]]
    assert lines(tmp_path, "runs", MUS="1") == runs
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("cache", ["", "7"])
def test_what_the_teacher_says_is_kept_as_wanted(cache: str, tmp_path: Path) -> None:
    """Not for runs that read every position: those would be too much to keep."""
    for line in [*lines(tmp_path, "runs", CACHE=cache), *lines(tmp_path, "switches", CACHE=cache)]:
        words = flags_of(line)
        kept = cache and words["pad_loss"] == "masked"
        assert [words.get(name) for name in ("cache_teacher", "cache_limit")] == (["", cache] if kept else [None, None])


def test_each_switch_is_one_change(tmp_path: Path) -> None:
    plain = {words["experiment"]: words for words in map(flags_of, lines(tmp_path, "runs"))}
    found = [flags_of(line) for line in lines(tmp_path, "switches")]
    assert len(found) == 2 * len(SWITCHES)
    for number, words in enumerate(found):
        name, seed = list(SWITCHES)[number % len(SWITCHES)], 1 + number // len(SWITCHES)
        method, flag, value = SWITCHES[name]
        base = dict(plain[f"run-{method}-{seed}"])
        if flag == "pad_loss":
            del base["cache_teacher"], base["cache_limit"]
        assert words == base | {"experiment": f"switch-{method}-{name}-{seed}", flag: value}
        assert words[flag] != base.get(flag)


def flags_of(line: str) -> dict[str, str]:
    """Return the training script of a line, and its flags by name."""
    _, script, *words = shlex.split(line.partition(" && ")[0])
    named = (part.strip().split(maxsplit=1) for part in " ".join(words).split("--")[1:])
    return {"script": script} | {name: "".join(value) for name, *value in named}
