"""Every python command of the README and of scripts/ is parsed by its script, and the walk-through is all there."""

import re
import shlex
import subprocess
from argparse import Namespace
from pathlib import Path
from unittest import mock

import pytest

from fine_tune.cli import parser
from tests import tiny

ROOT = Path(__file__).parent.parent
SCRIPTS = {path.stem for path in [*ROOT.glob("run_*.py"), ROOT / "generate_test_prediction.py"]}
TASKS = ["qqp", "mnli", "qnli", "sst2", "mrpc", "rte"]

# The shell itself expands variables and loops; every program is replaced by one that says how it was called.
STUB = "\n".join(f'{name}() {{ printf "%q " {name} "$@"; echo; }}' for name in ("wget", "mv", "unzip", "rm", "bash"))
STUB += '\nsrun() { "$@"; }; torchrun() { while [[ "$1" != *.py ]]; do shift; done; python "$@"; }'
STUB += '\npython() { printf "%q " python "$@"; echo; }; python3.8() { python "$@"; }\n'


def commands(bash: str, name: str = "bash") -> list[list[str]]:
    """Return the words of every command that a piece of bash calls when it is run under `name`."""
    done = subprocess.run(["bash", "-c", STUB + bash, name], capture_output=True, text=True, check=True, cwd=ROOT)
    return [shlex.split(line) for line in done.stdout.splitlines()]


def blocks(path: Path) -> list[str]:
    """Return the sh blocks of a Markdown file."""
    return re.findall(r"```sh\n(.*?)```", path.read_text(), re.DOTALL)


def called(found: list[list[str]]) -> list[list[str]]:
    """Return the calls of our scripts, from the script's name on."""
    return [words[1:] for words in found if words[0] == "python" and words[1].removesuffix(".py") in SCRIPTS]


README = [words for block in blocks(ROOT / "README.md") for words in called(commands(block))]
SHELL = {task: called(commands((ROOT / f"scripts/{task}.sh").read_text(), f"scripts/{task}.sh")) for task in TASKS}


def parsed(words: list[str]) -> Namespace:
    """Return the flags that the script of a command reads; what lies on disk is not asked for."""
    flags = []

    class Parsed(Exception):
        pass

    def parse(description: str, groups: list, checks: list, example: str, **facts: str) -> None:
        problems: list[str] = []
        raw, unknown = parser.build_parser(description, groups, example).parse_known_args(words[1:])
        flags.append(parser.read_flags(raw, groups, problems))
        assert not unknown
        assert not problems
        raise Parsed

    with mock.patch.object(parser, "parse", parse), pytest.raises(Parsed):
        tiny.run_script(words[0].removesuffix(".py"))
    return flags[0]


def label(words: list[str]) -> str:
    return f"{words[0]}-{words[words.index('--experiment') + 1]}"


@pytest.mark.parametrize("words", README, ids=label)
def test_commands_parse(words: list[str]) -> None:
    assert parsed(words).experiment == words[words.index("--experiment") + 1]


def test_every_script_has_a_command_and_an_example_that_parses() -> None:
    import importlib

    assert {words[0].removesuffix(".py") for words in README} == SCRIPTS
    for script in SCRIPTS:
        [example] = called(commands(importlib.import_module(script).EXAMPLE))
        assert example[0] == f"{script}.py"
        parsed(example)


def test_the_walk_through_is_the_seeds() -> None:
    """Where the seed document is at hand: each of its commands stands in the README with the same flags and values."""
    seed = ROOT.parent / "shared" / "seed" / "fine_tune_qqp.md"
    if not seed.is_file():
        pytest.skip("the seed document is not here")
    wanted = [words for block in blocks(seed) for words in called(commands(block))]
    assert len(wanted) == 10

    def as_set(words: list[str]) -> tuple[str, frozenset]:
        return words[0], frozenset(zip(words[1::2], words[2::2], strict=True))

    there = {as_set(words) for words in README}
    for words in wanted:
        assert as_set(words) in there, " ".join(words)


TABLE = """
qqp  2e-5 34110 10233 1e-4 5e-7 20 .7 .3 500  56850 5685
mnli 3e-5 36816 10000 1e-4 5e-7 10 .5 .5 500  49088 4908
qnli 3e-5 9822  3274  1e-4 1e-6 10 .5 .5 1000 13096 1309
sst2 2e-5 6315  1894  1e-4 1e-6 20 .5 .5 1000 42100 12630
mrpc 2e-5 575   172   7e-4 5e-6 10 .7 .3 500  2300  690
rte  2e-5 231   69    3e-4 3e-5 10 .7 .3 500  1155  346
"""


@pytest.mark.parametrize("row", TABLE.strip().splitlines(), ids=str.split)
def test_task_scripts_carry_the_authors_numbers(row: str) -> None:
    task, *numbers = row.split()
    expected = [float(number) for number in numbers]
    teacher, student, *_ = (parsed(words) for words in SHELL[task])
    found = [teacher.lr, teacher.total_step, teacher.warmup_step, student.lr, student.gate_lr, student.softmax_temp]
    found += [student.soft_weight, student.hard_weight, student.mu, student.total_step, student.warmup_step]
    assert found == expected
    assert (teacher.max_seq_len, teacher.batch_size, student.batch_size) == (128, 32, 32)
    assert teacher.accum_step == (2 if task == "qnli" else 1)
    assert student.num_hidden_layers == (4 if task == "rte" else 6)
    assert student.tckpt == teacher.total_step
    for words in SHELL[task]:
        parsed(words)


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.search(r"@@|TODO|FIXME|XXX", (ROOT / "README.md").read_text())
