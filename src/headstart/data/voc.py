"""Pascal VOC data sets: an XML file of boxes for each image."""

import os
from collections.abc import Iterable
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from xml.parsers import expat

import numpy as np

from headstart.data.folders import SPLIT_FOLDERS, Listing
from headstart.data.index import NO_SPLIT, SPLITS, TEST, TRAIN, UNLABELLED, VAL, BadImage, DataSet
from headstart.data.objects import Box, Reading, inside, with_objects
from headstart.data.options import Options
from headstart.data.scan import printable, scan
from headstart.errors import UserError

_LISTS = {"train": TRAIN, "val": VAL, "test": TEST, "trainval": TRAIN}  # of ImageSets/Main; an earlier one decides
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_HEAD = 4096  # bytes in which an annotation says that it is one
_LOOKED_AT = 10_000  # entries of a folder, among which there is an XML file if they lie beside their images
_ANNOTATIONS, _IMAGES = ("Annotations", "annotations"), ("JPEGImages", "images", "Images")


class Found(NamedTuple):
    """An object as its XML file has it: texts by field, and the line that it begins in."""

    texts: dict[str, str]
    line: int


class Annotation(NamedTuple):
    """What an XML file says: the size of the image, 0 where it does not say, and the objects."""

    width: int
    height: int
    objects: list[Found]


def is_voc(folder: Path) -> bool:
    """Return whether the folder has VOC annotations: in ``Annotations``, beside the images, or in folders of splits."""
    places = [_first(folder, _ANNOTATIONS), folder, *(folder / name for name in SPLIT_FOLDERS)]
    return any(_has_annotations(place) for place in places if place is not None and place.is_dir())


def open_voc(folder: Path, options: Options) -> DataSet:
    """Return the data set of a folder with VOC annotations.

    The annotations of ``JPEGImages/1.jpg`` are in ``Annotations/1.xml``, or else the XML file lies beside its image.
    The lists in ``ImageSets/Main`` are the splits, or else folders called train, val, test. Images without an XML file,
    and those that the lists leave out, are unlabelled: their objects are not known. Corners count pixels from 1.

    Args:
        folder: the folder.
        options: what is wanted of the data.

    Raises:
        UserError: a list leads out of the folder or names an image in two splits, or too much is broken.
    """
    images, annotations = _first(folder, _IMAGES) or folder, _first(folder, _ANNOTATIONS)
    prefix = images.relative_to(folder)
    listing = Listing(images)
    names = list(listing)
    found = scan(folder, ((prefix / name).as_posix() for name in names))
    files = [((annotations or images) / names[number]).with_suffix(".xml") for number in found.listed]
    read = [_read(file, file.relative_to(folder).as_posix()) for file in files]
    splits, bad = _splits(folder, names)
    known = [annotation for annotation in read if isinstance(annotation, Annotation)]
    classes = sorted({entry.texts["name"] for each in known for entry in each.objects if entry.texts.get("name")})
    numbers = {name: number for number, name in enumerate(classes)}
    without = np.array([annotation is None for annotation in read], bool)
    unlabelled = f", {without.sum()} images without one" if without.any() else ""
    sizes = zip(*(found.columns[side].to_pylist() for side in ("height", "width")), strict=True)
    return with_objects(
        folder.resolve().name,
        folder,
        found,
        (
            _reading(file.relative_to(folder).as_posix(), annotation, size, classes=numbers)
            for file, annotation, size in zip(files, read, sizes, strict=True)
        ),
        splits=np.where(without, UNLABELLED, splits[found.listed]),
        classes=classes,
        layout=f"VOC boxes of XML files{unlabelled}",
        bad=bad,
        ignored=listing.ignored - (0 if annotations else len(files) - int(without.sum())),
        options=options,
    )


