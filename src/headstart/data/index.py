"""The index of a data set: columns, never one Python object per image."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from headstart.errors import UserError

SPLITS = ("train", "val", "test", "unlabelled")  # a split's code in the index is its position here
TRAIN, VAL, TEST, UNLABELLED, NO_SPLIT, NO_LABEL = 0, 1, 2, 3, -1, -1

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64")

SCHEMA = pa.schema(
    {
        "path": pa.string(),  # relative to the root, with forward slashes
        "label": pa.int32(),
        "split": pa.int8(),
        "height": pa.int32(),  # pixels, after EXIF orientation
        "width": pa.int32(),
        "bytes": pa.int64(),  # of the file
        "crc": pa.uint32(),  # CRC-32 of the file's first and last 4 KiB
        "channels": pa.int16(),  # as stored, without transparency
        "dtype": pa.int8(),  # of a pixel, a position in DTYPES
    }
)
OPTIONAL = pa.schema(
    {
        "group": pa.string(),  # images of one group, such as the crops of one picture, stay in one split
        "mask": pa.string(),  # the file of class ids, relative to the root
        "offset": pa.int64(),  # where the file begins in the tar file that its path starts with
    }
)
OBJECTS = pa.schema(
    {
        "image": pa.int64(),  # the row of the image; rising
        "label": pa.int32(),
        "left": pa.float32(),  # pixels of the upright image, from its upper left corner
        "top": pa.float32(),
        "right": pa.float32(),
        "bottom": pa.float32(),
    }
)
TAR = ".tar/"  # between the tar file and the member, in the path of an image that lies in one


@dataclass(frozen=True)
class BadImage:
    """A file that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Pixels:
    """What the pixels of a data set are, and how they become numbers in 0..1.

    Attributes:
        channels: of every image when it has been decoded.
        range: for each channel the values that become 0 and 1, where pixels are more than 8 bits deep; None for 8-bit
            pixels, of which 255 becomes 1.
    """

    channels: int = 3
    range: tuple[tuple[float, float], ...] | None = None


RGB = Pixels()


