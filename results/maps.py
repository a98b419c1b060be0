"""Draw docs/pictures/maps.png and gates.png, what student layers learn: `python results/maps.py`.

They show what maps.json and gates.json hold. `python results/maps.py maps <experiment_dir>` (or `gates`) first reads
that from the tensorboard logs of the runs, those of maps scored by `run_fine_tune_eval.py --layers`.
"""

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from fine_tune.training.pictures import INK, PAPER, draw  # noqa: E402

TASK = "sst2"
RUNS = {  # of each picture, and what they are called there
    "maps": {
        "run-lad-1": "LAD",
        "run-alp-kd-hidden-1": "ALP-KD",
        "run-pkd-1": "BERT-PKD",
        "run-logits-1": "logits only",
    },
    "gates": {
        "run-lad-1": "gate_lr 5e-7",
        "switch-lad-1e-5-1": "gate_lr 1e-5",
        "switch-lad-1e-4-1": "gate_lr 1e-4",
        "switch-lad-1e-3-1": "gate_lr 1e-3",
    },
}
MAPS = {f"{TASK}/train/bert/share_map": "share in the target", f"{TASK}/dev/similarity_map": "cosine afterwards"}
SCALARS = ["gate/drift", "gate/opening", "hidden_loss"]  # of the gates


def values(name: str) -> Path:
    """Return the file of what a picture shows."""
    return HERE / f"{name}.json"


def target(name: str) -> Path:
    """Return the file of a picture."""
    return HERE.parent / f"docs/pictures/{name}.png"


def read(runs: Path, name: str) -> dict[str, dict[str, Any]]:
    """Return the last value (N, L) of every map of every run, by run and title, and of its scalars."""
    found: dict[str, dict[str, Any]] = {}
    for run in RUNS[name]:
        log, found[run] = runs / "log" / f"{run}_bert_{TASK}", {}
        for folder in (log, log / "eval"):
            board = EventAccumulator(str(folder))
            board.Reload()
            for tag in set(board.Tags()["images"]) & MAPS.keys():
                png = Image.open(io.BytesIO(board.Images(tag)[-1].encoded_image_string))
                rows = json.loads(png.text["values"])
                found[run][MAPS[tag]] = [[round(value, 4) for value in row] for row in rows]
            for tag in board.Tags()["scalars"]:
                words = tag.removeprefix(f"{TASK}/train/bert/")
                title = words.rpartition("/")[0] or words  # without the gate's number
                if name == "gates" and title in SCALARS:
                    found[run].setdefault(title, []).append(round(board.Scalars(tag)[-1].value, 4))
    return found


def picture(name: str) -> Image.Image:
    """Return the maps of every run, a row for each."""
    found = json.loads(values(name).read_text())
    titles = [title for title in MAPS.values() if any(title in each for each in found.values())]
    every = {
        run: [draw(np.array(found[run][title]), title) for title in titles if title in found[run]] for run in RUNS[name]
    }
    width, height = (max(part.size[axis] for parts in every.values() for part in parts) for axis in (0, 1))
    left, font = 190, ImageFont.load_default(16)
    whole = Image.new("RGB", (left + len(titles) * width, len(every) * height), PAPER)
    pen = ImageDraw.Draw(whole)
    for row, (run, parts) in enumerate(every.items()):
        pen.text((16, row * height + 100), RUNS[name][run], INK, font)
        for column, part in enumerate(parts, len(titles) - len(parts)):  # without a target the shares are missing
            whole.paste(part, (left + column * width, row * height))
    return whole


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _, name, runs = sys.argv
        values(name).write_text(json.dumps(read(Path(runs), name), indent=1) + "\n")
    for name in RUNS:
        info = PngInfo()
        info.add_text("values", values(name).read_text())
        picture(name).save(target(name), pnginfo=info)
