"""Export a checkpoint as a model that transformers loads without this suite: weights, tokenizer, labels, card."""

from collections.abc import Sequence

from fine_tune.cli import checks, flags, parser

EXAMPLE = "python -m fine_tune.export --experiment LAD_soft_1_42 --task qqp --ckpt best --out lad-qqp"


def groups() -> list[flags.FlagGroup]:
    """Return all flags of this script."""
    own = [
        flags.Flag("out", flags.path, "folder to make"),
        flags.Flag("license", flags.plain_name, "licence in the model's card, by the hub's identifier", "other"),
        flags.Flag("batch_size", flags.integer(1), "examples at a time; changes no result", "32"),
    ]
    return [flags.experiment(device="-1"), flags.one_checkpoint(), ("export", own), flags.paths()]


def main(argv: Sequence[str] | None = None) -> None:
    """Read the flags, then export."""
    rules = (checks.known_task, checks.dev_split, checks.existing_run, checks.existing_checkpoint, checks.new_folder)
    given = parser.parse(__doc__, groups(), rules, EXAMPLE, argv)
    from fine_tune.training.exchange import export  # after the flags: importing torch takes seconds

    export(given)


if __name__ == "__main__":
    parser.run_script(main)
