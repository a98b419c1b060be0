"""The command line: help, defaults, and every mistake as one line that names its flag."""

import json
import os
import re
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest

import run_alp_distil
import run_lad_no_distil
import run_probing_lad
from fine_tune.cli import checks, flags, parser
from fine_tune.core.errors import UserError

ROOT = Path(__file__).resolve().parent.parent

# --- the contract's table of flags, written down here and not taken from cli.py ---------------------------------------
# REQUIRED: must be given; a name with -- in front: that flag's value; else the default as parsed.

REQUIRED = "required"
EXPERIMENT = {"experiment": REQUIRED, "task": REQUIRED, "model": "bert"}
DATA_SPLIT = {"dataset": REQUIRED}
TEACHER = {"ptrain_ver": REQUIRED, "num_class": REQUIRED, "max_seq_len": 512}
TRAINING = {
    "accum_step": 1,
    "batch_size": 32,
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "lr": 3e-5,
    "weight_decay": 0.01,
    "max_norm": 1.0,
    "dropout": 0.1,
    "seed": 42,
    "total_step": 50000,
    "warmup_step": 10000,
    "log_step": 500,
    "ckpt_step": 1000,
}
TEACHER_USE = {
    "teacher_exp": REQUIRED,
    "tmodel": "bert",
    "tckpt": REQUIRED,
    "tdevice_id": "--device_id",
    "ptrain_ver": None,
    "weak_teacher": False,
}
STUDENT = {
    "d_model": 768,  # the teacher's, as the next ones but the number of layers
    "d_ff": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 6,
    "type_vocab_size": 2,
    "student_init": "even",
    "embedding_init": "pretrained",
    "d_emb": None,
}
OBJECTIVE = {
    "softmax_temp": 1.0,
    "soft_weight": 0.2,
    "hard_weight": 0.8,
    "mu": 1.0,
    "pad_loss": "all",
    "pad_samples": 4,
}
GATES = {
    "gate_device_id": "--device_id",
    "gate_lr": 1e-5,
    "gate_beta1": 0.9,
    "gate_beta2": 0.999,
    "gate_eps": 1e-8,
    "gate_weight_decay": 0.01,
    "gate_max_norm": 1.0,
    "gate_total_step": "--total_step",
    "gate_warmup_step": "--warmup_step",
}
PATHS = {
    "data_dir": str(ROOT / "data" / "fine_tune"),
    "experiment_dir": str(ROOT / "data" / "fine_tune_experiment"),
}
RUNS = {"overwrite": False, "keep_last": None, "dry_run": False, "eval_step": None, "eval_dataset": None}
SPEED = {"precision": "fp32", "compile": False}

TEACHING = EXPERIMENT | {"device_id": 0} | DATA_SPLIT | TEACHER | TRAINING | SPEED | PATHS | RUNS
DISTILLING = (
    EXPERIMENT
    | {"device_id": REQUIRED}
    | TRAINING
    | TEACHER_USE
    | STUDENT
    | OBJECTIVE
    | SPEED
    | {"cache_teacher": False, "cache_limit": 20}
    | PATHS
    | RUNS
)
EVALUATING = EXPERIMENT | {"device_id": None} | DATA_SPLIT | {"batch_size": 32} | PATHS
SCRIPTS = {
    "run_fine_tune.py": TEACHING,
    "run_pkd_distill.py": DISTILLING | {"layer_map": "even"},
    "run_alp_distil.py": DISTILLING | {"alp_exp": REQUIRED},
    "run_lad_distil.py": DISTILLING | GATES,
    "run_lad_no_distil.py": DISTILLING | GATES,
    "run_probing_lad.py": DISTILLING | GATES | {"probing_exp": REQUIRED, "gate_indices": None, "student_indices": None},
    "run_fine_tune_eval.py": EVALUATING | {"ckpt": 0, "again": False, "layers": False},
    "generate_test_prediction.py": EVALUATING | {"ckpt": REQUIRED},
}

# --- a command, a teacher, and how they are read ----------------------------------------------------------------------

ENCODER = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
    "initializer_range": 0.02,
}
FILES = "QQP/train QQP/dev QQP/test MNLI/train MNLI/dev_matched MNLI/test_matched STS-B/train SST-2/train".split()


Call = Callable[[str, list[str]], subprocess.CompletedProcess[str]]
Refused = Callable[[str, list[str]], str]  # the script and its words -> what it says


class Desk:
    """A data folder, an experiment folder that may hold runs, and the flags of commands that are right."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data, self.runs = folder, folder / "glue", folder / "runs"
        for name in FILES:
            path = self.data / f"{name}.tsv"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        self.paths = {"data_dir": str(self.data), "experiment_dir": str(self.runs)}
        self.pretrained = folder / "pretrained"
        self.pretrained.mkdir()
        (self.pretrained / "config.json").write_text("{}")

    def run(self, name: str = "boss_bert_qqp", step: int = 1, **changes: object) -> Path:
        """Make the folder of a teacher's run; a change to None leaves that key of its config out."""
        saved = {
            "kind": "teacher",
            "dataset": "train",
            "max_seq_len": 16,
            "num_class": 2,
            "ptrain_ver": str(self.pretrained),
            "device_id": -1,
            "encoder": ENCODER,
        } | changes
        folder = self.runs / name
        folder.mkdir(parents=True)
        saved = {key: value for key, value in saved.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(saved))
        (folder / f"model-{step}.pt").touch()
        return folder

    def teaching(self, **changes: str | None) -> list[str]:
        given = {"experiment": "boss", "task": "qqp", "dataset": "train", "num_class": "2"}
        return words(given | {"ptrain_ver": str(self.pretrained)} | self.paths | changes)

    def distilling(self, **changes: str | None) -> list[str]:
        given = {"experiment": "pupil", "task": "qqp", "device_id": "-1", "teacher_exp": "boss", "tckpt": "1"}
        return words(given | self.paths | changes)

    def evaluating(self, **changes: str | None) -> list[str]:
        return words({"experiment": "boss", "task": "qqp", "dataset": "dev"} | self.paths | changes)


def words(given: dict[str, str | None]) -> list[str]:
    """Return the words of a command; a flag of value None is left out."""
    return [word for flag, value in given.items() if value is not None for word in (f"--{flag}", value)]


def teach(argv: list[str]) -> Namespace:
    return parser.parse("", flags.fine_tuning(), checks.FINE_TUNING, "", argv, kind="teacher")


def lad(argv: list[str], rule: checks.Rule = checks.no_rule) -> Namespace:
    return parser.parse("", [*flags.distillation(), flags.gates()], checks.distillation(rule), "", argv)


def probe(argv: list[str]) -> Namespace:
    groups = [run_probing_lad.probe(), *flags.distillation(), flags.gates()]
    rules = (*checks.distillation(run_probing_lad.rule), run_probing_lad.indices_given)
    return parser.parse("", groups, rules, "", argv)


def alp(argv: list[str]) -> Namespace:
    return parser.parse("", [run_alp_distil.variant(), *flags.distillation()], checks.distillation(), "", argv)


def evaluate(argv: list[str]) -> Namespace:
    own = [flags.Flag("ckpt", flags.integer(0), "", "0")]
    own += [flags.Flag(switch, None, "") for switch in ("again", "layers")]
    return parser.parse("", flags.evaluation(*own), checks.EVALUATION, "", argv)


