"""The house: a module imports only from lower floors."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent

FLOORS = [
    {"errors", "interrupt", "files", "tasks", "config", "cli"},  # standard library only
    {
        "distributed",
        "precision",
        "linear",
        "layout",
        "data",
        "encoder",
        "models",
        "gates",
        "losses",
        "optim",
        "checkpoint",
        "log",
    },
    {"methods", "methods.pkd", "methods.lad", "methods.lad_no", "methods.alp", "train", "evaluate", "teacher_cache"},
    {"experiment", "distil", "teach"},
    {"sample"},
]
SAME_FLOOR = {  # what may lean on a neighbour, and on which
    "interrupt": {"errors"},
    "files": {"errors"},
    "config": {"errors", "files", "tasks"},
    "cli": {"errors", "interrupt", "config", "tasks"},
    "gates": {"layout", "linear"},
    "losses": {"layout"},
    "data": {"layout"},
    "encoder": {"data", "layout"},
    "models": {"precision", "data", "encoder", "linear"},
    "distributed": {"data"},
    "log": {"distributed"},
    "checkpoint": {"optim", "log", "distributed"},
    "methods.pkd": {"methods"},
    "methods.lad": {"methods"},
    "methods.lad_no": {"methods"},
    "methods.alp": {"methods"},
    "distil": {"experiment"},
    "teach": {"experiment"},
}


def modules() -> dict[str, Path]:
    """Return the package's modules by dotted name, the package itself left out."""
    found = {}
    for path in (ROOT / "fine_tune").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "fine_tune").with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            found[name] = path
    return found


def imported(path: Path) -> set[str]:
    """Return the dotted names of everything that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_every_module_has_its_floor() -> None:
    assert set(modules()) == set().union(*FLOORS)
    assert sum(map(len, FLOORS)) == len(set().union(*FLOORS))


def test_imports_point_down() -> None:
    floor = {name: number for number, names in enumerate(FLOORS) for name in names}
    for name, path in modules().items():
        inside = {i.removeprefix("fine_tune.") for i in imported(path) if i.startswith("fine_tune.")} & set(floor)
        for other in inside:
            neighbour = other in SAME_FLOOR.get(name, set())
            assert floor[other] < floor[name] or neighbour, f"{name} imports {other}"


def test_the_ground_floor_needs_the_standard_library_only() -> None:
    import sys

    for name in FLOORS[0]:
        roots = {i.split(".")[0] for i in imported(modules()[name])} - {"fine_tune"}
        assert roots <= sys.stdlib_module_names, name


def test_nothing_loads_code() -> None:
    """No file of the project unpickles, evaluates or trusts what it reads."""
    here = Path(__file__)
    for path in [*ROOT.glob("*.py"), *(ROOT / "fine_tune").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        if path != here:
            text = path.read_text()
            for word in ("weights_only=False", "pickle.load", " eval(", "=eval(", "trust_remote_code", "strict=False)"):
                if word == "strict=False)" and path.parent.name in ("methods", "tests"):
                    continue  # there it is zip's
                assert word not in text, f"{path}: {word}"


def test_scripts_name_only_their_method() -> None:
    """The loop and what drives it know no method."""
    for name in ("train", "experiment", "distil", "checkpoint", "log"):
        for word in ("alp", "pkd", "lad"):
            assert not any(word == part for i in imported(modules()[name]) for part in i.split(".")), name
