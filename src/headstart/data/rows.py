"""From rows that name image files and what is known about them to a data set, column by column."""

import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.folders import SPLIT_FOLDERS
from headstart.data.index import NO_LABEL, NO_SPLIT, OBJECTS, BadImage, DataSet
from headstart.data.masks import Mask, Meaning, read_masks
from headstart.data.objects import Box, fit
from headstart.data.options import Options
from headstart.data.scan import Scan, assemble, check_bad, printable, scan, within
from headstart.errors import UserError, unknown

SIDES = ("left", "top", "right", "bottom")
Where = Callable[[int], str]  # a row's place in the file that it comes from, as FILE:LINE

_UNTIDY = r"(^|/)\.{1,2}(/|$)|^/|//|/$|\x00"  # paths that may lead out, have another spelling, or are none
_NUMBER = re.compile(r"-?\d+(\.\d+)?")


def open_rows(name: str, root: Path, rows: pa.Table, options: Options, *, layout: str, where: Where) -> DataSet:
    """Return the data set that rows describe.

    With the columns ``left``, ``top``, ``right`` and ``bottom`` (pixels) each row is an object, ``label`` is the
    object's class, and a row without a box stands for a picture without objects. Otherwise each row is an image. With
    masks and without labels, the classes are those of the masks, as ``headstart.data.masks`` understands them.

    Args:
        name: of the data set.
        root: the folder that paths are relative to.
        rows: text columns ``image`` and, if they are known, ``label``, ``mask``, ``split``, ``group``, with null for
            none; sides are float64.
        options: what the user wants of the data.
        layout: how labels and splits were read, in one line.
        where: names the place of a row.

    Raises:
        UserError: a path leads out of the root, a split has an unknown name, rows of one image contradict each other,
            or too many images, masks and boxes are broken.
    """
    boxed = SIDES[0] in rows.column_names
    for column in _there(rows, "image", "mask"):
        rows = rows.set_column(rows.column_names.index(column), column, _inside(root, rows[column], column, where))
    if "split" in rows.column_names:
        rows = rows.set_column(rows.column_names.index("split"), "split", [_splits(rows["split"], where)])
    owners, images = _images(rows, where) if boxed else _once(rows, where)
    found, contents = scan(root, (image.as_py() for image in images["image"])), b""
    meant = Meaning((), ())
    if "mask" in images.column_names:
        found, contents = _with_whole_masks(root, found, images["mask"])
        if not boxed and "label" not in images.column_names:
            found, meant = _with_classes(root, found, images["mask"])
    images, bad, objects = images.take(found.listed), list(found.bad), None
    if boxed:
        objects, classes, bad_boxes = _objects(rows, owners, found, where)
        bad += bad_boxes
    check_bad(bad, found.columns.num_rows, root, options.max_bad)
    labels = np.full(images.num_rows, NO_LABEL)
    if not boxed:
        labels, classes = numbered(images["label"]) if "label" in images.column_names else (labels, meant.classes)
    data = assemble(
        name,
        root,
        found.columns,
        labels=labels,
        splits=images["split"].to_numpy() if "split" in images.column_names else np.full(len(labels), NO_SPLIT),
        classes=classes,
        layout=layout,
        more={column: images[column] for column in _there(images, "group", "mask")},
        objects=objects,
        contents=contents + np.array(meant.values, "<i8").tobytes(),
        bad=bad,
        options=options,
    )
    return replace(data, mask_values=meant.mask_values)


class Numbered(NamedTuple):
    """Class numbers, int64 ``[n]``, -1 for none, and the names of the classes."""

    labels: np.ndarray
    classes: tuple[str, ...]


def numbered(names: pa.ChunkedArray) -> Numbered:
    """Return the numbers of class names, which are sorted: as numbers if all of them are, else as text.

    >>> numbered(pa.chunked_array([["10", "9", None, "10"]]))
    Numbered(labels=array([ 1,  0, -1,  1]), classes=('9', '10'))
    """
    encoded = names.combine_chunks().dictionary_encode()
    found = encoded.dictionary.to_pylist()
    numeric = all(_NUMBER.fullmatch(name) for name in found)
    classes = sorted(found, key=lambda name: (float(name), name)) if numeric else sorted(found)
    places = {name: number for number, name in enumerate(classes)}
    numbers = np.array([*(places[name] for name in found), NO_LABEL])  # null has the code -1, which is the last one
    return Numbered(numbers[encoded.indices.fill_null(-1).to_numpy()], tuple(classes))


