"""Download GLUE: tasks by name or all, checked by size and SHA-256, unpacked, and counted."""

import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path

from fine_tune.cli import checks, flags, parser
from fine_tune.cli.runs import data_file
from fine_tune.core.errors import UserError
from fine_tune.data.tasks import TASKS

EXAMPLE = "python -m fine_tune.download --task qqp --task rte"


def tasks(text: str) -> list[str]:
    """Read names of GLUE tasks separated by commas, or the word all."""
    found = list(dict.fromkeys(text.split(",")))
    if found != ["all"] and not set(found) <= TASKS.keys():
        raise ValueError(f"must be all, or one of {', '.join(TASKS)}")
    return list(TASKS) if found == ["all"] else found


def joined(argv: Sequence[str]) -> list[str]:
    """Return the words of a command with one --task for all that there are."""
    words = list(argv)
    named = [
        index for index, word in enumerate(words[:-1]) if word == "--task" and not words[index + 1].startswith("-")
    ]
    values = [words[index + 1] for index in named]
    rest = [word for index, word in enumerate(words) if index not in named and index - 1 not in named]
    return [*rest, "--task", ",".join(values)] if values else rest


def groups() -> list[flags.FlagGroup]:
    """Return all flags of this script."""
    where = "where to take the files from instead: a file, a folder that holds them, or a URL"
    own = [
        flags.Flag("task", tasks, f"all, or of {', '.join(TASKS)}; may be given several times"),
        flags.Flag("check", None, "only count the rows of what is there"),
        flags.Flag("from", str, where, falls_back="their own address"),
        flags.data_dir(),
    ]
    return [("download", own)]


def one_file(given: Namespace) -> Iterator[str]:
    """A file, and no folder, can be one archive only."""
    from fine_tune.data.archives import ARCHIVES

    source = vars(given).get("from")
    if source and "://" not in source:
        if not Path(source).exists():
            yield f"--from {source}: no such file or folder"
        elif Path(source).is_file() and sum(len(ARCHIVES[task]) for task in vars(given).get("task", [])) > 1:
            yield f"--from {source}: is one file, but more are needed; give the folder that holds them"


def count_rows(given: Namespace, task: str) -> Iterator[str]:
    """Print a line for each split of a task that is there; yield what is not as it should be."""
    from fine_tune.data.archives import ROWS
    from fine_tune.data.tsv import read_examples

    spec = TASKS[task]
    for name, expected in ROWS[task].items():
        path = data_file(given, spec.splits[name])
        if not path.is_file():
            yield f"{path} is missing"
            continue
        try:
            found = len(read_examples(path, spec, spec.splits[name]))
        except UserError as error:
            yield str(error)
            continue
        print(f"{task:<5} {name:<16}{found:>8} rows  {path}")
        if found != expected:
            yield f"{path} has {found} rows instead of GLUE's {expected}"


def get(given: Namespace, task: str) -> None:
    """Fetch, check and unpack the files of a task, and say its terms, unless all of it is there."""
    from fine_tune.data import archives

    data_dir, source = Path(given.data_dir), vars(given)["from"]
    if all(data_file(given, split).is_file() for split in TASKS[task].splits.values()):
        print(f"note: {task} is there already; to get it anew, remove its folder", file=sys.stderr)
        return
    found = {}
    for archive in archives.ARCHIVES[task]:
        path = archives.fetch(archive, archives.source_of(archive, source), data_dir / "download")
        found[archive.name] = path
        if archive.members:
            archives.unpack(archive, path, data_dir)
        elif archive.name == "AX.tsv":
            archives.place(path, data_dir / archives.AX)
    if task == "mrpc":
        archives.assemble_mrpc(found, data_dir)
    for path in found.values():
        if path.parent == data_dir / "download":
            path.unlink()
    print(f"note: {task}: {archives.TERMS.get(task, archives.ANY_TERMS)}", file=sys.stderr)


def download(given: Namespace) -> None:
    """Get every task, or with --check none, and count the rows of all that is there."""
    problems = []
    for task in given.task:
        if not given.check:
            get(given, task)
        problems += count_rows(given, task)
    checks.require(problems)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, then download."""
    words = joined(sys.argv[1:] if argv is None else argv)
    download(parser.parse(__doc__, groups(), (one_file,), EXAMPLE, words))


if __name__ == "__main__":
    parser.run_script(main)
