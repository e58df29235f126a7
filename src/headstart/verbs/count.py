"""The verb ``count``: images, objects and pixels of each class and split, and how large the boxes are."""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from headstart import runs
from headstart.config import Count
from headstart.data.images import THREADS, DecodeError
from headstart.data.index import NO_LABEL, SPLITS, BadImage, DataSet
from headstart.data.masks import read_mask
from headstart.data.scan import first, printable
from headstart.errors import UserError
from headstart.progress import Track
from headstart.settings import signature
from headstart.verbs import counting_figures, parameters, start
from headstart.verbs.prepared import check_apart
from headstart.verbs.result import table

LIMITS = {"small": 32, "medium": 96}  # sides in pixels of the squares that such boxes are smaller than, as in COCO
SIZES = (*LIMITS, "large")
JSON, FIGURE = "count.json", "count.png"
_COLUMNS = (*SPLITS, "no split")
_PERCENTILES = (5, 25, 50, 75, 95)

Counts = Mapping[str, Mapping[str, int]]  # by class, then by split or size


@dataclass(frozen=True)
class Counted:
    """What there is in a data set, by class and then by split.

    Attributes:
        data: its name.
        layout: how labels and splits were read.
        fingerprint: of the data.
        totals: images by split.
        images: those that have the class: as their label, as an object, or as a pixel of the mask.
        without: images by split that have no class.
        objects: boxes; None where the data have none.
        box_sizes: boxes by class and size: of less than 32² pixels, of less than 96², larger ones; None without boxes.
        box_sides: percentiles of the square root of the boxes' areas, in pixels; None without boxes.
        pixels: of the masks; None where the data have none.
        bad: files and lines that were left out, and why.
    """

    data: str
    layout: str
    fingerprint: str
    totals: Mapping[str, int]
    images: Counts
    without: Mapping[str, int]
    objects: Counts | None
    box_sizes: Counts | None
    box_sides: Mapping[str, float] | None
    pixels: Counts | None
    bad: tuple[BadImage, ...]

    def __str__(self) -> str:
        """Return the counts as tables of text."""
        return describe(self)


def count(
    data: str | Path, *, out: str | Path | None = None, overwrite: bool = False, quiet: bool = False, **given: Any
) -> Counted:
    """Count images, objects and pixels of each class and split.

    Args:
        data: DATA, as every verb takes it.
        out: the folder for count.json and count.png.
        overwrite: replace those that are there.
        quiet: show no progress.
        **given: the settings of `headstart.config.Count`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    settings = Count.create(**{**given, "data": data})
    folder = Path(out) if out is not None else None
    if folder is not None:
        _check_out(folder, overwrite=overwrite)
    opened = start.opened(settings)
    if folder is not None:
        start.check_outside(folder, settings.data)
        check_apart(folder, opened)
    counted = tally(opened, quiet=quiet)
    if folder is not None:
        try:
            counting_figures.draw(folder / FIGURE, counted, box_sides(opened), LIMITS)
            runs.write_text(folder / JSON, json.dumps(asdict(counted), indent=1))
        except OSError as error:
            raise UserError(f"out: {folder} cannot be written to ({error.strerror})") from None
    return counted


count.__signature__ = signature(Count, before=parameters.COUNT)  # type: ignore[attr-defined]


def tally(data: DataSet, *, quiet: bool = True) -> Counted:
    """Return what there is in a data set that is open."""
    splits = np.where(data.splits.numpy() < 0, len(SPLITS), data.splits.numpy())
    totals = np.bincount(splits, minlength=len(_COLUMNS))
    labels, images = _classes_of_images(data)
    objects = sizes = pixels = None
    if data.objects is not None:
        labels, images = (data.objects[name].to_numpy().astype(np.int64) for name in ("label", "image"))
        objects = _counts(data, labels, splits[images], _COLUMNS, totals > 0)
        sizes = _counts(data, labels, np.digitize(box_sides(data), list(LIMITS.values())), SIZES)
        labels, images = np.unique(np.stack([labels, images]), axis=1)
    elif data.mask_values:
        amounts = _pixels(data, quiet=quiet)
        images, labels = amounts.nonzero()
        pixels = _counts(data, labels, splits[images], _COLUMNS, totals > 0, amounts[images, labels])
    lacking = np.bincount(splits[np.setdiff1d(np.arange(data.count), images)], minlength=len(_COLUMNS))
    return Counted(
        data=data.name,
        layout=data.layout,
        fingerprint=data.fingerprint,
        totals=_named(totals, _COLUMNS, totals > 0),
        images=_counts(data, labels, splits[images], _COLUMNS, totals > 0),
        without=_named(lacking, _COLUMNS, totals > 0),
        objects=objects,
        box_sizes=sizes,
        box_sides=_percentiles(box_sides(data)) if data.objects is not None else None,
        pixels=pixels,
        bad=data.bad,
    )


def box_sides(data: DataSet) -> np.ndarray:
    """Return the square root of the area of each box, float64 ``[n]``, in pixels; none where there are no boxes."""
    if data.objects is None:
        return np.zeros(0)
    left, top, right, bottom = (data.objects[name].to_numpy() for name in ("left", "top", "right", "bottom"))
    return np.asarray(np.sqrt((right - left).astype(np.float64) * (bottom - top)))


def describe(counted: Counted) -> str:
    """Return the counts as tables of text."""
    splits = list(counted.totals)
    total = sum(counted.totals.values())
    blocks = [f"{printable(counted.data)}: {total:,} images ({printable(counted.layout)})"]
    more = [("(none)", counted.without)] if any(counted.without.values()) else []
    blocks.append(_text("images", counted.images, splits, [*more, ("(all)", counted.totals)]))
    if counted.objects is not None and counted.box_sizes is not None:
        blocks.append(_text("objects", counted.objects, splits, [("(all)", _sums(counted.objects, splits))]))
        blocks.append(
            _text("boxes", counted.box_sizes, SIZES, [("(all)", _sums(counted.box_sizes, SIZES))])
            + f"\nsmall: less than {LIMITS['small']}² pixels, medium: less than {LIMITS['medium']}²"
        )
    if counted.box_sides:
        sides = ", ".join(f"{side:.0f} px ({percent} %)" for percent, side in counted.box_sides.items())
        blocks.append(f"square root of the area (percentile): {sides}")
    if counted.pixels is not None:
        sums = _sums(counted.pixels, splits)
        blocks.append(_text("pixels in %", counted.pixels, splits, [], lambda n, split: _percent(n, sums, split)))
    if counted.bad:
        listed = first([f"{bad.path} ({bad.reason})" for bad in counted.bad])
        blocks.append(f"left out: {len(counted.bad):,} files or lines: {listed}")
    return "\n\n".join(blocks)


def _check_out(folder: Path, *, overwrite: bool) -> None:
    try:
        if folder.exists() and not folder.is_dir():
            raise UserError(f"out: {folder} is a file, not a folder")
        found = [name for name in (JSON, FIGURE) if (folder / name).exists()]
    except OSError as error:
        raise UserError(f"out: {folder} cannot be a folder ({error.strerror})") from None
    if found and not overwrite:
        raise UserError(f"out: {folder} has a {found[0]} (allowed: another folder, or --overwrite)")


def _classes_of_images(data: DataSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of images, and the rows of those that have one."""
    rows = (data.labels != NO_LABEL).nonzero().squeeze(1)
    return data.labels[rows].numpy(), rows.numpy()


