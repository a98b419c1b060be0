"""A run is never lost: processes are really killed, at every awkward moment, and end as if nothing had happened."""

import json
import os
import re
import resource
import shutil
import signal
import stat
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from fine_tune import evaluate
from fine_tune.core import files
from fine_tune.core.errors import NotFinite, UserError
from fine_tune.data import tokens, tsv
from fine_tune.data.tokens import Batch
from fine_tune.distil import Distillation
from fine_tune.finetune import FineTuning
from fine_tune.training import checkpoint, run
from fine_tune.training.optim import NonFiniteGuard
from fine_tune.training.task import Task, TaskOutput
from tests import tiny
from tests.built import optimizer
from tests.interruptions import (
    SCRIPTS,
    Patch,
    at_rename,
    before_update,
    difference,
    flags_of,
    in_child,
    in_step,
    killed_when,
)


@pytest.fixture(scope="module")
def undisturbed(fine_tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what runs a command once without disturbance, and says in which folder."""

    @cache
    def run(name: str) -> Path:
        root = tmp_path_factory.mktemp("undisturbed") / "root"
        shutil.copytree(fine_tuned, root)
        script, flags = flags_of(root, name, "whole")
        tiny.run_script(script, **flags)
        return root / "whole"

    return run


def resume(root: Path, name: str, *kills: Patch, undo: tuple[Patch, ...] = ()) -> Path:
    """Run a command once for each of `kills`, which must kill it, and then once more, with `undo`, to its end."""
    script, flags = flags_of(root, name, "broken")
    for kill in kills:
        status, said = in_child(lambda: tiny.run_script(script, **flags), kill)
        assert status == -signal.SIGKILL, said
    status, said = in_child(lambda: tiny.run_script(script, **flags), *undo)
    assert status == 0, said
    return root / "broken"


@pytest.mark.parametrize("name", ["teacher", *SCRIPTS])
def test_a_killed_run_ends_bit_equal(root: Path, undisturbed: Callable[[str], Path], name: str) -> None:
    whole = undisturbed(name)
    broken = resume(root, name, before_update(8))
    assert difference(whole, broken) == []
    assert {"model-5.pt", "model-10.pt", "model-12.pt"} <= {p.name for p in (broken / "run_bert_qqp").iterdir()}
    assert not (broken / "run_bert_qqp" / "state.pt").exists()


def test_gates_that_nobody_learns_from_do_not_hinder(root: Path) -> None:
    """A student layer that learns a_1, the plain t_1: AdamW knows nothing of the gates."""
    long = {"probing_exp": "lad_user_defined", "gate_indices": 1, "student_indices": 2, "ckpt_step": 4}
    for experiment, code in (("whole", 0), ("broken", -signal.SIGKILL), ("broken", 0)):
        flags = tiny.student_flags(root, **long, experiment=experiment)
        kill = [before_update(6)] if code else []
        found, said = in_child(lambda: tiny.run_script("run_probing_lad", **flags), *kill)  # noqa: B023
        assert found == code, said
    whole, broken = (tiny.load(root / "runs" / f"{name}_bert_qqp" / "model-8.pt") for name in ("whole", "broken"))
    assert all(torch.equal(broken[name], value) for name, value in whole.items())


KILLS: dict[str, Callable[[], list[Patch]]] = {
    "before the first state": lambda: [before_update(3)],
    "in mid-accumulation": lambda: [in_step(7)],
    "between clipping and update": lambda: [before_update(8)],
    "at an epoch's end": lambda: [
        killed_when(tokens, "epoch_order", lambda seed, epoch, examples: epoch == 1),
    ],
    "three times in one epoch": lambda: [before_update(step) for step in (7, 8, 9)],
    "before the tokenizer": lambda: [at_rename("tokenizer", old=False)],
    "after the tokenizer": lambda: [at_rename("tokenizer", old=False, after=True)],
    "before config.json": lambda: [at_rename("config.json", old=False)],
    "before a checkpoint's first file": lambda: [at_rename("gate-1-5.pt", old=False)],
    "after a checkpoint's first file": lambda: [at_rename("gate-1-5.pt", old=False, after=True)],
    "before a checkpoint's last file": lambda: [at_rename("model-5.pt", old=False)],
    "before the first state is there": lambda: [at_rename("state.pt", old=False)],
    "after the first state is there": lambda: [at_rename("state.pt", old=False, after=True)],
    "before an old state is replaced": lambda: [at_rename("state.pt", old=True)],
    "after an old state was replaced": lambda: [at_rename("state.pt", old=True, after=True)],
    "before the last checkpoint's model": lambda: [at_rename("model-12.pt", old=False)],
    "after the last checkpoint, before its state": lambda: [at_rename("model-12.pt", old=False, after=True)],
    "after the last state": lambda: [
        killed_when(checkpoint, "save_state", lambda folder, step, *rest: step == 12, after=True)
    ],
}


@pytest.mark.parametrize("moment", KILLS)
def test_a_run_killed(root: Path, undisturbed: Callable[[str], Path], moment: str) -> None:
    whole = undisturbed("lad")
    assert difference(whole, resume(root, "lad", *KILLS[moment]())) == []


def test_negative_control_without_the_data_order(root: Path, undisturbed: Callable[[str], Path]) -> None:
    """A resume that starts its epoch over must not pass for an exact one."""
    whole = undisturbed("lad")
    forget = lambda examples, size, seed, start: tokens.micro_batches(examples, size, seed, 0)  # noqa: E731
    broken = resume(root, "lad", before_update(8), undo=((run, "micro_batches", forget),))
    assert any(name.startswith("model-12.pt") for name in difference(whole, broken))


def test_negative_control_without_the_random_state(root: Path, undisturbed: Callable[[str], Path]) -> None:
    whole = undisturbed("lad")
    broken = resume(root, "lad", before_update(8), undo=((torch, "set_rng_state", lambda state: None),))
    assert any(name.startswith("model-12.pt") for name in difference(whole, broken))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_and_says_how_to_go_on(
    root: Path, undisturbed: Callable[[str], Path], number: int, code: int
) -> None:
    whole = undisturbed("lad")
    script, flags = flags_of(root, "lad", "broken")
    status, said = in_child(lambda: tiny.run_script(script, **flags), in_step(7, number=number))
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
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    status, said = in_child(lambda: tiny.run_script(script, **flags), (tokens.Tokens, "batch", twice))
    assert status == 143
    assert "stopped" not in said


def evaluation(root: Path) -> Callable[[], None]:
    """Return the evaluation of the teacher, which has checkpoints 2 and 4, on dev."""
    flags = {"experiment": "teacher", "task": "qqp", "dataset": "dev"} | tiny.paths(root)
    return lambda: tiny.run_script("run_fine_tune_eval", **flags)


def test_signals_in_evaluation_and_tokenising(root: Path) -> None:
    in_line = killed_when(tsv, "line_columns", lambda line, split: line.startswith(b"3"), signal.SIGTERM)
    status, said = in_child(evaluation(root), in_line)
    assert (status, said.splitlines()[-1].endswith("stopped: SIGTERM: nothing was written")) == (143, True)
    assert not list((root / "runs" / "cache").glob("*dev*"))
    in_first = killed_when(evaluate, "record", lambda flags, started, writer, step, *rest: step == 2, signal.SIGTERM)
    assert in_child(evaluation(root), in_first)[0] == 143
    saved = json.loads((root / "runs" / "teacher_bert_qqp" / "eval-dev.json").read_text())
    assert [row["step"] for row in saved["checkpoints"]] == [2]  # what was done is kept


def scores(path: Path) -> dict[str, Any]:
    """Return an evaluation file but for how long it took."""
    content = json.loads(path.read_text())
    for row in content["checkpoints"]:
        assert row.pop("seconds") > 0
    return content


def test_a_killed_evaluation_keeps_what_it_had(root: Path) -> None:
    assert in_child(evaluation(root))[0] == 0
    path = root / "runs" / "teacher_bert_qqp" / "eval-dev.json"
    whole = scores(path)
    path.unlink()
    kill = killed_when(evaluate, "record", lambda flags, started, writer, step, *rest: step == 4)
    assert in_child(evaluation(root), kill)[0] == -signal.SIGKILL
    assert [row["step"] for row in json.loads(path.read_text())["checkpoints"]] == [2]
    assert in_child(evaluation(root))[0] == 0
    assert scores(path) == whole


def test_other_versions_give_a_note(root: Path) -> None:
    script, flags = flags_of(root, "teacher", "broken")
    in_child(lambda: tiny.run_script(script, **flags), before_update(8))
    folder = root / "broken" / "run_bert_qqp"
    tiny.change_config(folder, versions=tiny.config(folder)["versions"] | {"threads": 7})
    status, said = in_child(lambda: tiny.run_script(script, **flags))
    assert status == 0
    assert "note: the run was started on" in said
    assert "note: the run was started on threads 7 (now 1): numbers may differ slightly" in said


# --- one writer, whole files --------------------------------------------------------------------------------------


def test_one_writer(root: Path) -> None:
    flags = tiny.student_flags(root)
    with files.locked(root / "runs" / "student_bert_qqp"):
        with pytest.raises(
            UserError, match=rf"another process is training here \(process {os.getpid()} on \S+\); wait"
        ):
            tiny.run_script("run_lad_distil", "--weak_teacher", **flags)
        with files.locked(root / "runs" / "teacher_bert_qqp"):
            evaluation(root)()
    tiny.run_script("run_lad_distil", "--weak_teacher", **flags)


def test_evaluation_points_made_meanwhile_stay(root: Path) -> None:
    script, flags = flags_of(root, "teacher", "broken")
    assert in_child(lambda: tiny.run_script(script, **flags), before_update(8))[0] == -signal.SIGKILL
    paths = {"data_dir": root / "data", "experiment_dir": root / "broken"}
    tiny.run_script("run_fine_tune_eval", experiment="run", task="qqp", dataset="dev", **paths)
    before = tiny.curves(root / "broken", "run_bert_qqp/eval")
    assert list(before["qqp/dev/accuracy"]) == [5]
    assert in_child(lambda: tiny.run_script(script, **flags))[0] == 0
    assert tiny.curves(root / "broken", "run_bert_qqp/eval") == before
    training = tiny.curves(root / "broken", "run_bert_qqp")
    assert not any("dev" in tag for tag in training)
    assert list(training["qqp/train/loss"]) == list(range(1, 13))


def test_a_clock_that_was_set_back_does_not_order_a_curve(root: Path) -> None:
    """Readers take event files by the time in their names; the first part of this run seems to be of tomorrow."""
    script, flags = flags_of(root, "teacher", "broken")
    assert in_child(lambda: tiny.run_script(script, **flags), before_update(8))[0] == -signal.SIGKILL
    [path] = (root / "broken" / "log" / "run_bert_qqp").glob("*tfevents*")
    words = path.name.split(".")
    words[3] = str(int(words[3]) + 86_400)
    path.rename(path.with_name(".".join(words)))
    assert in_child(lambda: tiny.run_script(script, **flags))[0] == 0
    assert list(tiny.curve(root / "broken", "run_bert_qqp", "qqp/train/loss")) == list(range(1, 13))


def test_keep_last(root: Path) -> None:
    tiny.run_script("run_lad_distil", **tiny.student_flags(root, keep_last=2))
    folder = root / "runs" / "student_bert_qqp"
    parts = ("model", "gate-1", "gate-2", "gate-3")
    assert {path.name for path in folder.glob("*.pt")} == {f"{part}-{step}.pt" for part in parts for step in (6, 8)}


@pytest.mark.parametrize("number", [5, 10])  # whose files are deleted at step 10, and at the last step
def test_killed_while_old_checkpoints_are_deleted(root: Path, number: int) -> None:
    script, flags = flags_of(root, "lad", "whole")
    tiny.run_script(script, **flags, keep_last=1)
    kill = killed_when(Path, "unlink", lambda path, **rest: path.name == f"gate-1-{number}.pt")
    script, flags = flags_of(root, "lad", "broken")
    action = lambda: tiny.run_script(script, **flags, keep_last=1)  # noqa: E731
    assert in_child(action, kill)[0] == -signal.SIGKILL
    left = {path.name for path in (root / "broken" / "run_bert_qqp").glob(f"*-{number}.pt")}
    assert f"gate-1-{number}.pt" in left  # some files of that checkpoint are gone already, this one is not
    assert f"model-{number}.pt" not in left
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
    assert "loss nan" in message and "gradient norm of the student nan" in message
    assert message.endswith("; try a lower rate")
    folder = root / "broken" / "run_bert_qqp"
    assert {path.name for path in folder.glob("model-*")} == {"model-2.pt"}


@pytest.mark.parametrize("name", ["lad", "teacher"])
def test_advice_on_a_first_step_that_is_not_finite_is_not_about_the_rate(root: Path, name: str) -> None:
    """Nothing was learned in it; and no flag is named that the script does not have."""
    script, flags = flags_of(root, name, "broken")
    owner = Distillation if name == "lad" else FineTuning
    forward = owner.forward

    def overflow(task: Task, batch: Batch) -> TaskOutput:
        output = forward(task, batch)
        return TaskOutput(output.loss * float("inf"), *output[1:])

    code, said = in_child(lambda: tiny.run_script(script, **flags), (owner, "forward", overflow))
    assert code == 3
    who, loss = ("student", "--mu, --softmax_temp and ") if name == "lad" else ("teacher", "")
    last = said.splitlines()[-1]
    assert f": gradient norm of the {who} nan" in last and "checkpoint" not in last
    assert last.endswith(f"nothing had been learned yet: look at {loss}the model that it starts from")


def test_a_bad_step_is_skipped_on_the_device_and_reported_later() -> None:
    module = torch.nn.Linear(2, 2)
    group = optimizer(module, peak_lr=0.1, weight_decay=0.1, total_step=9)
    guard = NonFiniteGuard({"lr": group})

    def step(number: int, scale: float) -> None:
        loss = (module(torch.ones(1, 2)) * scale).sum()
        loss.backward()
        norm = group.clip()
        group.step(number, guard.found_inf(number, {"loss": loss}, {"lr": norm}))

    step(1, 1.0)
    guard.raise_if_tripped()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    step(2, float("nan"))
    step(3, 1.0)  # the report has not been asked for yet: nothing more may be learned from here on
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    what = "loss nan, gradient norm of the model nan"
    with pytest.raises(
        NotFinite, match=rf"step 2 at lr 0.0888889: {what}; what was saved before stays; try a lower rate"
    ):
        guard.raise_if_tripped()
    assert all(value["step"] == 1 for value in group.optimizer.state.values())


def test_only_finite_weights_are_saved_and_take_the_place_of_others(root: Path) -> None:
    """A loss may be finite in the very step whose update is not; with --keep_last 1 the good checkpoint would go."""
    script, flags = flags_of(root, "pkd", "broken")
    flags |= {"lr": 1e300, "warmup_step": 2, "ckpt_step": 1, "total_step": 2, "keep_last": 1}
    with pytest.raises(NotFinite, match=r"step 2: the update left model: \S+ not finite; what was saved before stays"):
        tiny.run_script(script, **flags)
    folder = root / "broken" / "run_bert_qqp"
    assert {path.name for path in folder.glob("model-*")} == {"model-1.pt"}
    assert tiny.load(folder / "state.pt")["step"] == 1


def test_a_run_with_one_checkpoint_is_finished_when_all_its_files_are_there(root: Path) -> None:
    """Killed before the gates were written, at its only checkpoint: the same command does the rest."""
    script, flags = flags_of(root, "lad", "broken")
    action = lambda: tiny.run_script(script, **flags | {"ckpt_step": 50})  # noqa: E731
    assert in_child(action, at_rename("gate-2-12.pt", old=False))[0] == -signal.SIGKILL
    status, said = in_child(action)
    assert (status, "is finished" in said) == (0, False)
    names = {path.name for path in (root / "broken" / "run_bert_qqp").glob("*.pt")}
    assert names == {"model-12.pt", "gate-1-12.pt", "gate-2-12.pt", "gate-3-12.pt"}


# --- files beside each other ------------------------------------------------------------------------------------------


def test_a_lock_that_is_a_link_is_refused_and_what_it_points_at_stays(root: Path) -> None:
    target = root / "precious"
    target.write_text("content")
    (root / "runs" / ".student_bert_qqp.lock").symlink_to(target)
    with pytest.raises(UserError, match=r"\.student_bert_qqp\.lock: cannot be opened"):
        tiny.run_script("run_pkd_distill", **tiny.student_flags(root))
    assert target.read_text() == "content"


def test_a_lock_keeps_what_the_file_held(tmp_path: Path) -> None:
    (tmp_path / ".run.lock").write_text("content")
    with files.locked(tmp_path / "run"):
        assert (tmp_path / ".run.lock").read_text() == "content"


def test_an_unfinished_file_goes_when_nobody_writes_it_any_more(tmp_path: Path) -> None:
    (tmp_path / ".left.0123456789abcdef.part").touch()
    with files.atomic_write(tmp_path / "file") as file:
        file.write(b"content")
        files.remove_parts(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == [Path(file.name).name]
    assert (tmp_path / "file").read_bytes() == b"content"


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
    flipped[good.index(tiny.load(path)["linear_layer.weight"].numpy().tobytes())] ^= 1
    bad: dict[str, Callable[[], object]] = {
        "flipped": lambda: path.write_bytes(flipped),
        "cut": lambda: path.write_bytes(good[:-100]),
        "empty": lambda: path.write_bytes(b""),
        "system": lambda: torch.save(Payload(os.system, f"touch {mark}"), path),
        "eval": lambda: torch.save({"encoder": Payload(eval, touch)}, path),
        "nested": lambda: torch.save({"a": [{"b": Payload(os.system, f"touch {mark}")}]}, path),
        "raw pickle": lambda: path.write_bytes(__import__("pickle").dumps(Payload(os.system, f"touch {mark}"))),
    }
    for name, spoil in bad.items():
        spoil()
        with pytest.raises(UserError, match="model-4.pt: is damaged"):
            tiny.run_script("run_lad_distil", **tiny.student_flags(root))
        assert not mark.exists(), name
        assert not (root / "runs" / "student_bert_qqp").exists()
    path.write_bytes(good)
    tiny.run_script("run_lad_distil", **tiny.student_flags(root))


def test_a_bad_state_is_one_line(root: Path) -> None:
    script, flags = flags_of(root, "lad", "broken")
    in_child(lambda: tiny.run_script(script, **flags), before_update(8))
    path = root / "broken" / "run_bert_qqp" / "state.pt"
    content = bytearray(path.read_bytes())
    weight = tiny.load(path)["modules"]["model"]["linear_layer.weight"]
    content[content.index(weight.numpy().tobytes())] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="state.pt: is damaged"):
        tiny.run_script(script, **flags)
    assert path.read_bytes() == content


def begun(root: Path, name: str) -> tuple[str, dict[str, object], Path]:
    """Return a command, its flags, and the state of step 5 that it left when it was killed."""
    script, flags = flags_of(root, name, "broken")
    assert in_child(lambda: tiny.run_script(script, **flags), before_update(8))[0] == -signal.SIGKILL
    return script, flags, root / "broken" / "run_bert_qqp" / "state.pt"


def change(value: Any, *path: object, to: Callable[[Any], Any]) -> None:
    """Replace what lies at a path in nested dictionaries and lists."""
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = to(value[path[-1]])


MOMENT = ("optimizers", "lr", "state", 0, "exp_avg")
STRANGE: dict[str, tuple[tuple[object, ...], Callable[[Any], Any]]] = {
    "a step beyond the end": (("step",), lambda step: 13),
    "a step that is no number": (("step",), str),
    "a step before the start": (("step",), lambda step: -5),
    "moments of another shape": (MOMENT, lambda moment: moment[:1]),
    "moments of another type": (MOMENT, lambda moment: moment.half()),
    "moments all in one place": (MOMENT, lambda moment: moment[:1, :1].expand(moment.shape)),
    "moments that are sparse": (MOMENT, lambda moment: moment.to_sparse()),
    "moments of no parameter": (MOMENT[:3], lambda state: state | {99: state[0]}),
    "no moments": (MOMENT[:3], lambda state: {}),
    "weights of another type": (("modules", "model", "linear_layer.bias"), lambda bias: bias.to(torch.complex64)),
    "another stream of random numbers": (("random", 0, "cpu"), lambda stream: stream[:100]),
    "no streams": (("random",), lambda streams: []),
    "seconds in words": (("seconds",), lambda seconds: "long"),
    "seconds that are no number": (("seconds",), lambda seconds: float("nan")),
    "a list": ((), list),
}


def test_a_state_that_is_not_the_runs_is_one_line(root: Path) -> None:
    """Such moments let the fused optimiser end the process; so each is tried in one of its own."""
    script, flags, path = begun(root, "pkd")
    whole = path.read_bytes()
    for name, (place, to) in STRANGE.items():
        state = {"all": tiny.load(path)}
        change(state, "all", *place, to=to)
        torch.save(state["all"], path)
        code, said = in_child(lambda: tiny.run_script(script, **flags))
        assert (code, "Traceback" in said) == (2, False), (name, said)
        assert said.splitlines()[-1].endswith("state.pt: does not fit this run; delete it or start with --overwrite")
        path.write_bytes(whole)
    assert in_child(lambda: tiny.run_script(script, **flags))[0] == 0


def test_the_settings_of_a_state_are_its_own_not_its_files(root: Path) -> None:
    script, flags, path = begun(root, "pkd")
    state = tiny.load(path)
    state["optimizers"]["lr"]["param_groups"][0] |= {"betas": (0.1, 0.1), "weight_decay": 9.0}
    torch.save(state, path)
    assert in_child(lambda: tiny.run_script(script, **flags))[0] == 0
    group = tiny.load(root / "broken" / "run_bert_qqp" / "model-12.pt")
    tiny.run_script(script, **flags | {"experiment_dir": root / "runs"})
    assert all(value.equal(group[key]) for key, value in tiny.load(root / "runs/run_bert_qqp/model-12.pt").items())


@pytest.mark.parametrize("key", ["lr", "seed", "data_sha256"])
def test_a_setting_that_config_json_lacks_is_known_from_the_state(root: Path, key: str) -> None:
    script, flags, path = begun(root, "pkd")
    rest = {name: value for name, value in tiny.config(path.parent).items() if name not in (key, "config_sha256")}
    (path.parent / "config.json").write_text(json.dumps(rest))
    if key == "data_sha256":
        data = root / "data" / "QQP" / "train.tsv"
        data.write_text(data.read_text().replace("w1 ", "w2 "))
    other = {} if key == "data_sha256" else {key: 7}
    with pytest.raises(UserError, match=f"was started with other settings: (--)?{key} was .*, now "):
        tiny.run_script(script, **flags | other)


def test_a_state_of_an_older_version_is_gone_on_from(root: Path) -> None:
    script, flags, path = begun(root, "pkd")
    state = tiny.load(path)
    del state["settings"]
    torch.save(state, path)
    code, said = in_child(lambda: tiny.run_script(script, **flags))
    assert (code, "resuming after step 5" in said) == (0, True)


# --- what a run wrote is what is read ---------------------------------------------------------------------------------


def test_a_config_that_was_changed_is_refused_unless_somebody_vouches_for_it(root: Path) -> None:
    folder = root / "runs" / "teacher_bert_qqp"
    path = folder / "config.json"
    path.write_text(path.read_text().replace('"max_seq_len": 16', '"max_seq_len": 12'))
    with pytest.raises(UserError, match="config.json: was changed since the run wrote it; put it back as it was; if"):
        evaluation(root)()
    with pytest.raises(UserError, match="config.json: was changed since the run wrote it"):
        tiny.run_script("run_pkd_distill", **tiny.student_flags(root))
    tiny.change_config(folder)
    evaluation(root)()


@pytest.mark.parametrize("spoil", ["swapped words", "another file"])
def test_a_saved_tokenizer_that_was_changed_is_refused(root: Path, spoil: str) -> None:
    folder = root / "runs" / "teacher_bert_qqp" / "tokenizer"
    if spoil == "another file":
        (folder / "vocab.txt").write_text("[PAD]")
    else:
        path = folder / "tokenizer.json"
        words = path.read_text()
        path.write_text(words.replace('"w1"', '"x"').replace('"w2"', '"w1"').replace('"x"', '"w2"'))
        assert path.read_text() != words
    (folder / ".hidden").touch()  # as file systems leave them
    message = re.escape(f"{folder} is not what the run saved there, so its texts would be read otherwise")
    with pytest.raises(UserError, match=f"--experiment teacher: {message}"):
        evaluation(root)()
    with pytest.raises(UserError, match=f"--teacher_exp teacher: {message}"):
        tiny.run_script("run_pkd_distill", **tiny.student_flags(root))


def test_changed_data_under_a_run_is_refused(root: Path) -> None:
    script, flags = flags_of(root, "lad", "broken")
    in_child(lambda: tiny.run_script(script, **flags), before_update(8))
    path = root / "data" / "QQP" / "train.tsv"
    path.write_text(path.read_text().replace("w1 ", "w2 "))
    with pytest.raises(UserError, match="started with other settings: data_sha256 was "):
        tiny.run_script(script, **flags)
