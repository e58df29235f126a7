"""The verb ``predict``: the class of each image by a finetuned classifier, with the probabilities of all classes."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from lightning.fabric import Fabric

from headstart.config import Predict
from headstart.data.index import BadImage, DataSet
from headstart.data.loading import images_at
from headstart.data.scan import first, printable
from headstart.errors import UserError
from headstart.progress import Track
from headstart.settings import signature
from headstart.training.machine import build_fabric, resolve_precision
from headstart.verbs import parameters, resolve, start
from headstart.verbs.exporting.source import Source, read_source
from headstart.verbs.prepared import prepared

PREDICTIONS, LEFT_OUT = "predictions.csv", "left_out.csv"


@dataclass(frozen=True)
class Predicted:
    """A folder of predictions.

    Attributes:
        out: the folder.
        images: how many were predicted.
        counts: how many of each class.
        bad: the images that could not be read, and why.
    """

    out: Path
    images: int
    counts: dict[str, int]
    bad: tuple[BadImage, ...]

    def __str__(self) -> str:
        """Return how many images are of which class, and what was left out."""
        found = ", ".join(f"{printable(name)} {count:,}" for name, count in self.counts.items() if count)
        lines = [f"{self.images:,} images in {self.out / PREDICTIONS}: {found or 'none'}"]
        if self.bad:
            listed = first([f"{printable(bad.path)} ({bad.reason})" for bad in self.bad])
            lines.append(f"left out: {len(self.bad):,} images, all in {self.out / LEFT_OUT}: {listed}")
        return "\n".join(lines)


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
    """Predict the class of images with a finetuned RUN.

    ``predictions.csv`` has a line for each image: ``image`` (path within the data), ``prediction``, its
    ``probability``, and ``p_NAME``, the probability of each class. Images that cannot be read stand in
    ``left_out.csv``. Memory does not grow with the number of images.

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
    if source.head is None:
        raise UserError(f"run: {settings.run} has no classifier (allowed: the RUN of a finetune)")
    facts = {"settings": settings.model_dump(mode="json")}
    with prepared(Path(out), "predict", settings.data, facts, overwrite=overwrite) as folder:
        images = start.opened(settings, settings.run)
        seen = torch.zeros(images.count, dtype=torch.bool)
        counts = dict.fromkeys(source.classes, 0)
        head = ["image", "prediction", "probability", *(f"p_{name}" for name in source.classes)]
        with (folder / PREDICTIONS).open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(head)
            with Track("predict", images.count, unit="images", quiet=quiet) as track:
                for line in _lines(settings, source, images, seen, track):
                    counts[line[1]] += 1
                    writer.writerow(line)
        unread = [images.paths[row].as_py() for row in (~seen).nonzero().squeeze(1).tolist()]
        bad = (*images.bad, *(BadImage(path, "cannot be decoded") for path in unread))
        if bad:
            with (folder / LEFT_OUT).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("image", "reason"), *((image.path, image.reason) for image in bad)])
    return Predicted(Path(out), int(seen.sum()), counts, bad)


predict.__signature__ = signature(Predict, before=parameters.PREDICT)  # type: ignore[attr-defined]


def _check(settings: Predict) -> Predict:
    return settings.updated(
        precision=resolve_precision(settings.precision),
        data=start.absolute(settings.data),
        run=start.absolute(settings.run),
    )


@torch.inference_mode()
def _lines(settings: Predict, source: Source, images: DataSet, seen: torch.Tensor, track: Track) -> Iterator[list[Any]]:
    """Yield the lines of the predictions, batch by batch, and mark the images that were read."""
    assert source.head is not None
    fabric: Fabric = build_fabric(settings.precision, 1)
    backbone, head = source.begun.backbone.to(fabric.device), source.head.to(fabric.device)
    batches = images_at(
        images,
        torch.arange(images.count),
        source.begun.image_size,
        batch_size=settings.batch_size,
        workers=resolve.workers(settings.workers),
        device=fabric.device,
    )
    for batch in batches:
        with fabric.autocast():
            logits = head(backbone(batch.views[0]))
        shares = logits.float().softmax(1).cpu()
        rows = batch.rows.cpu()
        seen[rows] = True
        track.update(len(rows))
        paths = images.paths.take(pa.array(rows.numpy())).to_pylist()
        for path, share in zip(paths, shares.tolist(), strict=True):
            best = max(range(len(share)), key=share.__getitem__)
            yield [path, source.classes[best], f"{share[best]:.6g}", *(f"{value:.6g}" for value in share)]
