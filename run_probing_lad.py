"""Probe LAD: partial LAD, a pairing of student layers and gates of your own, or LAD on [CLS] only."""

from fine_tune import cli, config

EXAMPLE = """python run_probing_lad.py --probing_exp partial_lad --gate_indices 2,4,6,8,10 --task qqp \\
    --experiment partial_LAD_5_42 --teacher_exp teacher_base --tckpt 34110 --num_hidden_layers 6 --lr 1e-4 \\
    --gate_lr 5e-7 --softmax_temp 20 --soft_weight 0.7 --hard_weight 0.3 --mu 500 --total_step 56850 \\
    --warmup_step 5685 --device_id 0"""


def main() -> None:
    """Read the flags, then distil."""
    groups = [cli.probing(), *cli.distilling_groups(), cli.gates()]
    flags = cli.parse(__doc__, groups, config.PROBING, EXAMPLE, kind="student", method="probing_lad")
    from fine_tune.distil import distil  # after the flags: importing torch takes seconds
    from fine_tune.methods.lad import probe

    distil(flags, probe)


if __name__ == "__main__":
    cli.run(main)
