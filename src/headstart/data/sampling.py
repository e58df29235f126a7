"""Which images a step sees, as a function of (seed, step) and of nothing that was drawn before.

A sampler returns positions in the rows that a training draws from. A step's images stand in ``pieces`` equal pieces,
one after the other; each is a batch of its own kind, for one part of the step in one process.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from headstart.errors import UserError, unknown
from headstart.randomness import mix, permutation

_TURNS, _OTHERS = 1, 2  # what the draws are for that belong to no single pool
_TURNS_AT_ONCE = 4096  # drawn and kept together, because one round of few classes costs as much as many
_OBJECT, _BACKGROUND = 0, 1

Places = NDArray[np.int64]
Orders = Callable[[int, int, int, int, int], Places]


class Sampler(Protocol):
    """A rule by which images are drawn."""

    @property
    def batch_size(self) -> int:
        """What the user calls the batch of a step."""

    @property
    def pieces(self) -> int:
        """How many equal pieces its images stand in."""

    def __call__(self, step: int) -> Tensor:
        """Return the positions of a step's images, int64."""


@dataclass(frozen=True)
class EveryImage:
    """Every image once per epoch: each is a new random order, cut into whole batches.

    The images left over at the end of an epoch are not used in it.

    Attributes:
        count: images to draw from.
        batch_size: images per step.
        seed: of the orders.
        pieces: what a step is to be cut into.

    Raises:
        UserError: the batch is larger than the data, or cannot be cut.
    """

    count: int
    batch_size: int
    seed: int
    pieces: int = 1

    def __post_init__(self) -> None:
        _check_batch(self.batch_size, self.count, self.pieces)

    def __call__(self, step: int) -> Tensor:
        """Return the positions of a step's images, int64 ``[batch_size]``."""
        epoch, batch = divmod(step, self.count // self.batch_size)
        return _whole_order(self.count, self.seed, epoch)[batch * self.batch_size : (batch + 1) * self.batch_size]


@dataclass(frozen=True, eq=False)
class Balanced:
    """Every class equally often, ``together`` images of one class in a row.

    A batch is a row of slots of ``together`` images. In each round every class gets one slot, in a random order; the
    images of a class come in random orders, one after the other, so that each is seen once before any is seen again.
    The images of a slot are different ones wherever the class has as many.

    Unlabelled images get their share of the slots, as large as their share of the images but at most half, spread
    evenly between the others; the classes divide the rest equally.

    Attributes:
        labels: of the images to draw from, int64 ``[n]``, -1 for none.
        batch_size: images per step.
        seed: of the orders.
        together: images of one class in a row; 1 where a piece cannot be divided by it.
        pieces: what a step is to be cut into.

    Raises:
        UserError: there are fewer than two classes, or the batch is larger than the data or cannot be cut.
    """

    labels: Tensor
    batch_size: int
    seed: int
    together: int = 2
    pieces: int = 1

    def __post_init__(self) -> None:
        _check_classes("balanced", self.labels)
        _check_batch(self.batch_size, len(self.labels), self.pieces)
        if self.batch_size // self.pieces % self.together:
            object.__setattr__(self, "together", 1)

    @cached_property
    def _pools(self) -> "_Pools":
        return _Pools(self.labels)

    def __call__(self, step: int) -> Tensor:
        """Return the positions of a step's images, int64 ``[batch_size]``."""
        return self._pools.draw(*self._slots(step), self.together, self.seed)

    def _slots(self, step: int) -> tuple[Places, Places]:
        """Return the label of each slot of a step, and how many slots that label has had before."""
        slots, pools = self.batch_size // self.together, self._pools
        slot = np.arange(step * slots, (step + 1) * slots)
        count = len(self.labels)
        share, whole = min(2 * pools.size(-1), count), 2 * count  # of the unlabelled, in whole numbers
        before = slot * share // whole  # slots of the unlabelled
        bare = (slot + 1) * share // whole > before
        labels, turns = _taking_turns(pools.classes, self.seed, slot - before)
        return np.where(bare, -1, labels), np.where(bare, before, turns)


@dataclass(frozen=True, eq=False)
class Anchored:
    """A few images of an object, the anchors, before many of the background.

    The network sees ``batch_size`` views: those of the images, and a second one of each anchor. So a step has
    ``batch_size`` images less one for every anchor; with one anchor, a piece of b views is an anchor, its positive and
    b - 2 negatives. Images are drawn in random orders, one after the other; those of a step are different ones
    wherever there are as many. Unlabelled images are left out.

    Attributes:
        labels: of the images to draw from, int64 ``[n]``, -1 for none.
        batch_size: views per step.
        seed: of the orders.
        anchors: images of the object, at the front of each piece.
        background: the class of the background; objects are the images of all others. None: the classes take turns as
            the object of a step, in a random order, and the background is the images of all others.
        pieces: what a step is to be cut into.

    Raises:
        UserError: there are fewer than two classes, none is the background, or fewer objects than anchors; or the batch
            is larger than the data, cannot be cut, or has no room for a background.
    """

    labels: Tensor
    batch_size: int
    seed: int
    anchors: int
    background: int | None
    pieces: int = 1

    def __post_init__(self) -> None:
        _check_classes("anchored", self.labels)
        _check_batch(self.batch_size, len(self.labels), self.pieces)
        if self.background is not None and not (self.labels == self.background).any():
            raise unknown("background", self.background, _Pools(self.labels).classes.tolist())
        objects = self._pools.classes if self.background is None else [_OBJECT]
        fewest = min(self._pools.size(label) for label in objects)
        if not 0 < self.anchors <= fewest:
            raise UserError(f"anchors: {self.anchors} of {fewest} images of an object (allowed: 1 to {fewest})")
        least = self.pieces * (2 * self.anchors + 1)
        if self.batch_size < least:
            raise UserError(f"batch_size: {self.batch_size} is too small for supcon-anchor (allowed: {least} or more)")

    @property
    def images(self) -> int:
        """How many images a step has."""
        return self.batch_size - self.pieces * self.anchors

    @cached_property
    def _pools(self) -> "_Pools":
        if self.background is None:
            return _Pools(self.labels)
        kinds = torch.where(self.labels == self.background, _BACKGROUND, _OBJECT)
        return _Pools(torch.where(self.labels < 0, -1, kinds))

    def __call__(self, step: int) -> Tensor:
        """Return the positions of a step's images, int64 ``[images]``: anchors, then background, piece by piece."""
        anchors = self.pieces * self.anchors
        others = self.images - anchors
        if self.background is None:
            label, turns = _taking_turns(self._pools.classes, self.seed, np.array([step]))
            objects = self._pools.draw(label, turns, anchors, self.seed)
            background = self._others(step, int(label[0]), others)
        else:
            objects = self._pools.draw(np.array([_OBJECT]), np.array([step]), anchors, self.seed)
            background = self._pools.draw(np.array([_BACKGROUND]), np.array([step]), others, self.seed)
        return torch.cat([objects.view(self.pieces, -1), background.view(self.pieces, -1)], dim=1).flatten()

    def _others(self, step: int, avoided: int, count: int) -> Tensor:
        """Return images of other classes: the next ones in an order of all images, from the step's place in it on."""
        total = len(self.labels)
        epoch, place = divmod(step * count, total)
        order = _whole_order(total, mix(self.seed, _OTHERS), epoch)
        width = count
        while True:
            width = min(2 * width, total)
            window = order[torch.arange(place, place + width) % total]
            kinds = self.labels[window]
            others = window[(kinds != avoided) & (kinds >= 0)]
            if len(others) >= count or width == total:
                return others.repeat(-(-count // len(others)))[:count]


class _Pools:
    """The positions of the images of each label, and the random orders in which they are drawn.

    Attributes:
        classes: the labels that there are, rising, without -1.
    """

    def __init__(self, labels: Tensor) -> None:
        self._members = labels.argsort(stable=True).numpy()
        ranked = labels.numpy()[self._members]
        self._names, self._starts, self._sizes = np.unique(ranked, return_index=True, return_counts=True)
        self.classes: Places = self._names[self._names >= 0]

    def size(self, label: int) -> int:
        """Return how many images have a label."""
        return int(self._sizes[self._names == label].sum())

    def draw(self, labels: Places, numbers: Places, count: int, seed: int) -> Tensor:
        """Return handfuls of ``count`` images, each named by its label and how many handfuls of it came before."""
        orders = _orders(2 * len(self._names))
        pools = self._names.searchsorted(labels)
        named = zip(self._sizes[pools].tolist(), numbers.tolist(), labels.tolist(), strict=True)
        places = np.concatenate([_handful(orders, size, count, number, seed, label) for size, number, label in named])
        return torch.from_numpy(self._members[places + self._starts[pools].repeat(count)])


def _handful(orders: Orders, size: int, count: int, number: int, seed: int, label: int) -> Places:
    """Return the ``number``-th ``count`` of ``size`` things: random orders of all of them are dealt out in handfuls."""
    if size < 2 * count - 1:  # then every handful has an order of its own
        return np.resize(permutation(size, seed, label, number).numpy(), count)
    epoch, place = divmod(number * count, size)
    places = orders(size, count, seed, label, epoch)[place : place + count]
    if len(places) == count:
        return places
    return np.concatenate([places, orders(size, count, seed, label, epoch + 1)[: count - len(places)]])


def _order(size: int, count: int, seed: int, label: int, epoch: int) -> Places:
    """Return an order of ``size`` things whose first ones differ from those that share a handful with them."""
    order = permutation(size, seed, label, epoch).numpy()
    held = epoch * size % count  # things of the order before in the handful that this one completes
    if held:
        head = order[:count]
        again = np.isin(head, permutation(size, seed, label, epoch - 1).numpy()[-held:])
        order[:count] = np.concatenate([head[~again], head[again]])
    return order


@lru_cache(maxsize=2)
def _orders(kept: int) -> Orders:
    """Return ``_order`` with a memory of its last results: with two of each pool, twice the data at most."""
    return lru_cache(maxsize=kept)(_order)


@lru_cache(maxsize=2)
def _whole_order(count: int, seed: int, epoch: int) -> Tensor:
    return permutation(count, seed, epoch)


def _taking_turns(classes: Places, seed: int, numbers: Places) -> tuple[Places, Places]:
    """Return the classes whose turns have these consecutive numbers, and how many turns each of them had before."""
    turns, place = np.divmod(numbers, len(classes))
    kept = max(1, _TURNS_AT_ONCE // len(classes))
    first, last = int(turns[0]) // kept, int(turns[-1]) // kept
    orders = np.concatenate([_turns(len(classes), kept, seed, block) for block in range(first, last + 1)])
    return classes[orders[turns - first * kept, place]], turns


@lru_cache(maxsize=4)
def _turns(classes: int, count: int, seed: int, block: int) -> Places:
    """Return random orders of the classes, one in each of ``count`` rows."""
    generator = torch.Generator().manual_seed(mix(seed, _TURNS, block))
    return torch.rand(count, classes, generator=generator, dtype=torch.float64).argsort(dim=1).numpy()


def _check_classes(sampling: str, labels: Tensor) -> None:
    classes = len(np.unique(labels[labels >= 0].numpy()))
    if classes < 2:
        needs = "several classes, data has 1" if classes else "labels, data has none"
        raise UserError(f"sampling: {sampling} needs {needs} (allowed: 2 classes or more)")


def _check_batch(batch_size: int, count: int, pieces: int) -> None:
    if not 0 < batch_size <= count:
        too = "larger than the data" if batch_size > count else "not positive"
        raise UserError(f"batch_size: {batch_size} is {too} ({count} images) (allowed: 1 to {count})")
    if batch_size % pieces:
        raise UserError(
            f"batch_size: {batch_size} cannot be cut into {pieces} equal pieces, one for each part and process"
            f" (allowed: multiples of {pieces})"
        )
