"""The verb ``crop``: squares around labelled objects and, beside them, squares in which there is none."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tifffile
from PIL import Image

from headstart.config import Crop
from headstart.data.classes import select_classes
from headstart.data.crops import background_boxes, crop_boxes, draw_sides
from headstart.data.images import THREADS, DecodeError, check_size, decode, raw
from headstart.data.index import DTYPES, SPLITS, UNLABELLED, BadImage, DataSet
from headstart.data.index import Pixels as PixelKind
from headstart.data.manifests import MANIFEST, csv_text
from headstart.data.scan import check_bad, first, printable
from headstart.errors import UserError
from headstart.progress import Track
from headstart.randomness import mix
from headstart.runs import write_text
from headstart.settings import signature
from headstart.verbs import parameters, start
from headstart.verbs.prepared import check_apart, file_names, prepared
from headstart.verbs.result import table

BACKGROUND = "background"  # the class of the crops without an object
_SIDES = ("left", "top", "right", "bottom")
# a table with columns named left, top, … would be opened as a table of boxes
_HEAD = (
    *("image", "label", "split", "group", "picture"),
    *(f"crop_{side}" for side in _SIDES),
    *(f"object_{side}" for side in _SIDES),
)
_BLOCK = 1 << 12  # pictures that are cut before the next ones are planned


@dataclass(frozen=True)
class CropResult:
    """Crops that were written.

    Attributes:
        out: their folder.
        counts: the crops of each class, ``background`` among them, in each split; "" stands for no split.
        bad: pictures and annotations that were left out.
        notes: what the user should know, a line each.
    """

    out: Path
    counts: Mapping[str, Mapping[str, int]]
    bad: tuple[BadImage, ...] = ()
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """Return the table of classes and splits, and the notes."""
        splits = [name for name in (*SPLITS, "") if any(name in found for found in self.counts.values())]
        names = [name or "crops" for name in splits]
        lines = [
            [printable(name), *(f"{found.get(split, 0):,}" for split in splits)] for name, found in self.counts.items()
        ]
        listed = [f"{file.path} ({file.reason})" for file in self.bad]
        bad = [f"{len(listed)} left out: {first(listed)}"] if listed else []
        return "\n".join([table(["", *names], lines), *bad, *self.notes, f"written to {self.out}"])


class _Crops(NamedTuple):
    """Crops to be cut, one row each.

    Attributes:
        pictures: rows of the data set, int64 ``[n]``.
        labels: class numbers, int64 ``[n]``; the background is behind the last class.
        squares: left, top, right and bottom in pixels, int64 ``[n 4]``.
        boxes: those of the objects, float ``[n 4]``; not a number for the background.
    """

    pictures: np.ndarray
    labels: np.ndarray
    squares: np.ndarray
    boxes: np.ndarray


def crop(
    data: str | Path,
    *,
    out: str | Path,
    config: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> CropResult:
    """Cut a square around every labelled object, and random squares that touch none, into class folders.

    ``manifest.csv`` links every crop to its picture, its box, its split and its group: the crops of one picture, or of
    one group of pictures, are a group. Background crops touch no object, even of classes that were not asked for.

    Args:
        data: DATA with boxes.
        out: the folder to write into; it opens as labelled data.
        config: a YAML file of settings; those given win.
        overwrite: replace the crops that are in the folder.
        quiet: show no progress.
        **given: the settings of `headstart.config.Crop`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    settings = start.settings(Crop, {**given, "data": str(data)}, _check, config=config, out=None, resume=False)
    folder = Path(out)
    facts = {"settings": settings.model_dump(mode="json")}
    with prepared(folder, "crop", settings.data, facts, overwrite=overwrite) as building:
        whole = start.opened(settings.updated(classes=None))
        check_apart(folder, whole)
        chosen = select_classes(whole, settings.classes) if settings.classes else whole
        _check_data(settings, chosen)
        around = _around_objects(settings, chosen)
        between, notes = _between_objects(settings, whole, around, label=len(chosen.classes))
        crops = _Crops(*(np.concatenate(columns) for columns in zip(around, between, strict=True)))
        names = [*chosen.classes, BACKGROUND]
        files = _files(whole, crops, file_names(names))
        for parent in {(building / file).parent for file in files}:
            parent.mkdir(parents=True, exist_ok=True)
        bad = _cut(settings, whole, crops, files, building, quiet)
        root = whole.root or Path()
        check_bad([*bad.values()], len(np.unique(crops.pictures)) - len(bad), root, settings.max_bad)
        lost = np.isin(crops.pictures, list(bad))
        write_text(building / MANIFEST, csv_text(_HEAD, _rows(whole, crops, files, names, ~lost)))
    counts = _counts(whole, crops, names, ~lost)
    return CropResult(folder, counts, (*whole.bad, *bad.values()), notes)


