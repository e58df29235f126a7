"""Boxes drawn on pictures: arrays in, arrays out."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

# bright and far apart on photographs; the classes after the last colour begin again
COLOURS = (
    *((255, 221, 0), (0, 200, 255), (255, 75, 75), (80, 255, 80), (255, 130, 230), (255, 150, 30)),
    *((150, 130, 255), (0, 255, 200), (200, 255, 60), (255, 190, 170), (90, 150, 255), (235, 235, 235)),
)
TEXT = 12  # pixels of the font
LONGEST_NAME = 14  # letters
SMALL = 24  # pixels of a box's side, below which its border is thin
GAP = 8  # pixels between the pictures of a sheet

Area = tuple[float, float, float, float]


def draw_boxes(
    picture: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int],
    classes: Sequence[str],
    scores: Sequence[float] | None = None,
    *,
    scale: float = 1.0,
) -> np.ndarray:
    """Return a picture with boxes, each in the colour of its class with its name and confidence.

    A name stands above, below or beside its box, where it is inside of the picture and covers no other name; where
    there is no such place it is left out, and the colour alone tells the class.

    Args:
        picture: uint8 ``[h w 3]``.
        boxes: left, top, right and bottom in pixels of the picture, float ``[n 4]``.
        labels: the class number of each box.
        classes: the names of the classes.
        scores: the confidence in each box in 0..1, None for boxes that are known.
        scale: by how much the picture is enlarged first, so that small boxes can be told apart.

    Returns:
        uint8 ``[h w 3]``.
    """
    height, width = picture.shape[:2]
    size = max(1, round(width * scale)), max(1, round(height * scale))
    image = Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(image)
    areas: list[Area] = [(left, top, right, bottom) for left, top, right, bottom in (boxes * scale).tolist()]
    confidences = np.ones(len(areas)) if scores is None else np.asarray(scores, float)
    order = np.argsort(-confidences, kind="stable").tolist()
    for place in reversed(order):  # the most confident on top
        thin = min(_sides(areas[place])) < SMALL
        draw.rectangle(_upright(areas[place]), outline=colour(labels[place]), width=1 if thin else 2)
    taken: list[Area] = []
    for place in order:
        text = shortened(classes[labels[place]]) + ("" if scores is None else f" {confidences[place]:.2f}")
        free = _free(areas[place], draw.textbbox((0, 0), text, font=_font()), size, taken)
        if free is not None:
            taken.append(free)
            draw.rectangle(free, fill=colour(labels[place]))
            draw.text((free[0] + 1, free[1] - 1), text, fill=(0, 0, 0), font=_font())
    return np.asarray(image)


def sheet(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], classes: Sequence[str]) -> np.ndarray:
    """Return pictures in rows and columns, each column under its title, above them the classes in their colours.

    Args:
        rows: pictures, uint8 ``[h w 3]``, as many in each row as there are titles.
        titles: of the columns.
        classes: the names of the classes.

    Returns:
        uint8 ``[h w 3]``.
    """
    widths = [max(row[column].shape[1] for row in rows) for column in range(len(titles))]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    line = TEXT + 2 * GAP
    lefts = np.cumsum([GAP, *(width + GAP for width in widths)])
    tops = np.cumsum([2 * line, *(height + GAP for height in heights)])
    image = Image.new("RGB", (int(lefts[-1]), int(tops[-1])), (30, 30, 30))
    draw = ImageDraw.Draw(image)
    place = float(GAP)
    for label, name in enumerate(classes):
        draw.text((place, GAP), f"■ {name}", fill=colour(label), font=_font())
        place += draw.textlength(f"■ {name}", font=_font()) + 2 * GAP
    for title, left in zip(titles, lefts.tolist(), strict=False):
        draw.text((left, line + GAP), title, fill=(255, 255, 255), font=_font())
    for row, top in zip(rows, tops.tolist(), strict=False):
        for picture, left in zip(row, lefts.tolist(), strict=False):
            image.paste(Image.fromarray(picture), (left, top))
    return np.asarray(image)


def colour(label: int) -> tuple[int, int, int]:
    """Return the colour of a class."""
    return COLOURS[label % len(COLOURS)]


def shortened(name: str) -> str:
    """Return a name of which at most 14 letters are left.

    >>> shortened("car"), shortened("storage-tank (large)")
    ('car', 'storage-tank …')
    """
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


@cache
def _font() -> ImageFont.FreeTypeFont:
    """Return the font of the other figures, which has more than the letters of English."""
    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), TEXT)


def _sides(area: Area) -> tuple[float, float]:
    return area[2] - area[0], area[3] - area[1]


def _upright(area: Area) -> Area:
    """Return an area that Pillow draws: its right and lower edge not before the others."""
    left, top, right, bottom = area
    return left, top, max(left, right - 1), max(top, bottom - 1)


def _free(area: Area, text: Area, size: tuple[int, int], taken: Sequence[Area]) -> Area | None:
    """Return the place of a text beside an area that covers none that is taken, None where there is none."""
    wide, high = text[2] + 2, TEXT + 2
    left, top, right, bottom = area
    left = max(0.0, min(left, size[0] - wide))
    for across, down in ((left, top - high), (left, bottom), (right, top), (area[0] - wide, top), (left, top)):
        place = (across, down, across + wide, down + high)
        inside = across >= 0 and down >= 0 and place[2] <= size[0] and place[3] <= size[1]
        if inside and not any(_meet(place, other) for other in taken):
            return place
    return None


def _meet(one: Area, other: Area) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
