"""Predict labels, or scores, of new texts: one text a line, or text TAB text, becomes label TAB probability."""

from collections.abc import Sequence

from fine_tune.cli import checks, flags, parser

EXAMPLE = """printf 'How old are you?\\tWhat is your age?\\n' |
    python -m fine_tune.predict --experiment LAD_soft_1_42 --task qqp --ckpt best"""


def groups() -> list[flags.FlagGroup]:
    """Return all flags of this script."""
    own = [
        flags.Flag("in", flags.path, "file of the texts", falls_back="standard input"),
        flags.Flag("out", flags.path, "file of the predictions", falls_back="standard output"),
        flags.Flag("batch_size", flags.integer(1), "texts at a time; changes no result", "32"),
    ]
    return [flags.experiment(device="-1"), flags.one_checkpoint(), ("prediction", own), flags.paths()]


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, then predict."""
    rules = (checks.known_task, checks.existing_run, checks.existing_checkpoint)
    given = parser.parse(__doc__, groups(), rules, EXAMPLE, argv)
    from fine_tune.training.stream import predict_lines  # after the flags: importing torch takes seconds

    predict_lines(given)


if __name__ == "__main__":
    parser.run_script(main)
