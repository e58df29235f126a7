"""Scores of a segmentation, all counted from confusion matrices of pixels.

Of two classes the second one, the foreground, is scored; of more the mean is taken over the classes that occur in the
truth or in the predictions. A class that occurs in neither is left out: it was neither found nor missed.
"""

from collections.abc import Mapping

from torch import Tensor

from headstart.evaluation.scores import confusion, per_class
from headstart.losses.segmentation import VOID


def pixel_confusion(labels: Tensor, predictions: Tensor, classes: int) -> Tensor:
    """Count how often pixels of each class are predicted as each class.

    Args:
        labels: true class numbers of any shape, integers; -1 for void, which is not counted.
        predictions: predicted class numbers of the same shape, in 0..classes - 1.
        classes: how many classes there are.

    Returns:
        Counts ``[classes classes]`` (int64): a row is a true class, a column a predicted one. The matrices of images
        add up to that of the data set.

    Raises:
        UserError: a number is no class.
    """
    known = labels != VOID
    return confusion(labels[known].long(), predictions[known].long(), classes)


def class_scores(confusion: Tensor) -> dict[str, Tensor]:
    """Return the IoU, Dice, precision, recall and F1 of each class, float64 ``[classes]`` in 0..1.

    F1 is Dice by definition: 2 TP / (2 TP + FP + FN). A share of nothing is 0, as in scikit-learn with
    ``zero_division=0``.
    """
    shares = per_class(confusion)
    counts = confusion.double()
    hits = counts.diagonal()
    union = counts.sum(0) + counts.sum(1) - hits
    return {"iou": hits / union.clamp_min(1), "dice": shares["f1"], **shares}


def segmentation_scores(confusion: Tensor) -> dict[str, float]:
    """Return the scores of a data set, each a share in 0..1, computed once from the counts of all its pixels.

    * ``iou``, ``dice``, ``f1`` (the same as ``dice``), ``precision``, ``recall``: of the second class where there are
      two, else the mean over the classes that occur in the truth or in the predictions, as scikit-learn's ``macro``.
    * ``mean_iou``: the mean over the classes that occur, also where there are two, so that the background counts.
    * ``pixel_accuracy``: right pixels / all pixels that have a class.

    Where nothing is left to be scored (no foreground in the truth and none predicted, or no pixel at all), a score
    is 0.

    Args:
        confusion: as ``pixel_confusion`` counts it, ``[classes classes]``.

    >>> segmentation_scores(Tensor([[6, 1], [1, 2]]))["iou"]
    0.5
    """
    shares, occurring = class_scores(confusion), _occurring(confusion)
    scored = _scored(occurring)
    right = confusion.diagonal().double().sum() / confusion.sum().clamp_min(1)
    return {
        **{name: _mean(values, scored) for name, values in shares.items()},
        "mean_iou": _mean(shares["iou"], occurring),
        "pixel_accuracy": float(right),
    }


def image_shares(confusion: Tensor) -> dict[str, float]:
    """Return ``image_iou`` and ``image_dice`` of one image, NaN where there is nothing to be scored in it.

    They are the ``iou`` and the ``dice`` of ``segmentation_scores``, of the pixels of one image.

    Args:
        confusion: of the image, ``[classes classes]``.
    """
    shares, scored = class_scores(confusion), _scored(_occurring(confusion))
    return {f"image_{name}": float(shares[name][scored].mean()) for name in ("iou", "dice")}


def image_scores(shares: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the means of ``image_shares`` over images, in which small objects count as much as large ones.

    Images in which there is nothing to be scored, such as an empty one that is predicted to be empty, are left out;
    where all are, the score is 0. An empty image in which something is predicted counts as 0.

    Args:
        shares: of each image, float ``[n]`` by name.
    """
    return {name: _mean(values, ~values.isnan()) for name, values in shares.items()}


def _occurring(confusion: Tensor) -> Tensor:
    """Return which classes are in the truth or in the predictions, bool ``[classes]``."""
    return (confusion.sum(0) + confusion.sum(1)) > 0


def _scored(occurring: Tensor) -> Tensor:
    """Return over which classes the mean is taken, bool ``[classes]``."""
    scored = occurring.clone()
    if len(scored) == 2:
        scored[0] = False
    return scored


def _mean(values: Tensor, chosen: Tensor) -> float:
    return float(values[chosen].mean()) if chosen.any() else 0.0
