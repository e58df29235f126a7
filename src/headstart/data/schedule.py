"""Which images make up which batch, as a function of (seed, step)."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from headstart.errors import UserError
from headstart.randomness import permutation


def rows_at(step: int, count: int, batch_size: int, seed: int) -> Tensor:
    """Return which of ``count`` images the batch of a step consists of, int64 ``[batch_size]``.

    Every epoch is a new random order, cut into whole batches; the images left over at its end are not used in it.

    Raises:
        UserError: the batch is larger than the data.
    """
    _check_batch(batch_size, count)
    epoch, batch = divmod(step, count // batch_size)
    return _order(count, seed, epoch)[batch * batch_size : (batch + 1) * batch_size]


@dataclass(frozen=True)
class Shuffled:
    """The batches of the steps start … stop - 1, each in ``parts`` parts, a part divided among processes."""

    count: int
    batch_size: int
    seed: int
    start: int
    stop: int
    parts: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        _check_batch(self.batch_size, self.count)
        if self.batch_size % (self.parts * self.world):
            raise UserError(
                f"batch_size: {self.batch_size} cannot be cut into {self.parts} parts for {self.world} processes"
                f" (allowed: multiples of {self.parts * self.world})"
            )

    def __len__(self) -> int:
        return (self.stop - self.start) * self.parts

    def at(self, index: int) -> tuple[int, Tensor]:
        """Return the step of a batch, and which images it consists of."""
        ahead, part = divmod(index, self.parts)
        step = self.start + ahead
        whole = rows_at(step, self.count, self.batch_size, self.seed)
        return step, whole.view(self.parts, self.world, -1)[part, self.rank]


@dataclass(frozen=True)
class InOrder:
    """All images once, in their own order."""

    count: int
    batch_size: int

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def at(self, index: int) -> tuple[int, Tensor]:
        """Return step 0, and which images the batch consists of."""
        start = index * self.batch_size
        return 0, torch.arange(start, min(start + self.batch_size, self.count))


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return permutation(count, seed, epoch)


def _check_batch(batch_size: int, count: int) -> None:
    if not 0 < batch_size <= count:
        too = "larger than the data" if batch_size > count else "not positive"
        raise UserError(f"batch_size: {batch_size} is {too} ({count} images) (allowed: 1 to {count})")
