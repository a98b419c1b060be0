"""Fine-tune a BERT teacher on a GLUE task."""

from fine_tune.cli import checks, flags, parser

EXAMPLE = """python run_fine_tune.py --experiment teacher_base --task qqp --dataset train --num_class 2 \\
    --ptrain_ver bert-base-uncased --max_seq_len 128 --lr 2e-5 --total_step 34110 --warmup_step 10233 \\
    --ckpt_step 11370 --device_id 0"""


def main() -> None:
    """Read the flags, then train."""
    given = parser.parse(__doc__, flags.fine_tuning(), checks.FINE_TUNING, EXAMPLE, kind="teacher")
    from fine_tune.finetune import finetune  # after the flags: importing torch takes seconds

    finetune(given)


if __name__ == "__main__":
    parser.run_script(main)
