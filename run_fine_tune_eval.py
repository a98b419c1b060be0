"""Evaluate every checkpoint of a run, teacher or student, on a split with labels."""

from fine_tune import cli, config

EXAMPLE = "python run_fine_tune_eval.py --experiment LAD_soft_1_42 --task qqp --dataset dev --batch_size 512"


def main() -> None:
    """Read the flags, then evaluate."""
    ckpt = cli.Flag("ckpt", cli.whole(0), "first step to evaluate", "0")
    groups = [cli.experiment(falls_back="the run's own"), cli.data_split(), cli.evaluation(ckpt), cli.paths()]
    flags = cli.parse(__doc__, groups, config.EVALUATION, EXAMPLE)
    from fine_tune.evaluate import evaluate  # after the flags: importing torch takes seconds

    evaluate(flags)


if __name__ == "__main__":
    cli.run(main)
