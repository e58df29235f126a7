"""From a task's name to what is trained: what the data must have, sizes, the head on the backbone, its trainer."""

from typing import Any, Literal, NamedTuple

import torch
from lightning.fabric import Fabric
from torch import Tensor

from headstart.backbones.given import Initialised, run_settings
from headstart.config import Finetune
from headstart.data.index import DataSet
from headstart.data.loading import images_at
from headstart.data.masks import read_mask
from headstart.data.splits import Splits
from headstart.errors import UserError
from headstart.evaluation.features import extract
from headstart.progress import say
from headstart.runs import CONFIG, Run
from headstart.settings import Auto, Stem
from headstart.tasks.classification import Classifier
from headstart.tasks.detection import Detector
from headstart.tasks.segmentation import Segmenter
from headstart.verbs import resolve, start
from headstart.verbs.finetuning.classify import ClassifyJob
from headstart.verbs.finetuning.detect import DetectJob
from headstart.verbs.finetuning.job import Job
from headstart.verbs.finetuning.loop import Supervised
from headstart.verbs.finetuning.segment import SegmentJob
from headstart.verbs.finetuning.transfer import Transfer
from headstart.verbs.finetuning.yolo import run_yolo

LARGEST_DETECTION = 640  # pixels of the long side, as Ultralytics' default
STRIDE = 32  # of the coarsest map that detectors look at


class Learned(NamedTuple):
    """What a task is learned from.

    Attributes:
        settings: resolved.
        data: the opened data set.
        splits: its splits.
        rows: the labelled images of the budget, int64 ``[n]``.
        begun: the backbone with its first weights.
        fabric: device, precision and processes.
    """

    settings: Finetune
    data: DataSet
    splits: Splits
    rows: Tensor
    begun: Initialised
    fabric: Fabric


def require(task: str, data: DataSet) -> None:
    """Raise a UserError unless the data have what a task is learned from."""
    if task == "classify":
        data.require_labels("data")
    elif task == "segment" and (not data.mask_values or (data.labels >= 0).any()):
        raise UserError(
            f"data: {data.name} has no masks whose values are classes ({data.layout}); allowed with task segment: a"
            " folder with images/ and masks/, or a table with the columns image and mask and without label"
        )
    elif task == "segment" and len(data.classes) < 2:
        raise UserError(f"data: the masks of {data.name} have one class, '{data.classes[0]}' (allowed: two or more)")
    elif task == "detect" and data.objects is None:
        raise UserError(
            f"data: {data.name} has no boxes ({data.layout}); allowed with task detect: data.yaml (YOLO),"
            " instances.json (COCO), a folder of VOC XML"
        )


