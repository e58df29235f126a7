"""The objects in each image, as text files in the form of YOLO."""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import Dataset

from headstart import runs
from headstart.backbones.detectors import UltralyticsDetector
from headstart.backbones.yolo import read_network
from headstart.data.images import THREADS, DecodeError
from headstart.data.index import DataSet
from headstart.data.letterbox import letterboxed, restored_boxes
from headstart.data.streaming import decoded, read_parts
from headstart.tasks.detection import Detector, Found
from headstart.verbs.exporting.source import Source
from headstart.verbs.predicting import pictures
from headstart.verbs.predicting.work import Work, named, table

LABELS, DRAWN = "labels", "drawn"
COLUMNS = ("image", "class", "confidence", "left", "top", "right", "bottom")
Batch = list[tuple[int, Found]]  # rows, and the objects in each image in its own pixels


def detect(work: Work) -> Mapping[str, int]:
    """Write the objects in each image and, if wanted, draw them; return how many there are of each class."""
    classes, images = work.source.classes, work.images
    counts = np.zeros(len(classes), np.int64)
    (work.folder / LABELS).mkdir()
    search = _yolo if work.source.config["detector"] == "yolo" else _torchvision
    with table(work.folder, COLUMNS) as writer, ThreadPoolExecutor(THREADS) as pool:
        for batch in search(work):
            for (row, found), _ in zip(batch, pool.map(partial(_write, work), *zip(*batch, strict=True)), strict=True):
                path = images.paths[row].as_py()
                counts += np.bincount(found.labels.numpy(), minlength=len(classes))
                for box, label, score in zip(*(part.tolist() for part in found), strict=True):
                    writer.writerow([path, classes[label], f"{score:.4f}", *(f"{side:.2f}" for side in box)])
            work.done(torch.tensor([row for row, _ in batch]))
    return named(classes, counts)


def build_detector(source: Source) -> Detector:
    """Return the RetinaNet or FCOS of a RUN with its weights, in evaluation mode."""
    detector = Detector(
        source.begun.backbone,
        classes=len(source.classes),
        detector=source.config["detector"],
        image_size=source.begun.image_size,
    )
    detector.head.load_state_dict(safetensors.torch.load_file(source.folder / runs.HEAD))
    return detector.eval()


def yolo_lines(found: Found, native: tuple[int, int]) -> str:
    """Return objects as Ultralytics' predictions have them: class, centre, width, height and confidence.

    Args:
        found: boxes in pixels of the image.
        native: height and width of the image in pixels, by which sides are divided.
    """
    height, width = native
    left, top, right, bottom = (found.boxes.double() / torch.tensor([width, height, width, height])).unbind(1)
    sides = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top, found.scores], dim=1)
    lines = zip(found.labels.tolist(), sides.tolist(), strict=True)
    return "".join(f"{label} {' '.join(f'{side:.6f}' for side in row)}\n" for label, row in lines)


def _torchvision(work: Work) -> Iterator[Batch]:
    """Yield what a RetinaNet or FCOS finds, batch by batch."""
    detector = build_detector(work.source).to(work.fabric.device)
    rows, least = torch.arange(work.images.count), float(work.settings.confidence)
    batches = letterboxed(work.images, rows, work.source.begun.image_size, bad=work.reasons, **work.reading)
    for batch in batches:
        with torch.inference_mode(), work.fabric.autocast():
            seen = detector.detect(batch.images)
        found: Batch = []
        for row, size, objects in zip(batch.rows.tolist(), batch.sizes.tolist(), seen, strict=True):
            boxes, labels, scores = (part.cpu() for part in objects)
            boxes = restored_boxes(boxes, tuple(size), tuple(work.images.sizes[row].tolist()))
            found.append((row, confident(Found(boxes, labels, scores), least)))
        yield found


def _yolo(work: Work) -> Iterator[Batch]:
    """Yield what a YOLO network finds, batch by batch, with the scaling and the choice of boxes of its own library."""
    least, device = float(work.settings.confidence), work.fabric.device
    network = read_network(work.source.folder / runs.DETECTOR, "run")
    detector = UltralyticsDetector(network, least, work.source.begun.image_size, device)
    images = _images(work)
    while batch := list(islice(images, int(work.settings.batch_size))):
        seen = detector.detect([image for _, image in batch])
        found = [Found(objects.boxes, objects.labels, objects.scores) for objects in seen]
        yield [(row, confident(objects, least)) for (row, _), objects in zip(batch, found, strict=True)]


def confident(found: Found, least: float) -> Found:
    """Return the objects that are at least so sure to be some, the surest first, without those beside the image."""
    order = found.scores.argsort(descending=True, stable=True)
    inside = (found.boxes[order, 2:] > found.boxes[order, :2]).all(1)  # of others nothing was left in it
    order = order[inside & (found.scores[order] >= least)]
    return Found(found.boxes[order], found.labels[order], found.scores[order])


class _Whole(Dataset[tuple[int, Tensor | str]]):
    """Images by their row as they are, uint8 ``[c h w]``, or why there is none: what a worker does."""

    def __init__(self, dataset: DataSet) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return self.dataset.count

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        try:
            return row, pictures.bytes_of(decoded(self.dataset, row))
        except DecodeError as error:
            return row, str(error)


def _images(work: Work) -> Iterator[tuple[int, Tensor]]:
    """Yield rows and their images; of those that cannot be decoded only note why."""
    for row, image in read_parts(_Whole(work.images), work.reading["workers"], pin=False):
        if isinstance(image, str):
            work.reasons[work.images.paths[row].as_py()] = image
        else:
            yield row, image


def _write(work: Work, row: int, found: Found) -> None:
    """Write what is found in one image."""
    height, width = work.images.sizes[row].tolist()
    work.place(LABELS, row, ".txt").write_text(yolo_lines(found, (height, width)), encoding="utf-8")
    if work.settings.draw:
        pictures.save_drawing(work.images, row, found, work.source.classes, work.place(DRAWN, row, ".jpg"))
