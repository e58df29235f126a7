"""Data sets of images and masks: for each image a second one, whose pixels are classes."""

import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from torch import Tensor

from headstart.data.folders import SPLIT_FOLDERS, Listing
from headstart.data.images import THREADS, DecodeError, inspect
from headstart.data.index import NO_LABEL, NO_SPLIT, BadImage, DataSet
from headstart.data.options import Options
from headstart.data.scan import assemble, check_bad, printable, scan
from headstart.errors import UserError

IMAGES, MASKS, CLASSES = "images", "masks", "classes.txt"
VOID = 255  # pixels of no class, unless the masks are of 0 and 255 alone
_FORMATS = {".png": "PNG", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF"}
_LARGEST = 1 << 15  # a class number fits into int16
_MOST = 64  # classes without names; smoothed masks, which are none, have more values


class Mask(NamedTuple):
    """What is known of a mask after it was read: its values in rising order, and the CRC-32 of its file."""

    values: tuple[int, ...]
    crc: int


class Meaning(NamedTuple):
    """What the values of masks mean: class names, and the value of each class."""

    classes: tuple[str, ...]
    values: tuple[int, ...]

    @property
    def mask_values(self) -> tuple[tuple[int, ...], ...]:
        """The values of each class as a data set has them: one each, before classes become one."""
        return tuple((value,) for value in self.values)


def is_masks(folder: Path) -> bool:
    """Return whether the folder, or a folder of a split in it, has both ``images`` and ``masks``."""
    return bool(_bases(folder))


def open_masks(folder: Path, options: Options) -> DataSet:
    """Return the data set of a folder with ``images/NAME.jpg`` and ``masks/NAME.png``.

    Folders called train, val, test above or below both are the splits. ``classes.txt`` has the class names in the order
    of their values; ``meaning`` says what masks without it are. Images whose masks are missing, of another size or
    broken are left out.

    Args:
        folder: the folder.
        options: what is wanted of the data.

    Raises:
        UserError: nobody could say what the masks mean, or too many images or masks are broken.
    """
    images, files = dict(_images(folder)), _mask_files(folder)
    found = scan(folder, images)
    paths = found.columns["path"].to_pylist()
    masks = [files.get(mask_stem(path)) for path in paths]
    looks, meant = read_masks(folder, found.columns, masks)
    kept = np.array([row for row, look in enumerate(looks) if isinstance(look, Mask)], np.int64)
    bad = [*found.bad, *(look for look in looks if isinstance(look, BadImage))]
    check_bad(bad, len(kept), folder, options.max_bad)
    crcs = [look.crc for look in looks if isinstance(look, Mask)]
    shown = ", ".join(map(str, meant.values[:4])) + (", …" if len(meant.values) > 4 else "")
    data = assemble(
        folder.resolve().name,
        folder,
        found.columns.take(kept),
        labels=np.full(len(kept), NO_LABEL),
        splits=np.array(list(images.values()), np.int64)[found.listed][kept],
        classes=meant.classes,
        layout=f"images and masks of {shown}",
        more={"mask": [masks[row] for row in kept]},
        contents=np.array([*meant.values, *crcs], "<i8").tobytes(),
        bad=bad,
        options=options,
    )
    return replace(data, mask_values=meant.mask_values)


def read_masks(folder: Path, columns: pa.Table, masks: Sequence[str | None]) -> tuple[list[Mask | BadImage], Meaning]:
    """Return what is known of the mask of each image, or why the image is to be left out, and what the masks mean.

    Args:
        folder: the folder that paths are relative to; ``classes.txt`` in it has the class names, if it is there.
        columns: those of a ``Scan``.
        masks: the path of each image's mask.

    Raises:
        UserError: nobody could say what the masks mean.
    """
    paths = columns["path"].to_pylist()
    sizes = zip(*(columns[side].to_pylist() for side in ("height", "width")), strict=True)
    with ThreadPoolExecutor(THREADS) as pool:
        looks = list(pool.map(partial(_look, folder), paths, masks, sizes))
    seen = {value for look in looks if isinstance(look, Mask) for value in look.values}
    meant = meaning(seen, _names(folder), folder)
    return [_check_values(look, meant, file) for look, file in zip(looks, masks, strict=True)], meant


def meaning(seen: set[int], names: Sequence[str], folder: Path) -> Meaning:
    """Return what masks mean in which these values are seen.

    * 0 and 255: background and foreground; likewise 0 and 1.
    * 1, 2 and 3: the trimaps of the Oxford pets, which are foreground, background and border.
    * else a value is a class, named by its number; 255 is void, pixels of no class.

    With names, values are positions in them, but two names may be those of 0 and 255, and values may count from 1.
    Names that are numbers are the values themselves.

    Args:
        seen: all values in all masks.
        names: the class names, if there are any.
        folder: of the data, for the error.

    Raises:
        UserError: there are more values than anyone would have as classes without naming them.
    """
    without_void = seen - {VOID}
    count = len(names) or len(without_void)
    if VOID in seen and without_void <= {0} and len(names) in (0, 2):
        return Meaning(tuple(names) or ("background", "foreground"), (0, VOID))
    if names and all(name.isdecimal() and int(name) < VOID for name in names):
        return Meaning(tuple(names), tuple(map(int, names)))
    if names:
        one = int(0 not in seen and len(names) in seen)
        return Meaning(tuple(names), tuple(range(one, one + len(names))))
    if without_void <= {0, 1}:
        return Meaning(("background", "foreground"), (0, 1))
    if without_void == {1, 2, 3}:
        return Meaning(("foreground", "background", "border"), (1, 2, 3))
    if count > _MOST:
        raise UserError(
            f"data: the masks in {folder} have {count} values, which are no classes if they are shades"
            f" (allowed: a {CLASSES} with a name in each line, or up to {_MOST} values)"
        )
    return Meaning(tuple(str(value) for value in sorted(without_void)), tuple(sorted(without_void)))


def read_mask(path: Path, values: Sequence[Sequence[int]]) -> Tensor:
    """Return the class of each pixel of a mask, int16 ``[h w]``; -1 where it is of no class.

    Args:
        path: the mask; of a palette image the indices are the values.
        values: those of each class, as in ``DataSet.mask_values``; any other is of no class.

    Raises:
        DecodeError: the file is broken, or has colours.
    """
    stored = _stored(path)
    classes = np.full(max(int(stored.max(initial=0)), *map(max, values)) + 1, NO_LABEL, np.int16)
    for number, of_class in enumerate(values):
        classes[list(of_class)] = number
    return torch.from_numpy(classes[stored])


def mask_stem(image: str) -> str:
    """Return where the mask of an image is, without the end of its name.

    >>> mask_stem("train/images/a/1.jpg"), mask_stem("images/1.jpg")
    ('train/masks/a/1', 'masks/1')
    """
    folders = list(PurePosixPath(image).with_suffix("").parts)
    folders[folders.index(IMAGES)] = MASKS
    return PurePosixPath(*folders).as_posix()


def _bases(folder: Path) -> dict[str, int]:
    """Return the folders, relative and each with its split, that have both images and masks."""
    found = {
        name: split
        for name, split in {"": NO_SPLIT, **SPLIT_FOLDERS}.items()
        if (folder / name / IMAGES).is_dir() and (folder / name / MASKS).is_dir()
    }
    below = (folder / name / kind for name in found for kind in (IMAGES, MASKS))
    for place in below:
        if place.is_symlink():
            raise UserError(f"data: {place} is a link, which is not followed (allowed: a folder)")
    return found


def _images(folder: Path) -> Iterator[tuple[str, int]]:
    for base, split in _bases(folder).items():
        for path in Listing(folder / base / IMAGES):
            top = PurePosixPath(path).parts[0].lower()
            yield PurePosixPath(base, IMAGES, path).as_posix(), SPLIT_FOLDERS.get(top, split) if not base else split


def _mask_files(folder: Path) -> dict[str, str]:
    """Return the path of each mask, by its path without the end of its name."""
    paths = (PurePosixPath(base, MASKS, path) for base in _bases(folder) for path in Listing(folder / base / MASKS))
    return {str(path.with_suffix("")): str(path) for path in paths}


def _names(folder: Path) -> list[str]:
    """Return the class names in ``classes.txt``, if it is there."""
    file = folder / CLASSES
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError):
        raise UserError(f"data: {file} is not a text file (allowed: a class name in each line)") from None
    if not names or len(set(names)) < len(names):
        raise UserError(f"data: {file} has no names or one name twice (allowed: a class name in each line)")
    return names


