"""Models in and out: what transformers makes of an export, and what becomes of its classifiers here."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer, DistilBertConfig, DistilBertModel

from fine_tune import export, import_teacher, predict
from fine_tune.core import interrupt
from fine_tune.core.errors import UserError
from fine_tune.models import hub
from fine_tune.training import stream
from tests import tiny


def words(root: Path, **given: object) -> list[str]:
    """Return the words of a command in `root`."""
    return [str(word) for name, value in (given | tiny.paths(root)).items() for word in (f"--{name}", value)]


def export_run(root: Path, out: Path, **changes: object) -> Path:
    """Export the tiny teacher, or another run; return the folder."""
    export.main(words(root, **({"experiment": "teacher", "task": "qqp", "ckpt": 4, "out": out} | changes)))
    return out


def refused(root: Path, folder: Path, **changes: object) -> str:
    """Return what import_teacher says against a folder."""
    given = {"from": folder, "experiment": "new", "task": "qqp", "max_seq_len": tiny.SEQ_LEN}
    with pytest.raises(UserError) as error:
        import_teacher.main(words(root, **given | changes))
    assert not (root / "runs" / f"new_bert_{(given | changes)['task']}").exists()
    return str(error.value)


# --- out --------------------------------------------------------------------------------------------------------------

# A stranger's process: the library alone, every dev example, and the card's own snippet.
STRANGER = """
import json, sys
import numpy as np
from transformers import AutoModelForSequenceClassification, AutoTokenizer
name, rows, logits = sys.argv[1:]
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSequenceClassification.from_pretrained(name)
pairs = json.load(open(rows))
inputs = tokenizer(*zip(*pairs), truncation=True, padding=True, return_tensors="pt")
np.save(logits, model(**inputs).logits.detach().numpy())
snippet = open(f"{name}/README.md").read().split("```python\\n")[1].split("```")[0]
exec(snippet)
print(json.dumps([classify({"text": a, "text_pair": b})["label"] for a, b in pairs]))
assert "fine_tune" not in sys.modules
"""


def test_transformers_loads_an_export_without_this_suite(root: Path, tmp_path: Path) -> None:
    """Same logits and labels on all of dev, one text of which is longer than the model reads."""
    dev = root / "data" / "QQP" / "dev.tsv"
    with open(dev, "a") as file:
        file.write("13\t13\t13\t" + "w1 w2 " * 20 + "\t" + "w3 " * 30 + "\t1\n")
    tiny.run_script("run_fine_tune_eval", experiment="teacher", task="qqp", dataset="dev", **tiny.paths(root))
    before = os.umask(0o027)
    try:
        out = export_run(root, tmp_path / "my-model", ckpt="best")
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in out.iterdir()} == {"0o640"}
    assert oct(out.stat().st_mode & 0o777) == "0o750"
    pairs = [line.split("\t")[3:5] for line in dev.read_text().splitlines()[1:]]
    (tmp_path / "rows.json").write_text(json.dumps(pairs))
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, "my-model", "rows.json", "logits.npy"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    step = json.loads((root / "runs/teacher_bert_qqp/eval-dev.json").read_text())["best"]["accuracy"]["step"]
    given = {"experiment": "teacher", "task": "qqp", "dataset": "dev", "ckpt": step}
    tiny.run_script("generate_test_prediction", **given, **tiny.paths(root))
    ours = [line.split("\t")[1] for line in (root / "runs/teacher_bert_qqp/QQP-dev.tsv").read_text().splitlines()[1:]]
    assert json.loads(done.stdout.splitlines()[-1]) == ours
    theirs = np.load(tmp_path / "logits.npy")
    assert [str(label) for label in theirs.argmax(1)] == ours

    card = ModelCard.load(out / "README.md")
    assert (card.data.license, card.data.library_name) == ("other", "transformers")
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    truth = np.array([int(line.split("\t")[5]) for line in dev.read_text().splitlines()[1:]])
    assert results["accuracy"] == pytest.approx((theirs.argmax(1) == truth).mean())

    # And back again: the same weights, hence the same logits.
    given = {"from": out, "experiment": "back", "task": "qqp", "max_seq_len": tiny.SEQ_LEN, "labels": "0,1"}
    import_teacher.main(words(root, **given))
    first, second = (
        tiny.load(root / "runs" / name) for name in (f"teacher_bert_qqp/model-{step}.pt", "back_bert_qqp/model-0.pt")
    )
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_the_card_names_teacher_and_other_seeds(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, seed in (("student", 42), ("again", 7), ("third", 8)):
        tiny.run_script("run_pkd_distill", **tiny.student_flags(root, experiment=name, seed=seed, hard_weight=0))
    tiny.run_script("run_pkd_distill", **tiny.student_flags(root, experiment="other", seed=9, hard_weight=1))
    for name in ("teacher", "student", "again", "third", "other"):
        tiny.run_script("run_fine_tune_eval", experiment=name, task="qqp", dataset="dev", **tiny.paths(root))

    def score(run: str) -> float:
        return 100 * json.loads((root / f"runs/{run}_bert_qqp/eval-dev.json").read_text())["best"]["accuracy"]["value"]

    text = (export_run(root, tmp_path / "out", experiment="student", ckpt="best") / "README.md").read_text()
    seeds = [score(name) for name in ("student", "again", "third")]
    assert (
        f"3 runs that differ in their seed alone, the best checkpoint of each: accuracy {np.mean(seeds):.2f} ± " in text
    )
    assert f"± {np.std(seeds, ddof=1):.2f} " in text
    saved = json.loads((root / "runs/teacher_bert_qqp/eval-dev.json").read_text())["checkpoints"]
    [at_4] = [row["accuracy"] for row in saved if row["step"] == 4]
    assert re.search(rf"\| its teacher \| 4 \| .* \| {100 * at_4:.2f} \|", text)
    assert re.search(rf"\| this model \| 2 \| .* \| {score('student'):.2f} \|", text)
    teacher, student = re.search(r"```sh\n(.*)\n(.*)\n```", text).groups()
    assert teacher.startswith("python run_fine_tune.py --") and " --ptrain_ver bert" in teacher
    assert student.startswith("python run_pkd_distill.py --") and " --tckpt 4 " in student
    assert "--hard_weight 0.0 " in student and "--compile" not in student and "--max_seq_len" not in student
    config = json.loads((root / "runs/teacher_bert_qqp/config.json").read_text())
    monkeypatch.chdir(Path(config["ptrain_ver"]).parent)
    capsys.readouterr()
    for line in (teacher, student):  # each command means the run that is there, in every flag
        _, script, *words = shlex.split(line)
        tiny.run_script(script.removesuffix(".py"), *words, device_id=-1, **tiny.paths(root))
        assert "is finished" in capsys.readouterr().err
    assert str(root) not in text  # what is given away does not say where it was made


def test_what_export_refuses(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    for changes, message in (
        ({"out": tmp_path / "full"}, "--out .*full: exists already"),
        ({"ckpt": "best"}, "--ckpt best: .*eval-dev.json does not exist"),
        ({"ckpt": 3}, "--ckpt 3: .*model-3.pt does not exist"),
        ({"ckpt": "first"}, "--ckpt 'first': must be a whole number >= 0, or best"),
    ):
        with pytest.raises(UserError, match=message):
            export_run(root, **({"out": tmp_path / "out"} | changes))
    save = hub.save_library

    def with_a_wrong_bias(model: BertForSequenceClassification, *more: object) -> None:
        with torch.no_grad():
            model.classifier.bias[0] += 2e-5
        save(model, *more)

    monkeypatch.setattr(hub, "save_library", with_a_wrong_bias)
    with pytest.raises(UserError, match=r"transformers gives other logits, by 2e-05 at example \d+ of dev"):
        export_run(root, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("root", "full")] == []


# --- in ---------------------------------------------------------------------------------------------------------------


def make_classifier(root: Path, folder: Path, **changes: object) -> BertForSequenceClassification:
    """Write a random classifier of the library with the tiny vocabulary into `folder`."""
    config = BertConfig.from_pretrained(root / "bert", **changes)
    torch.manual_seed(1)
    model = BertForSequenceClassification(config).eval()
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(folder)
    BertTokenizer.from_pretrained(root / "bert").save_pretrained(folder)
    return model


def make_nli(root: Path, folder: Path, task: str, labels: tuple[str, ...], dev: str) -> list[int]:
    """Make a classifier, and a dev split of `task` that it labels right by `labels` but for one example.

    Return how often each label is predicted.
    """
    model = make_classifier(root, folder, num_labels=len(labels))
    generator = np.random.default_rng(0)
    pairs = [[" ".join(generator.choice(tiny.WORDS, 5)) for _ in range(2)] for _ in range(60)]
    tokenizer = BertTokenizer.from_pretrained(root / "bert")
    inputs = tokenizer(*zip(*pairs, strict=True), padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
        model.classifier.bias -= logits.mean(0)  # so that every label is predicted
    model.save_pretrained(folder)
    guesses = (logits - logits.mean(0)).argmax(1)
    truth = guesses.clone()
    truth[0] = (truth[0] + 1) % len(labels)
    before, after = {"mnli": (8, 5), "qnli": (1, 0)}[task]  # columns that are not read
    rows = [
        [*["x"] * before, *pair, *["x"] * after, labels[label]]
        for pair, label in zip(pairs, truth.tolist(), strict=True)
    ]
    path = root / "data" / task.upper() / f"{dev}.tsv"
    path.parent.mkdir()
    path.write_text("\n".join("\t".join(row) for row in [["h"] * len(rows[0]), *rows]) + "\n")
    return torch.bincount(guesses, minlength=len(labels)).tolist()


@pytest.mark.parametrize(
    "task, labels, dev",
    [
        ("mnli", ("contradiction", "entailment", "neutral"), "dev_matched"),
        ("qnli", ("entailment", "not_entailment"), "dev"),
    ],
)
def test_labels_without_names_are_scored_and_must_be_chosen(
    root: Path, tmp_path: Path, task: str, labels: tuple[str, ...], dev: str, capsys: pytest.CaptureFixture
) -> None:
    """The classifier's order is not the task's: 59 of 60 right in its own."""
    counts = make_nli(root, tmp_path / "model", task, labels, dev)
    assert min(counts) > 0
    capsys.readouterr()
    message = refused(root, tmp_path / "model", task=task)
    assert "its outputs are called LABEL_0, LABEL_1" in message and "say it by --labels" in message
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"0.9833  --labels {','.join(labels)}"
    assert len(lines) == {2: 2, 3: 6}[len(labels)] and float(lines[-1].split()[0]) < 0.5
    given = {"from": tmp_path / "model", "task": task, "max_seq_len": tiny.SEQ_LEN}
    import_teacher.main(words(root, **given, experiment="chosen", labels=",".join(labels)))
    assert capsys.readouterr().out.splitlines()[0] == "accuracy\t0.9833"
    assert "--labels a,b: --task" in refused(root, tmp_path / "model", task=task, labels="a,b")

    # Names in whatever case and punctuation are believed, unless dev says otherwise.
    config = tmp_path / "model" / "config.json"
    saved = json.loads(config.read_text())

    def call_them(names: tuple[str, ...]) -> None:
        config.write_text(
            json.dumps(saved | {"id2label": {i: n.upper().replace("_", "-") for i, n in enumerate(names)}})
        )

    call_them(labels)
    import_teacher.main(words(root, **given, experiment="named"))
    first, second = (tiny.load(root / f"runs/{name}_bert_{task}/model-0.pt") for name in ("chosen", "named"))
    assert all(torch.equal(first[key], second[key]) for key in first)
    call_them(labels[::-1])
    assert "above tell which order is meant" in refused(root, tmp_path / "model", task=task)


def test_an_imported_teacher_teaches(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = make_classifier(root, tmp_path / "model", num_labels=2, id2label={0: "0", 1: "1"}).half()
    model.save_pretrained(tmp_path / "model")  # half weights become whole
    given = {"from": tmp_path / "model", "experiment": "hub", "task": "qqp", "max_seq_len": tiny.SEQ_LEN}
    import_teacher.main(words(root, **given, labels="0,1"))
    weights = tiny.load(root / "runs/hub_bert_qqp/model-0.pt")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert torch.equal(weights["linear_layer.weight"], model.float().classifier.weight)
    tiny.run_script("run_lad_distil", **tiny.student_flags(root, teacher_exp="hub", tckpt=0), gate_lr=1e-4)
    student = tiny.load(root / "runs/student_bert_qqp/model-8.pt")
    assert student["linear_layer.weight"].shape == (2, 16)
    capsys.readouterr()
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(root, experiment="new", ptrain_ver=tmp_path / "model"))
    assert f"python -m fine_tune.import_teacher --from {tmp_path / 'model'}" in capsys.readouterr().err
    with pytest.raises(UserError, match="--experiment hub: .* is a run already"):
        import_teacher.main(words(root, **given))


class Evil:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_what_cannot_be_a_teacher_is_said_in_one_line(root: Path, tmp_path: Path) -> None:
    assert "without a classifier's head; fine-tune it by run_fine_tune.py --ptrain_ver" in refused(root, root / "bert")
    make_classifier(root, tmp_path / "three", num_labels=3)
    assert "has 3 outputs, but the task has 2" in refused(root, tmp_path / "three")
    make_classifier(root, tmp_path / "two", num_labels=2)
    assert "--max_seq_len 64: " in refused(root, tmp_path / "two", max_seq_len=64)
    weights = tmp_path / "two" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "cannot be loaded" in refused(root, tmp_path / "two")
    weights.unlink()
    torch.save({"bert.pooler.dense.bias": Evil(tmp_path / "owned")}, tmp_path / "two" / "pytorch_model.bin")
    assert "cannot be loaded" in refused(root, tmp_path / "two")
    assert not (tmp_path / "owned").exists()
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 16, "vocab_size": len(tiny.VOCABULARY)}
    DistilBertModel(DistilBertConfig(**sizes)).save_pretrained(tmp_path / "distil")
    BertTokenizer.from_pretrained(root / "bert").save_pretrained(tmp_path / "distil")
    assert "holds a distilbert model; only BERT models can be teachers" in refused(root, tmp_path / "distil")
    assert "is neither a local folder nor a model" in refused(root, Path("nobody/nothing"))


# --- predictions ------------------------------------------------------------------------------------------------------


class Pipe:
    """Stands in for standard input: a pipe through which `content` has gone."""

    def __init__(self, content: bytes) -> None:
        read, write = os.pipe()
        os.write(write, content)
        os.close(write)
        self.buffer = open(read, "rb")


def predicted(root: Path, content: bytes, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture) -> bytes:
    """Return what predict writes for `content`."""
    monkeypatch.setattr(sys, "stdin", Pipe(content))
    capfdbinary.readouterr()
    predict.main(words(root, experiment="teacher", task="qqp", ckpt=4))
    return capfdbinary.readouterr().out


def test_lines_become_labels_in_their_order(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture
) -> None:
    """Twelve chunks and a piece, with the probabilities of the library's softmax; the first line has a BOM."""
    monkeypatch.setattr(stream, "CHUNK", 8)
    generator = np.random.default_rng(0)
    pairs = [[" ".join(generator.choice(tiny.WORDS, generator.integers(1, 12))) for _ in "ab"] for _ in range(100)]
    content = b"\xef\xbb\xbf" + b"\r\n".join("\t".join(pair).encode() for pair in pairs)
    found = predicted(root, content, monkeypatch, capfdbinary)
    export_run(root, tmp_path / "out")
    model = BertForSequenceClassification.from_pretrained(tmp_path / "out")
    tokenizer = BertTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer(*zip(*pairs, strict=True), truncation=True, padding=True, return_tensors="pt")
    with torch.no_grad():
        chances, labels = model(**inputs).logits.softmax(1).max(1)
    lines = [line.split("\t") for line in found.decode().splitlines()]
    assert [label for label, _ in lines] == [str(label) for label in labels.tolist()]
    assert [float(chance) for _, chance in lines] == pytest.approx(chances.tolist(), abs=6e-5)


