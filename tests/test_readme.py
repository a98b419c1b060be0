"""README and docs/: commands are parsed by their scripts, links and paths lead somewhere, counts and tree are true."""

import re
import shlex
import subprocess
from argparse import Namespace
from pathlib import Path
from unittest import mock

import pytest

from fine_tune.cli import parser
from fine_tune.cli.checks import BERT_BASE, STUDENT_SIZES
from fine_tune.cli.runs import RESUMABLE_FLAGS
from tests import tiny

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "results/README.md"]
TEXT = (ROOT / "README.md").read_text()
SCRIPTS = {path.stem for path in [*ROOT.glob("run_*.py"), ROOT / "generate_test_prediction.py"]}
VERBS = {f"fine_tune.{path.stem}" for path in ROOT.glob("fine_tune/*.py") if "run_script" in path.read_text()}
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
    """Return the calls of our scripts and verbs, from the script's, or after python -m the verb's, name on."""
    calls = [words[1 + (words[1] == "-m") :] for words in found if words[0] == "python"]
    return [words for words in calls if words[0].removesuffix(".py") in SCRIPTS | VERBS]


def names_a_script(block: str) -> bool:
    """Tell whether a piece of bash is about our scripts or verbs."""
    return any(f"{script}.py" in block for script in SCRIPTS) or any(f"-m {verb}" in block for verb in VERBS)


def shown(path: Path) -> list[list[str]]:
    """Return the calls of our scripts in a Markdown file. What else a block does has no program to run here."""
    nothing = "PATH=/nonexistent; command_not_found_handle() { :; }\n"
    found = []
    for block in filter(names_a_script, blocks(path)):
        calls = called(commands(nothing + block))
        assert calls, f"{path}: calls no script:\n{block}"
        found += calls
    return found


README = shown(ROOT / "README.md")
DOCS = [words for path in PAGES[1:] for words in shown(path)]
SHELL = {task: called(commands((ROOT / f"scripts/{task}.sh").read_text(), f"scripts/{task}.sh")) for task in TASKS}


def parsed(words: list[str]) -> Namespace:
    """Return the flags that the script of a command reads; what lies on disk is not asked for."""
    flags = []

    class Parsed(Exception):
        pass

    def parse(
        description: str, groups: list, checks: list, example: str, argv: list[str] | None = None, **facts: str
    ) -> None:
        problems: list[str] = []
        raw, unknown = parser.build_parser(description, groups, example).parse_known_args(words[1:])
        flags.append(parser.read_flags(raw, groups, problems))
        assert not unknown
        assert not problems
        raise Parsed

    with mock.patch.object(parser, "parse", parse), pytest.raises(Parsed):
        tiny.run_script(words[0].removesuffix(".py"))
    return flags[0]


def named(words: list[str]) -> str:
    """Return the run that a command names; the report names patterns of them, first."""
    return words[words.index("--experiment") + 1] if "--experiment" in words else words[1]


def label(words: list[str]) -> str:
    return f"{words[0]}-{named(words)}"


@pytest.mark.parametrize("words", README + DOCS, ids=label)
def test_commands_parse(words: list[str]) -> None:
    found = vars(parsed(words))
    if "experiment" in found:
        assert found["experiment"] == named(words) or named(words) in found["experiment"]


def test_every_script_has_a_command_and_an_example_that_parses() -> None:
    import importlib

    assert {words[0].removesuffix(".py") for words in README} - VERBS == SCRIPTS
    assert VERBS
    for script in SCRIPTS | VERBS:
        [example] = called(commands(importlib.import_module(script).EXAMPLE))
        assert example[0].removesuffix(".py") == script
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

    there = {as_set(words) for words in README if len(words) % 2}  # others have more than flags
    for words in wanted:
        assert as_set(words) in there, " ".join(words)


def step_by_step() -> list[Namespace]:
    """Return the flags of the commands that follow one another in the README."""
    section = TEXT.partition("\n## QQP with bert-base, step by step\n")[2]
    [block] = re.findall(r"```sh\n(.*?)```", section.partition("<details>")[0], re.DOTALL)
    return [parsed(words) for words in called(commands(block))]


def has_checkpoint(run: Namespace, step: int) -> bool:
    """Tell whether a training run leaves a checkpoint at `step`."""
    return 0 < step <= run.total_step and (step % run.ckpt_step == 0 or step == run.total_step)


def test_the_steps_follow_one_another() -> None:
    downloaded, teacher, student, scored, predicted, submitted, exported, answered = step_by_step()
    assert downloaded.task == [teacher.task]
    assert (student.teacher_exp, student.tmodel, student.task) == (teacher.experiment, teacher.model, teacher.task)
    assert has_checkpoint(teacher, student.tckpt)
    assert submitted.runs == [(predicted.experiment, predicted.ckpt)]
    for reader in (scored, predicted, exported, answered):
        assert (reader.experiment, reader.model, reader.task) == (student.experiment, student.model, student.task)
    assert has_checkpoint(student, predicted.ckpt)


