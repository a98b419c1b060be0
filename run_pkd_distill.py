"""Distil a student with BERT-PKD: every student layer learns one teacher layer."""

from fine_tune.cli import checks, flags, parser

EXAMPLE = """python run_pkd_distill.py --experiment PKD_soft_1_65 --task qqp --teacher_exp teacher_base --tckpt 34110 \\
    --num_hidden_layers 6 --lr 5e-5 --softmax_temp 20 --soft_weight 0.7 --hard_weight 0.3 --mu 100 \\
    --total_step 45480 --warmup_step 4548 --device_id 0"""


def layer_map() -> flags.FlagGroup:
    """Which teacher layer each student layer learns."""
    allowed = flags.choice("even", "last", "reverse", "top")
    meaning = "teacher layers learned: every (L/N)-th, the last N, every (L/N)-th upside down, or the last by all"
    return "BERT-PKD", [flags.Flag("layer_map", allowed, meaning, "even")]


def main() -> None:
    """Read the flags, then distil."""
    groups = [*flags.distillation(), layer_map()]
    given = parser.parse(__doc__, groups, checks.distillation(), EXAMPLE, kind="student", method="pkd")
    from fine_tune.distil import distil  # after the flags: importing torch takes seconds
    from fine_tune.methods.pkd import Pkd

    distil(given, lambda given, layers: Pkd(layers, given.num_hidden_layers, given.layer_map))


if __name__ == "__main__":
    parser.run_script(main)
