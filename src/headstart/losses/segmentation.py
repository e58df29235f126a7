"""Losses of the classes of pixels, of which some may be void: they count for nothing."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import UserError, unknown
from headstart.losses.precision import exact

VOID = -1  # the label of a pixel of no class


@exact
def cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross entropy of the softmax, the mean over the pixels that have a class, 0 without any.

    Unchanged by a constant added to all logits of a pixel. Equal logits give log(k).

    Args:
        logits: of each class, ``[b k h w]``.
        labels: class numbers, int64 ``[b h w]``; -1 for void.
        weights: how much a pixel of each class counts, ``[k]``; None for all the same.

    Returns:
        A scalar.
    """
    return _mean(-_log_chances(logits, labels), labels, weights)


@exact
def binary_cross_entropy(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """Cross entropy of the sigmoid for two classes, the mean over the pixels that have one, 0 without any.

    Args:
        logits: of class 1, ``[b 1 h w]``.
        labels: 0, 1, or -1 for void, int64 ``[b h w]``.
        weights: how much a pixel of each of the two classes counts, ``[2]``; None for the same.

    Returns:
        A scalar.
    """
    assert logits.shape[1] == 1
    return _mean(-_log_chances(logits, labels), labels, weights)


@exact
def focal(logits: Tensor, labels: Tensor, weights: Tensor | None = None, *, gamma: float = 2.0) -> Tensor:
    """Cross entropy in which pixels count the less the better they are told, eq. 4 of Lin 2017 (arXiv:1708.02002).

    The mean of -(1 - p)^gamma log(p) over the pixels that have a class, where p is the chance of the right one, from
    the sigmoid of one logit or the softmax of several. With weights it is the paper's eq. 5.

    Args:
        logits: of class 1, ``[b 1 h w]``, or of each class, ``[b k h w]``.
        labels: class numbers, int64 ``[b h w]``; -1 for void.
        weights: how much a pixel of each class counts, ``[2]`` or ``[k]``; None for all the same.
        gamma: 0 gives the cross entropy; 2 in the paper.

    Returns:
        A scalar.
    """
    log_chances = _log_chances(logits, labels)
    return _mean(-((1 - log_chances.exp()) ** gamma) * log_chances, labels, weights)


@exact
def dice(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 - the soft Dice coefficient over the whole batch, 2 Σ p y / (Σ p + Σ y).

    Milletari 2016 (arXiv:1606.04797, section 3) squares the terms below the line; they stand as in eq. 1 of Drozdzal
    2016 (arXiv:1608.04117). Of several logits it is the mean over the classes, in which a class without a pixel counts
    as 0, because its coefficient would be 0 whatever is predicted. Classes count alike however large they are, so that
    weights change nothing.

    Args:
        logits: of class 1, ``[b 1 h w]``, whose coefficient alone counts then, or of each class, ``[b k h w]``.
        labels: class numbers, int64 ``[b h w]``; -1 for void.
        weights: not used.

    Returns:
        A scalar in 0..1.
    """
    known = (labels != VOID).unsqueeze(1)
    if logits.shape[1] == 1:
        chances, truth = logits.sigmoid(), (labels == 1).unsqueeze(1)
    else:
        chances = logits.softmax(dim=1)
        truth = F.one_hot(labels.clamp_min(0), logits.shape[1]).movedim(3, 1).bool() & known
    sums = (0, 2, 3)
    shared, predicted, pixels = (chances * truth).sum(sums), (chances * known).sum(sums), truth.sum(sums)
    coefficients = 2 * shared / (predicted + pixels).clamp_min(1e-7)
    return torch.where(pixels > 0, 1 - coefficients, 0 * predicted).mean()


PixelLoss = Callable[[Tensor, Tensor, Tensor | None], Tensor]

LOSSES: Mapping[str, PixelLoss] = MappingProxyType(
    {"bce": binary_cross_entropy, "ce": cross_entropy, "dice": dice, "focal": focal}
)
AUTO = "auto"


class Combined(NamedTuple):
    """A sum of losses.

    Attributes:
        names: of the losses.
        channels: how many logits a pixel has: 1, of the second of two classes, or one for each class.
    """

    names: tuple[str, ...]
    channels: int

    def __call__(self, logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the sum, a scalar, of logits ``[b channels h w]`` and labels int64 ``[b h w]``."""
        return torch.stack([LOSSES[name](logits, labels, weights) for name in self.names]).sum()


def parse(text: str) -> tuple[str, ...]:
    """Return the names in a sum of losses.

    Raises:
        UserError: one of them is unknown, or twice there, or they want other logits.

    >>> parse("bce + dice"), parse("auto")
    (('bce', 'dice'), ('auto',))
    """
    names = tuple(name.strip() for name in text.split("+"))
    if names == (AUTO,):
        return names
    for name in names:
        if name not in LOSSES:
            raise unknown("loss", name, [AUTO, *LOSSES, "a sum such as bce+dice"])
    if len(set(names)) < len(names):
        raise UserError(f"loss: {text} has one loss twice (allowed: each of {', '.join(LOSSES)} once)")
    if {"bce", "ce"} <= {*names}:
        raise UserError(f"loss: {text} wants one logit and one for each class (allowed: one of bce and ce)")
    return names


def combined(text: str, classes: int) -> Combined:
    """Return the sum of losses that a text names, for so many classes.

    Two classes are told by one logit, unless ``ce`` asks for two. ``auto`` is ``bce`` for two classes, else ``ce``.

    Raises:
        UserError: as ``parse`` does, and where ``bce`` is asked for more classes than two.
    """
    names = parse(text)
    if names == (AUTO,):
        names = ("bce",) if classes == 2 else ("ce",)
    if "bce" in names and classes != 2:
        raise UserError(f"loss: bce tells two classes apart, here are {classes} (allowed: auto, ce, dice, focal, sums)")
    return Combined(names, 1 if classes == 2 and "ce" not in names else classes)


def _log_chances(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the logarithm of the chance of each pixel's class ``[b h w]``; of void, that of any class."""
    if logits.shape[1] == 1:
        return -F.binary_cross_entropy_with_logits(logits[:, 0], (labels == 1).to(logits.dtype), reduction="none")
    return -F.cross_entropy(logits, labels.clamp_min(0), reduction="none")


def _mean(losses: Tensor, labels: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weighted mean of the losses ``[b h w]`` of the pixels that have a class; 0 if none has."""
    known = labels != VOID
    shares = known.to(losses.dtype) if weights is None else weights[labels.clamp_min(0)] * known
    total = shares.sum()
    return (losses * shares).sum() / torch.where(total > 0, total, 1)
