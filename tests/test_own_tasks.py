"""Tasks of one's own: from CSV, TSV and JSONL to a folder that every script reads."""

import csv
import json
import random
import re
from argparse import Namespace
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fine_tune import add_task, predict
from fine_tune.core.errors import UserError
from fine_tune.data.tasks import CLASS_METRICS, SCORE_METRICS, task_spec
from fine_tune.data.tsv import Example, read_examples
from fine_tune.training.scoring import measure
from tests import tiny

ROWS = [
    ('said "hi", left', "line one\nline two", "bad"),
    ("\ufeffmark inside", "tab\there", "good"),
    ("plain", "", "so so"),
    (" blanks kept ", "\r\nends\r", "good"),
]


def add(data: Path, *switches: str, **given: object) -> Path:
    """Call add_task for the task `mine`; return its folder."""
    words = [str(word) for name, value in given.items() for word in (f"--{name}", value)]
    add_task.main(["--task", "mine", "--data_dir", str(data), *words, *switches])
    return data / "mine"


def read(folder: Path, split: str) -> list[Example]:
    """Return the examples of a split as every script reads them."""
    spec = task_spec(Namespace(task="mine", data_dir=str(folder.parent)))
    return read_examples(folder / f"{split}.tsv", spec, spec.splits[split])


def write(path: Path, rows: list[tuple[str, ...]], header: tuple[str, ...] = ("title", "body", "stars")) -> Path:
    """Write a table in the format of its suffix, by the standard library's own writers."""
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        if path.suffix == ".csv":
            csv.writer(file).writerows([header, *rows])
        elif path.suffix == ".tsv":
            file.writelines("\t".join(row) + "\r\n" for row in [header, *rows])
        else:
            file.writelines(json.dumps(dict(zip(header, row, strict=True))) + "\n" for row in rows)
    return path


COLUMNS = {"text_column_names": "title,body", "label_column_name": "stars"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".CSV"])
def test_whatever_a_field_holds_is_one_field(tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture) -> None:
    file = write(tmp_path / f"a{suffix.lower()}", ROWS)
    file = file.rename(file.with_suffix(suffix))
    folder = add(tmp_path / "data", train_file=file, validation_file=file, test_file=file, **COLUMNS)
    assert json.loads((folder / "task.json").read_text())["labels"] == ["bad", "good", "so so"]
    blank = str.maketrans("\t\n\r", "   ")
    ids = {"bad": 0, "good": 1, "so so": 2}
    wanted = [Example(a.translate(blank), b.translate(blank), ids[label]) for a, b, label in ROWS]
    assert read(folder, "train") == read(folder, "dev") == read(folder, "test") == wanted
    said = capsys.readouterr()
    assert "9 texts held tabs or line ends" in said.err
    assert said.out.splitlines()[2].split() == ["1", "good", "2", "2", "2"]


def test_tsv_knows_no_quotes_and_a_test_file_may_lack_labels(tmp_path: Path) -> None:
    rows = [('5" long', "1"), ('"quoted"', "10"), ("x", "9")]
    train = write(tmp_path / "a.tsv", rows, ("text", "label"))
    test = write(tmp_path / "b.tsv", [(row[0],) for row in rows], ("text",))
    folder = add(tmp_path / "data", train_file=train, validation_file=train, test_file=test, text_column_names="text")
    assert read(folder, "train") == [Example(text, None, {"1": 0, "9": 1, "10": 2}[label]) for text, label in rows]
    assert read(folder, "test") == [Example(text, None, None) for text, _ in rows]


def test_a_share_of_train_becomes_dev_by_the_seed_alone(tmp_path: Path) -> None:
    rows = [(f"text {number}", str(number / 7)) for number in range(50)]
    file = write(tmp_path / "a.csv", rows, ("text", "label"))
    given = {"train_file": file, "text_column_names": "text", "dev_share": 0.3}
    splits = []
    for name, seed in (("one", 1), ("same", 1), ("other", 2)):
        folder = add(tmp_path / name, "--regression", seed=seed, **given)
        train, dev = read(folder, "train"), read(folder, "dev")
        assert (len(train), len(dev)) == (35, 15)
        assert Counter(train + dev) == Counter(Example(text, None, float(score)) for text, score in rows)
        splits.append(dev)
    assert splits[0] == splits[1] != splits[2]


def test_metrics_are_known_by_the_names_that_are_checked() -> None:
    labels, predictions = np.array([0, 0, 1, 1, 1]), np.array([0, 1, 1, 1, 1])
    known = {*CLASS_METRICS, *SCORE_METRICS}
    assert measure(known, labels, predictions).keys() == known


