"""Two processes under torchrun, on the CPU: the numbers of one process, one writer, resume, evaluation."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fine_tune.core import files, interrupt, torchrun
from fine_tune.core.errors import UserError
from fine_tune.training import distributed
from tests import golden, tiny
from tests.processes import ROOT, Process, Ranks, arguments, read
from tests.test_watch import board, pictures


def torchrun_two(script: str, **flags: object) -> subprocess.Popen:
    """Start a script under torchrun itself; its own start takes ten times as long as that of `Ranks`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*launcher, f"{script}.py", *arguments(**flags)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )


def wait_for(path: Path) -> None:
    limit = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < limit
        time.sleep(0.01)


def losses(root: Path, name: str, kind: str = "bert/loss") -> list[float]:
    return list(tiny.curve(root / "runs", f"{name}_bert_qqp", f"qqp/train/{kind}").values())


@pytest.mark.parametrize("name", ["lad_user_defined", "alp-kd-hidden-v2"])  # gates that nobody learns from; vectors
def test_two_processes_have_the_losses_of_one(golden_root: Path, name: str) -> None:
    """21 examples in batches of 4, accumulated by 2: an epoch's last micro-batch of one leaves a rank without any."""
    script, own = golden.RUNS[name]
    flags = tiny.student_flags(golden_root, **{"dropout": 0, "accum_step": 2, "experiment": f"{name}-two"} | own)
    codes, _, complaint = Ranks(script, **flags).wait()
    assert codes == [0, 0], complaint
    assert losses(golden_root, f"{name}-two") == pytest.approx(list(golden.read(name).values()), rel=1e-5)
    one, two = (golden_root / "runs" / f"{run}_bert_qqp" for run in (name, f"{name}-two"))
    if not one.exists():
        golden.student_losses(golden_root, name)
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    for path in one.glob("*-8.pt"):
        found, known = tiny.load(two / path.name), tiny.load(path)
        if isinstance(known, torch.Tensor):
            found, known = {"": found}, {"": known}
        for key, value in known.items():
            if key.endswith("key.bias"):  # its gradient is 0 but for rounding, so AdamW makes noise of it
                continue
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=2e-4)
    assert complaint.count("done: ") == 1  # one rank speaks
    assert tiny.config(two)["ranks"] == 2