def predict(argv: list[str]) -> Namespace:
    ckpt = flags.Flag("ckpt", flags.step_or_best, "")
    return parser.parse("", flags.evaluation(ckpt), checks.PREDICTION, "", argv)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture(scope="session")
def call(tmp_path_factory: pytest.TempPathFactory) -> Call:
    """Return a function that runs a script as a user does, but where the slow libraries fail on import."""
    poison = tmp_path_factory.mktemp("poison")
    for name in ("torch", "transformers", "numpy"):
        (poison / f"{name}.py").write_text(f"raise RuntimeError('{name} was imported')\n")

    def run(script: str, argv: list[str]) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / script), *argv]
        environment = os.environ | {"PYTHONPATH": str(poison), "COLUMNS": "1000"}
        return subprocess.run(command, cwd=poison, env=environment, capture_output=True, text=True)

    return run


def complaint(parse: Callable[[list[str]], Namespace], argv: list[str]) -> str:
    """Return the message of the UserError that `parse` raises."""
    with pytest.raises(UserError) as error:
        parse(argv)
    assert error.value.exit_code == 2
    message = str(error.value)
    assert "\n" not in message and message == message.strip()
    return message


# --- help -------------------------------------------------------------------------------------------------------------


def test_the_scripts_are_those_of_the_contract() -> None:
    assert {path.name for path in ROOT.glob("*.py")} == set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str, tmp_path: Path) -> None:
    """-h names each flag with its default, or says that it is required, and imports nothing that is slow."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", ROOT / script, "-h"],
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "1000"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0
    flags = {"help": None} | SCRIPTS[script]
    text = re.sub(r"\n {20,}", "  ", done.stdout)  # a meaning that begins below its flag
    lines = dict(re.findall(r"^  (?:-h, )?--(\w+)(?: [A-Z_0-9]+| \{[a-z0-9_,-]+\})?  +(\S.*)$", text, re.MULTILINE))
    assert set(lines) == set(flags)
    assert re.search(r"--task \{qqp,mnli,.*\}", text)
    assert not re.search(r"--(overwrite|compile|cache_teacher) [A-Z]", text)  # a switch takes no value
    for flag, default in SCRIPTS[script].items():
        if default is REQUIRED:
            assert lines[flag].endswith("(required)"), flag
        elif flag in ("d_model", "d_ff", "num_attention_heads", "type_vocab_size"):
            assert lines[flag].endswith("(default: the teacher's)")
        elif default is not False:
            found = re.search(r"\(default: (.+)\)$", lines[flag])
            assert found, flag
            if default is not None:  # None stands for words, such as "not set"
                assert found[1] == default if isinstance(default, str) else float(found[1]) == default, flag
    usage = re.search(r"^usage: (\S+)(.*)$", done.stdout, re.MULTILINE)
    assert usage[1] == script
    assert set(re.findall(r"--(\w+)", usage[2])) == {flag for flag, default in flags.items() if default is REQUIRED}
    assert f"python {script} --" in done.stdout  # an example

    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    assert "fine_tune.cli.parser" in imported
    heavy = {"torch", "numpy", "transformers", "tokenizers", "scipy", "sklearn", "tensorboard", "tqdm"}
    assert not {name.partition(".")[0] for name in imported} & heavy


@pytest.mark.parametrize("script", SCRIPTS)
def test_the_example_of_the_help_is_a_command(script: str, call: Call, tmp_path: Path) -> None:
    """It is read without a complaint about its flags: what is missing is the data and the runs it speaks of."""
    command = call(script, ["-h"]).stdout.partition("example:\n")[2].replace("\\\n", " ").split()
    assert command[:2] == ["python", script]
    paths = ["--data_dir", str(tmp_path / "glue"), "--experiment_dir", str(tmp_path / "runs")]
    done = call(script, [*command[2:], *paths])
    assert done.returncode == 2
    problems = done.stderr.strip().removeprefix(f"{script}: error: ").split("; ")
    missing = (
        "--data_dir ",
        "python -m fine_tune.download",
        "--teacher_exp",
        "--experiment",
        "is this the run you meant",
    )
    assert all(problem.startswith(missing) for problem in problems), problems


# --- defaults ---------------------------------------------------------------------------------------------------------


def expected(table: dict[str, object], given: dict[str, object]) -> dict[str, object]:
    """Return what a command that gives only `given` must be read as."""
    values = {flag: given.get(flag, default) for flag, default in table.items()}
    assert REQUIRED not in values.values()
    return {
        flag: values[value[2:]] if isinstance(value, str) and value.startswith("--") else value
        for flag, value in values.items()
    }


def distiller(found: Namespace) -> dict[str, object]:
    """Return a distiller's flags without the teacher's config.json, which comes with them."""
    assert found.teacher_config.num_class == 2
    return {flag: value for flag, value in vars(found).items() if flag != "teacher_config"}


def test_defaults_are_those_of_the_contract(desk: Desk) -> None:
    desk.run()
    paths = {"data_dir": str(desk.data), "experiment_dir": str(desk.runs)}
    common = {"experiment": "boss", "task": "qqp"} | paths
    teacher = common | {"dataset": "train", "num_class": 2, "ptrain_ver": str(desk.pretrained)}
    assert vars(teach(desk.teaching())) == expected(TEACHING, teacher) | {"kind": "teacher"}

    student = {"experiment": "pupil", "task": "qqp", "device_id": -1, "teacher_exp": "boss", "tckpt": 1} | paths
    taken = {"dataset": "train", "max_seq_len": 16, "num_class": 2, "ptrain_ver": str(desk.pretrained)}  # the teacher's
    student |= taken
    assert distiller(lad(desk.distilling())) == expected(DISTILLING | GATES, student) | taken
    found = probe(["--probing_exp", "lad_cls", *desk.distilling()])
    given = student | {"probing_exp": "lad_cls"}
    assert distiller(found) == expected(SCRIPTS["run_probing_lad.py"], given) | taken
    found = alp(["--alp_exp", "alp-kd", *desk.distilling()])
    given = student | {"alp_exp": "alp-kd"}
    assert distiller(found) == expected(SCRIPTS["run_alp_distil.py"], given) | taken

    evaluation = common | {"dataset": "dev"}
    found = evaluate(desk.evaluating())
    assert found.run_config.num_class == 2
    del found.run_config
    assert vars(found) == expected(SCRIPTS["run_fine_tune_eval.py"], evaluation)
    found = predict(desk.evaluating(ckpt="1"))
    assert found.choice == ""  # nothing was left to choose
    del found.run_config, found.choice
    assert vars(found) == expected(SCRIPTS["generate_test_prediction.py"], evaluation | {"ckpt": 1})


def test_default_paths_lie_in_the_project_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = parser.parse("", [flags.paths()], (), "", [])
    assert vars(found) == PATHS


def test_given_paths_are_relative_to_the_current_folder(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.folder)
    found = teach(desk.teaching(data_dir="glue", experiment_dir="some/runs", ptrain_ver="pretrained"))
    assert found.data_dir == str(desk.data)
    assert found.experiment_dir == str(desk.folder / "some" / "runs")
    assert found.ptrain_ver == str(desk.pretrained)  # stored absolute
    monkeypatch.setenv("HOME", str(desk.folder))
    found = teach(desk.teaching(data_dir="~/glue", ptrain_ver="~/pretrained"))
    assert (found.data_dir, found.ptrain_ver) == (str(desk.data), str(desk.pretrained))


@pytest.mark.parametrize("name", ["bert-base-uncased", "google/bert_uncased_L-2_H-128_A-2"])
def test_a_hub_name_stays_as_it_is(desk: Desk, name: str) -> None:
    assert teach(desk.teaching(ptrain_ver=name)).ptrain_ver == name


def test_gate_steps_fall_back_on_the_students(desk: Desk) -> None:
    desk.run()
    found = lad(desk.distilling(total_step="700", warmup_step="70"))
    assert (found.gate_total_step, found.gate_warmup_step) == (700, 70)
    found = lad(desk.distilling(total_step="700", warmup_step="70", gate_total_step="900"))
    assert (found.gate_total_step, found.gate_warmup_step) == (900, 70)
    found = lad(desk.distilling(total_step="700", warmup_step="70", gate_warmup_step="0"))
    assert (found.gate_total_step, found.gate_warmup_step) == (700, 0)
    assert found.warmup_step == 70


def test_devices_fall_back_on_the_students(desk: Desk) -> None:
    desk.run()
    for given, devices in (
        ({"device_id": "3"}, (3, 3, 3)),
        ({"device_id": "3", "tdevice_id": "-1"}, (3, -1, 3)),
        ({"device_id": "-1", "gate_device_id": "1"}, (-1, -1, 1)),
        ({"device_id": "0", "tdevice_id": "1", "gate_device_id": "2"}, (0, 1, 2)),
    ):
        found = lad(desk.distilling(**given))
        assert (found.device_id, found.tdevice_id, found.gate_device_id) == devices
    assert teach(desk.teaching()).device_id == 0
    assert teach(desk.teaching(device_id="-1")).device_id == -1
    assert evaluate(desk.evaluating(device_id="2")).device_id == 2


def test_limits_that_are_allowed(desk: Desk) -> None:
    desk.run()
    found = lad(
        desk.distilling(
            **{"mu": "0", "soft_weight": "0", "hard_weight": "0.0", "weight_decay": "0", "gate_weight_decay": "0"},
            **{"dropout": "0", "beta1": "0", "gate_beta2": "0", "seed": "0", "tckpt": "1", "eps": "1e-30"},
            **{"total_step": "1", "warmup_step": "1", "ckpt_step": "1", "log_step": "1"},
            **{"accum_step": "8", "batch_size": "8", "num_hidden_layers": "12", "softmax_temp": "199.9"},
        )
    )
    assert (found.mu, found.dropout, found.beta1, found.seed, found.warmup_step) == (0, 0, 0, 0, 1)
    assert isinstance(found.mu, float) and isinstance(found.seed, int)


def test_a_value_may_follow_an_equals_sign(desk: Desk) -> None:
    desk.run()
    found = lad([*desk.distilling(lr=None, device_id=None), "--lr=1e-4", "--device_id=-1", "--overwrite"])
    assert (found.lr, found.device_id, found.overwrite) == (1e-4, -1, True)


# --- wrong values -----------------------------------------------------------------------------------------------------

ABOVE_0 = "must be a finite number > 0"
FROM_0 = "must be a finite number >= 0"
BELOW_1 = "must be a finite number >= 0 and < 1"
NAME = "must be a plain name of at most 100 letters, digits, '.', '_' and '-'"
PATH = "must be a path of printable characters"


def count(low: int) -> str:
    return f"must be a whole number >= {low}"


WRONG = [
    ("lr", "0", ABOVE_0),
    ("lr", "-1", ABOVE_0),
    ("lr", "-0.5", ABOVE_0),
    ("lr", "-1e-3", ABOVE_0),
    ("lr", "-inf", ABOVE_0),
    ("lr", "nan", ABOVE_0),
    ("lr", "inf", ABOVE_0),
    ("lr", "1e400", ABOVE_0),
    ("lr", "fast", ABOVE_0),
    ("lr", "", ABOVE_0),
    ("lr", "1e-4,", ABOVE_0),
    ("lr", "1_0e-4", ABOVE_0),
    ("lr", "\uff11e-4", ABOVE_0),  # a full-width digit
    ("lr", " 1e-4", ABOVE_0),
    ("gate_lr", "0.0", ABOVE_0),
    ("gate_lr", "nan", ABOVE_0),
    ("eps", "0", ABOVE_0),
    ("gate_eps", "-1", ABOVE_0),
    ("softmax_temp", "0", f"{ABOVE_0} and < 200"),
    ("softmax_temp", "inf", f"{ABOVE_0} and < 200"),
    ("softmax_temp", "1e155", f"{ABOVE_0} and < 200"),
    ("d_ff", "100000000000000", f"{count(1)} and < 1000000"),
    ("max_norm", "0", ABOVE_0),
    ("max_norm", "inf", ABOVE_0),
    ("gate_max_norm", "-1", ABOVE_0),
    ("mu", "-0.1", FROM_0),
    ("mu", "nan", FROM_0),
    ("soft_weight", "-1", FROM_0),
    ("hard_weight", "inf", FROM_0),
    ("weight_decay", "-0.01", FROM_0),
    ("gate_weight_decay", "nan", FROM_0),
    ("dropout", "1", BELOW_1),
    ("dropout", "-0.1", BELOW_1),
    ("dropout", "10%", BELOW_1),
    ("beta1", "1.0", BELOW_1),
    ("beta2", "-1", BELOW_1),
    ("gate_beta1", "nan", BELOW_1),
    ("gate_beta2", "1", BELOW_1),
    ("total_step", "0", count(1)),
    ("total_step", "-5", count(1)),
    ("total_step", "1.5", count(1)),
    ("total_step", "1e3", count(1)),
    ("total_step", "1_000", count(1)),
    ("total_step", " 10", count(1)),
    ("total_step", "٣", count(1)),
    ("gate_total_step", "0", count(1)),
    ("warmup_step", "-1", count(0)),
    ("gate_warmup_step", "ten", count(0)),
    ("batch_size", "0", count(1)),
    ("accum_step", "0", count(1)),
    ("log_step", "0", count(1)),
    ("ckpt_step", "0", count(1)),
    ("seed", "-1", count(0)),
    ("seed", "forty-two", count(0)),
    ("tckpt", "-1", count(0)),
    ("tckpt", "last", count(0)),
    ("device_id", "-2", count(-1)),
    ("device_id", "cuda:0", count(-1)),
    ("tdevice_id", "cpu", count(-1)),
    ("gate_device_id", "0.0", count(-1)),
    ("d_model", "0", f"{count(1)} and < 1000000"),
    ("d_ff", "-3072", f"{count(1)} and < 1000000"),
    ("num_attention_heads", "0", f"{count(1)} and < 1000000"),
    ("num_hidden_layers", "0", f"{count(1)} and < 1000000"),
    ("type_vocab_size", "0", f"{count(1)} and < 1000000"),
    ("d_emb", "none", count(1)),
    ("pad_loss", "none", "must be one of all, masked, sampled"),
    ("pad_samples", "0", count(1)),
    ("precision", "fp8", "must be one of fp32, tf32, bf16, fp16"),
    ("student_init", "last", "must be one of even, first, random"),
    ("student_init", "Even", "must be one of even, first, random"),
    ("embedding_init", "zero", "must be one of pretrained, random"),
    ("task", "qqp2", "must be one of qqp, mnli, qnli, rte, mrpc, sst2, cola, stsb, wnli"),
    ("task", "QQP", "must be one of qqp, mnli, qnli, rte, mrpc, sst2, cola, stsb, wnli"),
    ("experiment", "../../x", NAME),
    ("experiment", "/tmp/x", NAME),
    ("experiment", "a/b", NAME),
    ("experiment", "..", NAME),
    ("experiment", ".", NAME),
    ("experiment", "", NAME),
    ("experiment", "two words", NAME),
    ("experiment", "line\nbreak", NAME),
    ("experiment", "final_newline\n", NAME),
    ("experiment", "nul\0byte", NAME),
    ("experiment", "über", NAME),
    ("experiment", "x" * 101, NAME),
    ("experiment", "a\\b", NAME),
    ("model", "../bert", NAME),
    ("teacher_exp", "../../boss", NAME),
    ("teacher_exp", "boss\0", NAME),
    ("tmodel", "bert/base", NAME),
    ("data_dir", "", PATH),
    ("data_dir", "a\nb", PATH),
    ("data_dir", "a\0b", PATH),
    ("experiment_dir", "", PATH),
    ("experiment_dir", "a\tb", PATH),
]


@pytest.mark.parametrize("flag, value, reason", WRONG)
def test_a_wrong_value_is_named(desk: Desk, flag: str, value: str, reason: str) -> None:
    """The message is about that one flag: what follows from it is not reported too."""
    desk.run()
    assert complaint(lad, desk.distilling(**{flag: value})) == f"--{flag} {value!r}: {reason}"


TEACHING_WRONG = [
    ("num_class", "0", count(1)),
    ("num_class", "two", count(1)),
    ("max_seq_len", "0", count(8)),
    ("max_seq_len", "7", count(8)),
    ("max_seq_len", "128.0", count(8)),
    ("dataset", "../train", NAME),
    ("dataset", "", NAME),
    ("ptrain_ver", "", "must be a hub name or a local folder"),
    ("ptrain_ver", "bert\nbase", "must be a hub name or a local folder"),
    ("ptrain_ver", "bert\0base", "must be a hub name or a local folder"),
    ("lr", "0", ABOVE_0),
    ("overwritten", "1", None),
    ("exper", "x", None),
    ("mu", "1", None),
]


@pytest.mark.parametrize("flag, value, reason", TEACHING_WRONG)
def test_a_wrong_value_of_a_teacher_is_named(desk: Desk, flag: str, value: str, reason: str) -> None:
    message = complaint(teach, desk.teaching(**{flag: value}))
    if reason is None:  # no flag of this script: abbreviations and the students' flags are none either
        assert message.startswith(f"'--{flag}': is no flag of this script (see -h)")
    else:
        assert message == f"--{flag} {value!r}: {reason}"


@pytest.mark.parametrize("flag", ["data_dir", "experiment_dir", "ptrain_ver"])
@pytest.mark.parametrize("value", ["~no_such_user_here/x", "/tmp/" + "x" * 300])
def test_a_path_that_the_system_refuses_is_a_users_mistake(desk: Desk, flag: str, value: str) -> None:
    """No user of that name; a name longer than a file system takes."""
    if flag == "experiment_dir":
        message = complaint(lad, desk.distilling(**{flag: value}))
    else:
        message = complaint(teach, desk.teaching(**{flag: value}))
    assert re.match(rf"--({flag}|teacher_exp)\b", message) and value in message


@pytest.mark.parametrize("flag", [flag for flag, default in (DISTILLING | GATES).items() if default is not False])
def test_a_flag_without_its_value_is_named(desk: Desk, flag: str) -> None:
    desk.run()
    argv = desk.distilling(**{flag: None})
    assert complaint(lad, [*argv, f"--{flag}"]) == f"--{flag}: needs a value"
    assert complaint(lad, [f"--{flag}", *argv]) == f"--{flag}: needs a value"


@pytest.mark.parametrize("flag", [flag for flag, default in DISTILLING.items() if default is REQUIRED])
def test_a_missing_flag_is_named(desk: Desk, flag: str) -> None:
    desk.run()
    assert complaint(lad, desk.distilling(**{flag: None})) == f"--{flag}: is required"


@pytest.mark.parametrize("flag", [flag for flag, default in TEACHING.items() if default is REQUIRED])
def test_a_missing_flag_of_a_teacher_is_named(desk: Desk, flag: str) -> None:
    assert complaint(teach, desk.teaching(**{flag: None})) == f"--{flag}: is required"


def test_a_missing_checkpoint_number_is_named(desk: Desk) -> None:
    desk.run()
    assert complaint(predict, desk.evaluating()) == "--ckpt: is required"
    assert complaint(alp, desk.distilling()) == "--alp_exp: is required"
    assert complaint(probe, desk.distilling()) == "--probing_exp: is required"


@pytest.mark.parametrize("word", ["stray", "--bogus=3", "-lr", "--Lr=1"])
def test_a_word_that_is_no_flag_is_named(desk: Desk, word: str) -> None:
    desk.run()
    hint = " (did you mean --lr?)" if "lr" in word.lower() else ""
    assert complaint(lad, [*desk.distilling(), word]) == f"{word!r}: is no flag of this script (see -h){hint}"


def test_the_value_of_a_strange_flag_is_not_strange_too(desk: Desk) -> None:
    desk.run()
    words = ["--bogus", "3", "--other=1", "stray", "-x", "loose"]
    reported = ["--bogus", "--other=1", "stray", "-x", "loose"]
    expected = "; ".join(f"{word!r}: is no flag of this script (see -h)" for word in reported)
    assert complaint(lad, [*desk.distilling(), *words]) == expected


@pytest.mark.parametrize("word", ["--overwrite=yes", "--help=lr", "-help"])
def test_a_value_for_a_switch_is_a_line_too(desk: Desk, word: str, capfd: pytest.CaptureFixture) -> None:
    """argparse has its own way of refusing these: several lines, at once, and nothing about the other problems."""
    desk.run()
    assert word.partition("=")[0] in complaint(lad, [*desk.distilling(), word])
    assert capfd.readouterr() == ("", "")


ALP = "must be one of alp-kd, alp-kd-hidden, alp-kd-hidden-v2"
PROBES = "must be one of partial_lad, lad_user_defined, lad_cls"
LAYERS = "must be layer numbers from 1, separated by commas"


def test_a_wrong_variant_is_named(desk: Desk) -> None:
    desk.run()
    assert complaint(alp, ["--alp_exp", "alp", *desk.distilling()]) == f"--alp_exp 'alp': {ALP}"
    assert complaint(probe, ["--probing_exp", "lad", *desk.distilling()]) == f"--probing_exp 'lad': {PROBES}"


@pytest.mark.parametrize("flag", ["gate_indices", "student_indices"])
@pytest.mark.parametrize(
    "value, reason",
    [
        ("", LAYERS),
        ("2,,4", LAYERS),
        ("2,4,", LAYERS),
        ("0,2", LAYERS),
        ("-1", LAYERS),
        ("2;4", LAYERS),
        ("2, 4", LAYERS),
        ("two", LAYERS),
        ("1.0", LAYERS),
        ("2,4,2", "must not name a layer twice"),
    ],
)
def test_wrong_indices_are_named(desk: Desk, flag: str, value: str, reason: str) -> None:
    desk.run()
    given = {"gate_indices": "2,4", "student_indices": "1,2", flag: value}
    argv = ["--probing_exp", "lad_user_defined", *words(given), *desk.distilling()]
    assert complaint(probe, argv) == f"--{flag} {value!r}: {reason}"


# --- flags that do not fit each other ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, message",
    [
        ({"accum_step": "5"}, "--accum_step 5: must divide --batch_size 32"),
        ({"accum_step": "64"}, "--accum_step 64: must divide --batch_size 32"),
        ({"accum_step": "4", "batch_size": "6"}, "--accum_step 4: must divide --batch_size 6"),
        (
            {"gate_warmup_step": "50001"},
            "--gate_warmup_step 50001: must not exceed --gate_total_step 50000",
        ),
        ({"gate_total_step": "100"}, "--gate_warmup_step 10000: must not exceed --gate_total_step 100"),
        (
            {"total_step": "500", "warmup_step": "501", "gate_total_step": "501"},
            "--warmup_step 501: must not exceed --total_step 500",
        ),
        # the same pair of numbers by fall-back is not a second mistake
        ({"total_step": "500"}, "--warmup_step 10000: must not exceed --total_step 500"),
        ({"warmup_step": "50001"}, "--warmup_step 50001: must not exceed --total_step 50000"),
        (
            {"num_attention_heads": "7", "student_init": "random"},
            "--num_attention_heads 7: must divide --d_model 768",
        ),
        # against a teacher of 12 layers, width 768, 12 heads, feed-forward 3072, 2 segment ids
        ({"num_hidden_layers": "5"}, "--num_hidden_layers 5: must divide the teacher's 12 layers"),
        ({"num_hidden_layers": "24"}, "--num_hidden_layers 24: must divide the teacher's 12 layers"),
        ({"d_model": "384"}, "--d_model 384: must be the teacher's 768"),
        ({"d_model": "384", "student_init": "random"}, "--d_model 384: must be the teacher's 768"),
        ({"d_ff": "1024"}, "--d_ff 1024: must be the teacher's 3072 unless --student_init random"),
        (
            {"d_ff": "1024", "student_init": "first"},
            "--d_ff 1024: must be the teacher's 3072 unless --student_init random",
        ),
        (
            {"num_attention_heads": "6"},
            "--num_attention_heads 6: must be the teacher's 12 unless --student_init random",
        ),
        (
            {"type_vocab_size": "4"},
            "--type_vocab_size 4: must be the teacher's 2 unless --embedding_init random",
        ),
        (
            {"type_vocab_size": "4", "student_init": "random"},
            "--type_vocab_size 4: must be the teacher's 2 unless --embedding_init random",
        ),
        (
            {"type_vocab_size": "1", "embedding_init": "random"},
            "--type_vocab_size 1: --task qqp has pairs of texts, which need 2",
        ),
        (
            {"pad_samples": "2", "pad_loss": "masked"},
            "--pad_samples 2: has no meaning with --pad_loss masked; leave it out",
        ),
    ],
)
def test_flags_that_do_not_fit(desk: Desk, given: dict[str, str], message: str) -> None:
    desk.run()
    assert complaint(lad, desk.distilling(**given)) == message


@pytest.mark.parametrize(
    "given",
    [
        {"d_ff": "1024", "num_attention_heads": "6", "student_init": "random"},
        {"type_vocab_size": "4", "embedding_init": "random"},
        {"num_hidden_layers": "1"},
        {"num_hidden_layers": "12"},
    ],
)
def test_what_a_random_start_allows(desk: Desk, given: dict[str, str]) -> None:
    desk.run()
    found = vars(lad(desk.distilling(**given)))
    assert {flag: str(found[flag]) for flag in given} == given


def test_lad_no_needs_a_layer_below_each_that_it_uses(desk: Desk) -> None:
    desk.run()
    message = "--num_hidden_layers 12: LAD-NO needs at most half of the teacher's 12 layers"
    assert complaint(lambda argv: lad(argv, run_lad_no_distil.rule), desk.distilling(num_hidden_layers="12")) == message
    assert lad(desk.distilling(num_hidden_layers="6"), run_lad_no_distil.rule).num_hidden_layers == 6


@pytest.mark.parametrize(
    "given, message",
    [
        (
            {"probing_exp": "partial_lad"},
            "--gate_indices: is required with --probing_exp partial_lad",
        ),
        (
            {"probing_exp": "lad_user_defined", "student_indices": "1,2"},
            "--gate_indices: is required with --probing_exp lad_user_defined",
        ),
        (
            {"probing_exp": "lad_cls", "gate_indices": "2,4"},
            "--gate_indices: has no meaning with --probing_exp lad_cls; leave it out",
        ),
        (
            {"probing_exp": "lad_cls", "student_indices": "2,4"},
            "--student_indices: has no meaning with --probing_exp lad_cls; leave it out",
        ),
        (
            {"probing_exp": "lad_user_defined", "gate_indices": "2,13", "student_indices": "1,2"},
            "--gate_indices 2,13: must lie within 1..12",
        ),
        (
            {"probing_exp": "lad_user_defined", "gate_indices": "2,4", "student_indices": "1,7"},
            "--student_indices 1,7: must lie within 1..6",
        ),
        (
            {"probing_exp": "lad_user_defined", "gate_indices": "2,13", "student_indices": "1,7"},
            "--gate_indices 2,13: must lie within 1..12; --student_indices 1,7: must lie within 1..6",
        ),
    ],
)
def test_indices_that_do_not_fit(desk: Desk, given: dict[str, str], message: str) -> None:
    desk.run()
    assert complaint(probe, [*words(given), *desk.distilling()]) == message


@pytest.mark.parametrize(
    "probing, gates, students",
    [
        ("lad_user_defined", "2,4,6", "1,2"),
        ("lad_user_defined", "2,4", "1,2,3"),
        ("lad_user_defined", "2,4", None),  # all six students
        ("partial_lad", "2,4,6,8,10", "1,2,3,4"),  # neither five nor six
        ("partial_lad", "2,4,5", None),  # from 5 no 2nd layer is 12
        ("partial_lad", "2,5", "1,2"),
        ("partial_lad", "4,8", "1,2"),  # 4,8 and 10,12 are four targets
        ("partial_lad", "1,2,3,4,5,6,12", None),  # seven
    ],
)
def test_a_wrong_count_of_indices_names_both_flags(desk: Desk, probing: str, gates: str, students: str | None) -> None:
    desk.run()
    argv = [*words({"probing_exp": probing, "gate_indices": gates, "student_indices": students}), *desk.distilling()]
    chosen = students or "1,2,3,4,5,6"
    assert complaint(probe, argv).startswith(f"--gate_indices {gates} and --student_indices {chosen}: ")


@pytest.mark.parametrize(
    "probing, gates, students",
    [
        ("partial_lad", [2, 4, 6, 8, 10], None),  # the seed's example: student 6 learns t_12
        ("partial_lad", [2, 4, 6], None),  # and 8, 10, 12
        ("partial_lad", [2, 4], [6, 1]),  # and 6, 8, 10, 12
        ("partial_lad", [4, 2], [6, 5, 4, 3, 2, 1]),
        ("partial_lad", [1, 3, 5, 7, 9, 12], None),  # nothing is left
        ("lad_user_defined", [12, 3], [5, 6]),
        ("lad_user_defined", [1], [6]),
        ("lad_user_defined", [2, 4, 6, 8, 10, 12], None),
    ],
)
def test_indices_that_fit(desk: Desk, probing: str, gates: str, students: str | None) -> None:
    desk.run()
    given = {"probing_exp": probing, "gate_indices": gates, "student_indices": students}
    typed = {flag: ",".join(map(str, value)) if isinstance(value, list) else value for flag, value in given.items()}
    found = vars(probe([*words(typed), *desk.distilling()]))
    assert {flag: found[flag] for flag in given} == given


# --- data and runs that are not there ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, message",
    [
        ({"dataset": "test"}, "--dataset test: --task qqp has train, dev (with labels)"),
        ({"dataset": "valid"}, "--dataset valid: --task qqp has train, dev"),
        ({"dataset": "dev_matched"}, "--dataset dev_matched: --task qqp has train, dev"),
        (
            {"task": "mnli", "num_class": "3", "dataset": "dev"},
            "--dataset dev: --task mnli has train, dev_matched, dev_mismatched",
        ),
        (
            {"task": "mnli", "num_class": "3", "dataset": "ax"},
            "--dataset ax: --task mnli has train, dev_matched, dev_mismatched (with labels)",
        ),
        ({"task": "mnli"}, "--num_class 2: --task mnli needs 3"),
        ({"task": "stsb"}, "--num_class 2: --task stsb needs 1"),
        ({"task": "sst2", "num_class": "1"}, "--num_class 1: --task sst2 needs 2"),
        (
            {"task": "mnli", "dataset": "test"},
            "--num_class 2: --task mnli needs 3; --dataset test: --task mnli has train, dev_matched, dev_mismatched",
        ),
    ],
)
def test_a_task_without_that_split_or_count_of_classes(desk: Desk, given: dict[str, str], message: str) -> None:
    assert complaint(teach, desk.teaching(**given)) == message


def test_a_prediction_reads_splits_without_labels(desk: Desk) -> None:
    desk.run()
    assert predict(desk.evaluating(dataset="test", ckpt="1")).dataset == "test"
    message = "--dataset tests: --task qqp has train, dev, test"
    assert complaint(predict, desk.evaluating(dataset="tests", ckpt="1")) == message
    message = "--dataset test: --task qqp has train, dev (with labels)"
    assert complaint(evaluate, desk.evaluating(dataset="test")) == message


def test_missing_data_is_named(desk: Desk) -> None:
    (desk.data / "QQP" / "train.tsv").unlink()
    (desk.data / "QQP" / "train.tsv").mkdir()  # a folder is no file
    desk.run()
    cure = "does not exist; python -m fine_tune.download gets it (docs/data.md), or point --data_dir at it"
    message = f"--data_dir {desk.data}: {desk.data / 'QQP' / 'train.tsv'} {cure}"
    assert complaint(teach, desk.teaching()) == message
    assert complaint(lad, desk.distilling()) == message
    nowhere = desk.folder / "nowhere"
    message = f"--data_dir {nowhere}: {nowhere / 'QQP' / 'dev.tsv'} {cure}"
    assert complaint(evaluate, desk.evaluating(data_dir=str(nowhere))) == message


@pytest.mark.parametrize("other", ["QQP", ".."])
def test_a_data_folder_too_deep_or_too_high_is_recognised(desk: Desk, other: str) -> None:
    given = (desk.data / other).resolve()
    assert complaint(teach, desk.teaching(data_dir=str(given))).endswith(f"; did you mean --data_dir {desk.data}?")


def test_any_name_of_a_folder_that_can_be_read_is_taken(desk: Desk) -> None:
    for name in ("two  spaces", "a\u00a0hard one", "\u30c7\u30fc\u30bf", "e\u0301"):
        path = desk.folder / name
        assert teach(desk.teaching(data_dir=str(desk.data), experiment_dir=str(path))).experiment_dir == str(path)
        message = complaint(teach, desk.teaching(data_dir=str(path)))
        assert message.startswith(f"--data_dir {path}: {path}/QQP/train.tsv does not exist")  # as it is
        (path / "bert").mkdir(parents=True)
        (path / "bert" / "config.json").write_text("{}")
        assert teach(desk.teaching(ptrain_ver=str(path / "bert"))).ptrain_ver == str(path / "bert")
    assert complaint(teach, desk.teaching(data_dir="/tmp/\udcff")).startswith(
        r"--data_dir '/tmp/\udcff': must be a path"
    )
    assert complaint(teach, desk.teaching(ptrain_ver="/tmp/\udcff")).startswith(
        r"--ptrain_ver '/tmp/\udcff': must be a hub name or"
    )


def test_a_current_folder_that_is_not_utf8_is_a_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is relative to it would be written into config.json."""
    (desk.folder / "\udcff").mkdir()
    monkeypatch.chdir(desk.folder / "\udcff")
    reason = "is relative to a folder whose name is not UTF-8; rename that"
    assert complaint(teach, desk.teaching(experiment_dir="runs")) == f"--experiment_dir 'runs': {reason}"
    teach(desk.teaching())  # nothing is


