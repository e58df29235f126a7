"""YOLO data sets: a ``data.yaml`` of Ultralytics, folders of images, and a text file of boxes beside each image."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from headstart.data.folders import Listing
from headstart.data.index import SPLITS, TEST, TRAIN, VAL, BadImage, DataSet
from headstart.data.objects import Box, Reading, inside, is_below, with_objects
from headstart.data.options import Options
from headstart.data.scan import printable, scan, within
from headstart.errors import UserError

_SLACK = 0.01  # by which a share may lie outside of 0..1; boxes are checked in pixels, too


def open_yolo(path: Path, options: Options) -> DataSet:
    """Return the data set of a ``data.yaml``, with a box for each line of the label files.

    ``train``, ``val`` and ``test`` name a folder, a .txt list of images, or several of them. The labels of
    ``images/train/1.jpg`` are in ``labels/train/1.txt``; an image without that file has no objects. A line is a class
    and a box (centre, width and height, as shares of the image), or a class and the points of a polygon, of which the
    box around it is taken. A split that names the same images as an earlier one, as in small example sets, is left out.

    Args:
        path: the YAML file, or the folder that has a ``data.yaml``. Its ``path`` names the folder of the images; one
            that is not there is ignored.
        options: what is wanted of the data.

    Raises:
        UserError: the file is no such description, a path leads out of the data folder, or too much is broken.
    """
    file = path / "data.yaml" if path.is_dir() else path
    known = _read(file)
    root = _root(file, known.get("path"), anywhere=not path.is_dir())
    classes = _classes(file, known.get("names"), known.get("nc"))
    listed, ignored = _images(root, file, known)
    images = list(listed)
    found = scan(root, images)
    _check_labels(root, images)
    rows = zip(*(found.columns[name].to_pylist() for name in ("path", "height", "width")), strict=True)
    splits = np.array(list(listed.values()), np.int64)[found.listed]
    present = ", ".join(SPLITS[code] for code in sorted(set(splits.tolist())))
    return with_objects(
        root.resolve().name,
        root,
        found,
        (_labels(root, *row, classes=len(classes)) for row in rows),
        splits=splits,
        classes=classes,
        layout=f"YOLO boxes of {file.name}: {present}",
        ignored=ignored,
        options=options,
    )


def label_file(image: str) -> str:
    """Return where the boxes of an image are written.

    >>> label_file("images/train/1.jpg"), label_file("train/1.jpg")
    ('labels/train/1.txt', 'train/1.txt')
    """
    *folders, name = PurePosixPath(image).parts
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    return PurePosixPath(*folders, name).with_suffix(".txt").as_posix()


def _read(file: Path) -> dict[str, Any]:
    try:
        known = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError of a date, say
        raise UserError(f"data: {file} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(known, dict) or not any(known.get(split) for split in ("train", "val", "test")):
        raise UserError(f"data: {file} describes no YOLO data (allowed: train, val or test, and names)")
    return known


def _root(file: Path, path: object, *, anywhere: bool) -> Path:
    """Return the folder of the images; outside of a data folder only if the user has named the file itself."""
    if path is None or not (file.parent / str(path)).is_dir():
        return file.parent
    root = file.parent / str(path)
    if not anywhere and not root.resolve().is_relative_to(file.parent.resolve()):
        raise UserError(
            f"data: {file}: path: {printable(str(path))} leads out of the data folder"
            f" (allowed: a folder inside of it; where it is meant, name {file.name} itself as the data)"
        )
    return root


def _classes(file: Path, names: object, count: object) -> tuple[str, ...]:
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise UserError(f"data: {file}: names: the numbers {sorted(map(str, names))} (allowed: 0, 1, 2, …)")
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise UserError(f"data: {file}: names: is needed (allowed: a list of class names, or number: name lines)")
    odd = [name for name in names if isinstance(name, bool) or not isinstance(name, str | int | float)]
    if odd:
        raise UserError(f"data: {file}: names: {odd[0]} (allowed: text and numbers; 'yes' and 'no' in quotes)")
    if isinstance(count, int) and count != len(names):
        raise UserError(f"data: {file}: nc: {count}, but names: has {len(names)} (allowed: as many as there are names)")
    classes = tuple(str(name) for name in names)
    twice = [name for position, name in enumerate(classes) if name in classes[:position]]
    if twice:
        raise UserError(f"data: {file}: names: '{printable(twice[0])}' is given twice (allowed: once)")
    return classes


def _images(root: Path, file: Path, known: dict[str, Any]) -> tuple[dict[str, int], int]:
    """Return the split of each image, and how many other files are in the folders."""
    images: dict[str, int] = {}
    entries, ignored = list[object](), 0
    for name, split in (("train", TRAIN), ("val", VAL), ("test", TEST)):
        entry = known.get(name)
        if not entry or entry in entries:
            continue
        entries.append(entry)
        for part in entry if isinstance(entry, list) else [entry]:
            if not isinstance(part, str):
                raise UserError(f"data: {file}: {name}: {part!r} (allowed: a folder, a .txt list, or a list of them)")
            listing = _Entry(root, part, f"{printable(str(file))}: {name}")
            for image in listing:
                if images.setdefault(image, split) != split:
                    raise UserError(
                        f"data: {file}: the image {printable(image)} is in {SPLITS[images[image]]} and in {name}"
                        " (allowed: one split)"
                    )
            ignored += listing.ignored
    return images, ignored


class _Entry:
    """The images that one entry of the file names, relative to the root; counts the other files of a folder."""

    def __init__(self, root: Path, entry: str, where: str) -> None:
        self.root, self.where, self.ignored = root, where, 0
        if entry.startswith("../") and (root / entry[3:]).exists():  # as Roboflow writes what lies beside the file
            entry = entry[3:]
        self.entry = root / ("" if within(root, entry) == "." else inside(root, entry, where))
        if not is_below(root, str(self.entry.relative_to(root))):
            raise UserError(
                f"data: {where}: {printable(entry)} is a link that leads out of the data folder"
                f" (allowed: folders inside of {root})"
            )

    def __iter__(self) -> Iterator[str]:
        if self.entry.is_file() and self.entry.suffix == ".txt":
            yield from self._list()
        elif self.entry.is_dir():
            listing = Listing(self.entry)
            for path in listing:
                yield (self.entry / path).relative_to(self.root).as_posix()
            self.ignored = listing.ignored
        else:
            raise UserError(f"data: {self.where}: there is no {self.entry} (allowed: a folder or a .txt list)")

    def _list(self) -> Iterator[str]:
        try:
            lines = self.entry.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"data: {self.where}: {self.entry} is not a text file") from None
        for number, line in enumerate(lines, 1):
            if image := line.strip():
                base = self.entry.parent if image.startswith("./") else self.root
                yield inside(self.root, str(base.absolute() / image), f"{self.entry}:{number}")


def _check_labels(root: Path, images: list[str]) -> None:
    """Raise a UserError when no image has a label file: they lie elsewhere."""
    if images and not any((root / label_file(image)).is_file() for image in images):
        raise UserError(
            f"data: no image in {root} has labels: there is no {printable(label_file(images[0]))} for"
            f" {printable(images[0])} (allowed: labels/…/NAME.txt beside images/…/NAME.jpg)"
        )


def _labels(root: Path, image: str, height: int, width: int, *, classes: int) -> Reading | BadImage:
    name = label_file(image)
    try:
        lines = (root / name).read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        return Reading(())
    except (OSError, UnicodeDecodeError):
        return BadImage(printable(name), "not a text file")
    boxes, bad = list[Box](), list[BadImage]()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{printable(name)}:{number}"
        try:
            boxes.append(_box(line.split(), height, width, classes, where))
        except ValueError as error:
            bad.append(BadImage(where, str(error)))
    return Reading(boxes, bad)


def _box(words: list[str], height: int, width: int, classes: int, where: str) -> Box:
    """Return the box of a line; a ValueError says why it has none."""
    if len(words) != 5 and (len(words) < 7 or len(words) % 2 == 0):
        raise ValueError(
            f"{len(words)} columns (allowed: 5, a class and a box, or a class and at least 3 points of a polygon)"
        )
    numbers = [_number(word) for word in words]
    label = numbers[0]
    if label not in range(classes):
        raise ValueError(f"class {printable(words[0])} (allowed: 0 to {classes - 1})")
    for word, number in zip(words[1:], numbers[1:], strict=True):
        if not -_SLACK <= number <= 1 + _SLACK:
            raise ValueError(f"{printable(word)} (allowed: 0 to 1, shares of the image's width and height)")
    if len(words) == 5:
        x, y, across, down = numbers[1:]
        left, top, right, bottom = x - across / 2, y - down / 2, x + across / 2, y + down / 2
    else:
        left, top, right, bottom = min(numbers[1::2]), min(numbers[2::2]), max(numbers[1::2]), max(numbers[2::2])
    return Box(int(label), left * width, top * height, right * width, bottom * height, where)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"'{printable(word)}' is no number") from None
