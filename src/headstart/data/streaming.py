"""Images that are decoded as they are needed, in processes that hand over small crops."""

import sys
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from headstart.data.images import DecodeError, check_size, decode
from headstart.data.index import DataSet
from headstart.views import Augment, Key, crop_boxes, crop_one

TRIES = 100  # images that fail one after the other before reading is given up


class Schedule(Protocol):
    """Which positions in the rows make up each batch."""

    def __len__(self) -> int: ...

    def at(self, index: int) -> tuple[int, Tensor]:
        """Return the step and the positions of a batch."""


class Part(NamedTuple):
    """What a worker hands over: the crops are uint8 ``[views b c size size]``; failures are reasons by path."""

    step: int
    rows: Tensor
    crops: Tensor
    failures: dict[str, str]


class Crops(Dataset[Part]):
    """Batches of uint8 crops by their number: what a worker does, and all that it needs to know."""

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
    ) -> None:
        self.dataset, self.rows, self.augments, self.image_size = dataset, rows, augments, image_size
        self.seed, self.schedule, self.replace = seed, schedule, replace

    def __len__(self) -> int:
        return len(self.schedule)

    def key(self, step: int, rows: Tensor, view: int) -> Key:
        """Return what names a view of these rows."""
        return Key(self.seed, step, rows, view)

    def __getitem__(self, index: int) -> Part:
        step, positions = self.schedule.at(index)
        boxes = self._boxes(step, self.rows[positions])
        taken, crops, failures = list[int](), list[Tensor](), dict[str, str]()
        for slot, first in enumerate(positions.tolist()):
            for position in self._candidates(first):
                row = int(self.rows[position])
                try:
                    image = self._decode(row)
                except DecodeError as error:
                    failures[self.dataset.paths[row].as_py()] = str(error)
                    continue
                own = (
                    boxes[:, slot] if position == first else self._boxes(step, self.rows[position : position + 1])[:, 0]
                )
                crops.append(torch.stack([crop_one(image, box, self.image_size) for box in own]))
                taken.append(row)
                break
        shape = (0, len(self.augments), 3, self.image_size, self.image_size)
        stacked = torch.stack(crops) if crops else torch.empty(shape, dtype=torch.uint8)
        return Part(step, torch.tensor(taken, dtype=torch.int64), stacked.transpose(0, 1), failures)

    def _candidates(self, position: int) -> list[int]:
        """Return the positions that may stand for one, itself first."""
        tries = min(TRIES, len(self.rows)) if self.replace else 1
        return [(position + ahead) % len(self.rows) for ahead in range(tries)]

    def _boxes(self, step: int, rows: Tensor) -> Tensor:
        """Return the crop of each view of each image, int64 ``[views b 4]``."""
        heights, widths = self.dataset.sizes[rows].unbind(1)
        keys = [self.key(step, rows, view) for view in range(len(self.augments))]
        boxes = [crop_boxes(augment, key, heights, widths) for augment, key in zip(self.augments, keys, strict=True)]
        return torch.stack(boxes)

    def _decode(self, row: int) -> Tensor:
        assert self.dataset.root is not None
        image = decode(self.dataset.root / self.dataset.paths[row].as_py())
        check_size(image.shape[1:], *self.dataset.sizes[row].tolist())
        return image


def read_parts(crops: Crops, workers: int, *, pin: bool) -> Iterator[Part]:
    """Yield the parts in order, read by that many processes (0: this one); ``pin`` for fast copies to a GPU."""
    return iter(
        DataLoader(
            crops,
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