GOOD = "title,body,stars\na,b,1\nc,d,2\n"
WRONG = {
    "a quote that never ends": (".csv", 'title,body,stars\na,b,1\n"c,d,2\n', "a.csv:3: is no CSV"),
    "a row too long": (".csv", 'title,body,stars\n"a\n\n",b,1\nc,d,2,3\n', "a.csv:5: has 4 fields instead of 3"),
    "no such column": (
        ".csv",
        "title,text,stars\na,b,1\n",
        "a.csv:2: has no column 'body', but 'title', 'text', 'stars'",
    ),
    "a column twice": (".tsv", "title\tbody\tbody\na\tb\tc\n", "a.tsv:1: names column 'body' twice"),
    "no label": (".csv", "title,body,stars\na,b,1\nc,d, \n", "a.csv:3: column 'stars' is empty"),
    "not UTF-8": (".csv", "title,body,stars\na,b,1\n\udcff,d,2\n", "a.csv:3: is not UTF-8 (byte 0xff)"),
    "a NUL": (".csv", "title,body,stars\na,\0,1\n", "a.csv:2: holds a NUL byte"),
    "no rows": (".csv", "title,body,stars\n", "a.csv: holds no rows"),
    "one label": (".csv", "title,body,stars\na,b,1\na,b,1\n", "column 'stars' has one value only, '1'"),
    "no JSON": (".jsonl", '{"title": "a", "body": "b", "stars": 1}\n{"title"\n', "a.jsonl:2: is no JSON"),
    "no object": (".jsonl", "[1]\n", "a.jsonl:1: must be a JSON object"),
    "no text": (".jsonl", '{"title": null, "body": "b", "stars": 1}\n', "a.jsonl:1: column 'title' must be a text"),
    "NaN": (".jsonl", '{"title": "a", "body": "", "stars": NaN}\n', "a.jsonl:1: column 'stars' must be a text or a"),
    "a NUL in JSON": (".jsonl", '{"title": "a\\u0000b", "body": "", "stars": 1}\n', "'title' holds a NUL character"),
    "a book": (".tsv", f"title\tbody\tstars\na\t{'x' * 100_001}\t1\n", "a.tsv:2: column 'body' holds 100,001"),
    "half a character": (".jsonl", '{"title": "\\ud800", "body": "", "stars": 1}\n', "holds half a character"),
}


@pytest.mark.parametrize("suffix, content, message", WRONG.values(), ids=WRONG)
def test_a_bad_table_is_named_by_its_line(tmp_path: Path, suffix: str, content: str, message: str) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError) as error:
        add(tmp_path / "data", train_file=file, **COLUMNS, dev_share=0.5)
    assert message in str(error.value)
    assert not (tmp_path / "data").exists()


def test_what_does_not_fit_together_is_refused(tmp_path: Path) -> None:
    def refused(*switches: str, **given: object) -> str:
        with pytest.raises(UserError) as error:
            add(tmp_path / "data", *switches, **(COLUMNS | given))
        return str(error.value)

    good = write(tmp_path / "good.csv", [("a", "b", "1"), ("c", "d", "2")])
    other = write(tmp_path / "other.csv", [("a", "b", "1"), ("c", "d", "3")])
    words = write(tmp_path / "words.csv", [("a", "b", "1"), ("c", "d", "nan")])
    three = write(tmp_path / "three.csv", [("a", "b", word) for word in "123"])
    (tmp_path / "c.txt").touch()
    both = {"train_file": good, "validation_file": good}
    assert "other.csv:3: label '3' does not occur in the training data: 1, 2" in refused(
        train_file=good, validation_file=other
    )
    assert "score 'nan' is not a finite number" in refused("--regression", train_file=words, validation_file=words)
    assert "a task of regression has pearson" in refused("--regression", **both, metrics="accuracy")
    assert "take macro_f1" in refused(train_file=three, validation_file=three, metrics="f1_score")
    assert "--dev_share 0.2: has no meaning with --validation_file" in refused(**both, dev_share=0.2)
    assert "--dev_share 0.1: leaves [2, 0] rows" in refused(train_file=good)
    message = refused(train_file=tmp_path / "c.txt", validation_file=tmp_path / "no.csv", text_column_names="a,b,c")
    assert "c.txt: must end in .csv, .tsv, .jsonl" in message and "no.csv: no such file" in message
    assert "--text_column_names a,b,c: must be one or two" in message
    for glue in ("rte", "RTE", "sts-b"):
        with pytest.raises(UserError, match="is a name of GLUE"):
            add_task.main(["--task", glue, "--data_dir", str(tmp_path), "--train_file", str(good)])
    folder = add(tmp_path / "data", **both, **COLUMNS)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert "exists already" in refused(**both)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]  # nothing half-made beside it


