"""A report as text, Markdown, LaTeX, CSV (a line for each run) or JSON."""

import csv
import io
import json
import math
import re
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from fine_tune.data.statistics import Interval
from fine_tune.models.cost import params_words
from fine_tune.reporting.analysis import BATCH_SIZES, Comparison, Group, Model, Report

Table = list[list[str]]  # its first line holds the columns' names
SEEDS_A_LINE = 10


# --- cells ------------------------------------------------------------------------------------------------------------


def gigas(number: float) -> str:
    """Return billions of operations; a tiny model has less than a hundredth."""
    return f"{number:.1f}" if number >= 10 else f"{number:.2f}" if number >= 0.01 else "< 0.01"


def dots(interval: Interval | None, sign: str = "") -> str:
    """Return an interval as `low .. high`."""
    return f"{interval[0]:{sign}.2f} .. {interval[1]:{sign}.2f}" if interval else "-"


def optional(value: float | None, form: str) -> str:
    """Return a number in a form, or a dash where there is none."""
    return "-" if value is None else form.format(value)


def mean_cell(group: Group) -> str:
    """Return mean and standard deviation; of one or two seeds the scores themselves."""
    if group.mean.n < 3:
        return ", ".join(f"{line.score:.2f}" for line in group.seeds)
    return f"{group.mean.mean:.2f} ± {group.mean.sd:.2f}"


def cost_cells(model: Model) -> list[str]:
    """Return parameters and GFLOPs."""
    return [params_words(model.cost.params), gigas(model.cost.gflops)] if model.cost else ["-", "-"]


def main_table(report: Report) -> Table:
    """Return the table of groups, below the majority class and the teachers."""
    head = [
        "method",
        "layers",
        "n",
        "mean ± sd",
        "95 % interval",
        "to teacher",
        "kept",
        "agrees",
        "params",
        "GFLOPs",
    ]
    table = [head]
    if report.majority is not None:
        table.append(["majority", "", "", f"{report.majority:.2f}"] + [""] * 6)
    for teacher in report.teachers:
        layers = optional(teacher.layers, "{}")
        table.append(["teacher", layers, "1", f"{teacher.score:.2f}", "", "", "", "", *cost_cells(teacher)])
    for group in report.groups:
        table.append(
            [group.name, optional(group.layers, "{}"), str(group.mean.n), mean_cell(group), dots(group.mean.interval)]
            + [optional(group.to_teacher, "{:+.2f}"), optional(group.kept, "{:.1f} %")]
            + [optional(group.agreement, "{:.1f} %"), *cost_cells(group)]
        )
    return without_empty(table)


def without_empty(table: Table) -> Table:
    """Return a table without the columns that say nothing in any line."""
    kept = [index for index in range(len(table[0])) if any(row[index] not in ("", "-") for row in table[1:])]
    return [[row[index] for index in kept] for row in table]


def seed_tables(report: Report) -> list[Table]:
    """Return every seed's score, one line a group, ten seeds a table."""
    seeds = sorted({line.seed for group in report.groups for line in group.seeds})
    tables = []
    for start in range(0, len(seeds), SEEDS_A_LINE):
        shown = seeds[start : start + SEEDS_A_LINE]
        table = [["seed", *map(str, shown)]]
        for group in report.groups:
            scores = {line.seed: f"{line.score:.2f}" for line in group.seeds}
            table.append([group.name, *(scores.get(seed, "-") for seed in shown)])
        tables.append(table)
    return tables


def comparison_table(report: Report) -> Table:
    """Return the comparisons with the baseline."""
    table = [["", "difference", "95 % interval", "seeds and examples", "test", "p (Holm)", "seeds"]]
    for found in report.comparisons:
        a = found.difference
        n = str(a.n[0]) if a.n[0] == a.n[1] else f"{a.n[0]} and {a.n[1]}"
        signs = f"{a.same_sign} of {a.n[0]}" if a.same_sign is not None else n
        table.append(
            [found.group, f"{a.difference:+.2f}", dots(a.interval, "+"), dots(found.together, "+"), a.test or "-"]
            + ["-" if math.isnan(found.p_holm) else p_value(found.p_holm), signs]
        )
    return table


