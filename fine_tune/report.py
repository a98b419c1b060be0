"""Compare runs: mean and interval over seeds, a test against a baseline, agreement with the teacher, and the cost."""

from fine_tune.cli import checks, flags, parser

EXAMPLE = "python -m fine_tune.report 'LAD_*' 'PKD_*' --task qqp --dataset dev --baseline pkd"


def main() -> None:
    """Read the flags, then report."""
    given = parser.parse(__doc__, flags.reporting(), checks.REPORT, EXAMPLE)
    from fine_tune.reporting.report import report  # after the flags: importing torch takes seconds

    report(given)


if __name__ == "__main__":
    parser.run_script(main)
