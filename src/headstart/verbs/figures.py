"""The pictures that a run leaves behind."""

import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from headstart.runs import replace
from headstart.verbs.health import SMALLEST_STD, smallest_rank


class _Panel(NamedTuple):
    """One panel of the health of a pretraining.

    Attributes:
        title: of the axis, with the unit.
        names: what each metric is called in the legend.
        limit: the metric that says how large the others can be.
        threshold: gives the value below which embeddings have collapsed, from the largest rank that is possible.
        band: a metric and its standard deviation, drawn around it.
        logarithmic: whether the axis is.
    """

    title: str
    names: Mapping[str, str]
    limit: str | None = None
    threshold: Callable[[float], float] | None = None
    band: tuple[str, str] | None = None
    logarithmic: bool = False


_HEALTH = (
    _Panel(
        "standard deviation of embeddings\n(share of that on a sphere)",
        {"health_std": "embeddings"},
        threshold=lambda limit: SMALLEST_STD,
    ),
    _Panel(
        "effective rank\n(dimensions)",
        {"health_rank": "embeddings", "health_features_rank": "features"},
        limit="health_rank_limit",
        threshold=smallest_rank,
        logarithmic=True,
    ),
    _Panel(
        "variance of embeddings\n(share)",
        {"health_top_singular": "largest direction", "health_top5_singular": "five largest directions"},
    ),
    _Panel(
        "similarity of embeddings\n(cosine)",
        {"health_positives": "views of one image", "health_negatives": "different images"},
        band=("health_negatives", "health_negatives_std"),
    ),
    _Panel(
        "alignment (squared distance)\nand uniformity (log)",
        {"health_alignment": "alignment", "health_uniformity": "uniformity"},
    ),
    _Panel("distance from the teacher\n(1 - cosine)", {"health_target_distance": "embeddings"}),
    _Panel("length of the gradient", {"gradient_norm": "all weights"}),
    _Panel("loss", {"loss": "loss"}),
)


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
    save(figure, path)


def health_panel(path: Path, metrics: Sequence[Mapping[str, Any]], summary: str = "") -> None:
    """Draw the health of a pretraining over the epochs, one small panel for each kind of figure that there is.

    Dotted lines are limits, dashed red ones thresholds below which embeddings have collapsed; a vertical red line is
    the moment when they had.

    Args:
        path: the PNG.
        metrics: the lines of metrics.jsonl.
        summary: stands above the panels.
    """
    panels = [panel for panel in _HEALTH if any(name in line for line in metrics for name in panel.names)]
    rows = (len(panels) + 1) // 2
    figure = Figure(figsize=(10, 2.3 * rows + 0.4), layout="constrained")
    rooms = figure.subplots(rows, 2, sharex=True, squeeze=False).ravel()
    for room, panel in zip(rooms, panels, strict=False):
        _draw_panel(room, panel, metrics)
    for room in rooms[len(panels) :]:
        room.remove()
    for room in rooms[: len(panels)][-2:]:
        room.set_xlabel("epoch")
        room.tick_params(labelbottom=True)
    figure.suptitle(textwrap.fill(summary, 110), fontsize=10)
    save(figure, path)


def _draw_panel(room: Axes, panel: _Panel, metrics: Sequence[Mapping[str, Any]]) -> None:
    for name, label in panel.names.items():
        epochs, values = _series(metrics, name)
        if len(epochs):
            room.plot(epochs, values, label=label, marker="." if len(epochs) < 40 else "")
    if panel.band is not None:
        epochs, values = _series(metrics, *panel.band)
        room.fill_between(epochs, values[0] - values[1], values[0] + values[1], color="C1", alpha=0.2, linewidth=0)
    if panel.limit is not None:
        room.plot(*_series(metrics, panel.limit), color="grey", linestyle=":", label="limit of embeddings")
    limits = [line["health_rank_limit"] for line in metrics if "health_rank_limit" in line]
    if panel.threshold is not None and limits:
        room.axhline(panel.threshold(limits[-1]), color="tab:red", linestyle="--", linewidth=1, label="collapsed below")
    for line in metrics:
        if line.get("collapsed"):
            room.axvline(line["epoch"], color="tab:red", linewidth=1)
    if panel.logarithmic:
        room.set_yscale("log")
        room.yaxis.set_major_formatter("{x:g}")
        room.yaxis.set_minor_formatter(NullFormatter())
    room.set_ylabel(panel.title, fontsize=8)
    room.grid(alpha=0.3)
    if len(room.get_legend_handles_labels()[1]) > 1:
        room.legend(frameon=False, fontsize=8)


def _series(metrics: Sequence[Mapping[str, Any]], *names: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the epochs of the lines that hold all the metrics, and these, one row for each if they are several."""
    lines = [line for line in metrics if all(name in line for name in names)]
    values = np.array([[line[name] for line in lines] for name in names], dtype=float)
    return np.array([line["epoch"] for line in lines], dtype=float), values.squeeze(0) if len(names) == 1 else values


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
    save(figure, path)


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
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    content = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # of scripts that no font here has
        figure.savefig(content, format="png", dpi=120)
    replace(path, lambda temporary: temporary.write_bytes(content.getvalue()))