def test_a_line_that_cannot_be_read_is_named(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture
) -> None:
    assert predicted(root, b"", monkeypatch, capfdbinary) == b""
    for content, message in (
        (b"a\tb\nc\t\xff\n", r"standard input:2: is not UTF-8 \(byte 0xff at column 3\)"),
        (b"a\tb\n\n", "standard input:2: has 1 texts, separated by TAB, but the task reads 2"),
        (b"a\tb\tc\n", "standard input:1: has 3 texts"),
        (b"a\tb\0\n", "standard input:1: holds a NUL byte"),
    ):
        with pytest.raises(UserError, match=message):
            predicted(root, content, monkeypatch, capfdbinary)
    given = {"experiment": "teacher", "task": "qqp", "ckpt": 4, "in": tmp_path / "texts", "out": tmp_path / "found"}
    (tmp_path / "texts").write_bytes(b"a\tb\nc\n")
    with pytest.raises(UserError, match="texts:2: has 1 texts"):
        predict.main(words(root, **given))
    assert not (tmp_path / "found").exists()
    with pytest.raises(UserError, match="--in .*nothing: cannot be read"):
        predict.main(words(root, **given | {"in": tmp_path / "nothing"}))


def test_a_file_that_fails_while_it_is_read_is_named(root: Path, tmp_path: Path) -> None:
    given = {"experiment": "teacher", "task": "qqp", "ckpt": 4, "in": "/proc/self/mem", "out": tmp_path / "found"}
    with pytest.raises(UserError, match="^/proc/self/mem: cannot be read"):
        predict.main(words(root, **given))
    assert not (tmp_path / "found").exists()


def test_a_signal_ends_the_wait_for_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lines that have come are yielded before."""
    read, write = os.pipe()
    os.write(write, b"a\tb\nc\t")
    monkeypatch.setattr(interrupt, "received", [signal.SIGTERM])
    with open(read, "rb") as file:
        lines = stream.lines_of(file, "standard input", lambda: "so much was written")
        assert next(lines) == b"a\tb\n"
        with pytest.raises(interrupt.Interrupted, match="so much was written"):
            next(lines)
    os.close(write)


def test_who_has_seen_enough_may_leave(root: Path) -> None:
    """10,000 lines through a real pipe, of which the reader takes one."""
    given = words(root, experiment="teacher", task="qqp", ckpt=4, batch_size=1024)
    command = [sys.executable, "-m", "fine_tune.predict", *given]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(b"".join(b"w%d\tw2\n" % (number % 40) for number in range(10_000)))
    process.stdin.close()
    assert re.fullmatch(rb"[01]\t0\.\d{4}\n", process.stdout.readline())
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 128 + 13 and b"Traceback" not in said
