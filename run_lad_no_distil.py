"""Distil a student with LAD-NO: LAD without overlap, one gate for each student layer and no chain."""

from fine_tune import cli, config

EXAMPLE = """python run_lad_no_distil.py --experiment LAD_NO_soft_2_42 --task qqp --teacher_exp teacher_base \\
    --tckpt 34110 --num_hidden_layers 6 --lr 1e-4 --gate_lr 5e-7 --softmax_temp 20 --soft_weight 0.7 \\
    --hard_weight 0.3 --mu 500 --total_step 56850 --warmup_step 5685 --device_id 0"""


def main() -> None:
    """Read the flags, then distil."""
    groups = [*cli.distilling_groups(), cli.gates()]
    flags = cli.parse(__doc__, groups, config.GATED, EXAMPLE, kind="student", method="lad_no")
    from fine_tune.distil import distil  # after the flags: importing torch takes seconds
    from fine_tune.methods.lad_no import LadNo

    distil(flags, lambda run, layers: LadNo(layers, run.num_hidden_layers, run.max_seq_len, run.d_model))


if __name__ == "__main__":
    cli.run(main)
