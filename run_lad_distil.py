"""Distil a student with LAD: gates carry every teacher layer up to the one that a student layer learns."""

from fine_tune.cli import checks, flags, parser

EXAMPLE = """python run_lad_distil.py --experiment LAD_soft_1_42 --task qqp --teacher_exp teacher_base --tckpt 34110 \\
    --num_hidden_layers 6 --lr 1e-4 --gate_lr 5e-7 --softmax_temp 20 --soft_weight 0.7 --hard_weight 0.3 --mu 500 \\
    --total_step 56850 --warmup_step 5685 --device_id 0"""


def main() -> None:
    """Read the flags, then distil."""
    groups = [*flags.distillation(), flags.gates()]
    given = parser.parse(__doc__, groups, checks.distillation(), EXAMPLE, kind="student", method="lad")
    from fine_tune.distil import distil  # after the flags: importing torch takes seconds
    from fine_tune.methods.lad import lad

    distil(given, lambda given, layers: lad(layers, given.num_hidden_layers, given.max_seq_len, given.d_model))


if __name__ == "__main__":
    parser.run_script(main)
