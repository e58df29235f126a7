"""The picture of what there is in a data set."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from headstart.verbs.figures import save

if TYPE_CHECKING:
    from headstart.verbs.count import Counted, Counts

MOST_CLASSES = 30  # in a panel; the largest ones
_BINS = 40


def draw(path: Path, counted: "Counted", sides: np.ndarray, limits: Mapping[str, int]) -> None:
    """Draw the counts of each class, stacked by split, and how large the boxes are.

    Args:
        path: the PNG.
        counted: what is drawn.
        sides: the square root of the area of each box, ``[n]``, in pixels.
        limits: names of sizes, and the sides of the squares that boxes of this size are smaller than; rising.
    """
    kinds = {"images": counted.images, "objects": counted.objects, "pixels": counted.pixels}
    panels = {title: counts for title, counts in kinds.items() if counts}
    heights = [1.0 + 0.28 * min(len(counts), MOST_CLASSES) for counts in panels.values()]
    heights += [2.4] if len(sides) or not heights else []
    figure = Figure(figsize=(8, sum(heights) + 0.5), layout="constrained")
    figure.suptitle(f"{counted.data}: {sum(counted.totals.values()):,} images".replace("$", r"\$"))
    rooms = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    for room, (title, counts) in zip(rooms, panels.items(), strict=False):
        _bars(room, title, counts, list(counted.totals))
    if len(sides):
        _histogram(rooms[-1], sides, limits)
    elif not panels:
        _bars(rooms[-1], "images", {"(no classes)": counted.totals}, list(counted.totals))
    save(figure, path)


def _bars(room: Axes, title: str, counts: "Counts", splits: list[str]) -> None:
    largest = sorted(counts, key=lambda name: -sum(counts[name].values()))[:MOST_CLASSES]
    names = [name for name in counts if name in largest][::-1]
    left = np.zeros(len(names))
    for split in splits:
        width = np.array([counts[name][split] for name in names], float)
        room.barh(range(len(names)), width, left=left, label=split)
        left += width
    for place, name in enumerate(names):
        room.annotate(f" {_short_number(counts[name])}", (left[place], place), va="center", fontsize=8)
    room.set_yticks(range(len(names)), [_label(name) for name in names])
    room.margins(x=0.12, y=0.02)
    room.xaxis.set_major_formatter("{x:,.0f}")
    room.set_axisbelow(True)
    shown = f", the {len(names)} largest of {len(counts)} classes" if len(names) < len(counts) else ""
    room.set_xlabel(f"{title}{shown}")
    room.grid(axis="x", alpha=0.3)
    if len(splits) > 1:
        room.legend(frameon=False)


def _histogram(room: Axes, sides: np.ndarray, limits: Mapping[str, int]) -> None:
    low, high = max(float(sides.min()), 1e-3), float(sides.max())
    room.hist(sides, bins=np.geomspace(low * 0.98, high * 1.02, _BINS).tolist())
    room.set_xscale("log")
    room.xaxis.set_major_formatter("{x:g}")
    room.xaxis.set_minor_formatter(NullFormatter())
    smaller = 0
    for name, limit in limits.items():
        count = int((sides < limit).sum())
        label = f"{name}: {count - smaller:,} below {limit}²"
        room.axvline(limit, color="black", linestyle="--", linewidth=1, label=label)
        smaller = count
    room.plot([], [], " ", label=f"large: {len(sides) - smaller:,}")
    room.set_xlabel("square root of the box's area (px)")
    room.set_ylabel("boxes")
    room.legend(frameon=False, fontsize=8)


def _short_number(counts: Mapping[str, int]) -> str:
    """Return a sum in few digits.

    >>> _short_number({"train": 12_345, "val": 5}), _short_number({"train": 12_345_678})
    ('12,350', '12.3 M')
    """
    number = sum(counts.values())
    return f"{number / 1e6:.1f} M" if number >= 1_000_000 else f"{number:,}"


def _label(name: str) -> str:
    """Return a class name that fits beside a bar and that matplotlib does not read as a formula."""
    whole = name if name.isprintable() else ascii(name)[1:-1]
    return (whole if len(whole) < 24 else f"{whole[:22]}…").replace("$", r"\$")