def test_a_teacher_of_two_processes_of_torchrun(root: Path) -> None:
    flags = tiny.teacher_flags(root, dropout=0, total_step=6)
    tiny.run_script("run_fine_tune", **flags | {"experiment": "one"})
    process = torchrun_two("run_fine_tune", **flags | {"experiment": "two"})
    _, complaint = process.communicate(timeout=300)
    assert process.returncode == 0, complaint
    assert "Warning" not in complaint
    assert losses(root, "two", "loss") == pytest.approx(losses(root, "one", "loss"), rel=1e-5)


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_what_aborts_at_exit_ends_no_rank(ranks: int, code: int) -> None:
    """As threads of gloo's now and then do, after Python's own goodbyes; one process alone is a negative control."""
    script = f"""
import atexit, ctypes
from fine_tune.cli import parser
from fine_tune.core.errors import UserError

def main():
    libc = ctypes.CDLL(None)
    libc.__cxa_atexit(libc.abort, None, None)
    atexit.register(print, "goodbye")
    print("done")
    if {code}:
        raise UserError("wrong")

parser.run_script(main)
"""
    variables = {"TORCHELASTIC_RUN_ID": "none", "RANK": "0", "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == (code if ranks == 2 else -signal.SIGABRT)
    assert done.stdout == "done\ngoodbye\n"
    assert done.stderr == ("-c: error: wrong\n" if code else "")


def test_two_processes_draw_the_similarity_map_of_one(root: Path) -> None:
    tiny.run_script("run_pkd_distill", **tiny.student_flags(root, ckpt_step=4))
    given = {"experiment": "student", "task": "qqp", "dataset": "dev"} | tiny.paths(root)
    drawn = []
    for ranks in (1, 2):
        codes, _, complaint = Ranks("run_fine_tune_eval", "--layers", "--again", ranks=ranks, **given).wait()
        assert codes == [0] * ranks, complaint
        found = pictures(board(root, "student", "/eval"), "qqp/dev/similarity_map")
        assert list(found) == [4, 8]
        drawn.append([values.tolist() for values, _ in found.values()])
        shutil.rmtree(root / "runs" / "log" / "student_bert_qqp" / "eval")
    assert drawn[0] == drawn[1]


def test_every_rank_drops_out_on_its_own(root: Path) -> None:
    """A batch of one example twice: were the random streams alike, the two would give the loss that one gives."""
    lines = (root / "data" / "QQP" / "train.tsv").read_text().splitlines()
    (root / "twin" / "QQP").mkdir(parents=True)
    (root / "twin" / "QQP" / "train.tsv").write_text("\n".join([lines[0], lines[1], lines[1]]) + "\n")
    flags = tiny.student_flags(root, data_dir=root / "twin", batch_size=2, total_step=1, warmup_step=1, dropout=0.4)
    codes, _, complaint = Ranks("run_pkd_distill", **flags | {"experiment": "two"}).wait()
    assert codes == [0, 0], complaint
    [both] = losses(root, "two")
    # One process with each rank's stream, on the one example:
    import numpy as np

    (root / "twin" / "QQP" / "train.tsv").write_text("\n".join([lines[0], lines[1]]) + "\n")
    alone = []
    for rank in (0, 1):
        original = distributed.seed_rank
        try:
            number = int(np.random.SeedSequence((42, rank)).generate_state(1)[0])
            distributed.seed_rank = lambda seed, number=number: torch.manual_seed(number)
            tiny.run_script("run_pkd_distill", **flags | {"experiment": f"alone{rank}", "batch_size": 1})
        finally:
            distributed.seed_rank = original
        alone += losses(root, f"alone{rank}")
    assert alone[0] != pytest.approx(alone[1], rel=1e-4)
    assert both == pytest.approx(sum(alone) / 2, rel=1e-5)


def test_resume_under_the_same_number_of_ranks(root: Path) -> None:
    """SIGTERM, then the same command: bit for bit the undisturbed run. Another number is refused."""
    flags = tiny.student_flags(root, total_step=80, ckpt_step=80, dropout=0.2, log_step=20, gate_lr=1e-3)
    codes, _, complaint = Ranks("run_lad_distil", **flags | {"experiment": "whole"}).wait()
    assert codes == [0, 0], complaint
    cut = Ranks("run_lad_distil", **flags | {"experiment": "cut"})
    folder = root / "runs" / "cut_bert_qqp"
    wait_for(folder / "config.json")
    time.sleep(0.3)
    os.kill(cut.processes[1].pid, signal.SIGTERM)
    codes, _, complaint = cut.wait()
    assert codes == [143, 143]
    assert (folder / "state.pt").is_file(), complaint
    assert complaint.count("run_lad_distil.py: stopped: SIGTERM: saved after step") == 1, complaint
    step = tiny.load(folder / "state.pt")["step"]
    assert 0 < step < 80
    with pytest.raises(Exception, match="was started with 2 processes, now there are 1; go on with as many"):
        tiny.run_script("run_lad_distil", **flags | {"experiment": "cut"})
    codes, _, complaint = Ranks("run_lad_distil", **flags | {"experiment": "cut"}).wait()
    assert codes == [0, 0], complaint
    assert f"resuming after step {step}" in complaint
    for path in (root / "runs" / "whole_bert_qqp").glob("*-80.pt"):
        whole, cut = tiny.load(path), tiny.load(folder / path.name)
        assert all(torch.equal(cut[name], value) for name, value in whole.items()), path.name
    assert losses(root, "cut") == losses(root, "whole")


def test_a_signal_to_one_rank_after_the_other_stops_all_in_good_order(root: Path) -> None:
    """All save once, also the rank that hears of it from the other and then gets its own."""
    two = Ranks("run_pkd_distill", **tiny.student_flags(root, total_step=100_000, ckpt_step=100_000))
    folder = root / "runs" / "student_bert_qqp"
    wait_for(folder / "config.json")
    time.sleep(0.5)
    for process in two.processes:
        os.kill(process.pid, signal.SIGTERM)
        time.sleep(0.05)
    codes, _, complaint = two.wait()
    assert codes == [143, 143]
    assert (folder / "state.pt").is_file(), complaint
    assert complaint.count("run_pkd_distill.py: stopped: SIGTERM: saved after step") == 1, complaint


def test_signals_to_torchrun_stop_its_ranks_in_good_order(root: Path) -> None:
    """A cluster ends a job so that every rank hears its own signal, and the one that torchrun passes on."""
    flags = tiny.student_flags(root, total_step=100_000, ckpt_step=100_000)
    quick = {"student_init": "random", "embedding_init": "random"}  # without transformers' BertModel
    process = torchrun_two("run_pkd_distill", **flags | quick)
    folder = root / "runs" / "student_bert_qqp"
    wait_for(folder / "config.json")
    time.sleep(1)
    ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(ranks) == 2
    for process_id in (*ranks, process.pid, *ranks):
        os.kill(int(process_id), signal.SIGTERM)
    try:
        _, complaint = process.communicate(timeout=60)  # until the ranks, which write there too, have ended
    except subprocess.TimeoutExpired:
        for process_id in ranks:
            os.kill(int(process_id), signal.SIGKILL)
        raise
    assert (folder / "state.pt").is_file(), complaint
    assert complaint.count("run_pkd_distill.py: stopped: SIGTERM: saved after step") == 1, complaint


def test_ranks_notice_that_their_launcher_was_killed(root: Path) -> None:
    """It passes nothing on. Here it is a process that does what torchrun does: starts two, and waits."""
    flags = tiny.student_flags(root, total_step=100_000, ckpt_step=100_000)
    folder = root / "runs" / "student_bert_qqp"
    launcher = os.fork()
    if launcher == 0:
        Ranks("run_pkd_distill", **flags).wait()
        os._exit(0)
    wait_for(folder / "config.json")
    time.sleep(0.5)
    ranks = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    assert len(ranks) == 2
    errors = [open(f"/proc/{process_id}/fd/2") for process_id in ranks]
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    limit = time.monotonic() + 60
    while any(Path(f"/proc/{process_id}/fd/2").exists() for process_id in ranks):
        if time.monotonic() > limit:
            for process_id in ranks:
                os.kill(int(process_id), signal.SIGKILL)
            raise AssertionError("they train on alone")
        time.sleep(0.01)
    complaint = "".join(map(read, errors))
    assert (folder / "state.pt").is_file(), complaint
    assert complaint.count("run_pkd_distill.py: stopped: SIGTERM: saved after step") == 1, complaint
    with files.locked(folder):
        pass


def test_a_signal_heard_of_is_not_a_second_one(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    monkeypatch.setattr(interrupt, "received", [15])  # another process got it
    monkeypatch.setattr(interrupt, "caught", [])
    monkeypatch.setattr(os, "_exit", left.append)
    interrupt.note(15, None)
    assert not left
    interrupt.note(15, None)
    assert left == [143]


def test_a_repeat_within_torchruns_grace_is_no_second_request(monkeypatch: pytest.MonkeyPatch) -> None:
    left, now = [], [100.0]
    monkeypatch.setattr(interrupt, "received", [])
    monkeypatch.setattr(interrupt, "caught", [])
    monkeypatch.setattr(torchrun, "VARIABLES", {"RANK": "0"})
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(os, "_exit", left.append)
    for now[0] in (100.0, 100.1, 129.0):
        interrupt.note(15, None)
        assert not left
    now[0] = 130.5
    interrupt.note(15, None)
    assert left == [143]


def test_a_signal_during_the_question_is_answered_alike_by_all_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes to this rank while the ranks agree that there was none: this one must not save alone."""
    monkeypatch.setattr(interrupt, "received", [])
    monkeypatch.setattr(distributed, "WORLD_SIZE", 2)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda number, op: interrupt.received.append(15))
    assert not distributed.interrupted()
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda number, op: None)
    assert distributed.interrupted()


def written(folder: Path) -> tuple[dict[str, Any], str]:
    """Return what evaluation and prediction wrote, but for how long it took."""
    scores = json.loads((folder / "eval-dev.json").read_text())
    for row in scores["checkpoints"]:
        del row["seconds"]
    return scores, (folder / "QQP.tsv").read_text()


def test_evaluation_and_prediction_are_split_and_gathered(root: Path) -> None:
    paths = {"experiment": "teacher", "task": "qqp", "data_dir": root / "data", "experiment_dir": root / "runs"}
    folder = root / "runs" / "teacher_bert_qqp"
    tiny.run_script("run_fine_tune_eval", dataset="dev", batch_size=3, **paths)
    tiny.run_script("generate_test_prediction", dataset="test", ckpt=4, batch_size=3, **paths)
    known, logits = written(folder), np.load(folder / "logits-dev-4.npy")
    for name in ("eval-dev.json", "logits-dev-4.npy", "QQP.tsv"):
        (folder / name).unlink()
    codes, out, complaint = Ranks("run_fine_tune_eval", dataset="dev", batch_size=3, **paths).wait()
    assert codes == [0, 0], complaint
    assert out.count("accuracy") == 1  # one table
    codes, _, complaint = Ranks("generate_test_prediction", dataset="test", ckpt=4, batch_size=3, **paths).wait()
    assert codes == [0, 0], complaint
    assert written(folder) == known
    assert np.array_equal(np.load(folder / "logits-dev-4.npy"), logits)
    codes, _, complaint = Ranks("run_fine_tune_eval", dataset="dev", batch_size=3, **paths).wait()
    assert codes == [0, 0], complaint
    assert complaint.count("not scored again, for neither weights nor data have changed (--again does): step 2, 4") == 1


def test_mistakes_are_said_once(root: Path) -> None:
    flags = tiny.student_flags(root, gate_lr=1e-3)
    for changes, expected in (
        (
            {"tdevice_id": 0, "gate_device_id": -1},
            "--tdevice_id 0, --device_id -1, --gate_device_id -1: must agree under",
        ),
        ({"mu": -1}, "--mu '-1': must be a finite number >= 0"),
    ):
        codes, _, complaint = Ranks("run_lad_distil", **flags | changes).wait()
        assert 2 in codes  # whoever has not said it by then is ended, as torchrun ends it
        [line] = complaint.splitlines()
        assert line.startswith("run_lad_distil.py: error: ")
        assert expected in line
    assert not (root / "runs" / "student_bert_qqp").exists()


@pytest.mark.skipif(torch.cuda.device_count() > 1, reason="needs a machine without two GPUs")
def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "WORLD_SIZE", 2)
    monkeypatch.setattr(distributed, "LOCAL_WORLD_SIZE", 2)
    with pytest.raises(
        UserError, match=r"--device_id 0: torchrun started 2 processes here, but this machine has . GPU"
    ):
        distributed.select_devices(Namespace(device_id=0))


def test_names_that_a_cluster_sets_mean_nothing_without_torchrun(root: Path) -> None:
    environment = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "3"}
    for mu, code, said in ((-1, 2, "run_pkd_distill.py: error: --mu '-1': must be a finite"), (1, 0, "done: ")):
        flags = tiny.student_flags(root, total_step=1, mu=mu)
        process = Process("run_pkd_distill", environment=environment, **flags)
        found, _, complaint = process.wait()
        assert (found, complaint.count(said)) == (code, 1), complaint


def test_what_stops_the_first_rank_stops_all(root: Path) -> None:
    """A file that only the first rank reads first is damaged: no rank waits for it, none writes."""
    path = root / "data" / "QQP" / "train.tsv"
    path.write_text(path.read_text() + "broken\n")
    codes, _, complaint = Ranks("run_lad_distil", **tiny.student_flags(root, gate_lr=1e-3)).wait()
    assert codes == [2, 2]
    [line] = complaint.splitlines()
    assert "train.tsv:23: has 1 columns instead of 6" in line
    assert not (root / "runs" / "student_bert_qqp").exists()