@pytest.mark.parametrize(
    "change, message",
    [
        ({"labels": ["a"]}, '"labels" must list at least two'),
        ({"labels": ["a", "a"]}, '"labels" must list at least two'),
        ({"labels": [1, 2]}, '"labels" must list at least two'),
        ({"metrics": ["bleu"]}, "metric 'bleu': a task of 2 labels has accuracy"),
        ({"texts": 3}, '"texts" must be 1 or 2'),
        ({"texts": 1.0}, '"texts" must be 1 or 2'),
        ({"splits": {"train": {"labelled": True}}}, "must have a train and a dev"),
        ({"splits": {"../x": {"labelled": True}}}, "splits by plain names"),
    ],
)
def test_a_task_json_written_by_hand_is_checked(tmp_path: Path, change: dict, message: str) -> None:
    good = write(tmp_path / "good.csv", [("a", "b", "1"), ("c", "d", "2")])
    path = add(tmp_path / "data", train_file=good, validation_file=good, **COLUMNS) / "task.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    flags = tiny.teacher_flags(tmp_path, task="mine")
    with pytest.raises(UserError) as error:
        tiny.run_script("run_fine_tune", **flags)
    assert message in str(error.value) and str(path) in str(error.value)


def make_reviews(root: Path) -> None:
    """Make the task `mine` of three labels, which the first word of the second text tells, from CSV files."""
    generator = random.Random(0)
    labels = ["poor", "fair", "good"]
    for name, count in (("train", 24), ("dev", 9)):
        rows = []
        for number in range(count):
            words = generator.choices(tiny.WORDS[3:], k=5)
            rows.append((f"{words[0]}, {words[1]}", f"{tiny.WORDS[number % 3]}\n{words[2]}", labels[number % 3]))
        write(root / f"{name}.csv", rows)
    add(root / "data", train_file=root / "train.csv", validation_file=root / "dev.csv", **COLUMNS)


def test_every_script_takes_a_task_of_ones_own(root: Path, capsys: pytest.CaptureFixture) -> None:
    make_reviews(root)
    own = {"task": "mine"}
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(root, num_class=3, **own))
    tiny.run_script("run_lad_distil", **tiny.student_flags(root, **own), gate_lr=1e-4)
    given = {"experiment": "student", "dataset": "dev"} | tiny.paths(root) | own
    tiny.run_script("run_fine_tune_eval", **given)
    saved = json.loads((root / "runs/student_bert_mine/eval-dev.json").read_text())
    assert set(saved["best"]) == {"accuracy", "macro_f1", "eval_loss"}
    tiny.run_script("generate_test_prediction", **given, ckpt=8)
    lines = (root / "runs/student_bert_mine/mine-dev.tsv").read_text().splitlines()
    assert len(lines) == 10 and {line.split("\t")[1] for line in lines[1:]} <= {"poor", "fair", "good"}
    words = ["student", *(str(word) for name, value in tiny.paths(root).items() for word in (f"--{name}", value))]
    capsys.readouterr()
    tiny.run_script("fine_tune.report", *words, task="mine", metric="macro_f1")
    assert re.search(rf"lad +2 +1 +{100 * saved['best']['macro_f1']['value']:.2f} ", capsys.readouterr().out)
    # The same texts line by line: the same labels.
    texts = [f"{example.text}\t{example.pair}\n" for example in read(root / "data" / "mine", "dev")]
    (root / "texts").write_text("".join(texts))
    given = {"experiment": "student", "task": "mine", "ckpt": "best", "in": root / "texts", "out": root / "found"}
    step = saved["best"]["accuracy"]["step"]
    predict.main([str(word) for name, value in (given | tiny.paths(root)).items() for word in (f"--{name}", value)])
    tiny.run_script(
        "generate_test_prediction", experiment="student", dataset="dev", **tiny.paths(root), **own, ckpt=step
    )
    lines = (root / "runs/student_bert_mine/mine-dev.tsv").read_text().splitlines()
    found = (root / "found").read_text().splitlines()
    assert [line.split("\t")[0] for line in found] == [line.split("\t")[1] for line in lines[1:]]
