"""The figure of a report: every seed a dot, means with their intervals, teacher and majority class as lines."""

from pathlib import Path

from fine_tune.core.files import atomic_write
from fine_tune.reporting.analysis import Report


def plot(report: Report, path: str) -> None:
    """Draw the report into a file, whose suffix names the format."""
    from matplotlib.figure import Figure  # here: nothing else needs it, and it need not be installed

    names = [group.name for group in report.groups]
    figure = Figure(figsize=(5.5, 1.6 + 0.35 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    for height, group in enumerate(report.groups):
        scores = [line.score for line in group.seeds]
        axes.plot(scores, [height] * len(scores), "o", color="C0", alpha=0.5, markeredgewidth=0)
        half = (group.mean.interval[1] - group.mean.mean) if group.mean.interval else 0
        axes.errorbar(group.mean.mean, height, xerr=half or None, fmt="|", color="black", capsize=4, markersize=14)
    for teacher in report.teachers:
        axes.axvline(teacher.score, color="C2", label=f"teacher {teacher.score:.2f}")
    if report.majority is not None:
        low, high = axes.get_xlim()  # not stretched for a line far off: it would press all others together
        label = f"majority class {report.majority:.2f}"
        if low - (high - low) < report.majority < high + (high - low):
            axes.axvline(report.majority, color="gray", linestyle="--", label=label)
        else:
            axes.plot([], [], color="gray", linestyle="--", label=f"{label} (outside)")
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel(f"{report.task} {report.dataset}, {report.metric} in percent; bars: 95 % of the mean")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    with atomic_write(Path(path)) as file:
        figure.savefig(file, format=Path(path).suffix[1:], dpi=200)
