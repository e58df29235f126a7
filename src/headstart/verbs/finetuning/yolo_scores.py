"""What a YOLO network finds in test images, and what Ultralytics itself says of it."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from headstart.backbones import yolo
from headstart.evaluation.detection import MAX_DETECTIONS, Detections
from headstart.verbs.finetuning.yolo_data import row_of

CONFIDENCE, OVERLAP = 0.001, 0.7  # Ultralytics' own for scores: the lowest confidence, and the IoU of its suppression
FIGURES = {"ultralytics_map50": "metrics/mAP50(B)", "ultralytics_map50_95": "metrics/mAP50-95(B)"}


class Seen(NamedTuple):
    """What a network finds in images.

    Attributes:
        rows: the images that were looked at, int64 ``[m]`` ascending.
        detections: what was found, in pixels of the original images.
        scores: Ultralytics' own figures of the same boxes.
    """

    rows: Tensor
    detections: Detections
    scores: dict[str, float]


def look_at_test(net: Any, description: Path, arguments: dict[str, Any]) -> Seen:
    """Return what a network finds in the test images of a YOLO data set, letterboxed and suppressed by Ultralytics.

    Args:
        net: the network; it stays as it is.
        description: ``data.yaml``.
        arguments: of Ultralytics: image size, batch size, device and where it may write.
    """
    asked = {"mode": "val", "split": "test", "rect": True, "plots": False, "verbose": False, "data": str(description)}
    limits = {"conf": CONFIDENCE, "iou": OVERLAP, "max_det": MAX_DETECTIONS}
    validator = yolo.library("models.yolo.detect").DetectionValidator(args={**arguments, **asked, **limits})
    found: list[tuple[int, Tensor, Tensor, Tensor]] = []
    update, scale = validator.update_metrics, yolo.library("utils.ops").scale_boxes

    def recorded(seen: list[dict[str, Tensor]], batch: dict[str, Any]) -> None:
        places = zip(seen, batch["im_file"], batch["ori_shape"], batch["ratio_pad"], strict=True)
        for objects, file, size, pad in places:
            kept = objects["conf"].argsort(descending=True)[:MAX_DETECTIONS]  # crowded truth raises Ultralytics' limit
            boxes = scale(batch["img"].shape[2:], objects["bboxes"][kept].clone(), size, pad)
            found.append((row_of(file), boxes.cpu(), objects["cls"][kept].cpu(), objects["conf"][kept].cpu()))
        update(seen, batch)

    validator.update_metrics = recorded
    figures = validator(model=net)
    found.sort(key=lambda image: image[0])
    return Seen(
        torch.tensor([row for row, *_ in found]),
        detections_of(found),
        {name: float(figures[key]) for name, key in FIGURES.items()},
    )


def detections_of(found: list[tuple[int, Tensor, Tensor, Tensor]]) -> Detections:
    """Return the rows, boxes, classes and confidences of several images as columns."""
    rows = [torch.full((len(boxes),), row) for row, boxes, *_ in found]
    boxes, labels, scores = (torch.cat(column) for column in list(zip(*found, strict=True))[1:])
    return Detections(torch.cat(rows), boxes.float(), labels.long(), scores.float())
