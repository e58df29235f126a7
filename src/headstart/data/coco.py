"""COCO data sets: one JSON file of images, annotations and categories."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headstart.data.index import NO_SPLIT, BadImage, DataSet
from headstart.data.objects import Box, Reading, inside, with_objects
from headstart.data.options import Options
from headstart.data.scan import printable, scan
from headstart.errors import UserError

_NEEDED = {"images": ("id", "file_name"), "annotations": ("image_id", "category_id"), "categories": ("id", "name")}
_LARGEST = 1e9  # pixels, far from any image; whole numbers of JSON may be too large for a float
_LOOKED_FOR = 100  # files, to find out which folder has the images

Entry = dict[str, Any]


def open_coco(path: Path, options: Options) -> DataSet:
    """Return the data set of a COCO file of instances, with the box of each annotation that is no crowd.

    The classes are the categories in the order of their numbers, which need not be contiguous. The images are looked
    for beside the file, in folders called as it is or ``images``, ``train2017`` and ``val2017`` there, and in the same
    places one folder higher. An image without annotations has no objects.

    Args:
        path: the JSON file.
        options: what is wanted of the data.

    Raises:
        UserError: the file is not as COCO's, its images are not there, a path leads out of the data folder, or too
            much is broken.
    """
    known = _read(path)
    names = [str(image["file_name"]) for image in known["images"]]
    root = _root(path, names)
    listed = [inside(root, name, f"{path.name}: image {image['id']}")
              for name, image in zip(names, known["images"], strict=True)]  # fmt: skip
    categories = sorted(known["categories"], key=lambda category: category["id"])
    classes = tuple(str(category["name"]) for category in categories)
    if len(set(classes)) < len(classes):
        raise UserError(f"data: {path}: two categories have one name (allowed: a name for each)")
    odd = [name for name in classes if not _is_unicode(name)]
    if odd:
        raise UserError(f"data: {path}: the category {printable(odd[0])} is no text (allowed: Unicode)")
    found = scan(root, listed)
    annotations, bad, crowds = _by_image(path, known, {category["id"]: n for n, category in enumerate(categories)})
    sizes = zip(*(found.columns[side].to_pylist() for side in ("height", "width")), strict=True)
    rows = zip(found.listed.tolist(), sizes, strict=True)
    return with_objects(
        path.stem,
        root,
        found,
        (_reading(path.name, known["images"][number], size, annotations[number]) for number, size in rows),
        splits=np.full(len(found.listed), NO_SPLIT),
        classes=classes,
        layout=f"COCO boxes of {path.name}" + (f", without {crowds} crowds" if crowds else ""),
        bad=bad,
        options=options,
    )


def _read(path: Path) -> dict[str, list[Entry]]:
    try:
        known = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"data: {path} cannot be read as JSON: {error}") from None
    for field, keys in _NEEDED.items():
        entries = known.get(field) if isinstance(known, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"data: {path} has no list of {field} (allowed: a COCO file of {', '.join(_NEEDED)})")
        for number, entry in enumerate(entries):
            missing = [key for key in keys if not isinstance(entry, dict) or not isinstance(entry.get(key), int | str)]
            if missing:
                raise UserError(f"data: {path}: {field}[{number}] has no {missing[0]} (allowed: {', '.join(keys)})")
    for field in ("images", "categories"):
        numbers = [entry["id"] for entry in known[field]]
        if len(set(numbers)) < len(numbers):
            raise UserError(f"data: {path}: two of the {field} have one id (allowed: an id for each)")
        if not all(isinstance(number, int) for number in numbers) and field == "categories":
            raise UserError(f"data: {path}: the id of a category is no whole number (allowed: whole numbers)")
    return {field: known[field] for field in _NEEDED}


def _root(path: Path, names: Sequence[str]) -> Path:
    """Return the folder that has most of the first images."""
    named = dict.fromkeys([path.stem, path.stem.rpartition("_")[2], "train2017", "val2017", ""])
    below = [Path(folder, name) for folder in ("", "images") for name in named]
    folders = [base / place for base in (path.parent, path.parent.parent) for place in below]
    counts = [sum((folder / name).is_file() for name in names[:_LOOKED_FOR]) for folder in folders]
    if max(counts) == 0:
        places = dict.fromkeys(str(folder) for folder in folders if folder.is_dir())
        raise UserError(
            f"data: the images of {path} are not there, such as {printable(str(names[0])) if names else 'none'}"
            f" (looked in: {', '.join(places)})"
        )
    return folders[counts.index(max(counts))]


def _by_image(
    path: Path, known: dict[str, list[Entry]], classes: dict[int, int]
) -> tuple[list[list[Box]], list[BadImage], int]:
    """Return the boxes of each image, the annotations that are no box of an image, and the number of crowds."""
    places = {image["id"]: number for number, image in enumerate(known["images"])}
    boxes: list[list[Box]] = [[] for _ in places]
    bad, crowds = list[BadImage](), 0
    for number, annotation in enumerate(known["annotations"]):
        where = f"{path.name}: annotation {printable(str(annotation.get('id', f'[{number}]')))}"
        image, category = annotation["image_id"], annotation["category_id"]
        if image not in places:
            bad.append(BadImage(where, f"of image {printable(str(image))}, which is not among the images"))
        elif category not in classes:
            allowed = _few(list(classes)) or "the categories, of which the file has none"
            bad.append(BadImage(where, f"of category {printable(str(category))} (allowed: {allowed})"))
        elif annotation.get("iscrowd"):
            crowds += 1
        elif not _is_box(annotation.get("bbox")):
            bad.append(BadImage(where, "no bbox of four numbers: left, top, width, height"))
        else:
            left, top, width, height = annotation["bbox"]
            boxes[places[image]].append(Box(classes[category], left, top, left + width, top + height, where))
    return boxes, bad, crowds


def _is_box(box: object) -> bool:
    sides = box if isinstance(box, list) else []
    return len(sides) == 4 and all(isinstance(side, int | float) and abs(side) < _LARGEST for side in sides)


def _is_unicode(text: str) -> bool:
    """Return whether a text is without halves of surrogate pairs, which JSON can hold but UTF-8 cannot."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _few(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:30])) + (", …" if len(numbers) > 30 else "")


def _reading(file: str, image: Entry, size: tuple[int, int], boxes: list[Box]) -> Reading | BadImage:
    height, width = size
    said = zip((image.get("height"), image.get("width")), size, strict=True)  # some files have 0 or a text there
    written = tuple(side if isinstance(side, int | float) and side else found for side, found in said)
    if written != size:
        return BadImage(
            f"{file}: image {image['id']}",
            f"said to be {written[1]} wide and {written[0]} high, but {printable(str(image['file_name']))} is"
            f" {width} wide and {height} high",
        )
    return Reading(boxes)
