"""Which images are for training, choosing and scoring, and which of them have labels."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.data.index import NO_SPLIT, TEST, TRAIN, UNLABELLED, VAL, DataSet
from headstart.data.parts import divide
from headstart.errors import UserError
from headstart.randomness import permutation

VAL_SHARE, TEST_SHARE = 0.2, 0.2  # of each class, where the data came without splits
VAL_SHARE_OF_TRAIN = 0.15  # of each class, where the data came with train/ and one held-out split
_CUT, _SUBSET, _LIMIT = 1, 2, 3  # what an order is drawn for


@dataclass(frozen=True)
class Splits:
    """The rows of each split, int64, ascending."""

    train: Tensor
    val: Tensor
    test: Tensor
    unlabelled: Tensor


def split(dataset: DataSet, *, seed: int = 0, needs_labels: bool = True) -> Splits:
    """Return the splits of a data set: those that it came with, and where one is missing, a stratified cut.

    * train, val and test: as given.
    * train and test: 15 % of each class of train become val.
    * train and val: val is the held-out benchmark, as for ImageNet, and becomes test; val is cut as above.
    * no splits, or train alone: 60 % train, 20 % val, 20 % test of each class.
    * images without labels (or of one class) are cut nowhere: without splits everything is train. Images with masks or
      boxes are cut as if they were of one class.

    Where the data have groups, such as the crops of one picture, the cut keeps each of them in one split; shares are
    then met as well as the groups allow, and images without a label that belong to a held-out group are left out.

    The cut depends on the seed and on the sorted paths only, so that every verb cuts the same data in the same way.

    Args:
        dataset: the data.
        seed: of the cut, not of a training.
        needs_labels: raise on classes that are not in train or too small to cut; else the small ones stay in train.

    Raises:
        UserError: there are no training images, or a class is too small, or in too few groups, to be in every split.
    """
    train, val, test, unlabelled = (_rows(dataset, code) for code in (TRAIN, VAL, TEST, UNLABELLED))
    train = torch.cat([_rows(dataset, NO_SPLIT), train])
    labels = strata(dataset)
    if len(train) + len(unlabelled) == 0:
        raise UserError(
            f"data: {dataset.name} has no training images (allowed: train/, unlabelled/ or no split folders)"
        )
    if len(val) and not len(test):
        val, test = test, val
    if (len(dataset.classes) > 1 or labels is not dataset.labels) and len(train):
        shares = () if len(val) else (VAL_SHARE_OF_TRAIN,) if len(test) else (VAL_SHARE, TEST_SHARE)
        if needs_labels:
            _check_classes(dataset, labels, train, 1 + len(shares))
        if dataset.groups is None:
            train, *cut = _cut(labels, train, shares, seed)
        else:
            train, *cut = _cut_groups(dataset, labels, train, shares, seed, needs_labels)
        val = cut[0] if cut else val
        test = cut[1] if len(cut) > 1 else test
    return Splits(train, val, test, unlabelled)


def strata(dataset: DataSet) -> Tensor:
    """Return what splits and budgets keep in proportion, int64 ``[n]``: the labels of the images.

    Where no image has a label but some have masks or boxes: 0 for these, -1 for those without.
    """
    if (dataset.labels >= 0).any():
        return dataset.labels
    if dataset.objects is not None:
        return torch.zeros_like(dataset.labels)
    if dataset.mask_values:
        return torch.from_numpy(dataset.index["mask"].is_valid().to_numpy().astype("int64")) - 1
    return dataset.labels


@dataclass(frozen=True)
class Budget:
    """How many labels: so many per class, or that percentage of the training split; neither means all."""

    per_class: int | None = None
    percent: float | None = None

    @property
    def name(self) -> str:
        """The budget as it is written: ``5``, ``20%`` or ``all``."""
        if self.per_class is not None:
            return str(self.per_class)
        return "all" if self.percent is None else f"{self.percent:g}%"


def parse_budget(budget: str | int | Budget) -> Budget:
    """Return the budget that is written as a count per class, a percentage or ``all``.

    >>> [parse_budget(text).name for text in (5, "10", "20%", "all")]
    ['5', '10', '20%', 'all']

    Raises:
        UserError: it is none of them.
    """
    if isinstance(budget, Budget):
        return budget
    text = "" if isinstance(budget, bool) else str(budget).strip()
    if text == "all":
        return Budget()
    if re.fullmatch(r"[0-9]+", text) and int(text) > 0:
        return Budget(per_class=int(text))
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?%", text) and 0 < float(text[:-1]) <= 100:
        return Budget(percent=float(text[:-1]))
    raise UserError(f"labels: '{budget}' is no budget (allowed: a count per class such as 5, a share such as 20%, all)")


def label_subset(
    labels: Tensor, rows: Tensor, budget: str | int | Budget, seed: int, *, classes: Sequence[str] = ()
) -> Tensor:
    """Return the training rows whose labels a budget allows to be used.

    Every class has one seeded order, and a budget takes a prefix of it: subsets of one seed are nested (5 in 10 in 20),
    and the same for every arm. A percentage takes its exact count of images, one of every class first and the others in
    the order of Sainte-Laguë's method, which unlike largest remainders never takes an image away when the count grows.

    Args:
        labels: class numbers of the whole data set, int64 ``[n]``.
        rows: the rows of the training split; those without a label (-1) are never taken.
        budget: as ``parse_budget`` reads it.
        seed: of the order.
        classes: the class names, for the error.

    Returns:
        Rows, int64, ascending.

    Raises:
        UserError: a class has fewer images than the budget asks for.
    """
    budget = parse_budget(budget)
    rows = rows[labels[rows] >= 0].sort().values
    groups = _by_label(labels, rows)
    if not groups:
        raise UserError("labels: no training image has a label")
    if budget.per_class is not None:
        _check_budget(budget.per_class, groups, classes)
    ordered = torch.cat([group[permutation(len(group), seed, _SUBSET, label)] for label, group in groups.items()])
    places = torch.cat([torch.arange(len(group)) for group in groups.values()])
    sizes = torch.cat([torch.full((len(group),), len(group)) for group in groups.values()])
    if budget.per_class is not None:
        chosen = ordered[places < budget.per_class]
    elif budget.percent is not None:
        priority = torch.where(places == 0, -1.0, (places + 0.5) / sizes.double())
        count = max(len(groups), int(len(rows) * budget.percent / 100 + 0.5))
        chosen = ordered[priority.argsort(stable=True)[:count]]
    else:
        chosen = ordered
    return chosen.sort().values


def limited(dataset: DataSet, limit: int | None, *, seed: int = 0) -> DataSet:
    """Return the data set of at most so many images, each split and class with its share of them.

    Args:
        dataset: the data.
        limit: how many images to keep; None keeps all.
        seed: of the choice.
    """
    if limit is None or limit >= dataset.count:
        return dataset
    pairs = torch.stack([dataset.splits, dataset.labels])
    groups = torch.unique(pairs, dim=1, return_inverse=True)[1]
    order = permutation(dataset.count, seed, _LIMIT)
    order = order[groups[order].argsort(stable=True)]
    sizes = groups.bincount()
    places = torch.arange(dataset.count) - torch.cumsum(sizes, 0).sub(sizes).repeat_interleave(sizes)
    priority = (places + 0.5) / sizes.double().repeat_interleave(sizes)
    return dataset.take(order[priority.argsort(stable=True)[:limit]].sort().values)


def _by_label(labels: Tensor, rows: Tensor) -> dict[int, Tensor]:
    """Return the rows of each label, in the order of the labels; sorted once, however many classes there are."""
    found = labels[rows]
    names, counts = torch.unique(found, return_counts=True)
    ranked = rows[found.argsort(stable=True)]
    return dict(zip(names.tolist(), torch.split(ranked, counts.tolist()), strict=True))


def _rows(dataset: DataSet, code: int) -> Tensor:
    return (dataset.splits == code).nonzero().squeeze(1)


def _cut(labels: Tensor, rows: Tensor, shares: tuple[float, ...], seed: int) -> list[Tensor]:
    """Return the rows that stay, and for each share the rows cut off: that share of every class, at least one image.

    A class that has too few images for every piece stays as it is, and so do images without a label.
    """
    pieces: list[list[Tensor]] = [[] for _ in range(1 + len(shares))]
    for label, group in _by_label(labels, rows).items():
        group = group[permutation(len(group), seed, _CUT, label)]
        whole = label < 0 or len(group) <= len(shares)
        counts = [] if whole else [max(1, int(len(group) * share + 0.5)) for share in shares]
        counts = [len(group) - sum(counts), *counts]
        for piece, part in zip(pieces, torch.split(group, counts), strict=False):
            piece.append(part)
    return [torch.cat([rows[:0], *piece]).sort().values for piece in pieces]


def _cut_groups(
    dataset: DataSet, strata: Tensor, rows: Tensor, shares: tuple[float, ...], seed: int, needs_labels: bool
) -> list[Tensor]:
    """Return the rows that stay, and for each share the labelled rows of whole groups that are cut off."""
    assert dataset.groups is not None
    groups, labels = dataset.groups[rows], strata[rows]
    count, pieces = len(torch.unique(groups)), 1 + len(shares)
    if count < pieces and needs_labels:
        raise UserError(
            f"data: {dataset.name} has {count} groups of training images"
            f" (allowed: at least {pieces}, one for train and one for each split that is cut from it)"
        )
    if count < pieces:
        return [rows, *(rows[:0] for _ in shares)]
    parts = divide(labels, (1 - sum(shares), *shares), seed, groups)
    missing = sorted(set(torch.unique(labels[labels >= 0]).tolist()) - set(torch.unique(labels[parts == 0]).tolist()))
    if missing and needs_labels:
        raise UserError(
            f"data: all training images of class '{dataset.classes[missing[0]]}' are in groups that were cut off for"
            " val or test (allowed: classes in more groups, or splits that the data come with)"
        )
    return [rows[parts == 0], *(rows[(parts == part) & (labels >= 0)] for part in range(1, pieces))]


def _check_classes(dataset: DataSet, strata: Tensor, train: Tensor, pieces: int) -> None:
    labels = strata[train]
    known = len(dataset.classes) if strata is dataset.labels else 1
    counts = torch.bincount(labels[labels >= 0], minlength=known)
    small = int(counts.argmin())
    if counts[small] < pieces:
        name = f"class '{dataset.classes[small]}'" if strata is dataset.labels else dataset.name
        raise UserError(
            f"data: {name} has {int(counts[small])} training images"
            f" (allowed: at least {pieces}, one for train and one for each split that is cut from it)"
        )


def _check_budget(per_class: int, groups: dict[int, Tensor], classes: Sequence[str]) -> None:
    small = min(groups, key=lambda label: len(groups[label]))
    count = len(groups[small])
    if per_class > count:
        name = f"'{classes[small]}'" if classes else str(small)
        raise UserError(
            f"labels: {per_class} per class, but class {name} has only {count} training images"
            f" (allowed: 1 to {count}, 1% to 100%, all)"
        )
