"""Labelled boxes: what annotation files say, checked against the images, as the table of a data set."""

import math
import os
from array import array
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headstart.data.index import NO_LABEL, OBJECTS, BadImage, DataSet
from headstart.data.options import Options
from headstart.data.scan import Scan, assemble, check_bad, first, percent, printable, within
from headstart.errors import UserError

ROUNDING = 1.0  # pixels by which a box may stick out of its image: annotation tools round, and count from 0 or from 1


class Box(NamedTuple):
    """A box as an annotation file has it.

    Attributes:
        label: the class number.
        left: pixels from the upper left corner of the upright image.
        top: as left.
        right: as left.
        bottom: as left.
        where: the file and the line that say so, as in ``labels/1.txt:3``.
    """

    label: int
    left: float
    top: float
    right: float
    bottom: float
    where: str


class Reading(NamedTuple):
    """What the annotations of one image say: boxes, and lines that are no box."""

    boxes: Sequence[Box]
    bad: Sequence[BadImage] = ()


def fit(box: Box, height: int, width: int) -> Box | str:
    """Return the box inside of its image, or why it is none.

    What sticks out by no more than ``ROUNDING`` is cut off.

    >>> fit(Box(0, -0.4, 2, 10, 12, "1.txt:1"), 20, 10).left
    0.0
    >>> fit(Box(0, 4, 2, 4, 12, "1.txt:1"), 20, 10)
    'an empty box'
    """
    _, left, top, right, bottom, _ = box
    if not all(map(math.isfinite, box[1:5])):
        return "a coordinate that is not finite"
    if right < left or bottom < top:
        return "a box of negative size"
    if right == left or bottom == top:
        return "an empty box"
    if left >= width or top >= height or right <= 0 or bottom <= 0:
        return f"a box outside of the image, which is {width} wide and {height} high"
    outside = max(-left, -top, right - width, bottom - height)
    if outside > ROUNDING + 1e-6:
        return f"a box that sticks out of the image by {outside:.4g} px; it is {width} wide and {height} high"
    return box._replace(
        left=max(left, 0.0), top=max(top, 0.0), right=min(right, float(width)), bottom=min(bottom, float(height))
    )


def with_objects(
    name: str,
    root: Path,
    found: Scan,
    readings: Iterable[Reading | BadImage],
    *,
    splits: np.ndarray,
    classes: Sequence[str],
    layout: str,
    bad: Sequence[BadImage] = (),
    ignored: int = 0,
    options: Options,
) -> DataSet:
    """Return the data set of images with boxes.

    Args:
        name: of the data set.
        root: the folder that the paths are relative to.
        found: the images.
        readings: for each row of the scan its annotations; a BadImage leaves the image out.
        splits: positions in ``SPLITS``, -1 for none, one for each row of the scan.
        classes: the classes of the boxes.
        layout: how the annotations were read, in one line.
        bad: annotations that belong to no image.
        ignored: how many other files and links are in the folder.
        options: what the user wants of the data.

    Raises:
        UserError: too many images or annotations are broken.
    """
    heights, widths = (found.columns[side].to_numpy() for side in ("height", "width"))
    images, labels, kept, corners = array("q"), array("l"), array("q"), array("d")
    bad_images, bad_boxes = list(found.bad), list(bad)
    for row, reading in enumerate(readings):
        if isinstance(reading, BadImage):
            bad_images.append(reading)
            continue
        bad_boxes.extend(reading.bad)
        for box in reading.boxes:
            fitted = fit(box, int(heights[row]), int(widths[row]))
            if isinstance(fitted, str):
                bad_boxes.append(BadImage(box.where, fitted))
            else:
                images.append(len(kept))
                labels.append(fitted.label)
                corners.extend(fitted[1:5])
        kept.append(row)
    check_bad(bad_images, len(kept), root, options.max_bad)
    _check_boxes(bad_boxes, len(images), root, options.max_bad)
    rows = np.array(kept, np.int64)
    columns = [np.array(images, np.int64), np.array(labels, np.int32), *np.array(corners, np.float32).reshape(-1, 4).T]
    return assemble(
        name,
        root,
        found.columns.take(rows),
        labels=np.full(len(rows), NO_LABEL),
        splits=splits[rows],
        classes=classes,
        layout=layout,
        objects=pa.table(columns, schema=OBJECTS),
        bad=[*bad_images, *bad_boxes],
        ignored=ignored,
        options=options,
    )


def inside(root: Path, path: str, where: str) -> str:
    """Return a path that is written in a file of the data, relative to the root and with forward slashes.

    Args:
        root: the data folder.
        path: as it is written; relative to the root, or absolute.
        where: the file and the line that it is written in.

    Raises:
        UserError: it leads out of the data folder.
    """
    tidy = within(root, path)
    if tidy in (None, ".") or not is_below(root, os.path.dirname(tidy)):  # noqa: PTH120
        raise UserError(
            f"data: {where}: the path {printable(path)} leads out of the data folder (allowed: files inside of {root})"
        )
    return str(tidy)


@lru_cache(maxsize=1024)  # a million paths have few folders
def is_below(root: Path, folder: str) -> bool:
    """Return whether a path, relative to the data folder, stays in it where links are followed."""
    return Path(os.path.realpath(root / folder)).is_relative_to(os.path.realpath(root))


def _check_boxes(bad: Sequence[BadImage], good: int, root: Path, max_bad: float) -> None:
    """Raise a UserError when more than that share of the annotations is broken."""
    total = good + len(bad)
    if len(bad) > max_bad * total:
        listed = [f"{line.path} ({line.reason})" for line in bad]
        raise UserError(
            f"data: {len(bad)} of {total} annotations in {root} are broken"
            f" (allowed: {percent(max_bad)}): {first(listed)}"
        )
