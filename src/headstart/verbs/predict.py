"""The verb ``predict``: the class of each image, the class of each pixel, or objects, by a finetuned RUN."""

import csv
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headstart.config import Predict
from headstart.data.index import BadImage
from headstart.data.masks import MASKS
from headstart.data.scan import first, printable
from headstart.errors import UserError
from headstart.progress import Track
from headstart.settings import signature
from headstart.training.machine import build_fabric, resolve_precision
from headstart.verbs import parameters, start
from headstart.verbs.exporting.source import Source, read_source
from headstart.verbs.predicting.classify import classify
from headstart.verbs.predicting.detect import LABELS, detect
from headstart.verbs.predicting.segment import segment
from headstart.verbs.predicting.work import PREDICTIONS, Work
from headstart.verbs.prepared import prepared

LEFT_OUT = "left_out.csv"
PREDICTORS: dict[str, Callable[[Work], Mapping[str, int]]] = {
    "classify": classify,
    "segment": segment,
    "detect": detect,
}
BATCH_SIZES = {"classify": 256, "segment": 16, "detect": 16}  # decoders keep large maps of each image
CONFIDENCE = 0.25  # Ultralytics' own


@dataclass(frozen=True)
class Predicted:
    """A folder of predictions.

    Attributes:
        out: the folder.
        task: what was predicted: ``classify``, ``segment`` or ``detect``.
        images: how many were predicted.
        counts: how many images, pixels or objects are of each class.
        bad: the images that could not be read, and why.
    """

    out: Path
    task: str
    images: int
    counts: Mapping[str, int]
    bad: tuple[BadImage, ...]

    def __str__(self) -> str:
        """Return how much is of which class, and what was left out."""
        lines = [self._found()]
        if self.bad:
            listed = first([f"{printable(bad.path)} ({bad.reason})" for bad in self.bad])
            every = self.images + len(self.bad)
            lines.append(f"left out: {len(self.bad):,} of {every:,} images, all in {self.out / LEFT_OUT}: {listed}")
        return "\n".join(lines)

    def _found(self) -> str:
        every = sum(self.counts.values())
        of_class = {printable(name): count for name, count in self.counts.items() if count}
        shown = ", ".join(
            f"{name} {100 * count / every:.1f} %" if self.task == "segment" else f"{name} {count:,}"
            for name, count in of_class.items()
        )
        where = {
            "classify": f"{self.images:,} images in {self.out / PREDICTIONS}",
            "segment": f"masks of {self.images:,} images in {self.out / MASKS}, shares of pixels",
            "detect": f"{every:,} objects in {self.images:,} images in {self.out / LABELS}",
        }
        return f"{where[self.task]}: {shown or 'none'}"


def predict(
    run: str | Path,
    data: str | Path,
    *,
    out: str | Path,
    config: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> Predicted:
    """Predict classes, masks or objects of images with a finetuned RUN, as it was trained to.

    ``predictions.csv`` begins with ``image``, the path within the data. Files of an image have its path without the end
    and without folders called ``images``; of two images that would share a file both keep their whole paths.

    * classify: a line for each image with ``prediction``, its ``probability``, and ``p_NAME`` of each class.
    * segment: a line for each image with ``share_NAME``, the share of its pixels of each class. ``masks/IMAGE.png`` is
      the mask at the image's own size, and ``classes.txt`` says what it means, so that the folder is a data set as soon
      as the images are put into ``images/``. ``overlays/IMAGE.jpg`` shows it.
    * detect: a line for each object with ``class``, ``confidence``, and ``left``, ``top``, ``right`` and ``bottom`` in
      pixels. ``labels/IMAGE.txt`` has the same as Ultralytics writes it: class, centre, width, height in shares of the
      image, and confidence. ``drawn/IMAGE.jpg`` shows it.

    Images that cannot be read stand in ``left_out.csv``. Memory does not grow with the number of images.

    Args:
        run: the RUN of a finetune; images are seen as it saw its own: their size, channels and range of pixels.
        data: the images; labels, if there are any, are not looked at.
        out: the folder to write into.
        config: a YAML file of settings; those given win.
        overwrite: replace the predictions that are in the folder.
        quiet: show no progress.
        **given: the settings of `headstart.config.Predict`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    given = {**given, "run": str(run), "data": str(data)}
    settings = start.settings(Predict, given, _check, config=config, out=None, resume=False)
    source = read_source(settings.run)
    settings = resolved(settings, source)
    facts = {"settings": settings.model_dump(mode="json")}
    with prepared(Path(out), "predict", settings.data, facts, overwrite=overwrite) as folder:
        images = start.opened(settings, settings.run)
        channels = images.pixels.channels
        if channels != source.channels:
            raise UserError(
                f"data: {images.name} is read in {channels} channels (allowed with {source.folder}: {source.channels})"
            )
        with Track("predict", images.count, unit="images", quiet=quiet) as track:
            seen = torch.zeros(images.count, dtype=torch.bool)
            work = Work(settings, source, images, folder, build_fabric(settings.precision, 1), track, seen)
            counts = PREDICTORS[source.config["task"]](work)
        bad = (*images.bad, *work.unread())
        if bad:
            with (folder / LEFT_OUT).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("image", "reason"), *((image.path, image.reason) for image in bad)])
    return Predicted(Path(out), source.config["task"], int(seen.sum()), counts, bad)


predict.__signature__ = signature(Predict, before=parameters.PREDICT)  # type: ignore[attr-defined]


def resolved(settings: Predict, source: Source) -> Predict:
    """Return the settings with what is ``auto`` as it suits the RUN's task.

    Raises:
        UserError: the RUN predicts nothing, or its task would ignore a setting.
    """
    task = source.config.get("task")
    if task not in PREDICTORS:
        raise UserError(f"run: {settings.run} has no head that predicts (allowed: the RUN of a finetune)")
    if task != "detect" and settings.confidence != "auto":
        raise UserError(f"confidence: task {task} has none (allowed with the RUN of task detect)")
    if task == "classify" and not settings.draw:
        raise UserError("draw: task classify draws nothing (allowed with the RUN of task segment or detect)")
    return settings.updated(
        batch_size=BATCH_SIZES[task] if settings.batch_size == "auto" else settings.batch_size,
        confidence=CONFIDENCE if settings.confidence == "auto" and task == "detect" else settings.confidence,
    )


def _check(settings: Predict) -> Predict:
    return settings.updated(
        precision=resolve_precision(settings.precision),
        data=start.absolute(settings.data),
        run=start.absolute(settings.run),
    )
