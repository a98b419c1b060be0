"""Write the GLUE prediction file of one checkpoint."""

from fine_tune.cli import checks, flags, parser

EXAMPLE = """python generate_test_prediction.py --experiment LAD_soft_1_42 --task qqp --dataset test --ckpt 56850 \\
    --batch_size 256"""


def main() -> None:
    """Read the flags, then predict."""
    ckpt = flags.Flag("ckpt", flags.step_or_best, "checkpoint to use: a step, or the one with the best score on dev")
    given = parser.parse(__doc__, flags.evaluation(ckpt), checks.PREDICTION, EXAMPLE)
    from fine_tune.evaluate import write_predictions  # after the flags: importing torch takes seconds

    write_predictions(given)


if __name__ == "__main__":
    parser.run_script(main)