def _look(folder: Path, image: str, file: str | None, size: tuple[int, int]) -> Mask | BadImage:
    """Return what is known of the mask of an image, or why the image is to be left out."""
    if file is None:
        return BadImage(printable(image), f"no mask {printable(mask_stem(image))}.png")
    try:
        stored = _stored(folder / file)
        crc = zlib.crc32((folder / file).read_bytes())
    except (DecodeError, OSError) as error:
        return BadImage(printable(file), str(error))
    if stored.shape != size:
        (height, width), (high, wide) = stored.shape, size
        return BadImage(
            printable(file), f"a mask {width} wide and {height} high of an image {wide} wide and {high} high"
        )
    return Mask(tuple(np.flatnonzero(np.bincount(stored.ravel())).tolist()), crc)


def _check_values(look: Mask | BadImage, meant: Meaning, file: str | None) -> Mask | BadImage:
    if isinstance(look, BadImage):
        return look
    beyond = sorted(set(look.values) - {*meant.values, VOID})
    if not beyond:
        return look
    allowed = f"{meant.values[0]} to {meant.values[-1]}, {VOID} for none"
    return BadImage(
        printable(str(file)), f"the value {beyond[0]}, but there are {len(meant.classes)} classes (allowed: {allowed})"
    )


def _stored(path: Path) -> np.ndarray:
    """Return the values of a mask as they are stored, ``[h w]``, unsigned."""
    if path.suffix.lower() not in _FORMATS:
        raise DecodeError(f"a mask as {path.suffix}, which changes the values (allowed: {', '.join(_FORMATS)})")
    inspect(path)
    try:
        with Image.open(path, formats=tuple(_FORMATS.values())) as image:
            array = np.array(image)
    except Exception as error:  # readers let nearly every kind of exception out on damaged files
        raise DecodeError(" ".join(f"{type(error).__name__}: {error}".split())) from error
    if array.ndim == 3:
        colours = array[:, :, : array.shape[2] - (array.shape[2] in (2, 4))]  # without transparency
        if (colours != colours[:, :, :1]).any():
            raise DecodeError("a mask in colours (allowed: grey levels or a palette, whose values are classes)")
        array = array[:, :, 0]
    if array.dtype.kind == "f" or int(array.min()) < 0 or int(array.max()) >= _LARGEST:
        raise DecodeError(f"a mask of {array.dtype} (allowed: whole numbers from 0 to {_LARGEST - 1})")
    return array.astype(np.uint8) if array.dtype == np.bool_ else array
