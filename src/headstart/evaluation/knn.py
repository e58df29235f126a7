"""Weighted nearest neighbours on frozen features.

Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018, arXiv:1805.01978, sec. 3.4.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.errors import UserError

_WEIGHT_UNIT = 2.0**40  # of the nearest neighbour's vote; leaves room in an int64 for 2**23 neighbours


def knn_predict(
    train_features: Tensor,
    train_labels: Tensor,
    features: Tensor,
    classes: int,
    k: int,
    temperature: float = 0.1,
    chunk: int = 1024,
) -> Tensor:
    """Classify features by a vote of their k nearest training rows, weighted by exp(cosine similarity / temperature).

    The result does not depend on the order of sums: of neighbours equally near, those first among the training rows
    are taken; of classes with equal votes, the lowest number wins.

    Args:
        train_features: ``[n d]``; normalised to unit length here.
        train_labels: class numbers ``[n]`` (int64) in 0..classes - 1.
        features: what to classify, ``[m d]``.
        classes: how many classes there are.
        k: how many neighbours vote; cut to ``n`` where there are fewer training rows.
        temperature: the smaller, the more the nearest neighbours count (the paper votes with the temperature of its
            training, 0.07).
        chunk: how many features are compared at once; ``chunk * n`` similarities are in memory.

    Returns:
        Predicted class numbers ``[m]`` (int64), on the features' device.

    Raises:
        UserError: when there is no training row, or a number is out of its range.
    """
    _check(train_features, train_labels, classes, k, temperature)
    k = min(k, len(train_features))
    bank = _unit_length(train_features).T.contiguous()
    predictions = train_labels.new_empty(len(features))
    for part, places in zip(torch.split(features, chunk), torch.split(predictions, chunk), strict=True):
        places.copy_(_vote(_unit_length(part) @ bank, train_labels, classes, k, temperature))
    return predictions


def _check(train_features: Tensor, train_labels: Tensor, classes: int, k: int, temperature: float) -> None:
    if len(train_features) == 0 or len(train_features) != len(train_labels):
        raise UserError(
            f"train_labels: {len(train_labels)} for {len(train_features)} rows (allowed: one per row, n > 0)"
        )
    if int(train_labels.min()) < 0 or int(train_labels.max()) >= classes:
        raise UserError(f"train_labels: outside of the classes (allowed: 0..{classes - 1})")
    if k < 1:
        raise UserError(f"k: {k} (allowed: 1 and more)")
    if temperature <= 0:
        raise UserError(f"temperature: {temperature} (allowed: above 0)")


def _unit_length(features: Tensor) -> Tensor:
    wide = features if features.dtype == torch.float64 else features.float()
    return F.normalize(wide, dim=1)


def _vote(similarities: Tensor, train_labels: Tensor, classes: int, k: int, temperature: float) -> Tensor:
    nearest, rows = _nearest(similarities, k)
    weights = ((nearest - nearest.amax(1, keepdim=True)).double() / temperature).exp()
    # Whole numbers add up to the same sum in any order, so that equal votes are equal on every device.
    votes = torch.zeros(len(rows), classes, dtype=torch.int64, device=rows.device)
    return votes.scatter_add_(1, train_labels[rows], (weights * _WEIGHT_UNIT).round().long()).argmax(1)


def _nearest(similarities: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest similarities of each row and their columns ``[m k]``, the first columns among equal ones."""
    nearest, rows = similarities.topk(k, dim=1, sorted=False)
    # topk takes any of the columns that are equal at its border: only rows with such columns need a stable sort.
    tied = (similarities >= nearest.amin(1, keepdim=True)).sum(1) > k
    if tied.any():
        ordered, columns = similarities[tied].sort(dim=1, descending=True, stable=True)
        nearest[tied], rows[tied] = ordered[:, :k], columns[:, :k]
    return nearest, rows
