"""A detector of torchvision with its images, and what is said of detections, whoever made them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import pyarrow as pa
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from headstart import runs
from headstart.contracts import Objects
from headstart.data.images import DecodeError
from headstart.data.index import DataSet
from headstart.data.letterbox import letterboxed, restored_boxes
from headstart.data.streaming import decoded
from headstart.data.targets import ObjectsOf, Targets
from headstart.evaluation.detection import (
    MAX_DETECTIONS,
    Curves,
    Detections,
    Truth,
    coco_results,
    coco_truth,
    curves,
    detection_scores,
    evaluate,
    per_class,
    scores_of,
    truth_of,
)
from headstart.tasks.detection import Detector
from headstart.verbs import figures, resolve
from headstart.verbs.drawing import colour, draw_boxes, sheet
from headstart.verbs.finetuning.job import Job, Look

DETECTIONS = "detections"  # the folder of objects and detections in COCO's form, for any other tool
SHOWN = 8  # images in the figure of detections
SIDE = 480  # pixels of the long side of each
NAMED = 12  # classes that have a curve of their own


class Seen(NamedTuple):
    """What a detector made of some images.

    Attributes:
        rows: those that could be decoded, int64 ``[m]``.
        detections: in them.
        loss: mean over them.
    """

    rows: Tensor
    detections: Detections
    loss: float


@final
class DetectJob(Job[Detector]):
    """A detector of torchvision, and the boxes that it learns from."""

    score: ClassVar[str] = "map50_95"
    targets: ClassVar[Targets] = "objects"

    def look(self) -> Look:
        """Return mean average precision and loss on the whole validation images."""
        seen = self._seen(self.splits.val)
        scores = detection_scores(truth_of(self.data, seen.rows), seen.detections, self.data.classes)
        return Look(scores["map50_95"] or 0.0, seen.loss)

    def finish(self, folder: Path, *, lean: bool) -> dict[str, Any]:
        """Return the scores of the whole test images, over all and for each class."""
        seen = self._seen(self.splits.test)
        if not lean:
            panels = {"loss": ["loss", "val_loss"], "mAP at IoU 0.5 … 0.95": ["val_map50_95"]}
            figures.curves(folder / "plots" / "curves.png", runs.read_metrics(folder), panels)
        return finish_scores(self.data, seen.rows, seen.detections, folder, lean=lean)

    def _seen(self, rows: Tensor) -> Seen:
        assert self.data.objects is not None
        self.task.eval()
        objects_of = ObjectsOf(self.data.objects, self.fabric.device)
        seen, found, loss = list[int](), [_nothing()], 0.0
        parts = letterboxed(
            self.data,
            rows,
            int(self.settings.image_size),
            batch_size=int(self.settings.batch_size),
            workers=resolve.workers(self.settings.workers),
            device=self.fabric.device,
        )
        with torch.inference_mode(), self.fabric.autocast():
            for part in parts:
                part_rows = part.rows.tolist()
                natives = [_pair(self.data.sizes[row]) for row in part_rows]
                sizes = [_pair(size) for size in part.sizes]
                answers = self.task.answers(part.images)
                lines = zip(objects_of(part.rows), natives, sizes, strict=True)
                known = tuple(Objects(restored_boxes(one.boxes, *way), one.labels) for one, *way in lines)
                loss += float(self.task.losses_of(answers, known)["loss"]) * len(part_rows)
                for row, one, size, native in zip(part_rows, self.task.found_in(answers), sizes, natives, strict=True):
                    boxes = restored_boxes(one.boxes, size, native).float().cpu()
                    images = torch.full((len(boxes),), row)
                    found.append(Detections(images, boxes, one.labels.cpu(), one.scores.float().cpu()))
                seen.extend(part_rows)
        self.task.train()
        together = Detections(*(torch.cat(columns) for columns in zip(*found, strict=True)))
        return Seen(torch.tensor(seen, dtype=torch.int64), together, loss / max(len(seen), 1))


def finish_scores(data: DataSet, rows: Tensor, detections: Detections, folder: Path, *, lean: bool) -> dict[str, Any]:
    """Return what ``result.json`` holds of detections, and draw them.

    Args:
        data: the data set with boxes.
        rows: the images that were looked at, int64 ``[m]``.
        detections: what was found in them.
        folder: of the run; unless it is lean, gets ``detections/truth.json`` and ``detections/found.json`` in
            COCO's form, ``plots/precision_recall.png`` and ``plots/detections.png``.
        lean: draw nothing.

    Returns:
        ``scores``, ``classes``, ``per_class`` and ``max_detections``: how many boxes of an image and class count.
    """
    truth = truth_of(data, rows)
    evaluation = evaluate(truth, detections, len(data.classes))
    scores = scores_of(evaluation)
    by_class = per_class(evaluation, data.classes)
    if not lean:
        files = data.paths.take(pa.array(rows.numpy())).to_pylist()
        runs.write_text(folder / DETECTIONS / "truth.json", json.dumps(coco_truth(truth, data.classes, files)))
        runs.write_text(folder / DETECTIONS / "found.json", json.dumps(coco_results(detections)))
        precision_recall(folder / "plots" / "precision_recall.png", curves(evaluation), data.classes)
        least = scores["confidence"] or 0.0
        some = _some(truth)
        draw_detections(folder / "plots" / "detections.png", data, some, truth, detections, least=least)
    return {
        "scores": scores,
        "classes": list(data.classes),
        "per_class": by_class,
        "max_detections": MAX_DETECTIONS,
    }


def precision_recall(path: Path, found: Curves, classes: Sequence[str]) -> None:
    """Draw precision over recall at IoU 0.5: the mean, and each class where they are few."""
    figure = Figure(figsize=(6.5, 5), layout="constrained")
    room = figure.subplots()
    known = np.flatnonzero(~np.isnan(found.precision).any(axis=1)).tolist()
    for label in known:
        named = len(known) <= NAMED
        name = f"{classes[label]} {found.precision[label].mean():.3f}" if named else None
        shade = np.array(colour(label)) / 255 * 0.85 if named else "lightgrey"
        room.plot(found.recall, found.precision[label], color=shade, linewidth=1.2, label=name)
    room.plot(found.recall, found.mean, color="black", linewidth=2.2, label=f"mean {found.mean.mean():.3f}")
    room.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
    room.grid(alpha=0.3)
    room.legend(frameon=False, title="average precision at IoU 0.5", fontsize=8)
    figures.save(figure, path)


def draw_detections(
    path: Path, data: DataSet, rows: Sequence[int], truth: Truth, detections: Detections, *, least: float
) -> None:
    """Draw images with their objects, and beside it with the boxes that were found with a confidence of ``least``."""
    pairs = []
    for row in rows:
        try:
            picture = _picture(decoded(data, row))
        except DecodeError:
            continue
        scale = SIDE / max(picture.shape[:2])
        known = truth.images == row
        found = (detections.images == row) & (detections.scores >= least)
        boxes, labels, scores = (column[found] for column in detections[1:])
        pairs.append(
            [
                draw_boxes(
                    picture, truth.boxes[known].numpy(), truth.labels[known].tolist(), data.classes, scale=scale
                ),
                draw_boxes(picture, boxes.numpy(), labels.tolist(), data.classes, scores.tolist(), scale=scale),
            ]
        )
    if not pairs:
        return
    if len(pairs) % 2 == 0:  # two images in a row
        pairs = [[*one, *other] for one, other in zip(pairs[::2], pairs[1::2], strict=True)]
    titles = ["truth", f"found, confidence from {least:.2f}"] * (len(pairs[0]) // 2)
    content = Image.fromarray(sheet(pairs, titles, data.classes))
    runs.replace(path, lambda temporary: content.save(temporary, format="png"))


def _some(truth: Truth) -> list[int]:
    """Return some images, evenly spaced among those that hold an object, or among all if none does."""
    rows = truth.rows[torch.isin(truth.rows, truth.images)]
    rows = rows if len(rows) else truth.rows
    places = torch.linspace(0, max(len(rows) - 1, 0), min(SHOWN, len(rows))).round().long()
    return rows[places].tolist()


def _picture(image: Tensor) -> np.ndarray:
    """Return the first three channels of an image, or thrice the first, as uint8 ``[h w 3]``."""
    if image.is_floating_point():
        image = (image * 255).round().to(torch.uint8)
    colours = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    return colours.permute(1, 2, 0).contiguous().numpy()


def _nothing() -> Detections:
    none = torch.zeros(0, dtype=torch.int64)
    return Detections(none, torch.zeros(0, 4), none, torch.zeros(0))


def _pair(size: Tensor) -> tuple[int, int]:
    height, width = size.tolist()
    return height, width
