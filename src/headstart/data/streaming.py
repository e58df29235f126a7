"""Images that are decoded as they are needed, in processes that hand over small crops."""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from headstart.data.images import DecodeError, check_size, decode
from headstart.data.index import DataSet
from headstart.data.schedule import Drawn
from headstart.data.targets import mask_of
from headstart.views import Augment, Key, crop_boxes, crop_one, nearest_crops

Read = TypeVar("Read")
TRIES = 100  # images that fail one after the other before reading is given up


class Schedule(Protocol):
    """Which images make up each batch."""

    def __len__(self) -> int: ...

    def at(self, index: int) -> Drawn:
        """Return the images of a batch."""


class Part(NamedTuple):
    """What a worker hands over.

    Attributes:
        step: the step that the images belong to.
        rows: which images, int64 ``[b]``.
        repeats: as those of ``Drawn``, int64 ``[b]``.
        crops: one tensor per view, ``[b c s s]``, each of the view's own side: uint8, or float in 0..1 of deep pixels.
        failures: why images could not be decoded, by path.
        masks: the crops of the masks for the first view, int16 ``[b s s]``, where they are wanted.
    """

    step: int
    rows: Tensor
    repeats: Tensor
    crops: tuple[Tensor, ...]
    failures: dict[str, str]
    masks: Tensor | None = None


class Crops(Dataset[Part]):
    """Batches of crops by their number: what a worker does, and all that it needs to know."""

    def __init__(
        self,
        dataset: DataSet,
        rows: Tensor,
        augments: tuple[Augment, ...],
        image_size: int,
        seed: int,
        schedule: Schedule,
        *,
        replace: bool,
        masks: bool = False,
    ) -> None:
        self.dataset, self.rows, self.augments, self.image_size = dataset, rows, augments, image_size
        self.seed, self.schedule, self.replace = seed, schedule, replace
        self.masks = masks
        self.sides = [augment.pixels(image_size) for augment in augments]

    def __len__(self) -> int:
        return len(self.schedule)

    def key(self, step: int, rows: Tensor, repeats: Tensor, view: int) -> Key:
        """Return what names a view of these rows; a repeated image gets a number that no row has."""
        return Key(self.seed, step, rows + repeats.to(rows.device) * self.dataset.count, view)

    def __getitem__(self, index: int) -> Part:
        step, positions, repeats = self.schedule.at(index)
        rows, boxes = self.rows[positions], self.boxes(step, self.rows[positions], repeats)
        found, crops, failures = list[int](), [list[Tensor]() for _ in self.sides], dict[str, str]()
        masks = list[Tensor]()
        for slot, position in enumerate(positions.tolist()):
            read = self._first_read(position, failures)
            if read is None:
                continue
            row, image, mask = read
            if row != rows[slot]:
                rows[slot] = row
                boxes[:, slot] = self.boxes(step, rows[slot : slot + 1], repeats[slot : slot + 1])[:, 0]
            for view, side in enumerate(self.sides):
                crops[view].append(crop_one(image, boxes[view, slot], side))
            if mask is not None:
                masks.append(nearest_crops(mask[None], boxes[0, slot][None], self.sides[0])[0])
            found.append(slot)
        pixels = self.dataset.pixels
        dtype = torch.float32 if pixels.range else torch.uint8
        empty = [torch.empty(0, pixels.channels, side, side, dtype=dtype) for side in self.sides]
        stacked = tuple(torch.stack(views) if views else none for views, none in zip(crops, empty, strict=True))
        return Part(step, rows[found], repeats[found], stacked, failures, torch.stack(masks) if masks else None)

    def boxes(self, step: int, rows: Tensor, repeats: Tensor) -> Tensor:
        """Return the crop of each view of each image, int64 ``[views b 4]``, on the device of the rows."""
        heights, widths = self.dataset.sizes[rows.cpu()].to(rows.device).unbind(1)
        keys = [self.key(step, rows, repeats, view) for view in range(len(self.augments))]
        boxes = [crop_boxes(augment, key, heights, widths) for augment, key in zip(self.augments, keys, strict=True)]
        return torch.stack(boxes)

    def _first_read(self, position: int, failures: dict[str, str]) -> tuple[int, Tensor, Tensor | None] | None:
        """Return row, pixels and mask of the first image that may stand for a position and can be read."""
        for candidate in self._candidates(position):
            row = int(self.rows[candidate])
            try:
                return row, decoded(self.dataset, row), mask_of(self.dataset, row) if self.masks else None
            except DecodeError as error:
                failures[self.dataset.paths[row].as_py()] = str(error)
        return None

    def _candidates(self, position: int) -> list[int]:
        """Return the positions that may stand for one, itself first."""
        tries = min(TRIES, len(self.rows)) if self.replace else 1
        return [(position + ahead) % len(self.rows) for ahead in range(tries)]


def decoded(dataset: DataSet, row: int) -> Tensor:
    """Return the pixels of an image, ``[c h w]``.

    Raises:
        DecodeError: it cannot be decoded, or is of another size than when the data were opened.
    """
    if dataset.images is not None:
        return dataset.images[row]
    image = decode(dataset.file(row), dataset.pixels)
    check_size(image.shape[1:], *dataset.sizes[row].tolist())
    return image


def read_parts(parts: Dataset[Read], workers: int, *, pin: bool) -> Iterator[Read]:
    """Yield the parts in order, read by that many processes (0: this one); ``pin`` for fast copies to a GPU."""
    return iter(
        DataLoader(
            parts,
            batch_size=None,
            num_workers=workers,
            collate_fn=_same,
            pin_memory=pin,
            # A forked worker starts at once and needs no main guard in the user's script; it never touches the GPU.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # or the loader would draw from the global one
        )
    )


def _same(part: Any) -> Any:
    return part
