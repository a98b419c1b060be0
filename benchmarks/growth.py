"""How cost grows: our distillation step with batch, length and layers, start-up with the rows of the training file.

`python benchmarks/growth.py` takes some minutes for each variant, with --tiny seconds.
"""

import argparse
import statistics
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common  # noqa: E402
from benchmarks.common import BASE, TINY, VARIANTS, Shape, Worker  # noqa: E402

LAYERS = ((4, 2), (8, 4), (12, 6))


def shapes(base: Shape, tiny: bool) -> dict[str, list[tuple[str, Shape]]]:
    """Return by factor the shapes that vary it around `base`, each with how it is called."""
    sizes, lengths, layers = ((2, 4), (16, 32), LAYERS[:1]) if tiny else ((4, 8, 16, 32), (32, 64, 128, 256), LAYERS)
    return {
        "batch_size": [(f"{size}", replace(base, batch_size=size)) for size in sizes],
        "max_seq_len": [(f"{length}", replace(base, seq_len=length)) for length in lengths],
        "layers": [(f"{high} to {low}", replace(base, layers=high, students=low)) for high, low in layers],
    }


def measured(shape: Shape, variant: str, steps: int) -> tuple[float, float]:
    """Return the median seconds of a step after the warm-up, and the peak memory in MiB."""
    with Worker(partial(common.our_distil, shape, VARIANTS[variant]), shape.threads) as worker:
        taken = [worker.ask("step", number)["seconds"] for number in range(1, common.WARM_UP + steps + 1)]
        return statistics.median(taken[common.WARM_UP :]), worker.ask("peak")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--threads", type=int, default=1, help="number of threads")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of each")
    parser.add_argument("--variants", nargs="+", default=[*VARIANTS], choices=VARIANTS, help="of our distillation step")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few rows")
    flags = parser.parse_args()
    base = replace(TINY if flags.tiny else BASE, threads=flags.threads)

    common.heading("Growth", base)
    print(f"One factor varies at a time, the others stay at batch {base.batch_size} and what is said above.\n")
    columns = [f"{name}, {what}" for name in flags.variants for what in ("ms", "ms/example", "MiB")]
    known: dict[tuple[Shape, str], tuple[float, float]] = {}  # the base is in every table
    for factor, varied in shapes(base, flags.tiny).items():
        rows = []
        for label, shape in varied:
            row = [label]
            for variant in flags.variants:
                if (shape, variant) not in known:
                    known[shape, variant] = measured(shape, variant, flags.steps)
                seconds, peak = known[shape, variant]
                row += [common.milliseconds([seconds]), f"{seconds / shape.batch_size * 1e3:.1f}", f"{peak:.0f}"]
            rows.append(row)
        common.table(" | ".join([factor, *columns]), rows)
    print("Start-up: a training file is tokenised for the first time, and read from the cache after that.\n")
    files = (1000, 2000) if flags.tiny else (10_000, 50_000, 100_000, 400_000)
    common.table(common.LOADING, [common.loading(count) for count in files])


if __name__ == "__main__":
    main()
