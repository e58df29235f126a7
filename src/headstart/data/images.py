"""Image files: are they whole, and what are their pixels."""

import logging
import os
import zlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from headstart.data import deep
from headstart.data.index import DTYPES, RGB, Pixels

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff")
THREADS = min(32, 2 * (os.cpu_count() or 1))  # Pillow decodes and reads without holding Python's lock
LARGEST = 2 * (Image.MAX_IMAGE_PIXELS or 0)  # pixels; where Pillow, too, takes a file for a decompression bomb

_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF")  # and MPO, which Pillow finds inside JPEG
_EDGE = 4096  # bytes looked at on both ends of a file
_ORIENTATION = 0x0112  # the EXIF tag
_STRIPS, _TILES = (273, 279), (324, 325)  # TIFF tags: where the pixels start, and how many bytes they are
_GREY_MODES = ("1", "L", "LA", "La")


logging.getLogger("PIL").addHandler(logging.NullHandler())  # or each TIFF of many channels would print a line


class DecodeError(ValueError):
    """A file whose pixels cannot be had, and why."""


class Header(NamedTuple):
    """What is known of an image file without decoding it.

    Attributes:
        height: pixels, after EXIF orientation.
        width: as the height.
        bytes: of the file.
        crc: the CRC-32 of its first and last 4 KiB.
        channels: of its pixels, without transparency; a palette has three.
        dtype: of its pixels, as a position in ``DTYPES``.
    """

    height: int
    width: int
    bytes: int
    crc: int
    channels: int
    dtype: int


class Decoded(NamedTuple):
    """Images of one size in memory: ``[n c h w]``, and by position why one has no pixels (it is black).

    They are uint8, or float in 0..1 where the files are more than 8 bits deep.
    """

    images: Tensor
    failures: dict[int, str]


def inspect(file: Path | BytesIO) -> Header:
    """Return the size, checksum and kind of pixels of an image file, after a look at its header and its end.

    A file whose end is not as its format wants it is decoded, and only a failure of that makes it broken: cameras and
    telephones append things to good files.

    Args:
        file: its path, or its contents.

    Raises:
        DecodeError: the file is empty, not an image, truncated, or too large to be decoded safely.
    """
    try:
        if isinstance(file, Path):
            with open(file, "rb", opener=_open) as opened:
                return _inspect(opened)
        return _inspect(file)
    except Exception as error:  # readers let nearly every kind of exception out on damaged files
        raise _reason(error, file) from error


def decode(file: Path | BytesIO, pixels: Pixels = RGB) -> Tensor:
    """Return the pixels of an image file, upright and in the channels that are asked for.

    EXIF orientation is applied. Of 8-bit files, everything else is what Pillow's ``convert`` to RGB or L gives: grey
    levels become equal channels, CMYK is converted without a colour profile, the alpha channel is dropped, and of an
    animation the first frame is taken. Deeper pixels are scaled by ``pixels.range`` and keep their precision.

    Args:
        file: its path, or its contents.
        pixels: the channels and the range of the data set that the file is of.

    Returns:
        uint8 ``[c h w]``, or with a range float32 in 0..1; contiguous.

    Raises:
        DecodeError: the file is missing, broken, too large to be decoded safely, or of another kind than ``pixels``.
    """
    try:
        array = raw(file) if pixels.range or pixels.channels not in (1, 3) else _eight_bit(file, pixels.channels)
        if pixels.range:
            array = deep.scaled(deep.in_channels(array, pixels.channels), pixels.range)
        elif array.shape[2] != pixels.channels or array.dtype != np.uint8:
            raise DecodeError(
                f"{array.shape[2]} channels of {array.dtype}, but the data set has {pixels.channels} of uint8"
            )
    except Exception as error:  # readers let nearly every kind of exception out on damaged files
        raise _reason(error, file) from error
    return torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1)))


