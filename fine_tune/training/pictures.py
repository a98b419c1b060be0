"""Pictures of layers against layers, for tensorboard: values in their cells, axes named.

Shapes: N student layers, L teacher layers.
"""

import io
import json

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from tensorboard.compat.proto.summary_pb2 import Summary

CELL, LEFT, TOP, EDGE = (46, 30), 98, 68, 12  # in pixels: (width, height) of a cell, and margins
BLUE, RED, INK, PAPER = (8, 72, 140), (165, 30, 30), (35, 35, 35), (255, 255, 255)


def colour(value: float) -> tuple[int, int, int]:
    """Return the colour of a value in [-1, 1]: white at 0, blue at 1, red at -1."""
    end, part = (BLUE if value >= 0 else RED), min(abs(value), 1.0)
    return tuple(round(255 + (channel - 255) * part) for channel in end)


def draw(values: np.ndarray, title: str) -> Image.Image:
    """Draw student layers (rows) against teacher layers (columns), (N, L) of values in [-1, 1]."""
    students, layers = values.shape
    font, small = ImageFont.load_default(14), ImageFont.load_default(12)
    width = max(LEFT + layers * CELL[0], EDGE + int(font.getlength(title))) + EDGE
    picture = Image.new("RGB", (width, TOP + students * CELL[1] + EDGE), PAPER)
    pen = ImageDraw.Draw(picture)
    pen.text((EDGE, 8), title, INK, font)
    pen.text((EDGE, TOP - 9), "student layer", INK, small, anchor="lm")
    pen.text((LEFT + 8, 33), "teacher layer", INK, small)
    for j in range(layers):
        pen.text((LEFT + (j + 0.5) * CELL[0], TOP - 9), f"{j + 1}", INK, small, anchor="mm")
    for i, row in enumerate(values):
        pen.text((LEFT - 12, TOP + (i + 0.5) * CELL[1]), f"{i + 1}", INK, small, anchor="rm")
        for j, value in enumerate(row):
            left, top = LEFT + j * CELL[0], TOP + i * CELL[1]
            pen.rectangle((left, top, left + CELL[0] - 2, top + CELL[1] - 2), colour(value))
            ink = PAPER if abs(value) > 0.55 else INK
            pen.text((left + CELL[0] / 2, top + CELL[1] / 2), f"{value:.2f}" if value else "0", ink, small, anchor="mm")
    return picture


def summary(tag: str, values: np.ndarray, title: str) -> Summary:
    """Return the picture of values (N, L) as tensorboard takes it; the PNG's text `values` holds them as JSON."""
    picture, png, info = draw(values, title), io.BytesIO(), PngInfo()
    info.add_text("values", json.dumps(values.tolist()))
    picture.save(png, "PNG", pnginfo=info)
    image = Summary.Image(height=picture.height, width=picture.width, colorspace=3, encoded_image_string=png.getvalue())
    return Summary(value=[Summary.Value(tag=tag, image=image)])
