"""Pixels of more than 8 bits, and of any number of channels: TIFF through tifffile, 16-bit PNG through libpng."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from headstart.data.index import DTYPES

_PLAIN_MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB")
_BITS, _PHOTOMETRIC, _SAMPLES, _EXTRA, _SAMPLE_FORMAT = 258, 262, 277, 338, 339  # TIFF tags
_ALPHA = (1, 2)  # kinds of extra samples that are transparency
_CHANNEL_AXES = "SCQ"  # of tifffile: samples, channels, and an axis that the writer did not name
_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's L


class _Layout(NamedTuple):
    """Where the pixels are in what tifffile gives: the axis of the channels, of which the first so many count."""

    picks: tuple[Any, ...]
    height: int
    width: int
    channels: int
    stored: int
    last: bool


def is_tiff(start: bytes) -> bool:
    """Return whether a file that begins so is a TIFF or a BigTIFF."""
    return start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def is_deep_png(start: bytes) -> bool:
    """Return whether a file that begins so is a PNG with 16 bits per channel, of which Pillow drops 8 in colour."""
    return start[:8] == b"\x89PNG\r\n\x1a\n" and start[12:16] == b"IHDR" and start[24:25] == b"\x10"


def is_plain_tiff(mode: str, tags: Mapping[int, Any]) -> bool:
    """Return whether a TIFF, opened by Pillow in this mode, is no more than Pillow says."""
    bits = tags.get(_BITS, (1,))
    samples = tags.get(_SAMPLES, 1)
    extra = tags.get(_EXTRA, ())
    extra = extra if isinstance(extra, tuple) else (extra,)
    hidden = any(kind not in _ALPHA for kind in extra)
    floats = any(kind not in (1, 4) for kind in tags.get(_SAMPLE_FORMAT, (1,)))
    return mode in _PLAIN_MODES and max(bits) <= 8 and not hidden and not floats and samples - len(extra) <= 4


def read_png(file: BytesIO) -> np.ndarray:
    """Return the pixels of a 16-bit PNG, uint16 ``[h w c]``, without transparency."""
    import imagecodecs  # here, because few data sets need it

    with Image.open(file, formats=("PNG",)):
        pass  # Pillow refuses decompression bombs
    array: np.ndarray = imagecodecs.png_decode(file.getvalue())
    array = array if array.ndim == 3 else array[:, :, None]
    return array[:, :, : {2: 1, 4: 3}.get(array.shape[2], array.shape[2])]


def tiff_header(file: BinaryIO, size: int, largest: int) -> tuple[int, int, int, str]:
    """Return the height, width, channels and type of the pixels of a TIFF.

    Args:
        file: the file.
        size: of the file, in bytes.
        largest: number of pixels that is still decoded.

    Raises:
        ValueError: it is truncated, too large, or of a type of pixels that is not supported.
    """
    import tifffile  # here, because few data sets need it

    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        series, page = tiff.series[0], tiff.pages.first
        layout = _layout(series, page, largest)
        ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
        if max(ends, default=size + 1) > size:
            raise ValueError("truncated file")
        return layout.height, layout.width, layout.channels, _dtype(series.dtype)


def read_tiff(file: BinaryIO, largest: int) -> np.ndarray:
    """Return the pixels of the first image of a TIFF, upright, ``[h w c]``, without transparency.

    Axes that are neither rows, columns nor channels (depth, time, pages) are read at their first position.

    Args:
        file: the file.
        largest: number of pixels that is still decoded.

    Raises:
        ValueError: it is too large, or of a type of pixels that is not supported.
    """
    import tifffile  # here, because few data sets need it

    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        series, page = tiff.series[0], tiff.pages.first
        layout = _layout(series, page, largest)
        _dtype(series.dtype)
        array = series.asarray()[layout.picks]
    if layout.stored == 1:
        array = array[:, :, None]
    elif not layout.last:
        array = np.moveaxis(array, 0, 2)
    orientation = page.tags.get(274)
    return _upright(array[:, :, : layout.channels], 1 if orientation is None else int(orientation.value))


def in_channels(array: np.ndarray, channels: int) -> np.ndarray:
    """Return pixels ``[h w c]`` in that many channels: grey levels become equal channels, and colours their luminance.

    Raises:
        ValueError: neither is meant by these numbers of channels.
    """
    found = array.shape[2]
    if found == channels:
        return array
    if found == 1:
        return array.repeat(channels, axis=2)
    if found == 3 and channels == 1:
        return (array @ np.array(_LUMINANCE, np.float32))[:, :, None]
    raise ValueError(f"{found} channels, but the data set has {channels}")


def scaled(array: np.ndarray, ranges: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Return pixels ``[h w c]`` such that the ends of each channel's range become 0 and 1, as float32 in 0..1.

    What lies outside of the range gets the value of its end, and what is no number gets that of the lower one.
    """
    low, high = np.array(ranges, np.float64).T
    values: np.ndarray = (array.astype(np.float64) - low) / (high - low)
    finite: np.ndarray = np.nan_to_num(values, nan=0.0, posinf=1.0, neginf=0.0)
    return finite.clip(0, 1).astype(np.float32)


def _layout(series: Any, page: Any, largest: int) -> _Layout:
    axes, shape = series.axes, series.shape
    sizes = dict(zip(axes, shape, strict=True))
    if "Y" not in sizes or "X" not in sizes:
        raise ValueError(f"a TIFF with the axes {axes}, not an image")
    height, width = sizes["Y"], sizes["X"]
    if height * width > largest:
        raise ValueError(f"more than {largest:,} pixels, which may be a decompression bomb")
    channel = next((axis for axis in _CHANNEL_AXES if sizes.get(axis, 1) > 1), None)
    picks = tuple(slice(None) if axis in ("Y", "X", channel) else 0 for axis in axes)
    stored = sizes[channel] if channel else 1
    alpha = channel == "S" and any(int(kind) in _ALPHA for kind in page.extrasamples)
    last = channel is not None and axes.index(channel) > axes.index("X")
    turned = page.tags.get(274) is not None and int(page.tags[274].value) >= 5
    height, width = (width, height) if turned else (height, width)
    return _Layout(picks, height, width, stored - alpha, stored, last)


def _dtype(dtype: np.dtype[Any]) -> str:
    if dtype.name not in DTYPES:
        raise ValueError(f"pixels of type {dtype.name} (allowed: {', '.join(DTYPES)})")
    return str(dtype.name)


def _upright(array: np.ndarray, orientation: int) -> np.ndarray:
    """Return pixels ``[h w c]`` turned and mirrored as the orientation tag of TIFF 6.0 says."""
    if orientation in (5, 6, 7, 8):
        array = array.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array
