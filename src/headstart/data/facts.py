"""What a run records about its images."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from headstart.data.index import DataSet

_BLOCK = 1 << 16  # names in memory at once


def native_size(data: DataSet) -> int:
    """Return the median of the images' shorter sides, in pixels."""
    return int(data.sizes.min(dim=1).values.median())


def describe(data: DataSet, parts: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the data set's fingerprint and counts, and for each named part of it its size and the hash of its files.

    Args:
        data: the data set.
        parts: the rows of each part, int64 ``[n]``.
    """
    return {
        "name": data.name,
        "layout": data.layout,
        "images": data.count,
        "classes": list(data.classes),
        "fingerprint": data.fingerprint,
        "ignored_files": data.ignored,
        "bad_images": {bad.path: bad.reason for bad in data.bad},
        "parts": {name: {"images": len(rows), "hash": _hash(data, rows)} for name, rows in parts.items()},
    }


def _hash(data: DataSet, rows: Tensor) -> str:
    digest = hashlib.sha256()
    for number, block in enumerate(torch.split(rows, _BLOCK)):
        names = data.paths.take(block.numpy()).to_pylist() if data.root is not None else block.tolist()
        digest.update(b"\0" * (number > 0) + "\0".join(str(name) for name in names).encode())
    return digest.hexdigest()[:16]
