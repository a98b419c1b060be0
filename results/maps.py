"""Draw docs/pictures/maps.png, what student layers learn and what they are like afterwards: `python results/maps.py`.

It draws what maps.json holds; `python results/maps.py <experiment_dir>` first reads that from the tensorboard logs of
the runs with seed 1, which `run_fine_tune_eval.py --layers` must have scored.
"""

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fine_tune.training.pictures import INK, PAPER, draw  # noqa: E402

TASK, PICTURE, VALUES = "sst2", ROOT / "docs/pictures/maps.png", ROOT / "results/maps.json"
RUNS = {"lad": "LAD", "alp-kd-hidden": "ALP-KD", "pkd": "BERT-PKD", "logits": "logits only"}
MAPS = {f"{TASK}/train/bert/share_map": "share in the target", f"{TASK}/dev/similarity_map": "cosine afterwards"}


def read(runs: Path) -> dict[str, dict[str, list[list[float]]]]:
    """Return the last value (N, L) of every map of every run, by run and title."""
    found = {}
    for run in RUNS:
        log, found[run] = runs / "log" / f"run-{run}-1_bert_{TASK}", {}
        for folder in (log, log / "eval"):
            board = EventAccumulator(str(folder))
            board.Reload()
            for tag in set(board.Tags()["images"]) & MAPS.keys():
                png = Image.open(io.BytesIO(board.Images(tag)[-1].encoded_image_string))
                values = json.loads(png.text["values"])
                found[run][MAPS[tag]] = [[round(value, 4) for value in row] for row in values]
    return found


def picture(found: dict[str, dict[str, list[list[float]]]]) -> Image.Image:
    """Return the maps, a row for each run."""
    every = {
        run: [draw(np.array(found[run][title]), title) for title in MAPS.values() if title in found[run]]
        for run in RUNS
    }
    width, height = (max(part.size[axis] for parts in every.values() for part in parts) for axis in (0, 1))
    left, font = 190, ImageFont.load_default(16)
    whole = Image.new("RGB", (left + len(MAPS) * width, len(RUNS) * height), PAPER)
    pen = ImageDraw.Draw(whole)
    for row, (run, parts) in enumerate(every.items()):
        pen.text((16, row * height + 100), RUNS[run], INK, font)
        for column, part in enumerate(parts, len(MAPS) - len(parts)):  # without a target the shares are missing
            whole.paste(part, (left + column * width, row * height))
    return whole


if __name__ == "__main__":
    if len(sys.argv) > 1:
        VALUES.write_text(json.dumps(read(Path(sys.argv[1])), indent=1) + "\n")
    info = PngInfo()
    info.add_text("values", VALUES.read_text())
    picture(json.loads(VALUES.read_text())).save(PICTURE, pnginfo=info)