def test_a_current_folder_that_is_gone_is_a_line(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    (desk.folder / "gone").mkdir()
    monkeypatch.chdir(desk.folder / "gone")
    (desk.folder / "gone").rmdir()
    reason = "is relative to the current folder, which is gone; cd to one that is there"
    assert complaint(teach, desk.teaching(data_dir="here")) == f"--data_dir 'here': {reason}"


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"max_seq_len": "128"}, "max_seq_len"),
        ({"max_seq_len": True}, "max_seq_len"),
        ({"num_class": 2.5}, "num_class"),
        ({"num_class": 10**18}, "num_class"),
        ({"dataset": ["train"]}, "dataset"),
        ({"ptrain_ver": {}}, "ptrain_ver"),
        ({"labels": "01"}, "labels"),
        ({"encoder": [1]}, "encoder"),
        ({"encoder": ENCODER | {"hidden_size": "768"}}, "encoder.hidden_size"),
        ({"encoder": ENCODER | {"layer_norm_eps": None}}, "encoder.layer_norm_eps"),
    ],
)
def test_a_config_of_wrong_types_is_a_line(desk: Desk, change: dict[str, object], name: str) -> None:
    folder = desk.run(**change)
    assert complaint(lad, desk.distilling()).startswith(f"--teacher_exp: {folder / 'config.json'}: {name} must be ")