def raw(file: Path | BytesIO) -> np.ndarray:
    """Return the pixels of an image file as they are stored, upright, ``[h w c]``, without transparency.

    Raises:
        Exception: nearly any, where the file is damaged; ``decode`` and ``inspect`` turn them into a ``DecodeError``.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return raw(BytesIO(opened.read()))
    start = file.getvalue()[:_EDGE]
    if deep.is_deep_png(start):
        return deep.read_png(file)
    if deep.is_tiff(start) and not _pillow_reads(file):
        return deep.read_tiff(file, LARGEST)
    file.seek(0)
    with Image.open(file, formats=_FORMATS) as image:
        return _array(image, 1 if image.mode in _GREY_MODES else 3)


def decode_all(files: Iterable[Path | BytesIO], count: int, height: int, width: int, pixels: Pixels = RGB) -> Decoded:
    """Return the pixels of image files of one size as one tensor.

    Args:
        files: their paths or contents.
        count: how many files there are.
        height: the height of every image, in pixels.
        width: the width of every image, in pixels.
        pixels: the channels and the range of the data set.
    """
    dtype = torch.float32 if pixels.range else torch.uint8
    images = torch.zeros((count, pixels.channels, height, width), dtype=dtype)
    stored = images.numpy()  # in inference mode, which threads do not share, tensors could not be written to
    failures: dict[int, str] = {}

    def fill(position: int, file: Path | BytesIO) -> None:
        try:
            image = decode(file, pixels)
            check_size(image.shape[1:], height, width)
            stored[position] = image.numpy()
        except DecodeError as error:
            failures[position] = str(error)

    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(fill, range(count), files):
            pass
    return Decoded(images, failures)


def check_size(shape: Iterable[int], height: int, width: int) -> None:
    """Raise a DecodeError unless the shape is that height and width: the file is another one than was indexed."""
    found = tuple(shape)
    if found != (height, width):
        raise DecodeError(f"{found[0]}x{found[1]} pixels, but {height}x{width} when the folder was read")


def _open(path: str, flags: int) -> int:
    """Open a file without waiting, as a pipe that is called .jpg would make one wait for ever."""
    return os.open(path, flags | os.O_NONBLOCK)


def _inspect(file: BinaryIO) -> Header:
    start = file.read(_EDGE)
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _EDGE))
    end = file.read(_EDGE)  # no more of what has no end, such as a link to a device
    crc = zlib.crc32(end, zlib.crc32(start))
    if deep.is_tiff(start) and not _pillow_reads(file):
        height, width, channels, dtype = deep.tiff_header(file, size, LARGEST)
        return Header(height, width, size, crc, channels, DTYPES.index(dtype))
    file.seek(0)
    with Image.open(file, formats=_FORMATS) as image:
        height, width = _upright_size(image)
        if not _ends_well(image, start, end, size):
            image.load()
        dtype = "uint16" if deep.is_deep_png(start) else "uint8"
        grey = image.mode in _GREY_MODES or image.mode.startswith("I")  # I;16 is grey
        return Header(height, width, size, crc, 1 if grey else 3, DTYPES.index(dtype))


def _pillow_reads(file: BinaryIO) -> bool:
    """Return whether Pillow reads all of a TIFF: it has at most 8 bits, and grey levels, colours or a palette."""
    file.seek(0)
    try:
        with Image.open(file, formats=("TIFF",)) as image:
            assert isinstance(image, TiffImageFile)
            return deep.is_plain_tiff(image.mode, image.tag_v2)
    except (UnidentifiedImageError, ImportError) as error:
        if not _is_unidentified(error):
            raise
        return False


def _eight_bit(file: Path | BytesIO, channels: int) -> np.ndarray:
    """Return the pixels as uint8 ``[h w c]``; Pillow would make 8 bits of deeper ones, but those have a range."""
    with Image.open(file, formats=_FORMATS) as image:
        return _array(image, channels)


def _array(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode.startswith(("I", "F")):
        raise DecodeError("pixels of more than 8 bits, but the data set has uint8")
    ImageOps.exif_transpose(image, in_place=True)
    image.info.pop("transparency", None)  # it has no place in RGB, and Pillow would warn
    array = np.array(image.convert("RGB" if channels == 3 else "L"))
    return array if array.ndim == 3 else array[:, :, None]


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    turned = (
        image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) >= 5
    )  # of a TIFF, Pillow turns the size itself
    return (width, height) if turned else (height, width)


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


def _is_unidentified(error: Exception) -> bool:
    """Say whether Pillow does not know the file, even where Ultralytics has replaced Pillow's ``open`` by its own.

    That one then looks for a further library and fails where it is not there.
    """
    return isinstance(error, UnidentifiedImageError) or isinstance(error.__context__, UnidentifiedImageError)


def _reason(error: Exception, file: Path | BytesIO) -> DecodeError:
    """Return why a file cannot be used, in one line."""
    if isinstance(error, DecodeError):
        return error
    if isinstance(error, FileNotFoundError):
        return DecodeError("the file is gone")
    if _is_unidentified(error):
        size = file.stat().st_size if isinstance(file, Path) else len(file.getvalue())
        return DecodeError("not an image" if size else "an empty file")
    if isinstance(error, Image.DecompressionBombError):
        return DecodeError(f"more than {LARGEST:,} pixels, which may be a decompression bomb")
    if "truncated" in str(error).lower():
        return DecodeError("a truncated file")
    if isinstance(error, OSError) and error.strerror:  # its text would repeat the path
        return DecodeError(error.strerror.lower())
    return DecodeError(" ".join(f"{type(error).__name__}: {error}".split()))
