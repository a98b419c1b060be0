"""The benchmarks run through, and what they compare agrees; nothing is said about time."""

from tests.processes import Process


def tables(benchmark: str, *words: str) -> dict[str, list[dict[str, str]]]:
    """Run a benchmark and return the rows of its tables by their first column's name and number, as in `variant 0`."""
    code, output, said = Process(f"benchmarks/{benchmark}", *words, "--tiny").wait()
    assert code == 0, said
    found: dict[str, list[dict[str, str]]] = {}
    for block in output.split("\n\n"):
        if block.startswith("|"):
            columns, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
            number = sum(name.startswith(columns[0]) for name in found)
            found[f"{columns[0]} {number}"] = [dict(zip(columns, row, strict=True)) for row in rows]
    return found


def test_speed_compares_what_is_equal() -> None:
    """The differences make the benchmark an oracle: distillation, fine-tuning and evaluation equal the plain code."""
    found = tables("speed", "--pairs", "1", "--variants", "exact", "masked", "sampled")
    assert list(found) == ["variant 0", "ms 0", "variant 1", "variant 2", "rows 0", "script 0"]
    assert len(found["script 0"]) == 8
    for table, name, what in ((0, "exact", "gradients"), (1, "ours", "gradients"), (2, "ours", "logits")):
        assert all(float(row["steps/s"]) > 0 for row in found[f"variant {table}"])
        [row] = [row for row in found[f"variant {table}"] if row["variant"] == name]
        assert float(row["loss differs"]) < 1e-5
        assert float(row[f"{what} differ"]) < 1e-5


def test_growth_varies_every_factor() -> None:
    found = tables("growth", "--steps", "1", "--variants", "masked")
    assert {name: len(rows) for name, rows in found.items()} == {
        "batch_size 0": 2,
        "max_seq_len 0": 2,
        "layers 0": 1,
        "rows 0": 2,
    }
