"""The verb ``pseudo_label``: weak labels of a detector, as a YOLO data set that ``crop`` and Ultralytics take."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import yaml
from torch import Tensor

from headstart import runs
from headstart.backbones.detectors import Detector, Found, load_detector
from headstart.config import PseudoLabel
from headstart.data.images import THREADS, DecodeError, decode
from headstart.data.index import OBJECTS, TRAIN, UNLABELLED, BadImage, DataSet
from headstart.data.options import Options
from headstart.data.scan import check_bad, first, printable
from headstart.data.sources import open_data
from headstart.data.splits import limited
from headstart.data.trees import write_tree
from headstart.errors import UserError, unknown
from headstart.progress import Track, say
from headstart.settings import signature
from headstart.verbs import parameters, start
from headstart.verbs.prepared import check_apart, prepared
from headstart.verbs.result import table

DESCRIPTION, SCORES = "data.yaml", "scores.csv"
COLUMNS = ("image", "label", "score", "left", "top", "right", "bottom")
PARTS = ("train", "val", "test")
SMALLEST = 1  # pixels; nobody could label what is thinner


@dataclass(frozen=True)
class PseudoLabelResult:
    """Weak labels that were written.

    Attributes:
        out: the folder of the data set.
        images: how many images it has.
        empty: in how many of them nothing was found.
        objects: how many objects of each class were found.
        bad: the files that were left out because they are broken.
    """

    out: Path
    images: int
    empty: int
    objects: Mapping[str, int]
    bad: tuple[BadImage, ...]

    def __str__(self) -> str:
        """Return the table of the classes that were found."""
        lines = [[printable(name), f"{count:,}"] for name, count in self.objects.items() if count]
        found = table(["class", "objects"], [*lines, ["all", f"{sum(self.objects.values()):,}"]])
        listed = [f"{bad.path} ({bad.reason})" for bad in self.bad]
        left_out = f"\n{len(listed):,} left out: {first(listed)}" if listed else ""
        seen = f"{self.images:,} images, {self.empty:,} of them without an object"
        return f"{found}{left_out}\n{seen}; labels in {self.out / DESCRIPTION}, confidences in {self.out / SCORES}"


def pseudo_label(
    images: str | Path,
    *,
    out: str | Path,
    config: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> PseudoLabelResult:
    """Label images by a detector, and write them as a YOLO data set of links to the images.

    Args:
        images: DATA whose labels are not looked at.
        out: the folder to write into.
        config: a YAML file of settings; those given win.
        overwrite: replace the pseudo-labels that are in the folder.
        quiet: show no progress.
        **given: the settings of `headstart.config.PseudoLabel`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    given = {**given, "images": str(images)}
    settings = start.settings(PseudoLabel, given, _check, config=config, out=None, resume=False)
    folder = Path(out)
    if Path(settings.images).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"out: {folder} holds the images {settings.images} (allowed: a folder without them)")
    facts = {"settings": settings.model_dump(mode="json")}
    with prepared(folder, "pseudo-label", settings.images, facts, overwrite=overwrite) as building:
        detector = _detector(settings)
        kept = selected(detector.names, settings.classes)
        data = _opened(settings)
        check_apart(folder, data)
        if not quiet:
            say(f"{data.name}: {data.count:,} images, {data.layout}; {len(set(kept.values()))} classes")
        found, bad = _detect(data, detector, settings.batch_size, quiet=quiet)
        check_bad(bad, len(found), data.root or Path(data.name), settings.max_bad)
        classes = tuple(settings.classes or dict.fromkeys(kept.values()))
        found = {row: _kept(objects, kept, classes) for row, objects in found.items()}
        data = labelled(data, found, classes)
        _write(data, torch.cat([objects.scores for objects in found.values()]), building, quiet=quiet)
    labels = torch.cat([objects.labels for objects in found.values()])
    counts = dict(zip(classes, torch.bincount(labels, minlength=len(classes)).tolist(), strict=True))
    empty = sum(not len(objects.labels) for objects in found.values())
    return PseudoLabelResult(folder, data.count, empty, counts, bad)


pseudo_label.__signature__ = signature(PseudoLabel, before=parameters.PSEUDO_LABEL)  # type: ignore[attr-defined]


def selected(names: Mapping[int, str], classes: Mapping[str, Sequence[str]] | None) -> dict[int, str]:
    """Return the new class name of each of a detector's labels that are kept.

    Args:
        names: the detector's class names by label.
        classes: the new classes, each with the names of those that it is made of; None keeps all.

    Raises:
        UserError: the detector has no such class.

    >>> selected({0: "person", 1: "car", 2: "truck"}, {"vehicle": ["car", "truck"]})
    {1: 'vehicle', 2: 'vehicle'}
    """
    if classes is None:
        return dict(names)
    for name in (name for parts in classes.values() for name in parts):
        if name not in names.values():
            raise unknown("classes", name, names.values())
    new = {name: group for group, parts in classes.items() for name in parts}
    return {label: new[name] for label, name in names.items() if name in new}


