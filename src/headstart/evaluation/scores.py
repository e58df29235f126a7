"""Scores of a classification, all counted from one confusion matrix over the whole data set."""

import torch
from torch import Tensor

from headstart.errors import UserError


def confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Count how often each true class is predicted as each class.

    Args:
        labels: true class numbers ``[n]``, int64 in 0..classes - 1.
        predictions: predicted class numbers ``[n]``, int64 in 0..classes - 1.
        classes: how many classes there are.

    Returns:
        Counts ``[classes classes]`` (int64): a row is a true class, a column a predicted one. Matrices of parts of a
        data set add up to the matrix of the whole.

    Raises:
        UserError: when the two differ in length, or hold a number that is no class.
    """
    if labels.shape != predictions.shape:
        raise UserError(f"predictions: {len(predictions)} of them for {len(labels)} labels (allowed: one per label)")
    for name, values in (("labels", labels), ("predictions", predictions)):
        if len(values) and (int(values.min()) < 0 or int(values.max()) >= classes):
            raise UserError(f"{name}: {int(values.min())}..{int(values.max())} (allowed: 0..{classes - 1})")
    return torch.bincount(labels * classes + predictions, minlength=classes**2).view(classes, classes)


def per_class(confusion: Tensor) -> dict[str, Tensor]:
    """Return the precision, recall and F1 of each class, float64 ``[classes]`` in 0..1.

    A share of nothing is 0, as in scikit-learn with ``zero_division=0``: the precision of a class that is never
    predicted, the recall of a class that never occurs, the F1 of a class that does neither.
    """
    counts = confusion.double()
    hits, occurring, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
    return {
        "precision": hits / predicted.clamp_min(1),
        "recall": hits / occurring.clamp_min(1),
        "f1": 2 * hits / (occurring + predicted).clamp_min(1),
    }


def classification_scores(confusion: Tensor) -> dict[str, float]:
    """Return accuracy, balanced accuracy and macro F1, each a share in 0..1.

    Every score is computed once, from the counts of the whole data set, never as a mean over batches:

    * ``accuracy``: right predictions / all predictions, so frequent classes weigh more.
    * ``balanced_accuracy``: mean recall over the classes that occur in the truth.
    * ``macro_f1``: mean F1 over the classes that occur in the truth or in the predictions.

    Classes left out of a mean are those that scikit-learn's ``balanced_accuracy_score`` and ``f1_score`` leave out.

    Raises:
        UserError: when the matrix is empty.

    >>> classification_scores(torch.tensor([[3, 1], [0, 4]]))["accuracy"]
    0.875
    """
    total = confusion.sum()
    if total == 0:
        raise UserError("confusion: counts no prediction (allowed: at least one)")
    occurring, predicted = confusion.sum(1) > 0, confusion.sum(0) > 0
    shares = per_class(confusion)
    return {
        "accuracy": float(confusion.diagonal().sum() / total),
        "balanced_accuracy": float(shares["recall"][occurring].mean()),
        "macro_f1": float(shares["f1"][occurring | predicted].mean()),
    }