def _pixels(data: DataSet, *, quiet: bool) -> np.ndarray:
    """Return how many pixels of each class are in the mask of each image, int64 ``[n c]``."""
    assert data.root is not None
    root, classes = data.root, len(data.classes)

    def look(mask: str | None) -> np.ndarray | int:
        if mask is None:
            return 0
        try:
            ids = read_mask(root / mask, data.mask_values).numpy()
        except DecodeError as error:
            raise UserError(f"data: the mask {printable(mask)} has changed: {error}") from None
        return np.bincount(ids.ravel() + 1, minlength=classes + 1)[1:]

    amounts = np.zeros((data.count, classes), np.int64)
    with ThreadPoolExecutor(THREADS) as pool, Track("masks", data.count, unit="masks", quiet=quiet) as track:
        for row, found in enumerate(pool.map(look, data.index["mask"].to_pylist())):
            amounts[row] = found
            track.update()
    return amounts


def _counts(
    data: DataSet,
    labels: np.ndarray,
    columns: np.ndarray,
    names: Sequence[str],
    shown: np.ndarray | None = None,
    amounts: np.ndarray | int = 1,
) -> Counts:
    """Return the amounts that fall on each class and column."""
    counts = np.zeros((len(data.classes), len(names)), np.int64)
    np.add.at(counts, (labels, columns), amounts)
    return {name: _named(row, names, shown) for name, row in zip(data.classes, counts, strict=True)}


def _named(counts: np.ndarray, names: Sequence[str], shown: np.ndarray | None) -> dict[str, int]:
    """Return counts by the names of their columns, of those that are to be shown."""
    chosen = range(len(names)) if shown is None else np.flatnonzero(shown).tolist()
    return {names[column]: int(counts[column]) for column in chosen}


def _percentiles(sides: np.ndarray) -> dict[str, float]:
    if not len(sides):
        return {}
    return {str(percent): round(float(np.percentile(sides, percent)), 2) for percent in _PERCENTILES}


def _sums(counts: Counts, columns: Sequence[str]) -> dict[str, int]:
    return {column: sum(row[column] for row in counts.values()) for column in columns}


def _percent(number: int, sums: Mapping[str, int], split: str | None) -> str:
    """Return a number in percent of the sum of a split, of all of them without one."""
    whole = sum(sums.values()) if split is None else sums[split]
    return f"{100 * number / whole:.1f}" if whole else "–"


def _text(
    title: str,
    counts: Counts,
    columns: Sequence[str],
    more: Sequence[tuple[str, Mapping[str, int]]],
    shown: Callable[[int, str | None], str] = lambda number, _: f"{number:,}",
) -> str:
    """Return a table with a line for each class, and a last column for all of it where there are several columns."""
    lines = []
    for name, row in [*counts.items(), *more]:
        cells = [shown(row[column], column) for column in columns]
        whole = [shown(sum(row.values()), None)] if len(columns) > 1 else []
        lines.append([printable(name), *cells, *whole])
    return table([title, *columns, *(["all"] if len(columns) > 1 else [])], lines)
