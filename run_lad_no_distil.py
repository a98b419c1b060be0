"""Distil a student with LAD-NO: LAD without overlap, one gate for each student layer and no chain."""

from argparse import Namespace
from collections.abc import Iterator

from fine_tune.cli import checks, flags, parser

EXAMPLE = """python run_lad_no_distil.py --experiment LAD_NO_soft_2_42 --task qqp --teacher_exp teacher_base \\
    --tckpt 34110 --num_hidden_layers 6 --lr 1e-4 --gate_lr 5e-7 --softmax_temp 20 --soft_weight 0.7 \\
    --hard_weight 0.3 --mu 500 --total_step 56850 --warmup_step 5685 --device_id 0"""


def rule(given: Namespace, layers: int) -> Iterator[str]:
    """Each gate mixes the top two of the teacher's layers that fall to one of the student's."""
    if layers // given.num_hidden_layers < 2:
        yield (
            f"--num_hidden_layers {given.num_hidden_layers}: LAD-NO needs at most half of the teacher's {layers} layers"
        )


def main() -> None:
    """Read the flags, then distil."""
    groups = [*flags.distillation(), flags.gates()]
    given = parser.parse(__doc__, groups, checks.distillation(rule), EXAMPLE, kind="student", method="lad_no")
    from fine_tune.distil import distil  # after the flags: importing torch takes seconds
    from fine_tune.methods.lad_no import LadNo

    distil(given, lambda given, layers: LadNo(layers, given.num_hidden_layers, given.max_seq_len, given.d_model), rule)


if __name__ == "__main__":
    parser.run_script(main)
