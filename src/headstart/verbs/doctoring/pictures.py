"""The contact sheet: a sample of the images as they are, with their classes and boxes."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from headstart.data.examination import pixels
from headstart.data.images import DecodeError
from headstart.data.index import NO_LABEL, DataSet
from headstart.randomness import permutation
from headstart.runs import replace

COLUMNS, ROWS = 8, 6
_SIDE, _CAPTION, _GAP = 160, 20, 6  # pixels
_PAPER, _INK, _BOX = "#ffffff", "#1b1f24", "#e4572e"
_LETTERS = 24  # of a class name
_ORDER = 8  # what the order is drawn for


def contact_sheet(path: Path, data: DataSet, seed: int) -> None:
    """Draw a random sample of the images, in a grid of whole images in proportion.

    Args:
        path: the PNG.
        data: the data.
        seed: of the sample.
    """
    chosen = permutation(data.count, seed, _ORDER)[: COLUMNS * ROWS].sort().values.tolist()
    lines = -(-len(chosen) // COLUMNS)
    columns = min(COLUMNS, len(chosen))
    width, height = columns * (_SIDE + _GAP) + _GAP, lines * (_SIDE + _CAPTION + _GAP) + _GAP
    sheet = Image.new("RGB", (width, height), _PAPER)
    for place, row in enumerate(chosen):
        left, top = place % COLUMNS * (_SIDE + _GAP) + _GAP, place // COLUMNS * (_SIDE + _CAPTION + _GAP) + _GAP
        sheet.paste(_tile(data, row), (left, top))
    replace(path, lambda temporary: sheet.save(temporary, format="PNG"))


def _tile(data: DataSet, row: int) -> Image.Image:
    """Return an image in a square, with its boxes, above its class."""
    tile = Image.new("RGB", (_SIDE, _SIDE + _CAPTION), _PAPER)
    draw = ImageDraw.Draw(tile)
    try:
        image = Image.fromarray(_colours(pixels(data, row)))
    except DecodeError:
        draw.text((2, _SIDE // 2), "cannot be decoded", _INK, ImageFont.load_default(12))
        return tile
    scale = _SIDE / max(image.size)
    filters = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), filters)
    tile.paste(small, ((_SIDE - small.width) // 2, _SIDE - small.height))
    for left, top, right, bottom in _boxes(data, row) * scale:
        edges = sorted((left, right)), sorted((top, bottom))
        across, down = (_SIDE - small.width) // 2, _SIDE - small.height
        draw.rectangle(
            (edges[0][0] + across, edges[1][0] + down, edges[0][1] + across, edges[1][1] + down), None, _BOX, 2
        )
    draw.text((2, _SIDE + 3), _caption(data, row), _INK, ImageFont.load_default(12))
    return tile


def _colours(image: Tensor) -> np.ndarray:
    """Return pixels of any number of channels as colours, uint8 ``[h w 3]``: the first three, or grey."""
    shown = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    values = (shown * 255).round().to(torch.uint8) if shown.is_floating_point() else shown
    return values.permute(1, 2, 0).contiguous().numpy()


def _boxes(data: DataSet, row: int) -> np.ndarray:
    """Return the boxes of an image, float ``[n 4]``: left, top, right, bottom in pixels."""
    if data.objects is None:
        return np.zeros((0, 4))
    images = data.objects["image"].to_numpy()
    first, last = np.searchsorted(images, [row, row + 1])
    found = data.objects.slice(first, last - first)
    return np.stack([found[side].to_numpy() for side in ("left", "top", "right", "bottom")], axis=1)


def _caption(data: DataSet, row: int) -> str:
    label = int(data.labels[row])
    name = data.classes[label] if label != NO_LABEL else data.paths[row].as_py().rpartition("/")[2]
    return name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
