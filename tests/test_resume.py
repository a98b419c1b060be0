"""A run is never lost: processes are really killed, at every awkward moment, and end as if nothing had happened."""

import json
import os
import signal
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fine_tune import checkpoint, cli, data, evaluate, experiment, files, train
from fine_tune.errors import NotFinite, UserError
from fine_tune.optim import NonFiniteGuard, OptimizerGroup
from tests import golden, tiny

SCRIPTS = {
    name: golden.RUNS[name] for name in ("lad", "lad_no", "partial_lad", "alp-kd-hidden-v2", "pkd", "lad-sampled")
}


def in_child(action: Callable[[], None], *patches: tuple[object, str, object]) -> tuple[int, str]:
    """Call `action` under cli.run in a forked process, with attributes patched; return its exit status and stderr.

    A process ended by a signal has the negative of its number as its status.
    """
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 70
        try:
            os.close(read)
            os.dup2(write, 2)
            import sys

            sys.stderr = open(2, "w", buffering=1, closefd=False)
            for owner, name, value in patches:
                setattr(owner, name, value)
            cli.run(action)
        except SystemExit as stop:
            status = stop.code
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(write)
    with open(read, "rb") as pipe:
        said = pipe.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def die(number: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), number)


def at_call(number: int, function: Callable, number_of_signal: int = signal.SIGKILL, after: bool = False) -> Callable:
    """Return `function` as it is, but for its `number`-th call, before (or after) which the process gets a signal."""
    calls = []

    def wrapped(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == number and not after:
            die(number_of_signal)
        result = function(*args, **kwargs)
        if len(calls) == number and after:
            die(number_of_signal)
        return result

    return wrapped


def flags_of(root: Path, name: str, runs: str) -> tuple[str, dict]:
    """Return a training command: dropout on, accumulation on, 12 steps of 4 over more than two epochs of 21."""
    long = {"total_step": 12, "warmup_step": 3, "ckpt_step": 5, "accum_step": 2, "dropout": 0.2, "lr": 1e-2}
    if name == "teacher":
        flags = tiny.teacher_flags(root, **long, experiment="run")
        script = "run_fine_tune"
    else:
        script, changes = SCRIPTS[name]
        flags = tiny.student_flags(root, **(changes | long), experiment="run")
        os.makedirs(root / runs, exist_ok=True)
        if not (root / runs / "teacher_bert_qqp").exists():
            os.symlink(root / "runs" / "teacher_bert_qqp", root / runs / "teacher_bert_qqp")
    return script, flags | {"experiment_dir": root / runs}


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of every checkpoint file by file and name."""
    found = {}
    for path in sorted(folder.glob("*.pt")):
        value = torch.load(path, weights_only=True)
        found |= {f"{path.name}:{k}": v for k, v in (value if isinstance(value, dict) else {"": value}).items()}
    return found


def curves(runs: Path) -> dict[str, dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(runs / "log" / "run_bert_qqp"))
    board.Reload()
    return {tag: tiny.curve(runs, "run_bert_qqp", tag) for tag in board.Tags()["scalars"]}


def difference(one: Path, two: Path) -> list[str]:
    """Return in what two runs differ: file names, tensors, curves."""
    first, second = one / "run_bert_qqp", two / "run_bert_qqp"
    names = {path.name for path in first.iterdir()} ^ {path.name for path in second.iterdir()}
    a, b = tensors(first), tensors(second)
    changed = [name for name in a if name not in b or not torch.equal(a[name], b[name])]
    x, y = curves(one), curves(two)
    return [*names, *changed, *(tag for tag in x.keys() | y.keys() if x.get(tag) != y.get(tag))]


@pytest.fixture
def undisturbed(root: Path) -> Callable[[str], Path]:
    def run(name: str) -> Path:
        script, flags = flags_of(root, name, "whole")
        tiny.run_script(script, **flags)
        return root / "whole"

    return run


def resume(root: Path, name: str, *kills: tuple[object, str, object], undo: tuple | None = None) -> Path:
    """Run a command once for each of `kills`, which must kill it, and then once more to its end."""
    script, flags = flags_of(root, name, "broken")
    for kill in kills:
        status, said = in_child(lambda: tiny.run_script(script, **flags), kill)
        assert status == -signal.SIGKILL, said
    status, said = in_child(lambda: tiny.run_script(script, **flags), *([undo] if undo else []))
    assert status == 0, said
    return root / "broken"


@pytest.mark.parametrize("name", ["teacher", *SCRIPTS])
def test_a_killed_run_ends_bit_equal(root: Path, undisturbed: Callable, name: str) -> None:
    whole = undisturbed(name)
    broken = resume(root, name, (train, "islice", at_call(8, train.islice)))
    assert difference(whole, broken) == []
    assert {"model-5.pt", "model-10.pt", "model-12.pt"} <= {p.name for p in (broken / "run_bert_qqp").iterdir()}
    assert not (broken / "run_bert_qqp" / "state.pt").exists()


KILLS = {
    "in mid-accumulation": [(data.Tokens, "batch", at_call(14, data.Tokens.batch))],
    "between clipping and update": [(OptimizerGroup, "step", at_call(15, OptimizerGroup.step))],
    "at an epoch's end": [(data, "epoch_order", at_call(2, data.epoch_order))],
    "before a rename": [(os, "replace", at_call(18, os.replace))],
    "before the state's rename": [(os, "replace", at_call(13, os.replace))],
    "after the first checkpoint's model": [(checkpoint, "save", at_call(1, checkpoint.save, after=True))],
    "after the last state": [(checkpoint, "save_state", at_call(3, checkpoint.save_state, after=True))],
    "before the first state": [(train, "islice", at_call(3, train.islice))],
    "while its log is put right": [
        (train, "islice", at_call(8, train.islice)),
        (os, "replace", at_call(1, os.replace)),
    ],
    "three times in one epoch": [(train, "islice", at_call(number, train.islice)) for number in (7, 2, 3)],
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_run_killed(root: Path, undisturbed: Callable, moment: str) -> None:
    whole = undisturbed("lad")
    assert difference(whole, resume(root, "lad", *KILLS[moment])) == []


def test_negative_control_without_the_data_order(root: Path, undisturbed: Callable) -> None:
    """A resume that starts its epoch over must not pass for an exact one."""
    whole = undisturbed("lad")
    forget = lambda examples, size, seed, start: data.micro_batches(examples, size, seed, 0)  # noqa: E731
    kill = (train, "islice", at_call(8, train.islice))
    broken = resume(root, "lad", kill, undo=(experiment, "micro_batches", forget))
    assert any(name.startswith("model-12.pt") for name in difference(whole, broken))


def test_negative_control_without_the_random_state(root: Path, undisturbed: Callable) -> None:
    whole = undisturbed("lad")
    kill = (train, "islice", at_call(8, train.islice))
    broken = resume(root, "lad", kill, undo=(torch, "set_rng_state", lambda state: None))
    assert any(name.startswith("model-12.pt") for name in difference(whole, broken))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(root: Path, undisturbed: Callable, number: int, code: int) -> None:
    whole = undisturbed("lad")
    script, flags = flags_of(root, "lad", "broken")
    patch = (data.Tokens, "batch", at_call(14, data.Tokens.batch, number))  # in the middle of step 7
    status, said = in_child(lambda: tiny.run_script(script, **flags), patch)
    assert status == code
    name = signal.Signals(number).name
    assert said.splitlines()[-1].endswith(f"stopped: {name}: saved after step 7; the same command goes on from there")
    folder = root / "broken" / "run_bert_qqp"
    assert {path.name for path in folder.glob("model-*")} == {"model-5.pt"}
    status, said = in_child(lambda: tiny.run_script(script, **flags))
    assert status == 0
    assert "resuming after step 7" in said
    assert difference(whole, root / "broken") == []


def test_a_second_signal_ends_at_once(root: Path) -> None:
    script, flags = flags_of(root, "lad", "broken")

    def twice(*_: object) -> None:
        die(signal.SIGTERM)
        die(signal.SIGTERM)

    status, said = in_child(lambda: tiny.run_script(script, **flags), (data.Tokens, "batch", twice))
    assert status == 143
    assert "stopped" not in said


def test_signals_in_evaluation_and_tokenising(root: Path) -> None:
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "dev", "data_dir": root / "data"}
    action = lambda: tiny.run_script("run_fine_tune_eval", **flags, experiment_dir=root / "runs")  # noqa: E731
    status, said = in_child(action, (data, "line_columns", at_call(5, data.line_columns, signal.SIGTERM)))
    assert (status, said.splitlines()[-1].endswith("stopped: SIGTERM: nothing was written")) == (143, True)
    assert not list((root / "runs" / "cache").glob("*dev*"))
    status, said = in_child(action, (evaluate, "scores", at_call(1, evaluate.scores, signal.SIGTERM)))
    assert status == 143
    saved = json.loads((root / "runs" / "teacher_bert_qqp" / "eval-dev.json").read_text())
    assert [row["step"] for row in saved["checkpoints"]] == [2]  # what was done is kept


def test_a_killed_evaluation_keeps_what_it_had(root: Path) -> None:
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "dev", "data_dir": root / "data"}
    action = lambda: tiny.run_script("run_fine_tune_eval", **flags, experiment_dir=root / "runs")  # noqa: E731
    assert in_child(action)[0] == 0
    path = root / "runs" / "teacher_bert_qqp" / "eval-dev.json"
    whole = path.read_text()
    path.unlink()
    kill = (evaluate, "scores", at_call(2, evaluate.scores))
    assert in_child(action, kill)[0] == -signal.SIGKILL
    assert [row["step"] for row in json.loads(path.read_text())["checkpoints"]] == [2]
    assert in_child(action)[0] == 0
    assert path.read_text() == whole


def test_other_versions_give_a_note(root: Path) -> None:
    script, flags = flags_of(root, "teacher", "broken")
    in_child(lambda: tiny.run_script(script, **flags), (train, "islice", at_call(8, train.islice)))
    path = root / "broken" / "run_bert_qqp" / "config.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"versions": saved["versions"] | {"threads": 7}}))
    status, said = in_child(lambda: tiny.run_script(script, **flags))
    assert status == 0
    assert "note: the run was started on" in said
    assert "'threads': 7" in said


# --- one writer, whole files --------------------------------------------------------------------------------------


def test_one_writer(root: Path) -> None:
    flags = tiny.student_flags(root)
    with files.locked(root / "runs" / "student_bert_qqp"):
        with pytest.raises(UserError, match="another process is training here"):
            tiny.run_script("run_lad_distil", **flags)
        evaluation = {"experiment": "teacher", "task": "qqp", "dataset": "dev", "data_dir": root / "data"}
        with files.locked(root / "runs" / "teacher_bert_qqp"):
            tiny.run_script("run_fine_tune_eval", **evaluation, experiment_dir=root / "runs")
    tiny.run_script("run_lad_distil", **flags)


def test_evaluation_points_made_meanwhile_stay(root: Path) -> None:
    script, flags = flags_of(root, "teacher", "broken")
    kill = (train, "islice", at_call(8, train.islice))
    assert in_child(lambda: tiny.run_script(script, **flags), kill)[0] == -signal.SIGKILL
    paths = {"data_dir": root / "data", "experiment_dir": root / "broken"}
    # Children all of them: tensorboard orders files of the same second by the process's number.
    evaluation = {"experiment": "run", "task": "qqp", "dataset": "dev"} | paths
    assert in_child(lambda: tiny.run_script("run_fine_tune_eval", **evaluation))[0] == 0
    before = tiny.curve(root / "broken", "run_bert_qqp", "qqp/dev/accuracy")
    assert list(before) == [5]
    assert in_child(lambda: tiny.run_script(script, **flags))[0] == 0
    assert tiny.curve(root / "broken", "run_bert_qqp", "qqp/dev/accuracy") == before
    assert list(tiny.curve(root / "broken", "run_bert_qqp", "qqp/train/loss")) == list(range(1, 13))


def test_keep_last(root: Path) -> None:
    tiny.run_script("run_lad_distil", **tiny.student_flags(root, keep_last=2))
    folder = root / "runs" / "student_bert_qqp"
    parts = ("model", "gate-1", "gate-2", "gate-3")
    assert {path.name for path in folder.glob("*.pt")} == {f"{part}-{step}.pt" for part in parts for step in (6, 8)}
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {path.name: files.sha256(path) for path in folder.glob("*.pt")}


@pytest.mark.parametrize("number", [2, 3])  # at step 10, and at the last step
def test_killed_while_old_checkpoints_are_deleted(root: Path, number: int) -> None:
    script, flags = flags_of(root, "lad", "whole")
    tiny.run_script(script, **flags, keep_last=1)
    calls: list[int] = []

    def torn(paths: list[Path]) -> None:
        calls.append(1)
        if len(calls) == number:
            next(path for path in paths if path.name.startswith("model")).unlink()
            die()

    script, flags = flags_of(root, "lad", "broken")
    action = lambda: tiny.run_script(script, **flags, keep_last=1)  # noqa: E731
    assert in_child(action, (checkpoint, "remove", torn))[0] == -signal.SIGKILL
    assert in_child(action)[0] == 0
    assert difference(root / "whole", root / "broken") == []


def test_modes_follow_the_umask(root: Path) -> None:
    for mask in (0o022, 0o077, 0o002):
        before = os.umask(mask)
        try:
            tiny.run_script("run_pkd_distill", **tiny.student_flags(root, experiment=f"mask{mask}"))
        finally:
            os.umask(before)
        paths = [path for path in (root / "runs" / f"mask{mask}_bert_qqp").iterdir() if path.is_file()]
        assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o666 & ~mask}


def test_a_full_disk_is_one_line_and_loses_nothing(root: Path) -> None:
    script, flags = flags_of(root, "lad", "broken")
    folder = root / "broken" / "run_bert_qqp"
    real = checkpoint.save_state

    def full(path: Path, step: int, *rest: object) -> None:
        import resource

        if step == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        real(path, step, *rest)

    status, said = in_child(lambda: tiny.run_script(script, **flags), (checkpoint, "save_state", full))
    assert status == 2
    assert said.splitlines()[-1].split("error: ")[1].startswith(f"{folder / 'state.pt'}: cannot be written (")
    assert "Traceback" not in said
    assert torch.load(folder / "state.pt", weights_only=True)["step"] == 5
    assert not list(folder.glob(".*.part"))


# --- what is not finite -------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run(root: Path) -> None:
    script, flags = flags_of(root, "lad", "broken")
    with pytest.raises(NotFinite) as caught:
        tiny.run_script(script, **flags | {"lr": 1e30, "warmup_step": 7, "dropout": 0, "ckpt_step": 2})
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert message.startswith("step 3 at lr ")
    assert "gate_lr 0.000285714" in message
    assert "loss nan" in message
    folder = root / "broken" / "run_bert_qqp"
    assert {path.name for path in folder.glob("model-*")} == {"model-2.pt"}


def test_a_bad_step_is_skipped_on_the_device_and_reported_later() -> None:
    module = torch.nn.Linear(2, 2)
    group = OptimizerGroup(
        [module], peak_lr=0.1, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1, max_norm=1, warmup_step=0, total_step=9
    )
    guard = NonFiniteGuard({"lr": group})

    def step(number: int, scale: float) -> None:
        loss = (module(torch.ones(1, 2)) * scale).sum()
        loss.backward()
        norm = group.clip()
        group.step(number, guard.found_inf(number, {"loss": loss, "gradient of lr": norm}))

    step(1, 1.0)
    guard.raise_if_tripped()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    step(2, float("nan"))
    step(3, 1.0)  # the report has not been asked for yet: nothing more may be learned from here on
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    with pytest.raises(NotFinite, match=r"step 2 at lr 0.0888889: loss nan, gradient of lr nan; the last"):
        guard.raise_if_tripped()
    assert all(value["step"] == 1 for value in group.optimizer.state.values())


# --- nothing bad gets in --------------------------------------------------------------------------------------------


class Payload:
    def __init__(self, function: Callable, argument: str) -> None:
        self.function, self.argument = function, argument

    def __reduce__(self) -> tuple:
        return self.function, (self.argument,)


def test_bad_checkpoints(root: Path, tmp_path: Path) -> None:
    folder = root / "runs" / "teacher_bert_qqp"
    path, mark = folder / "model-4.pt", tmp_path / "mark"
    good = path.read_bytes()
    touch = f"open({str(mark)!r}, 'w')"
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    bad: dict[str, Callable[[], object]] = {
        "flipped": lambda: path.write_bytes(flipped),
        "cut": lambda: path.write_bytes(good[:-100]),
        "empty": lambda: path.write_bytes(b""),
        "system": lambda: torch.save(Payload(os.system, f"touch {mark}"), path),
        "eval": lambda: torch.save({"encoder": Payload(eval, touch)}, path),
        "nested": lambda: torch.save({"a": [{"b": Payload(os.system, f"touch {mark}")}]}, path),
        "raw pickle": lambda: path.write_bytes(__import__("pickle").dumps(Payload(os.system, f"touch {mark}"))),
    }
    for listed in (True, False):
        if not listed:
            (folder / "SHA256SUMS").unlink()
            del bad["flipped"]  # without a checksum nothing can see it
        for name, spoil in bad.items():
            spoil()
            with pytest.raises(UserError, match="model-4.pt: (differs from its checksum|is damaged)"):
                tiny.run_script("run_lad_distil", **tiny.student_flags(root))
            assert not mark.exists(), name
            assert not (root / "runs" / "student_bert_qqp").exists()
    path.write_bytes(good)
    tiny.run_script("run_lad_distil", **tiny.student_flags(root))


def test_a_bad_state_is_one_line(root: Path) -> None:
    script, flags = flags_of(root, "lad", "broken")
    in_child(lambda: tiny.run_script(script, **flags), (train, "islice", at_call(8, train.islice)))
    path = root / "broken" / "run_bert_qqp" / "state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="state.pt: differs from its checksum"):
        tiny.run_script(script, **flags)
    assert path.read_bytes() == content


def test_changed_data_under_a_run_is_refused(root: Path) -> None:
    script, flags = flags_of(root, "lad", "broken")
    in_child(lambda: tiny.run_script(script, **flags), (train, "islice", at_call(8, train.islice)))
    path = root / "data" / "QQP" / "train.tsv"
    path.write_text(path.read_text().replace("w1 ", "w2 "))
    with pytest.raises(UserError, match="started with other settings: data_sha256 was "):
        tiny.run_script(script, **flags)
