"""The order of a report: runs are collected, analysed, perhaps timed and drawn, and shown."""

from argparse import Namespace

from fine_tune.core.errors import UserError
from fine_tune.reporting.analysis import analyse, measure
from fine_tune.reporting.collect import collect
from fine_tune.reporting.plot import plot
from fine_tune.reporting.render import FORMATS
from fine_tune.training import distributed
from fine_tune.training.log import print0


def report(flags: Namespace) -> None:
    """Print the report that `flags` describe."""
    device = distributed.select_devices(flags)["device_id"] if flags.measure else None
    collection = collect(flags)
    if flags.baseline not in (None, *collection.groups):
        raise UserError(f"--baseline {flags.baseline}: the groups are {', '.join(collection.groups)}")
    found = analyse(flags, collection)
    if device:
        measure(found, collection, device)
    if flags.plot:
        plot(found, flags.plot)
        print0(f"written: {flags.plot}")
    print(FORMATS[flags.format](found))
