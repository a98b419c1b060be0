"""`python -m tests.fuzz`: 1,040 spoilt inputs, and none ends in a traceback, a crash or a hang. Words choose kinds.

Each is tried in a process of its own, which ends with an exit code of the documented ones, and if it is an error, with
one line. Takes some minutes, so it is no part of the test suite, which keeps the smallest input of each kind.
"""

import importlib
import json
import logging
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported

import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from tests import tiny  # noqa: E402
from tests.interruptions import before_update, flags_of, in_child  # noqa: E402

SECONDS, MEMORY = 60, 8 * 2**30  # in which an input is dealt with, and the address space
CODES = {0, 2, 3, 4}  # as docs/runs.md has them
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 7, 10**6, 2**31, 2**63, 10**30, 0.5, -0.0, 1e-320, 1e308, float("nan")),
    *(float("inf"), "", "x", "\0", "a" * 300, "../..", "\ud800", "é\n", "1", "1_000", "１", [], [1], ["0", "1"], {}),
    *({"a": 1}, [[[[]]]], {"": None}, "a" * 100_000),
)
WORDS = (
    *("", " ", "x", "-", "--", "-1", "0", "1", "1_000", "１２", "١٢", "1e3", "1e400", "1e-400", "nan", "inf", "-inf"),
    *(
        "0x10",
        "1.5",
        ".5",
        "+1",
        "9" * 30,
        "a" * 300,
        "\n",
        "é",
        "😀",
        "\x1b[31m",
        "~",
        "~nobody/x",
        "/",
        ".",
        "..",
        "*",
    ),
    *("/dev/null", "/dev/zero", "/proc/self/mem", "{0}", "%s", "1,2", "2,1", ",", "best", "last", "true", "None"),
)
ODD_CELLS = (b"", b"\t", b"\0", b"\r", b"\xff", b'"', b"1_0", "１".encode(), b"nan", b"2", b"1e400", b" " * 50)
ODD_CELLS += (b"a" * 200_000, "\u2028\u200b".encode(), "😀".encode() * 50)


def nested(depth: int) -> bytes:
    """Return JSON of a depth."""
    return b'{"a":' * depth + b"1" + b"}" * depth


TEXTS = (b"", b"{", b"null", b"[]", b"3", b'"a"', b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"\xff", b"{}" * 2)
TEXTS += (b"\0" * 100, nested(900), nested(100_000), b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}")


# --- ways to spoil ----------------------------------------------------------------------------------------------------


def places(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the paths of all parts of a nested value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, part in inner for path in ((*here, key), *places(part, (*here, key)))]


def spoil_value(value: Any, chance: random.Random, others: tuple[Any, ...] = VALUES) -> None:
    """Replace, drop or double one part of a nested value."""
    path = chance.choice(places(value))
    for key in path[:-1]:
        value = value[key]
    how = chance.random()
    if how < 0.2:
        del value[path[-1]]
    elif how < 0.3 and isinstance(value, list):
        value.append(value[path[-1]])
    else:
        value[path[-1]] = chance.choice(others)


def spoil_json(path: Path, chance: random.Random) -> None:
    """Spoil a JSON file: one or two of its values, or the text."""
    how = chance.random()
    if how < 0.15:
        path.write_bytes(chance.choice(TEXTS))
    elif how < 0.25:
        spoil_bytes(path, chance)
    else:
        value = json.loads(path.read_text())
        value.pop("config_sha256", None)  # as somebody does who vouches for the change
        for _ in range(chance.choice((1, 1, 2))):
            spoil_value(value, chance)
        path.write_text(json.dumps(value))


def spoil_bytes(path: Path, chance: random.Random) -> None:
    """Flip, cut, double or replace some bytes of a file, or put something else in its place."""
    content = bytearray(path.read_bytes())
    at = chance.randrange(max(1, len(content)))
    how = chance.choice(("flip", "cut", "drop", "double", "zero", "random", "pipe", "folder", "link"))
    if how in ("pipe", "folder", "link"):
        path.unlink()
        {"pipe": os.mkfifo, "folder": os.mkdir, "link": lambda here: os.symlink(here, here)}[how](path)
        return
    if how == "flip" and content:
        content[at] ^= 1 << chance.randrange(8)
    elif how == "cut":
        del content[at:]
    elif how == "drop":
        del content[at : at + chance.randrange(1, 40)]
    elif how == "double":
        content[at:at] = content[at : at + 40]
    elif how == "zero":
        content[at : at + 8] = bytes(8)
    else:
        content[at : at + 8] = chance.randbytes(8)
    path.write_bytes(content)


