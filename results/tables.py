"""Print the tables of README.md and results/README.md from what the report wrote: `python results/tables.py`."""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TASKS = {"sst2": "SST-2, accuracy", "stsb": "STS-B, Pearson", "mrpc": "MRPC, accuracy"}
METHODS = {  # as the report calls them
    "labels only": "labels only",
    "logits only": "logits only",
    "pkd": "BERT-PKD",
    "alp-kd-hidden": "ALP-KD",
    "alp-kd-hidden-v2": "ALP-KD-v2",
    "lad_no": "LAD-NO",
    "partial_lad": "partial LAD",
    "lad": "LAD",
}

CHANGES = {  # of a file: the runs, without their seed, and what they are called
    "sst2-switches": {
        "run-lad": "LAD",
        "switch-lad-all": "`--pad_loss all`",
        "switch-lad-sampled": "`--pad_loss sampled`",
        "switch-lad-embeddings": "`--embedding_init random`",
        "switch-lad-first": "`--student_init first`",
        "switch-lad-random": "`--student_init random`",
        "switch-lad-1e-5": "`--gate_lr 1e-5`",
        "switch-lad-1e-4": "`--gate_lr 1e-4`",
        "switch-lad-1e-3": "`--gate_lr 1e-3`",
    },
    "sst2-layer-maps": {
        "run-pkd": "BERT-PKD",
        "switch-pkd-last": "`--layer_map last`",
        "switch-pkd-reverse": "`--layer_map reverse`",
        "switch-pkd-top": "`--layer_map top`",
    },
}


def read(name: str) -> dict[str, Any]:
    """Return what the report wrote; its groups and comparisons go by the method's name."""
    found = json.loads((HERE / f"{name}.json").read_text())
    groups = {group["name"].partition(" mu=")[0]: group for group in found["groups"]}
    return found | {"groups": groups, "comparisons": {one["group"]: one for one in found["comparisons"]}}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def summary() -> str:
    """Return README's table: every method's mean and standard deviation; in bold what is better than logits only."""
    found = [read(task) for task in TASKS]
    rows = [["teacher", *(f"{each['teachers'][0]['score']:.1f}" for each in found)]]
    for name, words in METHODS.items():
        cells = []
        for each in found:
            better = name in each["comparisons"] and verdict(each["comparisons"][name]) == "better"
            cells.append(f"**{spread(each['groups'][name])}**" if better else spread(each["groups"][name]))
        rows.append([words, *cells])
    return table(["", *TASKS.values()], rows)


def methods(task: str) -> str:
    """Return how every method did on a task, and how it differs from logits only and from BERT-PKD."""
    found, other = read(task), read(f"{task}-against-pkd")
    rows = []
    for name, words in METHODS.items():
        group = found["groups"][name]
        means = [str(group["mean"]["n"]), spread(group), f"{group['to_teacher']:+.1f}", f"{group['agreement']:.1f}"]
        compared = [found["comparisons"].get(name), None if name.endswith(" only") else other["comparisons"].get(name)]
        rows.append([words, *means, *(difference(one) if one else "" for one in compared)])
    score = f"{TASKS[task]}, mean ± sd"
    return table(["", "seeds", score, "to the teacher", "agrees with it", "from logits only", "from BERT-PKD"], rows)


def spread(group: dict[str, Any]) -> str:
    """Return a group's mean and standard deviation."""
    return f"{group['mean']['mean']:.1f} ± {group['mean']['sd']:.1f}"


def verdict(compared: dict[str, Any]) -> str:
    """Return the verdict of a comparison."""
    return compared["verdict"].partition(";")[0]


def difference(compared: dict[str, Any]) -> str:
    """Return a comparison's difference with its interval and verdict."""
    found = compared["difference"]
    low, high = found["interval"]
    return f"{found['difference']:+.1f} ({low:+.1f} to {high:+.1f}), {verdict(compared)}"


def tuning() -> str:
    """Return the score of each mu of the grid, on the seed not reported; in bold the best (of equals the last)."""
    found = {task: json.loads((HERE / f"{task}-tune.json").read_text())["groups"] for task in TASKS}
    scores = {(task, group["name"]): group["mean"]["mean"] for task, groups in found.items() for group in groups}
    mus = sorted({int(name.partition(" mu=")[2]) for _, name in scores})
    rows = []
    for method, words in METHODS.items():
        cells = [words]
        for task in TASKS:
            tried = [scores[task, f"{method} mu={mu}"] for mu in mus if (task, f"{method} mu={mu}") in scores]
            best = max(range(len(tried)), key=lambda i: (tried[i], i), default=None)
            cells += [f"**{score:.1f}**" if i == best else f"{score:.1f}" for i, score in enumerate(tried)]
        if len(cells) > 1:
            rows.append(cells)
    return table(["", *(f"{words.partition(',')[0]}, mu {mu}" for words in TASKS.values() for mu in mus)], rows)


def changes(name: str) -> str:
    """Return what one change each made of the first of the runs of a file."""
    found = read(name)
    groups = {group["seeds"][0]["experiment"].rpartition("-")[0]: group for group in found["groups"].values()}
    rows = []
    for run, words in CHANGES[name].items():
        group = groups[run]
        apart = found["comparisons"].get(group["name"])
        scores = [str(group["mean"]["n"]), spread(group), f"{group['agreement']:.1f}"]
        rows.append([words, *scores, difference(apart) if apart else ""])
    return table(["", "seeds", f"{TASKS['sst2']}, mean ± sd", "agrees with the teacher", "change"], rows)


def gates() -> str:
    """Return what became of the gates at each --gate_lr: drift and opening of gates 2 to L in the mean, hidden loss."""
    found = json.loads((HERE / "gates.json").read_text())
    rows = []
    for run, values in found.items():
        drift, opening = (sum(values[name]) / len(values[name]) for name in ("gate/drift", "gate/opening"))
        rate = "5e-7" if run.startswith("run-") else run.removeprefix("switch-lad-").removesuffix("-1")
        rows.append([rate, f"{drift:.4f}", f"{opening:.2f}", f"{values['hidden_loss'][0]:.1f}"])
    return table(["`--gate_lr`", "drift", "opening", "hidden loss"], rows)


if __name__ == "__main__":
    print(summary(), *map(methods, TASKS), tuning(), *map(changes, CHANGES), gates(), sep="\n\n")
