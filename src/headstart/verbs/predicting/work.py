"""Images that are predicted one after the other, and where what is found in each of them is written."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from lightning.fabric import Fabric
from torch import Tensor

from headstart.config import Predict
from headstart.data.index import BadImage, DataSet
from headstart.errors import UserError
from headstart.progress import Track
from headstart.verbs import resolve
from headstart.verbs.exporting.source import Source

PREDICTIONS = "predictions.csv"
_END = r"([^/])\.[^./]*$"  # of a file name; what begins with its only dot has none
_IMAGES = r"(^|/)(images/)+"


@dataclass(frozen=True)
class Work:
    """What is to be predicted.

    Attributes:
        settings: resolved.
        source: the RUN.
        images: what is looked at.
        folder: to write into.
        fabric: device and precision.
        track: counts the images that are done.
        seen: which images are done, bool ``[n]``.
        reasons: why images could not be decoded, by path, as far as it is known.
    """

    settings: Predict
    source: Source
    images: DataSet
    folder: Path
    fabric: Fabric
    track: Track
    seen: Tensor
    reasons: dict[str, str] = field(default_factory=dict)

    @property
    def reading(self) -> dict[str, Any]:
        """How images are read, as the generators of batches take it."""
        workers = resolve.workers(self.settings.workers)
        return {"batch_size": self.settings.batch_size, "workers": workers, "device": self.fabric.device}

    def done(self, rows: Tensor) -> None:
        """Count images, int64 ``[b]`` on the CPU, as predicted."""
        self.seen[rows] = True
        self.track.update(len(rows))

    def unread(self) -> list[BadImage]:
        """Return the images that were not predicted, and why."""
        paths = [self.images.paths[row].as_py() for row in (~self.seen).nonzero().squeeze(1).tolist()]
        return [BadImage(path, self.reasons.get(path, "cannot be decoded")) for path in paths]

    @cached_property
    def names(self) -> pa.StringArray:
        """What the files of each image are called, without their ends."""
        return file_names(self.images.paths)

    def place(self, kind: str, row: int, end: str) -> Path:
        """Return the file of one kind for an image, in a folder that is there.

        Raises:
            UserError: a folder of the images is called as a file that was written.
        """
        path = self.folder / kind / f"{self.names[row].as_py()}{end}"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            raise UserError(
                f"data: {self.images.paths[row].as_py()!r} cannot have a file {kind}/{self.names[row].as_py()}{end},"
                " because an image has one where its folder would be (rename the folder)"
            ) from None
        return path


@contextmanager
def table(folder: Path, columns: Sequence[str]) -> Iterator[Any]:
    """Give the writer of ``predictions.csv``, which has the names of the columns already."""
    with (folder / PREDICTIONS).open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        yield writer


def file_names(paths: pa.StringArray) -> pa.StringArray:
    """Return a name, without its end, for the file that is written for each of distinct image paths.

    It is the path of the image without the end and without folders called ``images``, because masks and boxes are
    looked for in a folder beside that. Where two images would have one name, they keep their whole paths, ends and all.

    >>> file_names(pa.array(["images/a/1.jpg", "b/2.jpg", "b/2.png", "c.d/3"])).to_pylist()
    ['a/1', 'b/2.jpg', 'b/2.png', 'c.d/3']
    """
    bare = pc.replace_substring_regex(paths, _END, r"\1")
    names = pc.replace_substring_regex(bare, _IMAGES, r"\1")
    while len(twins := _more_than_once(names)):
        names = pc.if_else(pc.is_in(names, twins), paths, names)
    return names


def _more_than_once(names: pa.StringArray) -> pa.Array:
    counts = pc.value_counts(names)
    return counts.field("values").filter(pc.greater(counts.field("counts"), 1))


def named(classes: Sequence[str], counts: np.ndarray) -> Mapping[str, int]:
    """Return the count of each class by its name."""
    return dict(zip(classes, counts.tolist(), strict=True))
