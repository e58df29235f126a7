"""Image files: are they whole, and what are their pixels."""

import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
DEPTH = "16-bit or float pixels, which this version cannot scale without loss; convert to 8 bit"
THREADS = min(32, 2 * (os.cpu_count() or 1))  # Pillow decodes and reads without holding Python's lock

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")  # and MPO, which Pillow finds inside JPEG
_EDGE = 4096  # bytes looked at on both ends of a file
_ORIENTATION = 0x0112  # the EXIF tag
_STRIPS, _TILES = (273, 279), (324, 325)  # TIFF tags: where the pixels start, and how many bytes they are


class DecodeError(ValueError):
    """A file whose pixels cannot be had, and why."""


class DepthError(DecodeError):
    """A file whose pixels are more than 8 bits deep."""


class Header(NamedTuple):
    """What is known of an image file without decoding it; height and width are those after EXIF orientation."""

    height: int
    width: int
    bytes: int
    crc: int


class Decoded(NamedTuple):
    """Images of one size in memory: uint8 ``[n 3 h w]``, and by position why one has no pixels (it is black)."""

    images: Tensor
    failures: dict[int, str]


def inspect(path: Path) -> Header:
    """Return the size and checksum of an image file, after a look at its header and its end.

    A file whose end is not as its format wants it is decoded, and only a failure of that makes it broken: cameras and
    telephones append things to good files.

    Args:
        path: the file.

    Returns:
        The header; ``crc`` is the CRC-32 of the first and last 4 KiB.

    Raises:
        DepthError: the pixels are 16-bit or float.
        DecodeError: the file is empty, not an image, or truncated.
    """
    try:
        with path.open("rb") as file:
            start = file.read(_EDGE)
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _EDGE))
            end = file.read()
            file.seek(0)
            with Image.open(file, formats=_FORMATS) as image:
                height, width = _upright_size(image)
                _check_depth(image)
                if not _ends_well(image, start, end, size):
                    image.load()
    except Exception as error:  # Pillow's readers let nearly every kind of exception out on damaged files
        raise _reason(error, path) from error
    return Header(height, width, size, zlib.crc32(end, zlib.crc32(start)))


def decode(path: Path) -> Tensor:
    """Return the pixels of an image file, upright and in three channels.

    EXIF orientation is applied. Everything else is what Pillow's ``convert("RGB")`` gives: grey levels become
    equal channels, CMYK is converted without a colour profile, the alpha channel is dropped, and of an animation the
    first frame is taken.

    Args:
        path: the file.

    Returns:
        uint8 ``[3 h w]``, contiguous.

    Raises:
        DecodeError: the file is missing, broken, larger than Pillow's decompression-bomb limit or over 8 bits deep.
    """
    return torch.from_numpy(_pixels(path)).permute(2, 0, 1).contiguous()


def decode_all(paths: Iterable[Path], count: int, height: int, width: int) -> Decoded:
    """Return the pixels of image files of one size as one tensor.

    Args:
        paths: the files.
        count: how many files there are.
        height: the height of every image, in pixels.
        width: the width of every image, in pixels.
    """
    images = torch.zeros((count, 3, height, width), dtype=torch.uint8)
    channels_last = images.permute(0, 2, 3, 1).numpy()
    failures: dict[int, str] = {}

    def fill(position: int, path: Path) -> None:
        try:
            pixels = _pixels(path)
            check_size(pixels.shape[:2], height, width)
            channels_last[position] = pixels
        except DecodeError as error:
            failures[position] = str(error)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fill, range(count), paths):
            pass
    return Decoded(images, failures)


def check_size(shape: Iterable[int], height: int, width: int) -> None:
    """Raise a DecodeError unless the shape is that height and width: the file is another one than was indexed."""
    found = tuple(shape)
    if found != (height, width):
        raise DecodeError(f"{found[0]}x{found[1]} pixels, but {height}x{width} when the folder was read")


def _pixels(path: Path) -> np.ndarray:
    """Return the pixels as uint8 ``[h w 3]``."""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            _check_depth(image)
            ImageOps.exif_transpose(image, in_place=True)
            image.info.pop("transparency", None)  # it has no place in RGB, and Pillow would warn
            return np.array(image.convert("RGB"))
    except Exception as error:  # Pillow's readers let nearly every kind of exception out on damaged files
        raise _reason(error, path) from error


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    turned = (
        image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) >= 5
    )  # of a TIFF, Pillow turns the size itself
    return (width, height) if turned else (height, width)


def _check_depth(image: Image.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise DepthError(DEPTH)


def _ends_well(image: Image.Image, start: bytes, end: bytes, size: int) -> bool:
    """Return whether the file has the end that its format asks for."""
    match image.format:
        case "JPEG" | "MPO":
            return b"\xff\xd9" in end
        case "PNG":
            return b"IEND" in end
        case "GIF":
            return end.endswith(b";")
        case "WEBP":
            return int.from_bytes(start[4:8], "little") + 8 <= size
        case "BMP":
            return 0 < int.from_bytes(start[2:6], "little") <= size
    assert isinstance(image, TiffImageFile)
    offsets, counts = _STRIPS if _STRIPS[0] in image.tag_v2 else _TILES
    ends = (a + b for a, b in zip(image.tag_v2.get(offsets, ()), image.tag_v2.get(counts, ()), strict=False))
    return 0 < max(ends, default=0) <= size


def _reason(error: Exception, path: Path) -> DecodeError:
    """Return why a file cannot be used, in one line."""
    if isinstance(error, DecodeError):
        return error
    if isinstance(error, FileNotFoundError):
        return DecodeError("the file is gone")
    if isinstance(error, UnidentifiedImageError):
        return DecodeError("not an image" if path.stat().st_size else "an empty file")
    if "truncated" in str(error):
        return DecodeError("a truncated file")
    return DecodeError(" ".join(f"{type(error).__name__}: {error}".split()))
