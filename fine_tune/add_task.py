"""Make a task of your own data: classes or scores for one text or a pair, from CSV, TSV or JSONL files."""

import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from fine_tune.cli import checks, flags, parser
from fine_tune.core.files import sha256
from fine_tune.data import tables
from fine_tune.data.tables import Record
from fine_tune.data.tasks import CLASS_METRICS, SCORE_METRICS, TASKS, metric_problems, one_line

EXAMPLE = """python -m fine_tune.add_task --task reviews --train_file a.csv --validation_file b.csv \\
    --text_column_names title,body --label_column_name stars"""

FILES = ("train_file", "validation_file", "test_file")
DEV_SHARE = 0.1


def groups() -> list[flags.FlagGroup]:
    """Return all flags of this script."""
    words = "one or two columns that hold the texts"
    share = f"{DEV_SHARE} where there is no --validation_file"
    metrics = f"of {', '.join(CLASS_METRICS)}; for scores {', '.join(SCORE_METRICS)}"
    files = [
        flags.Flag("train_file", flags.path, "training data: .csv, .tsv or .jsonl"),
        flags.Flag("validation_file", flags.path, "becomes the split dev", falls_back="a part of the training data"),
        flags.Flag("test_file", flags.path, "becomes the split test; may lack labels", falls_back="no test split"),
        flags.Flag("dev_share", flags.number(0, 1, above=True), "part of train to become dev", falls_back=share),
        flags.Flag("seed", flags.integer(0), "seed that draws this part", "42"),
    ]
    columns = [
        flags.Flag("text_column_names", flags.names, words),
        flags.Flag("label_column_name", str, "column that holds the label or score", "label"),
        flags.Flag("regression", None, "labels are scores, not classes"),
        flags.Flag("metrics", flags.names, metrics, falls_back="accuracy,macro_f1 or pearson,spearman"),
    ]
    task = flags.Flag("task", flags.plain_name, "name of the new task, and of its folder")
    return [("task", [task, flags.data_dir()]), ("files", files), ("columns", columns)]


@checks.needs("task", "data_dir")
def new_name(given: Namespace) -> Iterator[str]:
    """The name is neither GLUE's nor taken."""
    glue = {*TASKS} | {Path(split.files[0]).parts[0] for spec in TASKS.values() for split in spec.splits.values()}
    folder = Path(given.data_dir) / given.task
    if given.task.lower() in {name.lower() for name in glue}:
        yield f"--task {given.task}: is a name of GLUE; choose another"
    elif folder.exists():
        yield f"--task {given.task}: {folder} exists already; choose another name, or remove that folder first"


def usable_files(given: Namespace) -> Iterator[str]:
    """Each file is there, and its suffix says what it is."""
    for flag in FILES:
        path = vars(given).get(flag)
        if path and Path(path).suffix.lower() not in tables.SUFFIXES:
            yield f"--{flag} {path}: must end in {', '.join(tables.SUFFIXES)}"
        elif path and not Path(path).is_file():
            yield f"--{flag} {path}: no such file"


@checks.needs("text_column_names", "label_column_name")
def different_columns(given: Namespace) -> Iterator[str]:
    """One or two texts, none of which is the label."""
    if len(given.text_column_names) > 2:
        yield f"--text_column_names {','.join(given.text_column_names)}: must be one or two, as BERT reads"
    if given.label_column_name in given.text_column_names:
        yield f"--label_column_name {given.label_column_name}: is one of --text_column_names, too"


@checks.needs("validation_file", "dev_share")
def one_dev(given: Namespace) -> Iterator[str]:
    """The dev split comes from one place."""
    if given.validation_file and given.dev_share:
        yield f"--dev_share {given.dev_share:g}: has no meaning with --validation_file; leave one out"


def read_splits(given: Namespace) -> dict[str, list[Record]]:
    """Return the examples of train, dev and, if there is one, test."""
    columns = (given.text_column_names, given.label_column_name)
    splits = {"train": tables.read_table(Path(given.train_file), *columns, labelled=True)}
    if given.validation_file:
        splits["dev"] = tables.read_table(Path(given.validation_file), *columns, labelled=True)
    else:
        share = given.dev_share or DEV_SHARE
        parts = tables.split_off(splits["train"], share, given.seed)
        checks.require(
            [f"--dev_share {share:g}: leaves {[*map(len, parts)]} rows for train and dev"] * (not all(parts))
        )
        splits = dict(zip(("train", "dev"), parts, strict=True))
    if given.test_file:
        splits["test"] = tables.read_table(Path(given.test_file), *columns, labelled=False)
    return splits


def add_task(given: Namespace) -> None:
    """Read the tables, check every row, write the task's folder, and say what is in it."""
    splits = read_splits(given)
    labels = [] if given.regression else tables.label_words(splits["train"], given.label_column_name)
    metrics = given.metrics or ([*SCORE_METRICS] if given.regression else ["accuracy", "macro_f1"])
    checks.require(f"--metrics {','.join(metrics)}: {problem}" for problem in metric_problems(labels, metrics))
    for records in splits.values():
        tables.check_labels(records, labels)
    files = {flag: vars(given)[flag] for flag in FILES if vars(given)[flag]}
    source = {"files": files, "sha256": {flag: sha256(Path(path)) for flag, path in files.items()}}
    source |= {name: vars(given)[name] for name in ("text_column_names", "label_column_name")}
    source |= {} if given.validation_file else {"dev_share": given.dev_share or DEV_SHARE, "seed": given.seed}
    folder = Path(given.data_dir) / given.task
    tables.write_task(folder, splits, labels, metrics, source)
    changed = sum(field != one_line(field) for records in splits.values() for r in records for field in r.texts)
    if changed:
        print(f"note: {changed} texts held tabs or line ends, which are blanks now", file=sys.stderr)
    print(summary(splits, labels))
    print(f"written: {folder}; from here on --task {given.task} --num_class {len(labels) or 1}", file=sys.stderr)


def summary(splits: dict[str, list[Record]], labels: list[str]) -> str:
    """Return a table of how many examples each split has, by label and id."""
    counts = {name: Counter(one_line(record.label or "") for record in records) for name, records in splits.items()}
    width = max([len(f"{index} {label}") for index, label in enumerate(labels)] + [len("id label")])
    lines = [f"{'id label' if labels else '':<{width}}" + "".join(f"{name:>9}" for name in splits)]
    for index, label in enumerate(labels):
        cells = "".join(f"{count[label]:>9}" if "" not in count else f"{'-':>9}" for count in counts.values())
        lines.append(f"{f'{index} {label}':<{width}}{cells}")
    lines.append(f"{'all':<{width}}" + "".join(f"{len(records):>9}" for records in splits.values()))
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, then make the task."""
    rules = (new_name, usable_files, different_columns, one_dev)
    add_task(parser.parse(__doc__, groups(), rules, EXAMPLE, argv))


if __name__ == "__main__":
    parser.run_script(main)
