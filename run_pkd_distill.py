"""Distil a student with BERT-PKD: student layer i learns the teacher's layer i * L / N."""

from fine_tune.cli import checks, flags, parser

EXAMPLE = """python run_pkd_distill.py --experiment PKD_soft_1_65 --task qqp --teacher_exp teacher_base --tckpt 34110 \\
    --num_hidden_layers 6 --lr 5e-5 --softmax_temp 20 --soft_weight 0.7 --hard_weight 0.3 --mu 100 \\
    --total_step 45480 --warmup_step 4548 --device_id 0"""


def main() -> None:
    """Read the flags, then distil."""
    groups = flags.distillation()
    given = parser.parse(__doc__, groups, checks.distillation(), EXAMPLE, kind="student", method="pkd")
    from fine_tune.distil import distil  # after the flags: importing torch takes seconds
    from fine_tune.methods.pkd import Pkd

    distil(given, lambda given, layers: Pkd(layers, given.num_hidden_layers))


if __name__ == "__main__":
    parser.run_script(main)