@pytest.mark.parametrize("content", [b"[" * 100_000, b'{"a": ' * 50_000, b"\xff\xfe{}", b'"text"', b"3", b"null"])
def test_any_other_content_of_a_config_is_a_line(desk: Desk, content: bytes) -> None:
    (desk.run() / "config.json").write_bytes(content)
    assert complaint(lad, desk.distilling()).startswith(f"--teacher_exp: {desk.runs}/boss_bert_qqp/config.json: ")


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_no_file_where_a_file_should_be(desk: Desk, kind: str) -> None:
    """A pipe would be waited for."""
    path = desk.run() / "config.json"
    path.unlink()
    path.mkdir() if kind == "folder" else os.mkfifo(path)
    reason = "cannot be read (Is a directory)" if kind == "folder" else "is no regular file, but a pipe or a device"
    assert complaint(lad, desk.distilling()) == f"--teacher_exp: {path}: {reason}"


@pytest.mark.parametrize("value", ["{}/gone", "./gone", "../gone", "some/gone/folder", "{}/file"])
def test_a_pretrained_folder_that_is_not_there(desk: Desk, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(desk.folder)
    (desk.folder / "file").touch()
    value = value.format(desk.folder)
    message = f"--ptrain_ver {value}: no such folder; give a local model folder or a hub name"
    assert complaint(teach, desk.teaching(ptrain_ver=value)) == message


def test_a_pretrained_folder_without_a_model(desk: Desk) -> None:
    reason = f"{desk.data / 'config.json'} does not exist, so this is no model folder"
    assert complaint(teach, desk.teaching(ptrain_ver=str(desk.data))) == f"--ptrain_ver {desk.data}: {reason}"


def test_a_teacher_that_is_not_there(desk: Desk) -> None:
    path = desk.runs / "boss_bert_qqp" / "config.json"
    message = complaint(lad, desk.distilling())
    assert message.startswith("--teacher_exp") and f"{path}: cannot be read (No such file or directory)" in message
    assert "--tmodel" in message  # the cure names the flags of the teacher; --model is the student's
    assert "--model" not in message
    message = complaint(lad, desk.distilling(tmodel="roberta"))
    assert str(desk.runs / "boss_roberta_qqp" / "config.json") in message


def test_a_teachers_checkpoint_that_is_not_there(desk: Desk) -> None:
    folder = desk.run(step=3)
    assert complaint(lad, desk.distilling()) == f"--tckpt 1: {folder / 'model-1.pt'} does not exist (there are 3)"
    (folder / "model-3.pt").rename(folder / "model-20.pt")
    for step in range(20):
        (folder / f"model-{20 * (step + 1)}.pt").touch()
    assert complaint(lad, desk.distilling()).endswith(" does not exist (there are 20, from 20 to 400)")
    (folder / "model-3.pt").touch()
    assert lad(desk.distilling(tckpt="3")).tckpt == 3


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[]", "must hold a JSON object, not a list"),
        (b"{}", "lacks dataset, max_seq_len, num_class, device_id"),
        (b'{"kind": "teacher", "dataset": "train", "max_seq_len": 8, "num_class": 2}', "lacks device_id, ptrain_ver"),
    ],
)
def test_a_teachers_damaged_config(desk: Desk, content: bytes, reason: str) -> None:
    path = desk.run() / "config.json"
    path.write_bytes(content)
    message = complaint(lad, desk.distilling())
    assert message.startswith("--teacher_exp") and f"{path}: {reason}" in message