@dataclass(frozen=True, eq=False)
class DataSet:
    """Images and what is known about them, in the order of their paths.

    Attributes:
        name: the folder's or the known data set's name.
        classes: the class names; a label, of an image or of an object, is a position in them. Empty without labels.
        index: the columns of ``SCHEMA``, and those of ``OPTIONAL`` that there are; one row per image.
        fingerprint: 16 hexadecimal digits that change with the images, labels or splits, the same on every machine.
        layout: how labels and splits were read, in one line.
        root: the folder that the paths are relative to, if the images are files.
        images: the pixels, uint8 ``[n c h w]``, if the data set came as an array.
        pixels: what decoded pixels are.
        objects: labelled boxes, the columns of ``OBJECTS``; None where the data have no boxes.
        mask_values: the values that pixels of each class have in the mask files, first the one to write; empty where
            the data have no masks.
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
    pixels: Pixels = RGB
    objects: pa.Table | None = None
    mask_values: tuple[tuple[int, ...], ...] = ()
    bad: tuple[BadImage, ...] = ()
    ignored: int = 0

    @property
    def count(self) -> int:
        """How many images there are."""
        return int(self.index.num_rows)

    def take(self, rows: Tensor) -> "DataSet":
        """Return the data set of some of the rows, int64 ``[n]`` ascending, with a fingerprint of its own."""
        chosen = hashlib.sha256(self.fingerprint.encode() + rows.numpy().astype("<i8").tobytes()).hexdigest()[:16]
        return replace(
            self,
            index=self.index.take(rows.numpy()),
            fingerprint=chosen,
            images=self.images[rows] if self.images is not None else None,
            objects=_objects_of(self.objects, rows) if self.objects is not None else None,
        )

    def file(self, row: int) -> Path | BytesIO:
        """Return where the bytes of an image are: its file, or what was read of the tar file that it lies in."""
        assert self.root is not None
        path: str = self.paths[row].as_py()
        if "offset" not in self.index.column_names:
            return self.root / path
        with (self.root / path[: path.index(TAR) + len(TAR) - 1]).open("rb") as archive:
            archive.seek(self.index["offset"][row].as_py())
            return BytesIO(archive.read(self.index["bytes"][row].as_py()))

    @cached_property
    def labels(self) -> Tensor:
        """Class numbers, int64 ``[n]``; -1 without a label."""
        return self._column("label")

    @cached_property
    def splits(self) -> Tensor:
        """Positions in ``SPLITS``, int64 ``[n]``; -1 where the data came without splits."""
        return self._column("split")

    @cached_property
    def groups(self) -> Tensor | None:
        """A number for each group, int64 ``[n]``; images without one are a group of their own. None without groups."""
        if "group" not in self.index.column_names:
            return None
        names = self.index["group"].combine_chunks().dictionary_encode()
        codes = torch.from_numpy(names.indices.fill_null(-1).to_numpy().astype(np.int64))
        return torch.where(codes < 0, len(names.dictionary) + torch.arange(len(codes)), codes)

    @cached_property
    def sizes(self) -> Tensor:
        """Heights and widths in pixels, int64 ``[n 2]``."""
        return torch.stack([self._column("height"), self._column("width")], dim=1)

    @cached_property
    def paths(self) -> pa.StringArray:
        """Relative paths with forward slashes, as a column: ``paths[row].as_py()``, or ``paths.to_pylist()``."""
        column = self.index["path"]
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()  # one chunk may stay on the disk

    def require_labels(self, field: str) -> None:
        """Raise a UserError that names ``field`` unless the images have labels of at least two classes."""
        wanted = (
            "put the images of each class into a folder of its own: DATA/CLASS/image.jpg or DATA/train/CLASS/image.jpg"
        )
        if not self.classes or self.objects is not None or (self.mask_values and bool((self.labels < 0).all())):
            raise UserError(f"{field}: {self.name} has no labels ({self.layout}); {wanted}")
        if len(self.classes) == 1:
            only = self.classes[0]
            raise UserError(
                f"{field}: {self.name} is a folder with one class, '{only}'; at least two are needed; {wanted}"
            )

    def _column(self, name: str) -> Tensor:
        column = self.index[name].combine_chunks()
        return torch.from_numpy(np.from_dlpack(column).astype(np.int64))  # to_numpy would import pandas


def array_data(
    name: str,
    images: Tensor,
    labels: Sequence[int],
    splits: Sequence[int],
    classes: Sequence[str],
    contents: bytes | None = None,
) -> DataSet:
    """Return the data set of images that are in memory.

    Args:
        name: the data set's name.
        images: uint8 ``[n c h w]``.
        labels: class numbers, one per image.
        splits: positions in ``SPLITS``, or -1, one per image.
        classes: the class names.
        contents: what stands for the pixels in the fingerprint; None for their SHA-256.
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
        "channels": np.full(count, channels),
        "dtype": np.zeros(count),
    }
    index = pa.table(columns, schema=SCHEMA)
    contents = contents or hashlib.sha256(images.numpy().tobytes()).digest()
    return DataSet(
        name, tuple(classes), index, fingerprint(index, classes, contents), "a known data set", images=images
    )


def _objects_of(objects: pa.Table, rows: Tensor) -> pa.Table:
    """Return the objects of the images in these rows, numbered as the images are then."""
    images = torch.from_numpy(objects["image"].to_numpy().astype(np.int64))
    chosen = torch.isin(images, rows)
    places = torch.searchsorted(rows, images[chosen]).numpy()
    return objects.filter(pa.array(chosen.numpy())).set_column(0, OBJECTS.field("image"), pa.array(places))


def fingerprint(index: pa.Table, classes: Sequence[str], contents: bytes = b"", objects: pa.Table | None = None) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of an index whose rows are sorted by path.

    What counts: the classes, and of every image its relative path, size in bytes, checksum, label and split, group and
    mask; for images that came as an array, ``contents`` stands for their pixels. For masks, ``contents`` stands for
    the checksums of their files.
    """
    digest = hashlib.sha256(contents)
    digest.update("\0".join([*classes, ""]).encode())
    for batch in index.to_batches(max_chunksize=1 << 16):
        digest.update("\0".join([*batch["path"].to_pylist(), ""]).encode())
    for name in ("label", "split", "bytes", "crc"):
        digest.update(index[name].to_numpy().astype("<i8").tobytes())
    for name in ("group", "mask"):
        if name in index.column_names:
            for number, batch in enumerate(index.to_batches(max_chunksize=1 << 16)):
                texts = "\0".join([text or "" for text in batch[name].to_pylist()])
                digest.update(b"\0" * (number > 0) + texts.encode())
    for column in objects.columns if objects is not None else ():
        digest.update(column.to_numpy().astype("<f8").tobytes())
    return digest.hexdigest()[:16]
