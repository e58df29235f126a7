"""The index of a data set: columns, never one Python object per image."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from headstart.errors import UserError

SPLITS = ("train", "val", "test", "unlabelled")  # a split's code in the index is its position here
TRAIN, VAL, TEST, UNLABELLED, NO_SPLIT, NO_LABEL = 0, 1, 2, 3, -1, -1

SCHEMA = pa.schema(
    {
        "path": pa.string(),  # relative to the root, with forward slashes
        "label": pa.int32(),
        "split": pa.int8(),
        "height": pa.int32(),  # pixels, after EXIF orientation
        "width": pa.int32(),
        "bytes": pa.int64(),  # of the file
        "crc": pa.uint32(),  # CRC-32 of the file's first and last 4 KiB
    }
)


@dataclass(frozen=True)
class BadImage:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images and what is known about them, in the order of their paths.

    Attributes:
        name: the folder's or the known data set's name.
        classes: the class names; a label is a position in them. Empty when the images have no labels.
        index: the columns of ``SCHEMA``, one row per image.
        fingerprint: 16 hexadecimal digits that change with the images, labels or splits, the same on every machine.
        layout: how labels and splits were read, in one line.
        root: the folder that the paths are relative to, if the images are files.
        images: the pixels, uint8 ``[n c h w]``, if the data set came as an array.
        bad: the files that were left out because they are broken.
        ignored: how many other files and links are in the folder.
    """

    name: str
    classes: tuple[str, ...]
    index: pa.Table
    fingerprint: str
    layout: str
    root: Path | None = None
    images: Tensor | None = None
    bad: tuple[BadImage, ...] = ()
    ignored: int = 0

    @property
    def count(self) -> int:
        """How many images there are."""
        return int(self.index.num_rows)

    def take(self, rows: Tensor) -> "DataSet":
        """Return the data set of some of the rows, int64 ``[n]`` ascending, with a fingerprint of its own."""
        chosen = hashlib.sha256(f"{self.fingerprint} {rows.tolist()}".encode()).hexdigest()[:16]
        images = self.images[rows] if self.images is not None else None
        return replace(self, index=self.index.take(rows.numpy()), fingerprint=chosen, images=images)

    @cached_property
    def labels(self) -> Tensor:
        """Class numbers, int64 ``[n]``; -1 without a label."""
        return self._column("label")

    @cached_property
    def splits(self) -> Tensor:
        """Positions in ``SPLITS``, int64 ``[n]``; -1 where the data came without splits."""
        return self._column("split")

    @cached_property
    def sizes(self) -> Tensor:
        """Heights and widths in pixels, int64 ``[n 2]``."""
        return torch.stack([self._column("height"), self._column("width")], dim=1)

    @cached_property
    def paths(self) -> pa.StringArray:
        """Relative paths with forward slashes, as a column: ``paths[row].as_py()``, or ``paths.to_pylist()``."""
        column = self.index["path"]
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.string())

    def require_labels(self, field: str) -> None:
        """Raise a UserError that names ``field`` unless the images have labels of at least two classes."""
        wanted = (
            "put the images of each class into a folder of its own: DATA/CLASS/image.jpg or DATA/train/CLASS/image.jpg"
        )
        if not self.classes:
            raise UserError(f"{field}: {self.name} has no labels ({self.layout}); {wanted}")
        if len(self.classes) == 1:
            only = self.classes[0]
            raise UserError(
                f"{field}: {self.name} is a folder with one class, '{only}'; at least two are needed; {wanted}"
            )

    def _column(self, name: str) -> Tensor:
        return torch.from_numpy(self.index[name].to_numpy().astype(np.int64))


def array_data(
    name: str, images: Tensor, labels: Sequence[int], splits: Sequence[int], classes: Sequence[str]
) -> DataSet:
    """Return the data set of images that are in memory.

    Args:
        name: the data set's name.
        images: uint8 ``[n c h w]``.
        labels: class numbers, one per image.
        splits: positions in ``SPLITS``, or -1, one per image.
        classes: the class names.
    """
    count, channels, height, width = images.shape
    columns = {
        "path": [f"{name}/{number:06d}" for number in range(count)],
        "label": labels,
        "split": splits,
        "height": np.full(count, height),
        "width": np.full(count, width),
        "bytes": np.full(count, channels * height * width),
        "crc": np.zeros(count, np.uint32),
    }
    index = pa.table(columns, schema=SCHEMA)
    contents = hashlib.sha256(images.numpy().tobytes()).digest()
    return DataSet(
        name, tuple(classes), index, fingerprint(index, classes, contents), "a known data set", images=images
    )


def fingerprint(index: pa.Table, classes: Sequence[str], contents: bytes = b"") -> str:
    """Return 16 hexadecimal digits of the SHA-256 of an index whose rows are sorted by path.

    What counts: the classes, and of every image its relative path, size in bytes, checksum, label and split; for images
    that came as an array, ``contents`` stands for their pixels.
    """
    digest = hashlib.sha256(contents)
    digest.update("\0".join([*classes, ""]).encode())
    for batch in index.to_batches(max_chunksize=1 << 16):
        digest.update("\0".join([*batch["path"].to_pylist(), ""]).encode())
    for name in ("label", "split", "bytes", "crc"):
        digest.update(index[name].to_numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:16]