def parse(content: bytes) -> Annotation:
    """Return what a VOC file says.

    Raises:
        ExpatError: it is no XML; the error has the line.
        ValueError: it has a document type, in which entities could grow without bound, or is no annotation.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    stack, text = list[str](), list[str]()
    size, objects = dict[str, str](), list[Found]()

    def start(name: str, _: dict[str, str]) -> None:
        stack.append(name)
        text.clear()
        if stack == ["annotation", "object"]:
            objects.append(Found({}, parser.CurrentLineNumber))

    def end(name: str) -> None:
        match stack:
            case ["annotation", "size", "width" | "height"]:
                size[name] = "".join(text).strip()
            case ["annotation", "object", "name"] | ["annotation", "object", "bndbox", _]:
                objects[-1].texts[name] = "".join(text).strip()
            case [root] if root != "annotation":
                raise ValueError(f"not a VOC annotation, but <{printable(root)}>")
        stack.pop()
        text.clear()

    def refuse(*_: object) -> None:
        raise ValueError("a document type, which is refused")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text.append, refuse
    parser.Parse(content, True)
    width, height = (int(written) if (written := size.get(side, "")).isdecimal() else 0 for side in ("width", "height"))
    return Annotation(width, height, objects)


def _read(file: Path, name: str) -> Annotation | BadImage | None:
    """Return what the file of an image says, or why it cannot be read; None if there is no such file."""
    try:
        return parse(file.read_bytes())
    except FileNotFoundError:
        return None
    except expat.ExpatError as error:
        return BadImage(f"{printable(name)}:{error.lineno}", f"not XML: {expat.ErrorString(error.code)}")
    except (OSError, ValueError) as error:
        return BadImage(printable(name), str(error))


def _reading(
    name: str, annotation: Annotation | BadImage | None, size: tuple[int, int], *, classes: dict[str, int]
) -> Reading | BadImage:
    if annotation is None:
        return Reading(())
    if isinstance(annotation, BadImage):
        return annotation
    height, width = size
    if (annotation.height or height, annotation.width or width) != size:
        return BadImage(
            printable(name),
            f"said to be {annotation.width} wide and {annotation.height} high, but the image is {width} wide and"
            f" {height} high",
        )
    boxes, bad = list[Box](), list[BadImage]()
    for texts, line in annotation.objects:
        where = f"{printable(name)}:{line}"
        missing = [field for field in ("name", *_CORNERS) if not texts.get(field)]
        if missing:
            bad.append(BadImage(where, f"an object without {missing[0]}"))
            continue
        try:
            left, top, right, bottom = (float(texts[corner]) for corner in _CORNERS)
        except ValueError as error:
            bad.append(BadImage(where, printable(str(error))))
            continue
        boxes.append(Box(classes[texts["name"]], left - 1, top - 1, right, bottom, where))
    return Reading(boxes, bad)


def _splits(folder: Path, names: list[str]) -> tuple[np.ndarray, list[BadImage]]:
    """Return the split of each image, and lines of the lists that name no image."""
    lists = {name: folder / "ImageSets" / "Main" / f"{name}.txt" for name in _LISTS}
    lists = {name: file for name, file in lists.items() if file.is_file()}
    if not lists:
        tops = (PurePosixPath(name).parts[0].lower() for name in names)
        return np.array([SPLIT_FOLDERS.get(top, NO_SPLIT) for top in tops], np.int64), []
    stems = {str(PurePosixPath(name).with_suffix("")): number for number, name in enumerate(names)}
    splits, bad = np.full(len(names), UNLABELLED), list[BadImage]()
    for name, file in lists.items():
        for line, stem in _lines(file):
            where = f"{file.relative_to(folder).as_posix()}:{line}"
            number = stems.get(inside(folder, stem, where))
            if number is None:
                bad.append(BadImage(where, f"there is no image {printable(stem)}"))
            elif splits[number] in (UNLABELLED, _LISTS[name]):
                splits[number] = _LISTS[name]
            elif name != "trainval" or splits[number] == TEST:
                raise UserError(
                    f"data: {file}:{line}: {printable(stem)} is also in {SPLITS[splits[number]]}.txt"
                    " (allowed: one split)"
                )
    return splits, bad


def _lines(file: Path) -> Iterable[tuple[int, str]]:
    """Return the lines that are not empty, with their numbers."""
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, 1) if line.strip()]


def _first(folder: Path, names: Iterable[str]) -> Path | None:
    """Return the first folder of these names that is in a folder; links are not followed."""
    places = (folder / name for name in names)
    return next((place for place in places if place.is_dir() and not place.is_symlink()), None)


def _has_annotations(folder: Path) -> bool:
    """Return whether the first XML file of a folder is an annotation; listing a million images would take too long."""
    with os.scandir(folder) as entries:
        names = (entry.name for entry in islice(entries, _LOOKED_AT))
        file = next((folder / name for name in names if name.endswith(".xml")), None)
    if file is None or not file.is_file():
        return False
    with file.open("rb") as opened:
        return b"<annotation" in opened.read(_HEAD)