crop.__signature__ = signature(Crop, before=parameters.PREPARATION)  # type: ignore[attr-defined]


def _check(settings: Crop) -> Crop:
    return settings.updated(data=start.absolute(settings.data))


def _check_data(settings: Crop, data: DataSet) -> None:
    if data.objects is None:
        raise UserError(f"data: {data.name} has no boxes, which crop needs ({data.layout})")
    if data.objects.num_rows == 0:
        raise UserError(f"data: {data.name} has no object of the classes {', '.join(data.classes)}")
    if settings.background and BACKGROUND in data.classes:
        raise UserError(
            f"background: {data.name} has a class of this name"
            f" (allowed: 0, or another name for the class, as in --classes NEW={BACKGROUND})"
        )


def _boxes(data: DataSet) -> np.ndarray:
    assert data.objects is not None
    return np.stack([data.objects[side].to_numpy() for side in _SIDES], axis=1).astype(np.float64)


def _around_objects(settings: Crop, data: DataSet) -> _Crops:
    assert data.objects is not None
    pictures, boxes = data.objects["image"].to_numpy(), _boxes(data)
    squares = crop_boxes(boxes, data.sizes.numpy()[pictures], settings.context, settings.min_size)
    return _Crops(pictures, data.objects["label"].to_numpy().astype(np.int64), squares, boxes)


def _between_objects(settings: Crop, data: DataSet, around: _Crops, *, label: int) -> tuple[_Crops, tuple[str, ...]]:
    """Return the background crops, and a line for each split in which there was no room for all of them."""
    assert data.objects is not None
    pictures, squares, notes = [around.pictures[:0]], [around.squares[:0]], list[str]()
    sizes, splits = data.sizes.numpy(), data.splits.numpy()
    starts = np.searchsorted(data.objects["image"].to_numpy(), np.arange(data.count + 1))
    boxes, sides = _boxes(data), around.squares[:, 2] - around.squares[:, 0]
    shares = _shares(settings, splits[around.pictures])
    for split, count in shares.items():
        key = mix(settings.seed, split + 1)
        rows = (splits == split).nonzero()[0]
        objects = [boxes[starts[row] : starts[row + 1]] for row in rows]
        wanted = draw_sides(sides[splits[around.pictures] == split], count, key)
        found, places = background_boxes(wanted, sizes[rows], objects, key)
        pictures.append(rows[found])
        squares.append(places)
        if len(found) < count:
            where = f" in {SPLITS[split]}" if split >= 0 else ""
            notes.append(f"background: only {len(found):,} of {count:,} crops{where}: there is no room for more")
    owners, places = np.concatenate(pictures), np.concatenate(squares)
    background = _Crops(owners, np.full(len(owners), label), places, np.full(places.shape, np.nan))
    return background, tuple(notes)


def _shares(settings: Crop, splits: np.ndarray) -> dict[int, int]:
    """Return how many background crops each split gets: its share of the objects, with largest remainders."""
    found, objects = np.unique(splits[splits != UNLABELLED], return_counts=True)
    total = len(splits) if settings.background == "equal" else settings.background
    quotas = objects * total / max(objects.sum(), 1)
    counts = np.floor(quotas).astype(np.int64)
    counts[np.argsort(counts - quotas, kind="stable")[: total - counts.sum()]] += 1
    return {int(split): int(count) for split, count in zip(found, counts, strict=True) if count}


