"""Every python command of the README is parsed by its script, and the seed's ten are all there."""

import re
import shlex
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from fine_tune import cli
from tests import tiny

ROOT = Path(__file__).parent.parent
SCRIPTS = {path.stem for path in [*ROOT.glob("run_*.py"), ROOT / "generate_test_prediction.py"]}


def commands(text: str) -> Iterator[list[str]]:
    """Yield the words of every python command in the sh blocks of a Markdown text."""
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in re.sub(r"\\\n", " ", block).splitlines():
            words = shlex.split(line, comments=True)
            if words and re.fullmatch(r"python[0-9.]*", words[0]):
                yield words[1:]


README = list(commands((ROOT / "README.md").read_text()))
RUNS = [words for words in README if words[0].removesuffix(".py") in SCRIPTS and "-h" not in words]


def parsed(words: list[str], tmp_path: Path) -> Namespace:
    """Return the flags that the script of a command reads; what lies on disk is not asked for."""
    flags = []

    class Parsed(Exception):
        pass

    def parse(description: str, groups: list, checks: list, example: str, **facts: str) -> None:
        problems: list[str] = []
        raw, unknown = cli.build(description, groups, example).parse_known_args(words[1:])
        flags.append(cli.read_flags(raw, groups, problems))
        assert not unknown
        assert not problems
        raise Parsed

    with mock.patch.object(cli, "parse", parse), pytest.raises(Parsed):
        tiny.run_script(words[0].removesuffix(".py"))
    return flags[0]


@pytest.mark.parametrize("words", RUNS, ids=lambda words: f"{words[0]}-{words[words.index('--experiment') + 1]}")
def test_commands_parse(words: list[str], tmp_path: Path) -> None:
    flags = parsed(words, tmp_path)
    assert flags.experiment == words[words.index("--experiment") + 1]


SEED = {
    "run_fine_tune": 1,
    "run_lad_distil": 1,
    "run_lad_no_distil": 1,
    "run_probing_lad": 1,
    "run_alp_distil": 2,
    "run_pkd_distill": 1,
    "run_fine_tune_eval": 2,
    "generate_test_prediction": 1,
}


def test_the_ten_commands_of_the_walk_through_are_there() -> None:
    """All ten, each with as many flags as the original, which names every flag that shapes a run."""
    for script, count in SEED.items():
        assert sum(words[0] == f"{script}.py" for words in RUNS) >= count, script


def test_the_walk_through_is_the_seeds() -> None:
    """Where the seed document is at hand: each of its commands stands in the README with the same flags and values."""
    seed = ROOT.parent / "shared" / "seed" / "fine_tune_qqp.md"
    if not seed.is_file():
        pytest.skip("the seed document is not here")
    wanted = list(commands(seed.read_text()))
    assert len(wanted) == 10

    def as_set(words: list[str]) -> tuple[str, frozenset]:
        return words[0], frozenset(zip(words[1::2], words[2::2], strict=True))

    there = {as_set(words) for words in RUNS if len(words) % 2}
    for words in wanted:
        assert as_set(words) in there, " ".join(words)