@pytest.mark.parametrize("encoder", [{}, {"hidden_size": 768}, [], "large"])
def test_a_teachers_config_without_sizes(desk: Desk, encoder: object) -> None:
    path = desk.run(encoder=encoder) / "config.json"
    message = complaint(lad, desk.distilling())
    assert message.startswith("--teacher_exp") and str(path) in message


def test_a_student_is_no_teacher(desk: Desk) -> None:
    folder = desk.run(kind="student")
    message = f"--teacher_exp boss: {folder} holds a student, not a fine-tuned teacher"
    assert complaint(lad, desk.distilling()) == message


def test_a_folder_of_the_authors_is_known_by_its_keys(desk: Desk) -> None:
    """Their config.json has no kind: with ptrain_ver it is a teacher's, without a student's."""
    folder = desk.run(kind=None, encoder=None)
    assert lad(desk.distilling()).teacher_exp == "boss"
    (folder / "config.json").write_text('{"dataset": "train", "max_seq_len": 8, "num_class": 2, "device_id": 0}')
    assert complaint(lad, desk.distilling()).endswith("holds a student, not a fine-tuned teacher")
    assert evaluate(desk.evaluating()).experiment == "boss"


def test_a_teacher_of_another_count_of_classes(desk: Desk) -> None:
    """A distiller has no --num_class: the message is about the teacher's config, and names it."""
    path = desk.run(num_class=3) / "config.json"
    message = complaint(lad, desk.distilling())
    assert message.startswith("--teacher_exp") and str(path) in message
    assert re.search(r"\b3\b", message) and re.search(r"\b2\b", message) and "--num_class" not in message


