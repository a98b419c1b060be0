"""Evaluate every checkpoint of a run, teacher or student, on a split with labels."""

from fine_tune.cli import checks, flags, parser

EXAMPLE = "python run_fine_tune_eval.py --experiment LAD_soft_1_42 --task qqp --dataset dev --batch_size 512"


def main() -> None:
    """Read the flags, then evaluate."""
    ckpt = flags.Flag("ckpt", flags.integer(0), "first step to evaluate", "0")
    again = flags.Flag("again", None, "score what was scored before, too")
    layers = flags.Flag("layers", None, "draw how alike the student's and the teacher's layers are, for tensorboard")
    given = parser.parse(__doc__, flags.evaluation(ckpt, again, layers), checks.EVALUATION, EXAMPLE)
    from fine_tune.evaluate import evaluate  # after the flags: importing torch takes seconds

    evaluate(given)


if __name__ == "__main__":
    parser.run_script(main)