def spoil_state(path: Path, chance: random.Random) -> None:
    """Spoil a part of a saved state, or its bytes."""
    if chance.random() < 0.3:
        return spoil_bytes(path, chance)
    state = tiny.load(path)
    some = chance.choice(tensors(state))
    others = (some, some[None], some.double(), some.to(torch.int8), some[None].to_sparse(), torch.zeros(3, 5))
    others += (some.flatten()[:1].expand(9), torch.zeros(1), torch.tensor(float("nan")))
    spoil_value(state, chance, (*others, *VALUES))
    torch.save(state, path)


def tensors(value: Any) -> list[torch.Tensor]:
    """Return the tensors in a nested value."""
    if isinstance(value, torch.Tensor):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [tensor for part in inner for tensor in tensors(part)]


def spoil_lines(path: Path, chance: random.Random) -> None:
    """Spoil a line of a TSV file, or its bytes."""
    if chance.random() < 0.3:
        return spoil_bytes(path, chance)
    lines = path.read_bytes().split(b"\n")
    at = chance.randrange(len(lines))
    cells = lines[at].split(b"\t")
    cells[chance.randrange(len(cells))] = chance.choice(ODD_CELLS)
    lines[at : at + 1] = [b"\t".join(cells)] * chance.choice((0, 1, 1, 1, 2))
    path.write_bytes(b"\n".join(lines))


# --- what is tried ----------------------------------------------------------------------------------------------------


def training(root: Path) -> None:
    script, flags = flags_of(root, "teacher", "broken")
    tiny.run_script(script, **flags)


def distilling(root: Path) -> None:
    flags = tiny.student_flags(root, experiment="new", total_step=2, warmup_step=1)
    tiny.run_script("run_lad_distil", "--weak_teacher", **flags)


def starting(root: Path) -> None:
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(root, experiment="new", total_step=2))


def evaluating(root: Path) -> None:
    tiny.run_script("run_fine_tune_eval", experiment="teacher", task="qqp", dataset="dev", **tiny.paths(root))


def predicting(root: Path) -> None:
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "test", "ckpt": "best"}
    tiny.run_script("generate_test_prediction", **flags, **tiny.paths(root))


def verb(name: str, *words: str) -> Callable[[Path], None]:
    """Return a call of a verb of the package; {} in its words is the folder of all."""

    def call(root: Path) -> None:
        folders = [f"--{flag}={path}" for flag, path in tiny.paths(root).items()]
        sys.argv = [f"{name}.py", *(word.format(root) for word in words), "--task=qqp", *folders]
        importlib.import_module(f"fine_tune.{name}").main()

    call.__name__ = name
    return call


REPORT = verb("report", "teacher", "student")
EXPORT = verb("export", "--experiment=teacher", "--ckpt=4", "--out={}/exported")
TEACHER = "runs/teacher_bert_qqp"
READERS = (distilling, evaluating, predicting, REPORT, EXPORT)
Spoil = Callable[[Path, random.Random], None]
Command = Callable[[Path], None]
KINDS: dict[str, tuple[int, tuple[str, ...], Spoil, tuple[Command, ...]]] = {  # how many, of which files, how, read by
    "config": (250, (f"{TEACHER}/config.json", "runs/student_bert_qqp/config.json"), spoil_json, READERS),
    "own config": (80, ("broken/run_bert_qqp/config.json",), spoil_json, (training,)),
    "state": (170, ("broken/run_bert_qqp/state.pt",), spoil_state, (training,)),
    "scores": (130, (f"{TEACHER}/eval-dev.json",), spoil_json, READERS),
    "arrays": (60, (f"{TEACHER}/logits-dev-4.npy", "runs/cache/*.npz", f"{TEACHER}/model-4.pt"), spoil_bytes, READERS),
    "model": (80, ("bert/config.json", "bert/tokenizer*.json"), spoil_json, (starting,)),
    "model bytes": (60, ("bert/*", f"{TEACHER}/tokenizer/*"), spoil_bytes, (starting, evaluating)),
    "data": (90, ("data/QQP/train.tsv", "data/QQP/dev.tsv"), spoil_lines, (starting, evaluating)),
    "flags": (120, (), lambda path, chance: None, ()),
}


