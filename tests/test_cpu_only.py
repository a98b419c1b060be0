"""On a machine with GPUs a run on the CPU leaves them alone: no context, no memory, no wait for a busy one."""

from pathlib import Path

import pytest
import torch

from tests import tiny
from tests.interruptions import before_update, difference, flags_of, in_child

# What PyTorch itself calls, or we to see whether there are any, and what starts nothing.
HARMLESS = {"device_count", "is_available", "is_initialized", "manual_seed", "manual_seed_all"}


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Say that there are two GPUs, and fail where one is asked."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a GPU was asked")

    for name in torch.cuda.__all__:
        part = getattr(torch.cuda, name)
        if callable(part) and not isinstance(part, type) and name not in HARMLESS:
            monkeypatch.setattr(torch.cuda, name, refuse)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_nothing_asks_a_gpu(root: Path, two_gpus: None, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(AssertionError, match="a GPU was asked"):  # the fixture does what it should
        torch.cuda.get_rng_state(0)
    for runs in ("whole", "broken"):
        script, flags = flags_of(root, "lad", runs)
        if runs == "broken":
            assert in_child(lambda: tiny.run_script(script, **flags), before_update(8))[0] == -9  # noqa: B023
            assert tiny.load(root / runs / "run_bert_qqp" / "state.pt")["random"][0]["gpus"] == {}
        tiny.run_script(script, "--eval_step", "6", "--eval_dataset", "dev", **flags)
    assert difference(root / "whole", root / "broken") == []
    config = tiny.config(root / "whole" / "run_bert_qqp")
    assert list(config["peak_memory_gib"]) == ["cpu"]
    tiny.run_script("run_lad_distil", "--dry_run", **flags | {"experiment": "dry"})
    paths = tiny.paths(root) | {"experiment_dir": root / "whole", "task": "qqp"}
    for experiment in ("run", "teacher"):
        tiny.run_script("run_fine_tune_eval", experiment=experiment, dataset="dev", **paths)
    tiny.run_script("generate_test_prediction", experiment="run", dataset="test", ckpt="best", **paths)
    tiny.run_script("run_fine_tune", **tiny.teacher_flags(root, experiment="again"))
    tiny.run_script("fine_tune.report", "*", "--measure", **paths)
    assert "cpu" in capsys.readouterr().out