def test_a_teacher_of_a_split_without_labels(desk: Desk) -> None:
    desk.run(dataset="test")
    message = "--teacher_exp boss: its dataset test: --task qqp has train, dev (with labels)"
    assert complaint(lad, desk.distilling()) == message


def test_a_run_to_evaluate_that_is_not_there(desk: Desk) -> None:
    path = desk.runs / "boss_bert_qqp" / "config.json"
    for parse, argv in ((evaluate, desk.evaluating()), (predict, desk.evaluating(ckpt="1"))):
        message = complaint(parse, argv)
        assert message.startswith("--experiment") and f"{path}: cannot be read (No such file or directory)" in message
        assert "--model" in message and "--task" in message and "--experiment_dir" in message


def test_a_checkpoint_to_predict_with_that_is_not_there(desk: Desk) -> None:
    """It takes no torch to see that a file is missing, so it is said with the other problems, at once."""
    folder = desk.run(step=3)
    message = complaint(predict, desk.evaluating(ckpt="1"))
    assert message.startswith(f"--ckpt 1: {folder / 'model-1.pt'} does not exist (there are 3)")
    (folder / "state.pt").touch()
    message = complaint(predict, desk.evaluating(ckpt="1"))
    assert message.endswith("does not exist (there are 3; the run is unfinished, at step 3)")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"total_step": 120}))
    assert complaint(predict, desk.evaluating(ckpt="1")).endswith(
        "(there are 3; the run is unfinished, at step 3 of 120)"
    )


