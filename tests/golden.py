"""The golden loss files: `step loss` per line, one file per training command, dropout 0, one thread.

`python -m tests.golden` writes them anew; do so only when a number is meant to change, and say why in the commit.
"""

import tempfile
from pathlib import Path

from tests import tiny

FOLDER = Path(__file__).parent / "golden"

RUNS = {
    "lad": ("run_lad_distil", {"gate_lr": 1e-3}),
    "lad_no": ("run_lad_no_distil", {"gate_lr": 1e-3}),
    "partial_lad": ("run_probing_lad", {"probing_exp": "partial_lad", "gate_indices": "2", "gate_lr": 1e-3}),
    "lad_user_defined": (
        "run_probing_lad",
        {"probing_exp": "lad_user_defined", "gate_indices": "4,2", "student_indices": "1,2", "gate_lr": 1e-3},
    ),
    "lad_cls": ("run_probing_lad", {"probing_exp": "lad_cls", "gate_lr": 1e-3}),
    "alp-kd": ("run_alp_distil", {"alp_exp": "alp-kd"}),
    "alp-kd-hidden": ("run_alp_distil", {"alp_exp": "alp-kd-hidden"}),
    "alp-kd-hidden-v2": ("run_alp_distil", {"alp_exp": "alp-kd-hidden-v2"}),
    "pkd": ("run_pkd_distill", {}),
    "pkd-last": ("run_pkd_distill", {"layer_map": "last"}),
    "pkd-reverse": ("run_pkd_distill", {"layer_map": "reverse"}),
    "pkd-top": ("run_pkd_distill", {"layer_map": "top"}),
    "lad-masked": ("run_lad_distil", {"gate_lr": 1e-3, "pad_loss": "masked"}),
    "lad-sampled": ("run_lad_distil", {"gate_lr": 1e-3, "pad_loss": "sampled", "pad_samples": 2}),
    "alp-kd-hidden-masked": ("run_alp_distil", {"alp_exp": "alp-kd-hidden", "pad_loss": "masked"}),
}


def teacher_losses(root: Path, *switches: str, **changes: object) -> dict[int, float]:
    """Fine-tune the tiny teacher in `root`, with `changes`, and return its losses by step."""
    flags = tiny.teacher_flags(root, dropout=0, **changes)
    tiny.run_script("run_fine_tune", *switches, **flags)
    return tiny.curve(root / "runs", f"{flags['experiment']}_bert_qqp", "qqp/train/loss")


def student_losses(root: Path, name: str, *switches: str, **changes: object) -> dict[int, float]:
    """Distil the run `name` of RUNS, with `changes`, from the teacher in `root` and return its losses by step."""
    script, own = RUNS[name]
    flags = {"dropout": 0, "accum_step": 2, "experiment": name} | own | changes
    tiny.run_script(script, *switches, **tiny.student_flags(root, **flags))
    return tiny.curve(root / "runs", f"{flags['experiment']}_bert_qqp", "qqp/train/bert/loss")


def read(name: str) -> dict[int, float]:
    """Return the golden losses of a run by step."""
    lines = (line.split() for line in (FOLDER / f"{name}.txt").read_text().splitlines())
    return {int(step): float(value) for step, value in lines}


def write(name: str, losses: dict[int, float]) -> None:
    """Make `losses` the golden ones of a run."""
    (FOLDER / f"{name}.txt").write_text("".join(f"{step} {value:.9g}\n" for step, value in losses.items()))


def main() -> None:
    """Write all golden files."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tiny.make_bert(root / "bert")
        tiny.make_qqp(root / "data")
        write("teacher", teacher_losses(root))
        for name in RUNS:
            write(name, student_losses(root, name))


if __name__ == "__main__":
    main()