def with_odd_flag(chance: random.Random) -> Command:
    """Return a training or evaluation one flag of which has an odd value."""
    script = chance.choice(("run_lad_distil", "run_fine_tune", "run_fine_tune_eval", "run_alp_distil"))
    more, word = chance.choice(("seed", "eps", "beta1", "ckpt", "eval_step", "precision", None)), chance.choice(WORDS)

    def call(root: Path) -> None:
        students = tiny.student_flags(root, experiment="new", total_step=2, warmup_step=1)
        teachers = tiny.teacher_flags(root, experiment="new", total_step=2)
        evaluations = {"experiment": "teacher", "task": "qqp", "dataset": "dev"} | tiny.paths(root)
        flags = {"run_fine_tune": teachers, "run_fine_tune_eval": evaluations}.get(script, students)
        flags[more or chance.choice([*flags])] = word
        tiny.run_script(script, **flags)

    call.__name__ = f"{script} with {more} {word[:40]!r}"
    return call


def attempt(root: Path, command: Command) -> tuple[int, str]:
    """Give a command in a process of its own; return its exit code and what is wrong with that end, "" if nothing."""

    def limited() -> None:
        signal.alarm(SECONDS)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        sys.stdout = open(os.devnull, "w")
        os.dup2(sys.stdout.fileno(), 1)
        command(root)

    code, said = in_child(limited)
    if code == -signal.SIGALRM:
        return code, "hangs"
    if code not in CODES or "Traceback" in said:
        return code, f"ends with {code}: {said[-3000:]}"
    named = code == 0 or ": error: " in said.splitlines()[-1]
    return code, "" if named else f"does not say why: {said[-500:]}"


def prepare(root: Path) -> None:
    """Make the folder of which every input spoils a copy, and import all that the commands do."""
    tiny.make_bert(root / "bert")
    tiny.make_qqp(root / "data")
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(root))
    evaluating(root), distilling(root), EXPORT(root)
    shutil.rmtree(root / "exported")
    shutil.rmtree(root / "runs" / "new_bert_qqp")
    tiny.run_script("run_lad_distil", "--weak_teacher", **tiny.student_flags(root, total_step=2, warmup_step=1))
    script, flags = flags_of(root, "teacher", "broken")
    assert in_child(lambda: tiny.run_script(script, **flags), before_update(8))[0] == -signal.SIGKILL


def spoilt(root: Path, kind: str, chance: random.Random) -> tuple[str, Command]:
    """Spoil one file in `root`; return its name and the command that will read it."""
    _, patterns, spoil, commands = KINDS[kind]
    if not patterns:
        return "", with_odd_flag(chance)
    path = chance.choice(sorted(root.glob(chance.choice(patterns))))
    spoil(path, chance)
    return path.name, chance.choice(commands)


def main() -> None:
    """Spoil, try and count."""
    torch.set_num_threads(1)
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    tqdm.monitor_interval = 0  # its thread may hold a lock while we fork, and the child would wait for it for ever
    chosen, found = sys.argv[1:] or [*KINDS], 0
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # where a sync takes no time
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        original, root = Path(folder) / "original", Path(folder) / "root"
        prepare(root)
        root.rename(original)
        for kind in chosen:
            codes: Counter[int] = Counter()
            for number in range(KINDS[kind][0]):
                shutil.copytree(original, root)
                name, command = spoilt(root, kind, random.Random(f"{kind} {number}"))
                code, problem = attempt(root, command)
                codes[code] += 1
                if problem:
                    found += 1
                    print(f"--- {kind} {number}, {name}, {command.__name__}: {problem}", flush=True)
                shutil.rmtree(root)
            print(f"{kind}: {codes.total()} inputs, exit codes {dict(codes.most_common())}", flush=True)
    print(f"{found} ended otherwise than documented")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
