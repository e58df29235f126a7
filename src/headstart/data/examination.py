"""A full look at images: what their pixels are, beyond what the headers of their files say."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from headstart.data.duplicates import SIDE, perceptual_hashes, thumbnail
from headstart.data.images import THREADS, DecodeError, check_size, decode
from headstart.data.index import BadImage, DataSet
from headstart.data.scan import printable
from headstart.randomness import permutation

ALWAYS = 20_000  # images that are all decoded
_BUDGET = 8e9  # pixels that are decoded of more images than that: minutes on two cores
_FILE = 1e4  # pixels that are decoded in the time that it takes to open a file
_BLOCK = 1024  # images whose thumbnails are in memory
_SAMPLE = 6  # what the order is drawn for


class Examined(NamedTuple):
    """What the pixels of images are; one entry for each image that could be decoded.

    Attributes:
        rows: of the images, int64 ``[n]``, ascending.
        digests: the SHA-256 of shape and pixels, 32 bytes each.
        hashes: perceptual hashes, uint64 ``[n]``.
        grey: whether all three channels are equal, bool ``[n]``.
        constant: whether all pixels are equal, bool ``[n]``.
        failures: the images that could not be decoded.
    """

    rows: Tensor
    digests: np.ndarray
    hashes: np.ndarray
    grey: np.ndarray
    constant: np.ndarray
    failures: tuple[BadImage, ...]


class _Look(NamedTuple):
    digest: bytes
    thumbnail: Tensor
    grey: bool
    constant: bool


def rows_to_decode(data: DataSet, seed: int) -> Tensor:
    """Return the images to decode, int64 ``[n]``, ascending: all of 20,000, of more a random sample.

    The sample has 20,000 images or, of small ones, as many as minutes allow: all 60,000 of CIFAR-10.
    """
    order = permutation(data.count, seed, _SAMPLE)
    cost = torch.cumsum(data.sizes[order].prod(dim=1).double() + _FILE, dim=0)
    count = max(ALWAYS, int((cost <= _BUDGET).sum()))
    return order[:count].sort().values


def examine(data: DataSet, rows: Tensor, *, done: Callable[[int], object] = lambda count: None) -> Examined:
    """Decode images and return what their pixels are.

    Args:
        data: the data.
        rows: which images, int64 ``[n]``, ascending.
        done: is told how many further images were looked at.
    """
    good, looks, hashes, failures = list[int](), list[_Look](), list[np.ndarray](), list[BadImage]()
    for block in torch.split(rows, _BLOCK):
        thumbnails = [torch.empty(0, SIDE, SIDE)]
        for row, look in zip(block.tolist(), _looks(data, block), strict=True):
            if isinstance(look, DecodeError):
                failures.append(BadImage(printable(data.paths[row].as_py()), str(look)))
            else:
                good.append(row)
                thumbnails.append(look.thumbnail[None])
                looks.append(look._replace(thumbnail=torch.empty(0)))
        hashes.append(perceptual_hashes(torch.cat(thumbnails)))
        done(len(block))
    return Examined(
        torch.tensor(good, dtype=torch.int64),
        np.array([look.digest for look in looks], dtype="V32"),
        np.concatenate([np.zeros(0, np.uint64), *hashes]),
        np.array([look.grey for look in looks], dtype=bool),
        np.array([look.constant for look in looks], dtype=bool),
        tuple(failures),
    )


def pixels(data: DataSet, row: int) -> Tensor:
    """Return the pixels of an image, uint8 or float in 0..1, ``[c h w]``.

    Raises:
        DecodeError: they cannot be had.
    """
    if data.images is not None:
        return data.images[row]
    image = decode(data.file(row), data.pixels)
    check_size(image.shape[1:], *data.sizes[row].tolist())
    return image


def equal_files(data: DataSet) -> np.ndarray:
    """Return pairs of rows whose files have the same bytes, int64 ``[p 2]``; the first of each is the group's first.

    Only files of one size and one checksum of their ends are read, so this is fast even for a million images.
    """
    if data.images is not None:
        return np.zeros((0, 2), np.int64)
    keys = np.stack([data.index[name].to_numpy().astype(np.int64) for name in ("bytes", "crc")], axis=1)
    _, group, sizes = np.unique(keys, axis=0, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(sizes[group] > 1)
    firsts: dict[tuple[int, bytes], int] = {}
    pairs = [np.zeros((0, 2), np.int64)]
    for row in candidates.tolist():
        digest = _file_digest(data.file(row))
        first = firsts.setdefault((int(group[row]), digest), row)
        if first != row and digest:
            pairs.append(np.array([[first, row]]))
    return np.concatenate(pairs)


def _file_digest(file: Path | BytesIO) -> bytes:
    """Return the SHA-256 of a file's bytes, nothing where it cannot be read."""
    try:
        return hashlib.sha256(file.read_bytes() if isinstance(file, Path) else file.getvalue()).digest()
    except OSError:
        return b""


def _looks(data: DataSet, rows: Tensor) -> Iterator[_Look | DecodeError]:
    def look(row: int) -> _Look | DecodeError:
        try:
            return _look(pixels(data, row))
        except DecodeError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(look, rows.tolist())


def _look(image: Tensor) -> _Look:
    digest = hashlib.sha256(repr(tuple(image.shape)).encode() + image.contiguous().numpy().tobytes()).digest()
    grey = len(image) == 3 and bool((image[0] == image[1]).all() and (image[0] == image[2]).all())
    return _Look(digest, thumbnail(image), grey, bool((image == image[:, :1, :1]).all()))
