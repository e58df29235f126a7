"""Small networks that methods are built from, and what moves without a gradient: moving averages and queues."""

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def mlp(
    widths: Sequence[int], *, norm: bool = True, last_norm: bool = False, activation: type[nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Return linear layers between the widths, with batch normalisation and an activation after each but the last.

    A linear layer before a normalisation has no bias, which the normalisation would take away again. Without ``norm``
    there are none. ``last_norm`` puts one after the last layer too, without weights of its own (SimSiam,
    arXiv:2011.10566, and the code of Barlow Twins, arXiv:2103.03230, end so).
    """
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths), 1):
        last = number == len(widths) - 1
        normed = last_norm if last else norm
        layers.append(nn.Linear(before, after, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(after, affine=not last))
        if not last:
            layers.append(activation())
    return nn.Sequential(*layers)


def teacher_of(student: ModuleT) -> ModuleT:
    """Return a copy that no gradient reaches, to follow the student as its moving average."""
    return copy.deepcopy(student).requires_grad_(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move a teacher's parameters towards the student's: momentum x teacher + (1 - momentum) x student.

    Statistics of batch normalisations are the teacher's own, from its own forward passes, as in MoCo and BYOL.
    """
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


def rising(start: float, progress: float) -> float:
    """Return a momentum that rises from ``start`` to 1 along half a cosine (BYOL, arXiv:2006.07733, section 3.2).

    >>> rising(0.99, 0.0), rising(0.99, 1.0)
    (0.99, 1.0)
    """
    return 1 - (1 - start) * (math.cos(math.pi * progress) + 1) / 2


class Queue(nn.Module):
    """The latest embeddings, oldest first out (MoCo, arXiv:1911.05722, section 3.1).

    ``hold`` keeps embeddings aside while the losses of a step are computed, ``push`` puts them into the queue after it:
    a loss leaves no lasting side effect. All processes must hold the same, gathered ones.

    Attributes:
        entries: normalised, ``[size dim]``; random directions until they are replaced.
        place: where the next entry goes.
        seen: how many have been put in so far.
    """

    entries: Tensor
    place: Tensor
    seen: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("entries", F.normalize(torch.randn(size, dim), dim=1))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._held: list[Tensor] = []

    @property
    def full(self) -> bool:
        """Whether every random entry has been replaced."""
        return int(self.seen) >= len(self.entries)

    def hold(self, embeddings: Tensor) -> None:
        """Keep embeddings ``[n dim]`` aside for the next ``push``."""
        self._held.append(F.normalize(embeddings.detach(), dim=1))

    def push(self) -> None:
        """Put what is held in place of the oldest entries."""
        if not self._held:
            return
        size = len(self.entries)
        new = torch.cat(self._held)[-size:].to(self.entries.dtype)
        self._held.clear()
        places = (int(self.place) + torch.arange(len(new), device=new.device)) % size
        self.entries[places] = new
        self.place.fill_((int(self.place) + len(new)) % size)
        self.seen += len(new)


def in_splits(
    outputs_of: Callable[[Tensor], tuple[Tensor, ...]], images: Tensor, splits: int, *, shuffle: bool
) -> tuple[Tensor, ...]:
    """Return what a function gives, each ``[b …]``, when it sees the images in pieces that are normalised separately.

    On one device this is what several devices do whose batch normalisations know nothing of each other. With
    ``shuffle`` the pieces are of images in random order, and the outputs are put back in place (shuffling BN, MoCo,
    arXiv:1911.05722, section 3.3).
    """
    order = torch.randperm(len(images), device=images.device) if shuffle else None
    pieces = (images if order is None else images[order]).tensor_split(splits)
    outputs = [torch.cat(parts) for parts in zip(*map(outputs_of, pieces), strict=True)]
    return tuple(outputs if order is None else [output[order.argsort()] for output in outputs])


class Prototypes(nn.Module):
    """Directions that embeddings are compared with: cosine similarities ``[n count]`` of embeddings ``[n dim]``."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(F.normalize(torch.randn(count, dim), dim=1))

    def forward(self, embeddings: Tensor, *, trained: bool = True) -> Tensor:
        """Return the similarities; prototypes that are not trained get a gradient of zero, not none."""
        weight = F.normalize(self.weight, dim=1)
        if not trained:
            weight = weight.detach() + 0.0 * self.weight
        return F.linear(F.normalize(embeddings, dim=1), weight)
