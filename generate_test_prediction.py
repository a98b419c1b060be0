"""Write the GLUE prediction file of one checkpoint."""

from fine_tune import cli, config

EXAMPLE = """python generate_test_prediction.py --experiment LAD_soft_1_42 --task qqp --dataset test --ckpt 56850 \\
    --batch_size 256"""


def main() -> None:
    """Read the flags, then predict."""
    ckpt = cli.Flag("ckpt", cli.whole(0), "step of the checkpoint to use")
    groups = [cli.experiment(falls_back="the run's own"), cli.data_split(), cli.evaluation(ckpt), cli.paths()]
    flags = cli.parse(__doc__, groups, config.PREDICTION, EXAMPLE)
    from fine_tune.evaluate import generate  # after the flags: importing torch takes seconds

    generate(flags)


if __name__ == "__main__":
    cli.run(main)
