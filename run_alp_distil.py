"""Distil a student with ALP-KD: every student layer learns an attention-weighted mix of teacher layers."""

from fine_tune import cli, config

EXAMPLE = """python run_alp_distil.py --alp_exp alp-kd-hidden --experiment ALP_KD_hidden_soft_2_42 --task qqp \\
    --teacher_exp teacher_base --tckpt 34110 --num_hidden_layers 6 --lr 1e-4 --softmax_temp 10 --soft_weight 0.5 \\
    --hard_weight 0.5 --mu 500 --total_step 45480 --warmup_step 4548 --device_id 0"""


def main() -> None:
    """Read the flags, then distil."""
    groups = [cli.attention(), *cli.distilling_groups()]
    flags = cli.parse(__doc__, groups, config.STUDENT, EXAMPLE, kind="student", method="alp")
    from fine_tune.distil import distil  # after the flags: importing torch takes seconds
    from fine_tune.methods.alp import alp

    distil(flags, lambda run, layers: alp(run.alp_exp, layers, run.num_hidden_layers))


if __name__ == "__main__":
    cli.run(main)