@pytest.mark.parametrize(("name", "meant"), [("boss_bert_qqp", "boss"), ("bos", "boss"), ("nothing", "")])
def test_the_run_that_was_meant_is_named(desk: Desk, name: str, meant: str) -> None:
    desk.run()
    message = complaint(evaluate, desk.evaluating(experiment=name))
    assert message.endswith(f"--experiment_dir)? (did you mean {meant}?)" if meant else "--experiment_dir)?")


def test_the_best_checkpoint(desk: Desk) -> None:
    folder = desk.run(step=2)
    path = folder / "eval-dev.json"
    asked = desk.evaluating(dataset="test", ckpt="best")
    command = f"python run_fine_tune_eval.py --experiment boss --task qqp --dataset dev --data_dir {desk.data}"
    expected = f"--ckpt best: {path} does not exist; it comes from {command} --experiment_dir {desk.runs}"
    assert complaint(predict, asked) == expected

    rows = [{"step": 2, "accuracy": 0.75}, {"step": 4, "accuracy": None}, {"step": 6, "accuracy": 0.75}]
    path.write_text(json.dumps({"checkpoints": rows}))
    found = predict(asked)
    assert found.ckpt == 2
    assert found.choice == "--ckpt best: step 2, accuracy 0.7500 on dev, best of 3 evaluated checkpoints"

    path.write_text(json.dumps({"checkpoints": [rows[0] | {"sha256": "0"}]}))
    message = f"--ckpt best: {folder / 'model-2.pt'} is another file than the one scored in {path}; score it by "
    assert complaint(predict, asked).startswith(message)
    path.write_text(json.dumps({"checkpoints": rows[1:2]}))
    assert complaint(predict, asked) == f"--ckpt best: {path} knows no checkpoint's accuracy; give a step"
    path.write_text(json.dumps({"checkpoints": rows[2:]}))
    assert "step 6 has the best accuracy in " in complaint(predict, asked)
    strange = [{"2": 0.5}, [{"accuracy": 0.5}], [{"step": 2, "accuracy": "0.5"}]]
    for content in ("[]", "{", *(json.dumps({"checkpoints": rows}) for rows in strange)):
        path.write_text(content)
        assert complaint(predict, asked).startswith(str(path))
    message = "--ckpt 'worst': must be a whole number >= 0, or best"
    assert complaint(predict, desk.evaluating(dataset="test", ckpt="worst")) == message


