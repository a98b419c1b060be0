"""The rules of the house: who may import whom, and what no file does."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = (
    "core",
    "data",
    "cli",
    "models",
    "methods",
    "training",
    "reporting",
    "verbs",
    "scripts",
)  # each imports from lower ones
METHODS = {"pkd", "lad", "lad_no", "alp"}
WITHOUT_TORCH = ("core", "cli", "data.tasks")
PACKAGE = sorted((ROOT / "fine_tune").rglob("*.py"))
SCRIPTS = sorted(ROOT.glob("*.py"))
OTHERS = sorted(path for folder in ("benchmarks", "scripts", "tests") for path in (ROOT / folder).rglob("*.py"))

# What of others' private parts is used, and why; no file uses any other.
PRIVATE = {
    "fine_tune/cli/parser.py": {"_format_args", "_run_exitfuncs"},  # argparse: a flag in the help; atexit: all of it
    "fine_tune/models/linear.py": {"_linear_pointwise"},  # torch: oneDNN's product, which torch.compile uses
    "fine_tune/models/attention.py": {"_flash_attention_forward"},  # torch: attention with dropout, without a grid
    "fine_tune/training/graphs.py": {"_foreach_add_", "_foreach_copy_"},  # torch: many tensors by one kernel
    "fine_tune/training/optim.py": {"_foreach_mul_", "_foreach_norm"},  # the same
    "tests/processes.py": {"_clear"},  # atexit: none of it
    "tests/reference.py": {"_attn_implementation"},  # transformers: eager attention
    "tests/test_checkpoint.py": {"_use_new_zipfile_serialization"},  # torch: the format of old files
    "tests/test_no_sync.py": {"_subclasses", "_parameters", "_buffers"},  # torch: tensors without values
}


def module(path: Path) -> str:
    """Return the dotted name of a file's module, without the package's."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("fine_tune.").removesuffix(".__init__")


def floor(name: str) -> int:
    """Return the floor of a module of the package: that of its wing, or of the verbs at the package's top level."""
    wing = name.partition(".")[0]
    return FLOORS.index(wing if wing in FLOORS else "verbs")


def imported(path: Path) -> set[str]:
    """Return the dotted names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def rooms(path: Path) -> set[str]:
    """Return the modules of the package that a file imports."""
    names = {name.removeprefix("fine_tune.") for name in imported(path) if name.startswith("fine_tune.")}
    known = {module(each) for each in PACKAGE}
    return {name if name in known else name.rpartition(".")[0] for name in names}


@pytest.mark.parametrize("path", PACKAGE, ids=module)
def test_a_wing_imports_from_lower_floors_and_from_itself(path: Path) -> None:
    """Verbs, which are no wing, do not import each other."""
    here = module(path)
    for there in rooms(path):
        same_wing = here.partition(".")[0] == there.partition(".")[0]
        assert floor(there) < floor(here) or same_wing, f"{here} imports {there}"


def test_no_circles() -> None:
    TopologicalSorter({module(path): rooms(path) for path in PACKAGE}).prepare()  # CycleError names one


def test_methods_are_independent() -> None:
    for path in PACKAGE:
        here = module(path)
        named = {room for room in rooms(path) if room.removeprefix("methods.") in METHODS}
        assert not named, f"{here} imports {named}: only a script names a method"


@pytest.mark.parametrize("path", [path for path in SCRIPTS if path.stem.startswith("run_")], ids=module)
def test_scripts_name_only_their_method(path: Path) -> None:
    expected = {
        "run_fine_tune": set(),
        "run_fine_tune_eval": set(),
        "run_lad_distil": {"lad"},
        "run_lad_no_distil": {"lad_no"},
        "run_probing_lad": {"lad"},
        "run_alp_distil": {"alp"},
        "run_pkd_distill": {"pkd"},
    }
    assert {room.removeprefix("methods.") for room in rooms(path)} & METHODS == expected[path.stem]


@pytest.mark.parametrize("wing", WITHOUT_TORCH)
def test_what_answers_first_needs_the_standard_library_only(wing: str) -> None:
    found = [path for path in PACKAGE if f"{module(path)}.".startswith(f"{wing}.")]
    assert found
    for path in found:
        roots = {name.partition(".")[0] for name in imported(path)} - {"fine_tune"}
        assert roots <= sys.stdlib_module_names, path
        for room in rooms(path):
            assert f"{room}.".startswith(tuple(f"{name}." for name in WITHOUT_TORCH)), f"{module(path)} imports {room}"


def test_nothing_loads_code() -> None:
    """No file of the project unpickles, evaluates or trusts what it reads."""
    for path in [*SCRIPTS, *PACKAGE, *OTHERS]:
        if path != Path(__file__):
            text = path.read_text()
            for word in ("weights_only=False", "pickle.load", " eval(", "=eval(", "trust_remote_code=True"):
                assert word not in text, f"{path}: {word}"


def test_weights_are_loaded_strictly() -> None:
    for path in [*SCRIPTS, *PACKAGE, *OTHERS]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_state_dict":
                assert len(node.args) == 1 and {word.arg for word in node.keywords} <= {"assign"}, (
                    f"{path}:{node.lineno}"
                )


def private_names(path: Path) -> set[str]:
    """Return the names with one leading underscore that a file uses of others: attributes, imports, keywords."""
    found, own = set(), {"self", "cls"}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in own | {"os"}:  # os._exit is public
            found.add(node.attr)
        elif isinstance(node, ast.keyword) and node.arg:
            found.add(node.arg)
        elif isinstance(node, ast.ImportFrom):
            found |= set((node.module or "").split(".")) | {alias.name for alias in node.names}
    return {name for name in found if name.startswith("_") and not name.endswith("__")}


def test_no_private_parts_of_others_but_these() -> None:
    found = {str(path.relative_to(ROOT)): private_names(path) for path in [*SCRIPTS, *PACKAGE, *OTHERS]}
    assert {path: names for path, names in found.items() if names} == PRIVATE
