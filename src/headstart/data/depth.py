"""Which channels the images of a data set have, and which values of deep pixels become 0 and 1."""

from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from headstart.data.deep import in_channels
from headstart.data.images import raw
from headstart.data.index import DTYPES, RGB, TEST, VAL, BadImage, DataSet, Pixels
from headstart.data.options import Options, Range
from headstart.errors import UserError
from headstart.randomness import permutation

PERCENTILES = (0.1, 99.9)  # a few hot or dead pixels do not decide the range
_IMAGES, _VALUES = 500, 4096  # looked at, and of each image and channel
_SAMPLE = 5  # what the order is drawn for


def pixels_of(data: DataSet, options: Options) -> DataSet:
    """Return the data set with the pixels that are asked for.

    Grey and colour images are one kind, every other number of channels and every depth is one of its own. A few images
    of another kind than most are left out, as broken ones are.

    Raises:
        UserError: too many images are of another kind, or they cannot be had in what is asked for.
    """
    if data.count == 0:
        return data
    data = _of_one_kind(data, options.max_bad)
    dtype = DTYPES[data.index["dtype"][0].as_py()]
    channels = _channels(data, options)
    if dtype == "uint8":
        if options.pixel_range not in ("auto", None):
            raise UserError(f"pixel_range: {data.name} has 8-bit pixels, which need none (allowed: auto, none)")
        return replace(data, pixels=Pixels(channels)) if channels != RGB.channels else data
    if options.pixel_range is None:
        raise UserError(f"pixel_range: {data.name} has {dtype} pixels (allowed: auto, or LOW,HIGH)")
    ranges = percentiles(data, channels) if options.pixel_range == "auto" else options.pixel_range
    if len(ranges) not in (1, channels):
        raise UserError(f"pixel_range: {len(ranges)} ranges for {channels} channels (allowed: 1 or {channels})")
    return replace(data, pixels=Pixels(channels, ranges * (channels // len(ranges))))


def in_asked_channels(data: DataSet, channels: int | Literal["auto"]) -> DataSet:
    """Return a data set whose images lie in memory in the channels that are asked for.

    Raises:
        UserError: they cannot be had in them.
    """
    assert data.images is not None
    wanted = _channels(data, Options(channels=channels))
    if wanted == data.images.shape[1]:
        return data
    red, green, blue = data.images.unbind(1)
    grey = (299 * red.int() + 587 * green.int() + 114 * blue.int()) // 1000  # ITU-R BT.601, as Pillow's L
    return replace(data, images=grey.to(torch.uint8).unsqueeze(1), pixels=Pixels(wanted))


def percentiles(data: DataSet, channels: int) -> Range:
    """Return for each channel the 0.1st and 99.9th percentile of a sample of the training images' pixels.

    The sample is a function of the images alone. Values that are not finite do not count.
    """
    rows = ((data.splits != TEST) & (data.splits != VAL)).nonzero().squeeze(1)
    rows = rows if len(rows) else torch.arange(data.count)
    rows = rows[permutation(len(rows), 0, _SAMPLE)[:_IMAGES]]
    samples = []
    for row in rows.tolist():
        try:
            array = in_channels(raw(data.file(row)), channels).reshape(-1, channels)
        except Exception:  # a damaged file has no pixels; the loader lists it
            continue
        generator = np.random.default_rng(row)
        places = generator.integers(0, len(array), _VALUES) if len(array) > _VALUES else slice(None)
        samples.append(array[places].astype(np.float64))
    values = np.concatenate(samples) if samples else np.zeros((1, channels))
    return tuple(_range(values[:, channel]) for channel in range(channels))


def _range(values: np.ndarray) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return (low, high) if high > low else (low, low + 1)


def _of_one_kind(data: DataSet, max_bad: float) -> DataSet:
    """Return the images of the most frequent kind; raise when the others are more than may be left out."""
    dtypes, channels = (data.index[name].to_numpy().astype(np.int64) for name in ("dtype", "channels"))
    kinds = dtypes << 16 | np.where(channels == 1, 3, channels)
    found, counts = np.unique(kinds, return_counts=True)
    usual = found[counts.argmax()]
    odd = (kinds != usual).nonzero()[0]
    if not len(odd):
        return data
    if len(odd) > max_bad * data.count:
        names = ", ".join(f"{count} of {_name(kind)}" for kind, count in zip(found, counts, strict=True))
        path = data.paths[odd[0]].as_py()
        raise UserError(f"data: the images of {data.name} are of several kinds: {names}, such as {path} (allowed: one)")
    reasons = [f"{_name(kinds[row])}, where the others are {_name(usual)}" for row in odd]
    left_out = [BadImage(data.paths[row].as_py(), reason) for row, reason in zip(odd, reasons, strict=True)]
    kept = torch.from_numpy((kinds == usual).nonzero()[0])
    return replace(data.take(kept), bad=(*data.bad, *left_out))


def _name(kind: int) -> str:
    channels = int(kind) & 0xFFFF
    return f"{DTYPES[int(kind) >> 16]} " + ("grey or colours" if channels == 3 else f"in {channels} channels")


def _channels(data: DataSet, options: Options) -> int:
    found = set(data.index["channels"].unique().to_pylist())
    allowed = (1, 3) if found <= {1, 3} else tuple(found)
    if options.channels == "auto":
        return int(max(allowed))
    if options.channels not in allowed:
        raise UserError(
            f"channels: {options.channels}, but the images of {data.name} have {' or '.join(map(str, sorted(found)))}"
            f" (allowed: {', '.join(map(str, allowed))}, auto)"
        )
    return options.channels