def _inside(root: Path, paths: pa.ChunkedArray, column: str, where: Where) -> pa.ChunkedArray:
    """Return paths in their shortest spelling; raise a UserError that names the first one to lead out of the root."""
    paths = paths.combine_chunks()
    untidy = pc.fill_null(pc.match_substring_regex(paths, _UNTIDY), False)
    rows = np.flatnonzero(untidy.to_numpy(zero_copy_only=False))
    tidied = list[str]()
    for row in rows.tolist():
        tidy = within(root, paths[row].as_py())
        if tidy is None:
            raise _leads_out(root, paths, column, row, where)
        tidied.append(tidy)
    paths = pc.replace_with_mask(paths, untidy, pa.array(tidied, pa.string()))
    folders = pc.replace_substring_regex(paths, "/?[^/]*$", "").dictionary_encode()  # few, where paths are many
    base = os.path.realpath(root)
    for number, folder in enumerate(folders.dictionary.to_pylist()):
        if not Path(os.path.realpath(root / folder)).is_relative_to(base):
            first = pc.index(folders.indices, number).as_py()
            raise _leads_out(root, paths, column, first, where)
    return pa.chunked_array([paths])


def _leads_out(root: Path, paths: pa.Array, column: str, row: int, where: Where) -> UserError:
    return UserError(
        f"data: {where(row)}: the {column} {printable(paths[row].as_py())} lies outside of the folder {root}"
        " (allowed: paths below it)"
    )


def _there(rows: pa.Table, *columns: str) -> list[str]:
    return [column for column in columns if column in rows.column_names]


def _splits(names: pa.ChunkedArray, where: Where) -> np.ndarray:
    """Return positions in ``SPLITS``, -1 for none."""
    encoded = names.combine_chunks().dictionary_encode()
    codes = list[int]()
    for number, name in enumerate(encoded.dictionary.to_pylist()):
        if name.lower() not in SPLIT_FOLDERS:
            row = pc.index(encoded.indices, number).as_py()
            raise unknown(f"data: {where(row)}: split", printable(name), SPLIT_FOLDERS)
        codes.append(SPLIT_FOLDERS[name.lower()])
    found: np.ndarray = np.array([*codes, NO_SPLIT])[encoded.indices.fill_null(-1).to_numpy()]
    return found


def _once(rows: pa.Table, where: Where) -> tuple[np.ndarray, pa.Table]:
    """Return what ``_images`` does where every row is an image; raise a UserError when two are of one."""
    owners, first = _owners(rows)
    if len(first) < len(owners):
        row = int(np.flatnonzero(first[owners] != np.arange(len(owners)))[0])
        path, before = printable(rows["image"][row].as_py()), where(int(first[owners[row]]))
        raise UserError(f"data: {where(row)}: the image {path} is listed twice, also in {before} (allowed: once)")
    return owners, rows