def _files(data: DataSet, crops: _Crops, folders: Sequence[str]) -> list[str]:
    """Return the file of each crop, relative to the folder; each class has its own numbers."""
    eight_bit = set(data.index["channels"].unique().to_pylist()) <= {1, 3} and data.pixels.range is None
    ending = "jpg" if eight_bit else "tif"
    numbers = np.zeros(len(folders), np.int64)
    files, splits = [], _split_names(data)
    for picture, label in zip(crops.pictures.tolist(), crops.labels.tolist(), strict=True):
        numbers[label] += 1
        name = folders[label]
        files.append(f"{splits[picture]}/{name}/{name}_{numbers[label]:06d}.{ending}".lstrip("/"))
    return files


def _split_names(data: DataSet) -> list[str]:
    """Return the name of each picture's split, "" without one."""
    names = (*SPLITS, "")  # -1 finds the last
    return [names[split] for split in data.splits.tolist()]


def _cut(
    settings: Crop, data: DataSet, crops: _Crops, files: Sequence[str], folder: Path, quiet: bool
) -> dict[int, BadImage]:
    """Cut the crops out of their pictures, of which each is decoded once; return those that are broken, by row."""
    order = np.argsort(crops.pictures, kind="stable")
    rows, starts = np.unique(crops.pictures[order], return_index=True)
    jobs = list(zip(rows.tolist(), np.split(order, starts[1:]), strict=True))
    bad: dict[int, BadImage] = {}

    def work(job: tuple[int, np.ndarray]) -> None:
        row, numbers = job
        try:
            pixels = _stored(data, row)
        except DecodeError as error:
            bad[row] = BadImage(printable(data.paths[row].as_py()), str(error))
            return
        for number in numbers.tolist():
            left, top, right, bottom = crops.squares[number].tolist()
            _save(folder / files[number], pixels[top:bottom, left:right], settings.quality)

    with ThreadPoolExecutor(THREADS) as pool, Track("cropping", len(jobs), unit="pictures", quiet=quiet) as track:
        for begin in range(0, len(jobs), _BLOCK):
            for _ in pool.map(work, jobs[begin : begin + _BLOCK]):
                track.update()
    return dict(sorted(bad.items()))


def _stored(data: DataSet, row: int) -> np.ndarray:
    """Return the pixels of a picture as they are in its file, upright, ``[h w c]``; a DecodeError says why not."""
    height, width = data.sizes[row].tolist()
    if DTYPES[data.index["dtype"][row].as_py()] == "uint8":
        pixels = decode(data.file(row), PixelKind(data.index["channels"][row].as_py())).permute(1, 2, 0).numpy()
    else:
        try:
            pixels = raw(data.file(row))
        except Exception as error:  # readers let nearly every kind of exception out on damaged files
            raise DecodeError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error
    check_size(pixels.shape[:2], height, width)
    return pixels


def _save(path: Path, pixels: np.ndarray, quality: int) -> None:
    pixels = np.ascontiguousarray(pixels)
    if path.suffix == ".jpg":
        # half of the colours, as JPEG files usually have them, is too few for crops of 32 pixels
        Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(path, quality=quality, subsampling=0)
        return
    kind = "rgb" if pixels.shape[2] == 3 else "minisblack"
    flat = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    tifffile.imwrite(path, flat, photometric=kind, planarconfig="contig" if flat.ndim == 3 else None, metadata=None)


def _rows(
    data: DataSet, crops: _Crops, files: Sequence[str], names: Sequence[str], kept: np.ndarray
) -> list[list[Any]]:
    """Return the lines of the manifest."""
    groups = data.index["group"].to_pylist() if "group" in data.index.column_names else [None] * data.count
    lines, splits, paths = [], _split_names(data), data.paths.to_pylist()
    for number in kept.nonzero()[0].tolist():
        picture = int(crops.pictures[number])
        path = paths[picture]
        box = ["" if np.isnan(side) else f"{side:.9g}" for side in crops.boxes[number]]
        where = [*crops.squares[number].tolist(), *box]
        label = names[crops.labels[number]]
        lines.append([files[number], label, splits[picture], groups[picture] or path, path, *where])
    return lines


def _counts(data: DataSet, crops: _Crops, names: Sequence[str], kept: np.ndarray) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {name: {} for name in names}
    splits = _split_names(data)
    for number in kept.nonzero()[0].tolist():
        row = found[names[crops.labels[number]]]
        split = splits[crops.pictures[number]]
        row[split] = row.get(split, 0) + 1
    return {name: row for name, row in found.items() if row or name != BACKGROUND}