def test_teacher_and_student_are_runs_of_the_authors_commands() -> None:
    """The same command in full finds the run finished: no flag differs but those that a resume may change."""
    for run in step_by_step()[1:3]:
        [in_full] = [parsed(words) for words in README if "--beta1" in words and named(words) == run.experiment]
        differing = {name for name, value in vars(run).items() if vars(in_full)[name] != value}
        of_bert_base = {name for name in differing & set(STUDENT_SIZES) if vars(run)[name] is None}  # the teacher's
        assert all(vars(in_full)[name] == BERT_BASE[STUDENT_SIZES[name]] for name in of_bert_base)
        assert differing - of_bert_base <= RESUMABLE_FLAGS


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


# --- links, paths, counts ---------------------------------------------------------------------------------------------


def page_name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(path: Path) -> str:
    """Return a Markdown file without its fenced blocks."""
    return re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Return the names under which GitHub links to a file's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)) if "://" not in target]
    assert targets or page.parent != ROOT  # the README has some
    for target in targets:
        name, _, anchor = target.partition("#")
        path = page.parent / name if name else page
        assert path.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(path), f"{page.name} links to {target}"


def test_the_readme_leads_to_every_page() -> None:
    targets = set(re.findall(r"\]\(([^)\s#]+)\)", prose(ROOT / "README.md")))
    assert {page_name(page) for page in PAGES[1:]} <= targets


def exists(name: str) -> bool:
    """Tell whether a file is there as it is named: from the root, within the package, or a shell script."""
    return any((folder / name).exists() for folder in (ROOT, ROOT / "fine_tune", ROOT / "scripts"))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_files_that_are_named_exist(page: Path) -> None:
    """In `code`: source files, folders of the project, and modules after python -m."""
    spans = re.findall(r"`([^`]+)`", prose(page))
    words = [word for span in spans for word in span.split() if re.fullmatch(r"[\w./-]+", word)]
    folders = ("fine_tune/", "scripts/", "tests/", "benchmarks/", "docs/", "data/sample")
    files = {word for word in words if word.endswith((".py", ".sh", ".md", ".cff")) or word.startswith(folders)}
    files |= {match.replace(".", "/") + ".py" for match in re.findall(r"python -m (\S+\.\w+)", " ".join(spans))}
    missing = [name for name in sorted(files) if not exists(name)]
    assert not missing, f"{page.name} names {missing}"


def test_size_of_the_readme() -> None:
    assert 18_000 <= len(TEXT.encode()) <= 20_000


def test_the_path_of_the_formula_is_as_long_as_it_says() -> None:
    [(files, lines, text)] = re.findall(
        r"\*\*The path of LAD's formula: (\d+) files, (\d+) lines\.\*\*(.*?)\n\n", TEXT, re.DOTALL
    )
    names = re.findall(r"`([\w/]+\.py)`", text)
    found = (folder / name for name in names for folder in (ROOT, ROOT / "fine_tune"))
    paths = [path for path in found if path.is_file()]
    assert len(paths) == len(names) == int(files)
    assert sum(len(path.read_text().splitlines()) for path in paths) == int(lines)


def tree() -> set[Path]:
    """Return the paths in the README's tree: a line has names with one space between them, then what they are."""
    section = TEXT.partition("\n## Where things are\n")[2]
    found, folders = set(), [ROOT]
    for line in re.search(r"```text\n(.*?)```", section, re.DOTALL)[1].splitlines():
        indent, rest = re.fullmatch(r"((?:  )*)(\S.*)", line).groups()
        depth = len(indent) // 2
        assert depth < len(folders), line
        names = re.split(r" {2,}", rest)[0].split(" ")
        paths = [folders[depth] / name for name in names]
        folders[depth + 1 :] = paths[-1:] if names[-1].endswith("/") else []
        found |= set(paths)
    return found


def test_the_tree_is_there() -> None:
    for path in tree():
        assert path.exists(), path


def test_the_tree_names_every_module_and_script() -> None:
    modules = {path for path in (ROOT / "fine_tune").rglob("*.py") if path.name != "__init__.py"}
    scripts = {*ROOT.glob("*.py"), *(path for path in (ROOT / "scripts").iterdir() if path.is_file())}
    assert len(modules) > 30
    missing = sorted(page_name(path) for path in (modules | scripts) - tree())
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_nothing_is_left_to_fill_in(page: Path) -> None:
    assert not re.search(r"@@|TODO|FIXME|XXX", page.read_text())