def labelled(data: DataSet, found: Mapping[int, Found], classes: Sequence[str]) -> DataSet:
    """Return the data set of some of the images, by row, with the objects that were found in them in place of its own.

    Images without labels become training images: they have some now.
    """
    counts = [len(objects.labels) for objects in found.values()]
    boxes = torch.cat([objects.boxes for objects in found.values()])
    edges = dict(zip(("left", "top", "right", "bottom"), boxes.T.contiguous().numpy(), strict=True))
    labels = torch.cat([objects.labels for objects in found.values()])
    columns = {"image": np.repeat([*found], counts), "label": labels.numpy(), **edges}
    splits = torch.where(data.splits == UNLABELLED, TRAIN, data.splits)
    names = data.index.column_names
    index = data.index.set_column(
        names.index("split"), data.index.field("split"), pa.array(splits.numpy().astype(np.int8))
    )
    index = index.drop_columns([name for name in names if name == "mask"])
    data = replace(data, classes=tuple(classes), index=index, objects=pa.table(columns, schema=OBJECTS))
    return data.take(torch.tensor([*found]))


def _check(settings: PseudoLabel) -> PseudoLabel:
    weights = str(Path(settings.weights).expanduser().absolute())
    return settings.updated(images=start.absolute(settings.images), weights=weights)


def _detector(settings: PseudoLabel) -> Detector:
    return load_detector(
        Path(settings.weights),
        settings.model,
        confidence=settings.confidence,
        image_size=settings.image_size,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )


def _opened(settings: PseudoLabel) -> DataSet:
    try:
        data = limited(open_data(settings.images, Options(max_bad=settings.max_bad)), settings.limit)
    except UserError as error:
        raise UserError(f"images: {str(error).removeprefix('data: ')}") from error
    if data.images is None and data.pixels.channels != 3:
        raise UserError(f"images: {data.name} has {data.pixels.channels} channels (allowed: grey or colour images)")
    return data


def _detect(
    data: DataSet, detector: Detector, batch_size: int, *, quiet: bool
) -> tuple[dict[int, Found], tuple[BadImage, ...]]:
    """Return what is in each image, by row, and which files are broken."""
    found: dict[int, Found] = {}
    bad = [*data.bad]
    with Track("detecting", data.count, unit="images", quiet=quiet) as track:
        for rows, images in _decoded(data, batch_size):
            seen = {row: image for row, image in zip(rows, images, strict=True) if isinstance(image, Tensor)}
            found |= dict(zip(seen, detector.detect([*seen.values()]), strict=True))
            bad += [
                BadImage(printable(data.paths[row].as_py()), str(image))
                for row, image in zip(rows, images, strict=True)
                if row not in seen
            ]
            track.update(len(rows))
    return found, tuple(bad)


def _decoded(data: DataSet, batch_size: int) -> Iterator[tuple[range, list[Tensor | DecodeError]]]:
    """Yield the rows of each batch and its images; the next batch is decoded while the detector is at work."""
    batches = [range(first, min(first + batch_size, data.count)) for first in range(0, data.count, batch_size)]
    with ThreadPoolExecutor(THREADS) as pool:
        ahead = [pool.submit(_image, data, row) for row in batches[0]]
        for rows, following in zip(batches, [*batches[1:], range(0)], strict=True):
            now, ahead = ahead, [pool.submit(_image, data, row) for row in following]
            yield rows, [future.result() for future in now]


def _image(data: DataSet, row: int) -> Tensor | DecodeError:
    """Return an image as detectors want it, upright, uint8 ``[3 h w]``, or why there is none."""
    try:
        image = data.images[row] if data.images is not None else decode(data.file(row), data.pixels)
    except DecodeError as error:
        return error
    if image.is_floating_point():
        image = (image * 255).round().to(torch.uint8)
    return image.expand(3, -1, -1)


def _kept(found: Found, kept: Mapping[int, str], classes: Sequence[str]) -> Found:
    """Return the objects of classes that are wanted, large enough to be some, labelled by the new classes."""
    labels = torch.tensor([classes.index(kept[old]) if old in kept else -1 for old in found.labels.tolist()]).long()
    sides = found.boxes[:, 2:] - found.boxes[:, :2]
    large = (labels >= 0) & (sides >= SMALLEST).all(1)
    return Found(found.boxes[large], found.scores[large], labels[large])


def _write(data: DataSet, scores: Tensor, folder: Path, *, quiet: bool) -> None:
    """Write the data set, and the confidence of each of its objects."""
    with Track("writing", data.count, unit="images", quiet=quiet) as track:
        write_tree(data, folder, (), link=True, written=track.update)
    known = yaml.safe_load((folder / DESCRIPTION).read_text(encoding="utf-8"))
    folders = {name: known[name] for name in PARTS if name in known}
    some = next(iter(folders.values()))
    described = {"train": some, "val": some, **folders, "names": known["names"]}  # Ultralytics asks for both
    runs.write_text(folder / DESCRIPTION, yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
    assert data.objects is not None
    columns = [data.objects[name].to_pylist() for name in OBJECTS.names]
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for image, label, *box, score in zip(*columns, scores.tolist(), strict=True):
        edges = (f"{edge:.2f}" for edge in box)
        writer.writerow((data.paths[image].as_py(), data.classes[label], f"{score:.4f}", *edges))
    runs.replace(folder / SCORES, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8", newline=""))
