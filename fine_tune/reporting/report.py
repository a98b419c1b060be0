"""The order of a report: runs are collected, analysed, perhaps timed and drawn, and shown."""

import sys
from argparse import Namespace

from fine_tune.core.errors import UserError
from fine_tune.core.memory import needs_memory
from fine_tune.reporting.analysis import analyse
from fine_tune.reporting.collect import collect
from fine_tune.reporting.plot import plot
from fine_tune.reporting.render import FORMATS


@needs_memory("in a report; nothing was written")
def report(flags: Namespace) -> None:
    """Print the report that `flags` describe."""
    if flags.measure:
        from fine_tune.reporting.timing import measure  # not above: importing torch takes seconds
        from fine_tune.training.distributed import select_devices

        device = select_devices(flags)["device_id"]
    collection = collect(flags)
    if flags.baseline not in (None, *collection.groups):
        raise UserError(f"--baseline {flags.baseline}: the groups are {', '.join(collection.groups)}")
    found = analyse(flags, collection)
    if flags.measure:
        measure(found, collection, device)
    if flags.plot:
        plot(found, flags.plot)
        print(f"written: {flags.plot}", file=sys.stderr)
    print(FORMATS[flags.format](found))