def p_value(p: float) -> str:
    """Return a p-value with two digits."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def times_table(report: Report) -> Table:
    """Return the milliseconds of a forward pass, and how many times faster than the first teacher a model is."""
    first = report.teachers[0].milliseconds if report.teachers else None
    table = [["milliseconds", *(f"batch {size}" for size in BATCH_SIZES), *(["times faster"] if first else [])]]
    lines = [("teacher", teacher) for teacher in report.teachers] + [(group.name, group) for group in report.groups]
    for name, model in lines:
        taken = model.milliseconds
        if taken:
            faster = [", ".join(f"{first[size] / taken[size]:.1f}" for size in BATCH_SIZES)] if first else []
            table.append([name, *(f"{taken[size]:.1f}" for size in BATCH_SIZES), *faster])
    return table


# --- sentences --------------------------------------------------------------------------------------------------------


def title(report: Report) -> str:
    """Return what was scored and which checkpoints count."""
    few, many = report.checkpoints
    counted = str(many) if few == many else f"{few} to {many}"
    best = f"best of {counted} checkpoints of each run, chosen on this same split"
    which = {
        "best": best if many > 1 else "the only checkpoint of each run",
        "last": "last checkpoint of each run",
    }.get(report.select, f"step {report.select} of each run")
    examples = f" ({report.rows:,} examples)" if report.rows else ""
    return f"{report.task} {report.dataset}{examples}, {report.metric}, in percent; {which}"


def legend(report: Report) -> list[str]:
    """Return what the columns of the main table mean."""
    lines = [f"teacher: {teacher.name}, step {teacher.step}" for teacher in report.teachers]
    lines.append("±: standard deviation over n seeds (n - 1); interval: of the mean, Student's t, from 3 seeds on")
    if any(group.agreement is not None for group in report.groups):
        lines.append("agrees: predictions equal to the teacher's, mean over seeds (regression: Pearson's correlation)")
    for group in report.groups:
        if group.to_teacher_interval:
            shown = f"{group.to_teacher:+.2f} [{dots(group.to_teacher_interval, '+')}]"
            lines.append(f"{group.name} to teacher, seeds and examples drawn together: {shown}")
    known = [model for model in (*report.teachers, *report.groups) if model.cost]
    if known:
        bare = {f"{model.layers} layers {params_words(model.cost.params_without_embeddings)}": None for model in known}
        attention = {f"{model.layers} layers {gigas(model.cost.attention_gflops)}": None for model in known}
        lines.append(f"params without embeddings: {', '.join(bare)}")
        lines.append(
            f"GFLOPs: linear layers, one text of {report.max_seq_len} word pieces; "
            f"attention's products add: {', '.join(attention)}"
        )
    return lines


def verdicts(report: Report) -> list[str]:
    """Return one line on each comparison, with all that the table has no room for."""
    return [f"{found.group}: {found.verdict}{details(found)}" for found in report.comparisons]


def details(found: Comparison) -> str:
    """Return what else is known of a comparison."""
    a, parts = found.difference, []
    if a.shown is not None:
        seeds = f"{a.n[0]} seeds" if a.n[0] == a.n[1] else f"{a.n[0]} and {a.n[1]} seeds"
        parts.append(f"smallest difference that {seeds} would show: {a.shown:.2f}")
    if a.sign_flip is not None:
        parts.append(f"exact sign-flip p {p_value(a.sign_flip)}")
    if found.mcnemar:
        own, base, p = found.mcnemar
        parts.append(f"{own} examples only it gets right, {base} only the baseline, exact McNemar p {p_value(p)}")
        parts[-1] += ": these two runs, not the methods"
    return "".join(f"; {part}" for part in parts)


def against(report: Report) -> str:
    """Return how the comparisons were made."""
    return (
        f"against {report.baseline}: 95 % t intervals; Holm over {len(report.comparisons)} "
        f"comparison{'s' * (len(report.comparisons) > 1)}; smallest differences at a power of 80 %"
    )


def remarks(report: Report) -> list[str]:
    """Return warnings and what is missing."""
    return [f"warning: {line}" for line in report.warnings] + [f"missing: {line}" for line in report.missing]


def sections(report: Report, render_table: Callable[[Table], str], listed: Callable[[list[str]], str]) -> list[str]:
    """Return the parts of a report, in order, in some format."""
    parts = [render_table(main_table(report)), listed(legend(report))]
    parts += [render_table(table) for table in seed_tables(report)]
    if report.comparisons:
        parts += [listed([against(report)]), render_table(comparison_table(report)), listed(verdicts(report))]
    if report.measured_on:
        how = f"milliseconds of a forward pass, texts of {report.max_seq_len} word pieces, {report.measured_on}"
        parts += [listed([f"{how}; teacher and students in turns, median of 5"]), render_table(times_table(report))]
    if remarks(report):
        parts.append(listed(remarks(report)))
    return [*parts, listed([f"signature: {report.signature}"])]


# --- formats ----------------------------------------------------------------------------------------------------------


def aligned(table: Table) -> str:
    """Return a table in columns: words to the left, numbers to the right."""
    widths = [max(len(row[index]) for row in table) for index in range(len(table[0]))]
    lines = []
    for row in table:
        cells = [
            cell.ljust(width)
            if index == 0 or index == len(row) - 1 and not is_number(table[-1][index])
            else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def is_number(cell: str) -> bool:
    """Tell whether a cell holds a number, or stands for one."""
    return cell[:1].isdigit() or cell[:1] in "-+<"


def wrapped(lines: list[str]) -> str:
    """Return sentences in lines of at most 100 characters, but for those with a command, which is to be copied."""
    long = {"width": 100, "subsequent_indent": "  ", "break_on_hyphens": False, "break_long_words": False}
    return "\n".join(line if "python " in line else textwrap.fill(line, **long) for line in lines)


def text(report: Report) -> str:
    """Return the report for a terminal."""
    return "\n\n".join([wrapped([title(report)]), *sections(report, aligned, wrapped)])


def markdown(report: Report) -> str:
    """Return the report as GitHub shows it."""

    def render_table(table: Table) -> str:
        head, *rows = [[cell.replace("|", "\\|").replace("_", "\\_") for cell in row] for row in table]
        rule = ["---"] + ["---:"] * (len(head) - 1)
        return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *rows))

    def listed(lines: list[str]) -> str:
        return "\n".join(f"- {escaped(line)}" for line in lines)

    def escaped(line: str) -> str:
        return line.replace("_", "\\_").replace("*", "\\*")

    return "\n\n".join([f"**{escaped(title(report))}**", *sections(report, render_table, listed)])


def latex(report: Report) -> str:
    """Return the main table with its caption for a paper (package booktabs); the rest stands beside it as comments."""

    def escaped(line: str) -> str:
        line = re.sub(r"[&%$#_{}]", r"\\\g<0>", line.replace("\\", "/"))
        return re.sub(r"(?<![\w-])[+-](?=\d)", r"$\g<0>$", line).replace("±", "$\\pm$").replace(" .. ", "--")

    head, *rows = [[escaped(cell) for cell in row] for row in main_table(report)]
    lines = [
        "\\begin{table}",
        f"\\caption{{{escaped(title(report))}. {escaped(legend(report)[len(report.teachers)])}.}}",
        "\\centering",
        f"\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}",
        "\\toprule",
        *(" & ".join(row) + " \\\\" for row in [head]),
        "\\midrule",
        *(" & ".join(row) + " \\\\" for row in rows),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    rest = sections(report, aligned, "\n".join)[1:]
    return "\n".join(lines) + "\n" + "\n".join(f"% {line}".rstrip() for part in rest for line in part.split("\n"))


def as_csv(report: Report) -> str:
    """Return a line for each run, the teachers' among them, for a program to read; RFC 4180 but for its line ends."""
    file = io.StringIO()
    columns = "task dataset metric group experiment seed step checkpoints score agreement layers params gflops".split()
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    same = {"task": report.task, "dataset": report.dataset, "metric": report.metric}

    def model(line: Model) -> dict[str, Any]:
        found = {"params": line.cost.params, "gflops": line.cost.gflops} if line.cost else {}
        return {"layers": line.layers} | found

    for teacher in report.teachers:
        own = {"group": "teacher", "experiment": teacher.name, "step": teacher.step, "score": round(teacher.score, 4)}
        writer.writerow(same | own | model(teacher))
    for group in report.groups:
        for line in group.seeds:
            agreement = None if line.agreement is None else round(line.agreement, 4)
            own = asdict(line) | {"group": group.name, "score": round(line.score, 4), "agreement": agreement}
            writer.writerow(same | own | model(group))
    return file.getvalue().rstrip("\n")


def as_json(report: Report) -> str:
    """Return everything, nan as null."""

    def known(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(name): known(inner) for name, inner in value.items()}
        if isinstance(value, (list, tuple)):
            return [known(inner) for inner in value]
        return None if isinstance(value, float) and math.isnan(value) else value

    return json.dumps(known(asdict(report)), indent=2, ensure_ascii=False, allow_nan=False)


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": text,
    "markdown": markdown,
    "latex": latex,
    "csv": as_csv,
    "json": as_json,
}
