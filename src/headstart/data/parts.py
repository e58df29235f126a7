"""The division of images into named parts: stratified, seeded, and with groups that stay together."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headstart.randomness import permutation

_IMAGES, _GROUPS = 4, 5  # what an order is drawn for


def divide(strata: Tensor, shares: Sequence[float], seed: int, groups: Tensor | None = None) -> Tensor:
    """Return for each image the number of the part that it belongs to, int64 ``[n]``.

    Without groups, every part has of every stratum its share, rounded down or up; which of the two is chosen such that
    the parts' totals, too, come close to their shares. With groups, whole groups are given away: larger ones first,
    each to the part that has the least of the group's strata, among those that have room for it. This is the greedy
    way of scikit-learn's ``StratifiedGroupKFold`` for parts of unequal size, with the priorities of Sainte-Laguë.
    Every part gets at least one group, if there are enough.

    Args:
        strata: a number for each image, int64 ``[n]``; its class, or -1.
        shares: the share of each part; they add up to 1.
        seed: of the choice.
        groups: a number for each image, int64 ``[n]``; None where every image stands for itself.
    """
    portions = np.array(shares, np.float64)
    kinds = torch.unique(strata, return_inverse=True)[1].numpy()
    if groups is None or len(torch.unique(groups)) == len(groups):
        return torch.from_numpy(_divide_images(kinds, portions, seed))
    members = torch.unique(groups, return_inverse=True)[1].numpy()
    return torch.from_numpy(_divide_groups(kinds, members, portions, seed)[members])


def rarest(images: Tensor, labels: Tensor, count: int) -> Tensor:
    """Return for each image the class of its objects that is rarest in the data, int64 ``[count]``; -1 without objects.

    Args:
        images: the image of each object, int64 ``[m]``.
        labels: the class of each object, int64 ``[m]``.
        count: how many images there are.
    """
    found = torch.full((count,), -1)
    frequent_first = torch.bincount(labels).argsort(stable=True, descending=True)
    ranks = torch.empty_like(frequent_first).scatter_(0, frequent_first, torch.arange(len(frequent_first)))
    found.scatter_reduce_(0, images, ranks[labels], "amax")
    return torch.where(found < 0, found, frequent_first[found]) if len(labels) else found


def _divide_images(kinds: np.ndarray, portions: np.ndarray, seed: int) -> np.ndarray:
    parts = np.empty(len(kinds), np.int64)
    owed = np.zeros(len(portions))  # images that earlier strata, by rounding, did not give to each part
    order = np.argsort(kinds, kind="stable")
    for kind, members in enumerate(np.split(order, np.bincount(kinds).cumsum()[:-1])):
        quotas = (portions * len(members)).round(9)
        counts = np.floor(quotas).astype(np.int64)
        rest = quotas - counts
        priority = np.where(rest > 0, owed + rest, -np.inf)
        counts[np.argsort(-priority, kind="stable")[: len(members) - counts.sum()]] += 1
        owed += quotas - counts
        shuffled = members[permutation(len(members), seed, _IMAGES, kind).numpy()]
        parts[shuffled] = np.repeat(np.arange(len(portions)), counts)
    return parts


def _divide_groups(kinds: np.ndarray, members: np.ndarray, portions: np.ndarray, seed: int) -> np.ndarray:
    """Return the part of each group."""
    sizes = np.bincount(members)
    pairs, counts = np.unique(members * (kinds.max() + 1) + kinds, return_counts=True)
    holders, held = np.divmod(pairs, kinds.max() + 1)
    starts = np.searchsorted(holders, np.arange(len(sizes) + 1))
    targets = portions[:, None] * np.bincount(kinds)
    filled, rooms = np.zeros_like(targets), portions * len(kinds)
    parts = np.full(len(sizes), -1)
    order = permutation(len(sizes), seed, _GROUPS).numpy()
    # groups of about one size stay in the order of the seed, so that seeds differ
    order = order[np.argsort(-np.floor(2 * np.log2(sizes[order])), kind="stable")]
    for done, group in enumerate(order):
        own, amounts = held[starts[group] : starts[group + 1]], counts[starts[group] : starts[group + 1]]
        empty, fits = filled.sum(1) == 0, rooms >= sizes[group] - 1e-9
        if len(order) - done <= empty.sum():
            fits &= empty
            candidates = fits if fits.any() else empty
        else:
            candidates = fits if fits.any() else rooms == rooms.max()
        pressure = ((filled[:, own] + amounts / 2) / targets[:, own] * amounts).sum(1)
        part = int(np.argmin(np.where(candidates, pressure, np.inf)))
        parts[group] = part
        filled[part, own] += amounts
        rooms[part] -= sizes[group]
    return parts
