"""How the images of a step are cut into batches, one for each part of the step and each process."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from headstart.data.sampling import Sampler


class Drawn(NamedTuple):
    """The images of one batch.

    Attributes:
        step: the step that the batch is a part of.
        positions: which images, as positions in the rows, int64 ``[b]``.
        repeats: how often each of them came before in the same step, int64 ``[b]``: samplers may draw an image of a
            rare class twice, and its views should differ.
    """

    step: int
    positions: Tensor
    repeats: Tensor


@dataclass(frozen=True)
class Steps:
    """The batches of the steps start … stop - 1, each in ``parts`` parts, a part divided among processes."""

    sampler: Sampler
    start: int
    stop: int
    parts: int = 1
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        assert self.sampler.pieces % (self.parts * self.world) == 0  # a batch is one piece, or several whole ones

    def __len__(self) -> int:
        return (self.stop - self.start) * self.parts

    def at(self, index: int) -> Drawn:
        """Return the images of a batch."""
        ahead, part = divmod(index, self.parts)
        step = self.start + ahead
        positions = self.sampler(step)
        both = torch.stack([positions, _repeats(positions)]).view(2, self.parts, self.world, -1)
        return Drawn(step, *both[:, part, self.rank])


@dataclass(frozen=True)
class InOrder:
    """All images once, in their own order."""

    count: int
    batch_size: int

    def __len__(self) -> int:
        return -(-self.count // self.batch_size)

    def at(self, index: int) -> Drawn:
        """Return the images of a batch; its step is 0."""
        start = index * self.batch_size
        positions = torch.arange(start, min(start + self.batch_size, self.count))
        return Drawn(0, positions, torch.zeros_like(positions))


def _repeats(values: Tensor) -> Tensor:
    """Return how often each value came before.

    >>> _repeats(torch.tensor([5, 3, 5, 5, 3]))
    tensor([0, 0, 1, 2, 1])
    """
    ranked, order = values.sort(stable=True)
    firsts = torch.searchsorted(ranked, ranked)
    return torch.empty_like(values).scatter_(0, order, torch.arange(len(values)) - firsts)
