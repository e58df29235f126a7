"""Scores of detected boxes, counted by pycocotools as the COCO benchmark counts them."""

import contextlib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from headstart.data.index import DataSet

# COCO itself counts at most 100 of an image and class, which cuts off objects of crowded aerial images
MAX_DETECTIONS = 300
_HALF, _THREE_QUARTERS = 0, 5  # places of IoU 0.5 and 0.75 among COCO's ten thresholds 0.5, 0.55 … 0.95
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # COCO's areas: any, up to 32² px, up to 96² px, more


class Detections(NamedTuple):
    """What a detector found.

    Attributes:
        images: the row of each box's image in the data set, int64 ``[n]``.
        boxes: left, top, right and bottom in pixels of the original image, float32 ``[n 4]``.
        labels: class numbers, int64 ``[n]``.
        scores: confidence in 0..1, float32 ``[n]``.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    scores: Tensor


class Truth(NamedTuple):
    """What there is to be found.

    Attributes:
        rows: the images that were looked at, int64 ``[m]``, each once; some may hold no object.
        sizes: their heights and widths in pixels, int64 ``[m 2]``.
        images: the row of each object's image, int64 ``[n]``.
        boxes: left, top, right and bottom in pixels of the original image, float32 ``[n 4]``.
        labels: class numbers, int64 ``[n]``.
    """

    rows: Tensor
    sizes: Tensor
    images: Tensor
    boxes: Tensor
    labels: Tensor


class Evaluation(NamedTuple):
    """What all scores are computed from.

    Attributes:
        precision: of each IoU threshold, recall 0, 0.01 … 1, class and area, float64 ``[10 101 k 4]``; -1 for a class
            without an object of the area.
        objects: how many there are of each class, int64 ``[k]``.
        labels: the class of each detection that counts, int64 ``[n]``, most confident first.
        scores: its confidence, float64 ``[n]``.
        hits: whether it is matched to an object at IoU 0.5, bool ``[n]``.
    """

    precision: np.ndarray
    objects: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    hits: np.ndarray


class Curves(NamedTuple):
    """Precision over recall at IoU 0.5.

    Attributes:
        recall: 0, 0.01 … 1, float64 ``[101]``.
        precision: the highest at that recall or beyond for each class, float64 ``[k 101]``; NaN without an object.
        mean: over the classes that have an object, float64 ``[101]``; 0 where none has.
    """

    recall: np.ndarray
    precision: np.ndarray
    mean: np.ndarray


def truth_of(dataset: DataSet, rows: Tensor) -> Truth:
    """Return the objects of some images of a data set with boxes, rows int64 ``[m]``."""
    assert dataset.objects is not None
    columns = {name: torch.from_numpy(dataset.objects[name].to_numpy().copy()) for name in dataset.objects.column_names}
    chosen = torch.isin(columns["image"], rows)
    boxes = torch.stack([columns[side] for side in ("left", "top", "right", "bottom")], dim=1)
    return Truth(
        rows, dataset.sizes[rows], columns["image"][chosen], boxes[chosen].float(), columns["label"][chosen].long()
    )


def detection_scores(truth: Truth, detections: Detections, classes: Sequence[str]) -> dict[str, float | None]:
    """Return the scores of a detector over a data set, each a share in 0..1.

    As in COCO, but with up to ``MAX_DETECTIONS`` boxes of an image and class. A mean over classes leaves out those
    without an object.

    * ``map50_95``, ``map50``, ``map75``: mean average precision, over IoU 0.5, 0.55 … 0.95, at 0.5 and at 0.75;
      0 where there is no object at all.
    * ``ap_small``, ``ap_medium``, ``ap_large``: as ``map50_95``, of objects of up to 32² px, up to 96² px and above;
      None where there is none.
    * ``precision``, ``recall``: at IoU 0.5 and the ``confidence`` that has the highest mean F1, mean over classes.
    """
    return scores_of(evaluate(truth, detections, len(classes)))


def evaluate(truth: Truth, detections: Detections, classes: int) -> Evaluation:
    """Match detections to objects of the same image and class, the most confident detection first."""
    assert torch.isin(detections.images, truth.rows).all()
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints what it does
        counted = COCOeval(_known(truth, classes), _found(truth, detections, classes), "bbox")
        counted.params.imgIds = truth.rows.tolist()
        counted.params.catIds = list(range(classes))
        counted.params.maxDets = [1, 10, MAX_DETECTIONS]
        counted.evaluate()
        counted.accumulate()
    return Evaluation(
        counted.eval["precision"][..., -1],
        np.bincount(truth.labels.numpy(), minlength=classes),
        *_matches(counted.evalImgs, len(counted.params.areaRng), len(counted.params.imgIds)),
    )


def scores_of(evaluation: Evaluation) -> dict[str, float | None]:
    """Return what ``detection_scores`` does."""
    precision = evaluation.precision
    whole = {
        "map50_95": _mean(precision[..., _ALL]),
        "map50": _mean(precision[_HALF, ..., _ALL]),
        "map75": _mean(precision[_THREE_QUARTERS, ..., _ALL]),
    }
    return {
        **{name: value or 0.0 for name, value in whole.items()},
        "ap_small": _mean(precision[..., _SMALL]),
        "ap_medium": _mean(precision[..., _MEDIUM]),
        "ap_large": _mean(precision[..., _LARGE]),
        **_best_f1(evaluation),
    }


def per_class(evaluation: Evaluation, classes: Sequence[str]) -> dict[str, dict[str, float | None]]:
    """Return how many objects there are of each class, and its average precision, None where there is no object."""
    precision = evaluation.precision[..., _ALL]
    return {
        name: {
            "objects": int(evaluation.objects[number]),
            "ap50": _mean(precision[_HALF, :, number]),
            "ap50_95": _mean(precision[:, :, number]),
        }
        for number, name in enumerate(classes)
    }


def coco_truth(truth: Truth, classes: Sequence[str], files: Sequence[str]) -> dict[str, Any]:
    """Return the objects in COCO's form, as a file of annotations has them.

    Args:
        truth: the objects.
        classes: their names.
        files: the path of each image that was looked at.
    """
    images = [{**image, "file_name": file} for image, file in zip(_images(truth), files, strict=True)]
    categories = [{"id": number, "name": name} for number, name in enumerate(classes)]
    annotations = _annotations(truth.images, truth.boxes, truth.labels)
    return {"images": images, "annotations": annotations, "categories": categories}


def coco_results(detections: Detections) -> list[dict[str, Any]]:
    """Return detections in COCO's form of results: image_id, category_id, bbox, score."""
    boxes = _annotations(detections.images, detections.boxes, detections.labels)
    return [
        {name: box[name] for name in ("image_id", "category_id", "bbox")} | {"score": score}
        for box, score in zip(boxes, detections.scores.tolist(), strict=True)
    ]


