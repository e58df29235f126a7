"""The pictures that a run leaves behind."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from headstart.runs import replace


def curves(path: Path, metrics: Sequence[Mapping[str, Any]], panels: Mapping[str, Sequence[str]]) -> None:
    """Draw what happened over the epochs, one panel above the other.

    Args:
        path: the PNG.
        metrics: the lines of metrics.jsonl.
        panels: for each panel's axis title the names of the metrics in it.
    """
    figure = Figure(figsize=(7, 2.6 * len(panels)), layout="constrained")
    rooms = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for room, (title, names) in zip(rooms, panels.items(), strict=True):
        for name in names:
            points = [(line["epoch"], line[name]) for line in metrics if name in line]
            marker = "." if len(points) < 40 else ""
            if points:
                room.plot(*zip(*points, strict=True), label=name.replace("_", " "), marker=marker)
        room.set_ylabel(title)
        room.grid(alpha=0.3)
        if len(names) > 1:
            room.legend(frameon=False)
    rooms[-1].set_xlabel("epoch")
    _save(figure, path)


def confusion_matrix(path: Path, confusion: np.ndarray, classes: Sequence[str]) -> None:
    """Draw a confusion matrix, rows true and columns predicted; shades are shares of the row, figures are images."""
    count = len(classes)
    side = min(2.5 + 0.45 * count, 16)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    room = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)
    shown = room.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(shown, ax=room, label="share of the true class", shrink=0.8)
    if count <= 30:
        names = [name if len(name) < 24 else f"{name[:22]}…" for name in classes]
        room.set_xticks(range(count), names, rotation=90)
        room.set_yticks(range(count), names)
        for row, column in np.argwhere(confusion > 0):
            shade = "white" if shares[row, column] > 0.5 else "black"
            room.text(column, row, str(confusion[row, column]), ha="center", va="center", color=shade, fontsize=8)
    room.set_xlabel("predicted")
    room.set_ylabel("true")
    _save(figure, path)


def view_sheet(path: Path, rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str]) -> None:
    """Draw images beside their views, one image per row.

    Args:
        path: the PNG.
        rows: pictures ``[h w 3]`` in 0..1, one per column.
        titles: of the columns.
    """
    figure = Figure(figsize=(1.5 * len(titles), 1.5 * len(rows) + 0.3), layout="constrained")
    rooms = figure.subplots(len(rows), len(titles), squeeze=False)
    for line, pictures in zip(rooms, rows, strict=True):
        for room, picture in zip(line, pictures, strict=True):
            room.imshow(picture.clip(0, 1), interpolation="nearest")
            room.set_axis_off()
    for room, title in zip(rooms[0], titles, strict=True):
        room.set_title(title, fontsize=9)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    content = BytesIO()
    figure.savefig(content, format="png", dpi=120)
    replace(path, lambda temporary: temporary.write_bytes(content.getvalue()))