def _owners(rows: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Return for each row the number of its image, in the order in which they appear, and the first row of each."""
    owners = rows["image"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    return owners, np.unique(owners, return_index=True)[1]


def _images(rows: pa.Table, where: Where) -> tuple[np.ndarray, pa.Table]:
    """Return for each row the number of its image, int64 ``[n]``, and the first row of every image."""
    owners, first = _owners(rows)
    for column in _there(rows, "mask", "split", "group"):
        codes = rows[column].combine_chunks().dictionary_encode().indices.fill_null(-1).to_numpy()
        odd = np.flatnonzero(codes != codes[first][owners])
        if len(odd):
            row = int(odd[0])
            raise UserError(
                f"data: {where(row)}: {column} '{printable(str(rows[column][row]))}' of"
                f" {printable(rows['image'][row].as_py())} is another one than in {where(int(first[owners[row]]))}"
                f" (allowed: one {column} for all rows of an image)"
            )
    return owners, rows.take(first)


def _with_whole_masks(root: Path, found: Scan, masks: pa.ChunkedArray) -> tuple[Scan, bytes]:
    """Return the images whose masks, if they have one, are whole and of their size, and the checksums of the masks."""
    masks = masks.take(found.listed)
    having = np.flatnonzero(masks.is_valid().to_numpy())
    seen = scan(root, (masks[row].as_py() for row in having.tolist()))
    keep, crc, bad = np.full(len(masks), True), np.zeros(len(masks), "<u4"), list(seen.bad)
    keep[having] = False
    whole = having[seen.listed]
    keep[whole], crc[whole] = True, seen.columns["crc"].to_numpy()
    image = np.stack([found.columns[side].to_numpy()[whole] for side in ("height", "width")], axis=1)
    mask = np.stack([seen.columns[side].to_numpy() for side in ("height", "width")], axis=1)
    for place in np.flatnonzero((image != mask).any(axis=1)).tolist():
        sizes = [f"{height}x{width}" for height, width in (mask[place], image[place])]
        path = printable(seen.columns["path"][place].as_py())
        bad.append(BadImage(path, f"a mask of {sizes[0]} pixels for an image of {sizes[1]}"))
        keep[whole[place]] = False
    kept = found.columns.filter(pa.array(keep))
    order = pc.sort_indices(kept["path"]).to_numpy()  # or the fingerprint would change with the order of the rows
    return Scan(kept, found.listed[keep], (*found.bad, *bad)), crc[keep][order].tobytes()


def _with_classes(root: Path, found: Scan, masks: pa.ChunkedArray) -> tuple[Scan, Meaning]:
    """Return the images whose masks, if they have one, have values that are classes, and what the values mean."""
    masks = masks.take(found.listed)
    having = np.flatnonzero(masks.is_valid().to_numpy())
    looks, meant = read_masks(root, found.columns.take(having), masks.take(having).to_pylist())
    keep, bad = np.full(len(masks), True), [look for look in looks if isinstance(look, BadImage)]
    keep[having] = [isinstance(look, Mask) for look in looks]
    return Scan(found.columns.filter(pa.array(keep)), found.listed[keep], (*found.bad, *bad)), meant


def _objects(
    rows: pa.Table, owners: np.ndarray, found: Scan, where: Where
) -> tuple[pa.Table, tuple[str, ...], list[BadImage]]:
    """Return the objects of the images that were found, their classes, and the rows whose box cannot be one."""
    places = np.full(int(owners.max(initial=-1)) + 1, -1)
    places[found.listed] = np.arange(len(found.listed))
    heights, widths = (found.columns[side].to_numpy() for side in ("height", "width"))
    boxes = np.stack([rows[side].to_numpy().astype(np.float64) for side in SIDES], axis=1)  # null becomes NaN
    labelled = rows["label"].is_valid().to_numpy() if "label" in rows.column_names else np.zeros(len(boxes), bool)
    kept, corners, bad = list[int](), list[tuple[float, ...]](), list[BadImage]()
    for row in np.flatnonzero((places[owners] >= 0) & ~np.isnan(boxes).all(axis=1)).tolist():
        image = places[owners[row]]
        left, top, right, bottom = boxes[row].tolist()
        box = fit(Box(NO_LABEL, left, top, right, bottom, ""), int(heights[image]), int(widths[image]))
        if isinstance(box, str) or not labelled[row]:
            bad.append(BadImage(where(row), box if isinstance(box, str) else "a box without a label"))
        else:
            kept.append(row)
            corners.append(box[1:5])
    labels, classes = numbered(rows["label"].take(kept)) if kept else (np.zeros(0, np.int64), ())
    columns = [places[owners[kept]], labels, *np.array(corners).reshape(-1, 4).T]
    arrays = [pa.array(values, field.type) for values, field in zip(columns, OBJECTS, strict=True)]
    return pa.table(arrays, schema=OBJECTS), classes, bad