def curves(evaluation: Evaluation) -> Curves:
    """Return precision over recall at IoU 0.5, for a figure."""
    precision = evaluation.precision[_HALF, ..., _ALL].T
    known = precision[evaluation.objects > 0]
    mean = known.mean(axis=0) if len(known) else np.zeros(precision.shape[1])
    return Curves(np.linspace(0, 1, len(mean)), np.where(precision < 0, np.nan, precision), mean)


def _mean(precision: np.ndarray) -> float | None:
    """Return the mean over all but the classes that have no such object, None where none has."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _best_f1(evaluation: Evaluation) -> dict[str, float | None]:
    """Return mean precision and recall at the confidence, one of the detections', that has the highest mean F1.

    Of equal ones the highest. As elsewhere, the precision of a class of which nothing is found is 0.
    """
    known = np.flatnonzero(evaluation.objects).tolist()
    if not known or not len(evaluation.scores):
        return {"precision": 0.0, "recall": 0.0, "confidence": 0.0}
    thresholds = np.unique(evaluation.scores)[::-1]
    f1 = np.zeros(len(thresholds))
    for label in known:
        found, hits = _counted(evaluation, label, thresholds)
        f1 += 2 * hits / (found + evaluation.objects[label])
    best = thresholds[f1.argmax()]
    found, hits = np.transpose([_counted(evaluation, label, best) for label in known])
    return {
        "precision": float((hits / np.maximum(found, 1)).mean()),
        "recall": float((hits / evaluation.objects[known]).mean()),
        "confidence": float(best),
    }


def _counted(evaluation: Evaluation, label: int, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return how many detections of a class are at least so confident, and how many of them are hits."""
    own = evaluation.labels == label
    found = np.searchsorted(-evaluation.scores[own], -thresholds, side="right")
    return found, np.append(0, evaluation.hits[own].cumsum())[found]


def _matches(
    found: Sequence[Mapping[str, Any] | None], areas: int, images: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return class, confidence and whether it is a hit at IoU 0.5 of all detections, the most confident first.

    Args:
        found: what pycocotools found in each image, of each class, area and image in that order.
        areas: how many.
        images: how many.
    """
    labels: list[int] = []
    scores: list[float] = []
    hits: list[bool] = []
    for place, one in enumerate(found):
        label, area = divmod(place // images, areas)
        if one is not None and area == _ALL:
            labels.extend([label] * len(one["dtScores"]))
            scores.extend(one["dtScores"])
            hits.extend(one["dtMatches"][_HALF] > 0)
    order = np.argsort(-np.array(scores, float), kind="stable")
    return np.array(labels, np.int64)[order], np.array(scores, float)[order], np.array(hits, bool)[order]


def _known(truth: Truth, classes: int) -> COCO:
    return _coco(truth, _annotations(truth.images, truth.boxes, truth.labels), classes)


def _found(truth: Truth, detections: Detections, classes: int) -> COCO:
    boxes = _annotations(detections.images, detections.boxes, detections.labels)
    scored = [{**box, "score": score} for box, score in zip(boxes, detections.scores.tolist(), strict=True)]
    return _coco(truth, scored, classes)


def _annotations(images: Tensor, boxes: Tensor, labels: Tensor) -> list[dict[str, Any]]:
    boxes = boxes.double()
    corners = torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)  # left, top, width and height
    lines = zip(images.tolist(), labels.tolist(), corners.tolist(), strict=True)
    return [
        # pycocotools takes the id 0 for "not matched"
        {"id": number, "image_id": image, "category_id": label, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for number, (image, label, box) in enumerate(lines, start=1)
    ]


def _images(truth: Truth) -> list[dict[str, Any]]:
    sizes = zip(truth.rows.tolist(), truth.sizes.tolist(), strict=True)
    return [{"id": row, "height": height, "width": width} for row, (height, width) in sizes]


def _coco(truth: Truth, annotations: list[dict[str, Any]], classes: int) -> COCO:
    coco = COCO()
    coco.dataset = {
        "images": _images(truth),
        "annotations": annotations,
        "categories": [{"id": number} for number in range(classes)],
    }
    coco.createIndex()
    return coco