# --- several problems, and what the shell sees ------------------------------------------------------------------------


def test_all_problems_come_together(desk: Desk) -> None:
    argv = [*desk.distilling(lr="0", task="qq", experiment="../x", accum_step="5", tckpt=None), "--bogus=1"]
    assert complaint(lad, argv) == "; ".join(
        [
            "'--bogus=1': is no flag of this script (see -h)",
            f"--experiment '../x': {NAME}",
            f"--lr '0': {ABOVE_0}",
            "--tckpt: is required",
            "--task 'qq': must be one of qqp, mnli, qnli, rte, mrpc, sst2, cola, stsb, wnli",
            "--accum_step 5: must divide --batch_size 32",
        ]
    )


def test_problems_with_a_teacher_come_together(desk: Desk) -> None:
    folder = desk.run(step=3)
    sizes = {"d_model": "384", "d_ff": "1", "num_hidden_layers": "5", "type_vocab_size": "3"}
    found = complaint(lad, desk.distilling(mu="-1", num_attention_heads="9", **sizes)).split("; ")
    assert sorted(found) == sorted(
        [
            f"--mu '-1': {FROM_0}",
            "--num_attention_heads 9: must divide --d_model 384",
            f"--tckpt 1: {folder / 'model-1.pt'} does not exist (there are 3)",
            "--num_hidden_layers 5: must divide the teacher's 12 layers",
            "--d_model 384: must be the teacher's 768",
            "--d_ff 1: must be the teacher's 3072 unless --student_init random",
            "--num_attention_heads 9: must be the teacher's 12 unless --student_init random",
            "--type_vocab_size 3: must be the teacher's 2 unless --embedding_init random",
        ]
    )


def test_a_wrong_split_is_named_beside_a_wrong_data_dir(desk: Desk) -> None:
    message = f"--data_dir '': {PATH}; --dataset tset: --task qqp has train, dev"
    assert complaint(teach, desk.teaching(data_dir="", dataset="tset")) == message


def tree(folder: Path) -> dict[str, int]:
    """Return every path below `folder` with its time of change."""
    return {str(path): path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(desk: Desk, call: Call) -> Refused:
    """Return a function that runs a script that must refuse: exit 2, one line on stderr and nothing else, no file
    touched. It returns the line.
    """

    def run(script: str, argv: list[str]) -> str:
        before = tree(desk.folder)
        done = call(script, argv)
        assert done.returncode == 2
        assert done.stdout == ""
        assert done.stderr.count("\n") == 1 and done.stderr.endswith("\n")
        assert tree(desk.folder) == before
        return done.stderr.rstrip("\n")

    return run


def test_the_shell_sees_one_line_with_all_problems(desk: Desk, refused: Refused) -> None:
    argv = desk.teaching(lr="fast", experiment="../../x", warmup_step="60000", dataset="test", num_class="3")
    line = refused("run_fine_tune.py", argv)
    assert line == "run_fine_tune.py: error: " + "; ".join(
        [
            f"--experiment '../../x': {NAME}",
            f"--lr 'fast': {ABOVE_0}",
            "--warmup_step 60000: must not exceed --total_step 50000",
            "--num_class 3: --task qqp needs 2",
            "--dataset test: --task qqp has train, dev (with labels)",
        ]
    )
    assert not desk.runs.exists()


def test_the_shell_sees_one_line_about_a_name(desk: Desk, refused: Refused) -> None:
    for value in ("/tmp/x", "line\nbreak", "../../x"):
        line = refused("run_fine_tune.py", desk.teaching(experiment=value))
        assert line == f"run_fine_tune.py: error: --experiment {value!r}: {NAME}"


def test_the_shell_sees_one_line_about_a_teacher(desk: Desk, refused: Refused) -> None:
    desk.run()
    line = refused("run_lad_distil.py", desk.distilling(d_model="384", num_hidden_layers="5"))
    assert line == (
        "run_lad_distil.py: error: --num_hidden_layers 5: must divide the teacher's 12 layers; "
        "--d_model 384: must be the teacher's 768"
    )


def test_the_shell_sees_one_line_about_an_empty_command(refused: Refused) -> None:
    required = [flag for flag, default in SCRIPTS["run_probing_lad.py"].items() if default is REQUIRED]
    line = refused("run_probing_lad.py", [])
    assert line.startswith("run_probing_lad.py: error: ")
    problems = line.removeprefix("run_probing_lad.py: error: ").split("; ")
    assert sorted(problems) == sorted(f"--{flag}: is required" for flag in required)


def test_the_shell_sees_one_line_where_argparse_would_print_its_usage(desk: Desk, refused: Refused) -> None:
    desk.run()
    line = refused("run_lad_distil.py", [*desk.distilling(lr="0"), "--overwrite=yes"])
    assert line.startswith("run_lad_distil.py: error: ") and "--overwrite" in line and f"--lr '0': {ABOVE_0}" in line


def test_the_shell_sees_one_line_about_a_missing_run(desk: Desk, refused: Refused) -> None:
    line = refused("run_fine_tune_eval.py", desk.evaluating())
    assert line.startswith("run_fine_tune_eval.py: error: --experiment") and "boss_bert_qqp/config.json" in line
    desk.run(step=3)
    line = refused("generate_test_prediction.py", desk.evaluating(ckpt="1"))
    assert line.startswith("generate_test_prediction.py: error: --ckpt 1: ") and "model-1.pt" in line


# --- an interpreter without the packages ------------------------------------------------------------------------------


def test_a_script_without_its_packages_names_the_interpreter_and_the_cure(desk: Desk) -> None:
    """-S: an interpreter that sees the standard library only."""
    command = [sys.executable, "-S", str(ROOT / "run_fine_tune.py"), *desk.teaching()]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 2
    expected = f"run_fine_tune.py: error: {sys.executable} has no package (numpy|torch); activate the environment "
    assert re.match(expected + r"\(\. \.venv/bin/activate, which bash scripts/setup\.sh makes\)", done.stderr)
    assert done.stderr.count("\n") == 1


def test_a_missing_module_of_our_own_is_no_users_mistake() -> None:
    error = ModuleNotFoundError("No module named 'fine_tune.nothing'", name="fine_tune.nothing")
    assert parser.missing_package(error) is None


def test_a_reader_that_has_enough_is_no_error() -> None:
    """As in `... | head -1`, however little is printed."""
    for lines in (3, 100_000):
        code = f"from fine_tune.cli import parser; parser.run_script(lambda: print('line\\n' * {lines}))"
        shell = f'{sys.executable} -c "{code}" | true; echo ${{PIPESTATUS[0]}}'
        done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True)
        assert done.stderr == ""
        assert done.stdout in ("0\n", "141\n")