def image_size(task: str, init: str, asked: int | Auto, data: DataSet) -> int:
    """Return the side of the images: as asked, else for boxes their own long side up to 640, else as in pretrain."""
    if task != "detect":
        return start.image_size(init, asked, data)
    if asked != "auto":
        return asked
    longest = int(data.sizes.amax(1).median())
    return min(LARGEST_DETECTION, -(-longest // STRIDE) * STRIDE)


def stem(task: str, asked: Stem) -> Stem:
    """Return the first layers; objects are looked for in whole images, whatever was pretrained on."""
    return "standard" if task == "detect" and asked == "auto" else asked


def train(learned: Learned, run: Run | None, *, resume: bool, quiet: bool, lean: bool) -> None:
    """Train a task and leave its result in the run's folder."""
    settings, begun = learned.settings, learned.begun
    if run is not None and not quiet:
        _announce(learned, run)
    if settings.task == "detect" and settings.detector == "yolo":
        if run is not None:
            found = run_yolo(
                settings, learned.data, learned.splits, learned.rows, begun, run, resume=resume, quiet=quiet, lean=lean
            )
            run.finish(settings, found.pop("scores"), images=len(learned.rows), **found)
        return
    before = Transfer.of(begun) if begun.matched is not None else None
    training = Supervised(settings, build_job(learned), len(learned.rows), learned.fabric, before)
    last = start.last_checkpoint(run.folder, resume) if run is not None else None
    best, took = training.train(run, last, quiet=quiet, lean=lean)
    if run is not None:
        training.hand_over(run, best, took, lean=lean)


def build_job(learned: Learned) -> Job[Any]:
    """Return the head on the backbone, with its images."""
    settings, data = learned.settings, learned.data
    backbone, classes, freeze = learned.begun.backbone, len(data.classes), settings.transfer == "head"
    shared = (settings, data, learned.splits, learned.rows)
    if settings.task == "classify":
        weights = class_weights(data.labels[learned.rows].bincount(minlength=classes))
        classifier = Classifier(
            backbone,
            classes=classes,
            freeze=freeze,
            label_smoothing=settings.label_smoothing,
            class_weights=weights if settings.class_weights == "balanced" else None,
        )
        if freeze:
            classifier.standardise(_features(learned))
        return ClassifyJob(*shared, classifier, learned.fabric)
    if settings.task == "segment":
        balanced = settings.class_weights == "balanced"
        segmenter = Segmenter(
            backbone,
            classes=classes,
            decoder=settings.decoder,
            loss=settings.loss,
            freeze=freeze,
            class_weights=class_weights(pixel_counts(data, learned.rows)) if balanced else None,
        )
        return SegmentJob(*shared, segmenter, learned.fabric)
    size = int(settings.image_size)
    name: Literal["retinanet", "fcos"] = "fcos" if settings.detector == "fcos" else "retinanet"
    detector = Detector(backbone, classes=classes, detector=name, freeze=freeze, image_size=size)
    return DetectJob(*shared, detector, learned.fabric)


def _features(learned: Learned) -> Tensor:
    """Return the features of the labelled images, ``[n d]``."""
    settings, device = learned.settings, learned.fabric.device
    workers = resolve.workers(settings.workers)
    batches = images_at(learned.data, learned.rows, int(settings.image_size), workers=workers, device=device)
    return extract(learned.begun.backbone, batches, device=device, precision=settings.precision).features.cpu()


def class_weights(counts: Tensor) -> Tensor:
    """Return scikit-learn's balanced weights: all / (classes × those of the class); 0 for a class that never occurs.

    >>> class_weights(torch.tensor([1, 3]))
    tensor([2.0000, 0.6667])
    """
    weights = counts.sum() / (len(counts) * counts.clamp(min=1))
    return torch.where(counts > 0, weights, 0.0)


def pixel_counts(data: DataSet, rows: Tensor) -> Tensor:
    """Return how many pixels of masks are of each class, int64 ``[classes]``."""
    assert data.root is not None
    counts = torch.zeros(len(data.classes), dtype=torch.int64)
    for name in data.index["mask"].take(rows.numpy()).to_pylist():
        classes = read_mask(data.root / name, data.mask_values).long()
        counts += classes[classes >= 0].bincount(minlength=len(counts))
    return counts


def _announce(learned: Learned, run: Run) -> None:
    settings, data = learned.settings, learned.data
    classes = f"{len(data.classes)} class{'' if len(data.classes) == 1 else 'es'}"
    what = {"classify": "images", "segment": "images with masks", "detect": "images with boxes"}[settings.task]
    say(f"{data.name}: {len(learned.rows)} labelled {what} of {classes}, {data.layout}")
    head = {"classify": "a linear layer", "segment": settings.decoder, "detect": settings.detector}[settings.task]
    say(
        f"{settings.transfer} of {settings.model} ({settings.stem} stem) with {head} from {settings.init} at "
        f"{settings.image_size} px, batch {settings.batch_size}, {settings.precision};"
        f" all settings in {run.folder / CONFIG}"
    )
    stored = run_settings(settings.init)
    if stored is not None and stored["stem"] != settings.stem:
        say(f"stem: {settings.stem}, though the weights were trained with {stored['stem']}")
