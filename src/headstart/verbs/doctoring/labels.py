"""Findings about the labels: classes, boxes and masks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from headstart.data.images import raw
from headstart.data.index import NO_SPLIT, TRAIN, DataSet
from headstart.data.scan import printable
from headstart.verbs.doctoring.finding import Finding, Severity, counted, fine, found, names

BUDGET = 10  # labels per class, the largest of the usual budgets
FEWEST = 3  # images of a class, one for each split
UNEVEN = 10.0  # times as many of one class as of another
TINY = 4.0  # pixels of the shorter side of a box
_SIDES = ("left", "top", "right", "bottom")
_ROUNDING = 1.0  # pixel by which a box may stand out of its picture


def classes(data: DataSet) -> list[Finding]:
    """Find classes that are rare, or have too few images to be split and to be learned from some labels."""
    if not data.classes:
        return [fine("classes", f"no labels ({data.layout})")]
    if data.objects is not None:
        labels = torch.from_numpy(data.objects["label"].to_numpy().astype(np.int64))
        return [_balance(data.classes, labels.bincount(minlength=len(data.classes)), "objects")]
    training = (data.splits == TRAIN) | (data.splits == NO_SPLIT)
    labelled = data.labels[training & (data.labels >= 0)]
    if not len(labelled):
        return [fine("classes", "no image has a label")]
    counts = labelled.bincount(minlength=len(data.classes))
    findings = [_balance(data.classes, counts, "training images")]
    few = (counts < BUDGET).nonzero()[:, 0]
    if len(few):
        severity: Severity = "must fix" if int(counts.min()) < FEWEST else "should look"
        text = f"{counted(len(few), 'class', 'classes')} with fewer than {BUDGET} training images"
        remedy = f"add images or leave the classes out (--classes); with fewer than {FEWEST} they cannot be split"
        listed = [f"{printable(data.classes[label])} ({int(counts[label])})" for label in few.tolist()]
        findings.append(found("small classes", severity, len(few), text, remedy, listed))
    return findings


def _balance(class_names: Sequence[str], counts: Tensor, unit: str) -> Finding:
    rarest, commonest = (printable(class_names[int(place)]) for place in (counts.argmin(), counts.argmax()))
    ratio = float(counts.max()) / max(int(counts.min()), 1)
    text = (
        f"{counted(len(class_names), 'class', 'classes')}; rarest '{rarest}' with {int(counts.min()):,} "
        f"{unit}, commonest '{commonest}' with {int(counts.max()):,}, ratio {ratio:.1f}"
    )
    if ratio <= UNEVEN:
        return fine("class balance", text)
    remedy = "read the macro-averaged scores beside the accuracy, and try --sampling balanced"
    order = counts.argsort(stable=True).tolist()
    examples = [f"{printable(class_names[label])} ({int(counts[label]):,})" for label in order]
    rare = int((counts * UNEVEN < counts.max()).sum())
    return found("class balance", "should look", rare, text, remedy, examples)


def boxes(data: DataSet) -> list[Finding]:
    """Find boxes that reach out of their picture, have no area, are tiny, or are there twice."""
    if data.objects is None:
        return []
    images, labels = (torch.from_numpy(data.objects[name].to_numpy().astype(np.int64)) for name in ("image", "label"))
    edges = torch.stack([torch.from_numpy(data.objects[side].to_numpy().astype(np.float64)) for side in _SIDES], dim=1)
    left, top, right, bottom = edges.unbind(1)
    heights, widths = data.sizes[images].unbind(1)
    lost = (right <= left) | (bottom <= top) | (right <= 0) | (bottom <= 0) | (left >= widths) | (top >= heights)
    beyond = torch.stack([-left, -top, right - widths, bottom - heights]).max(dim=0).values > _ROUNDING
    tiny = torch.minimum(right - left, bottom - top) < TINY
    whole = torch.cat([images[:, None].double(), labels[:, None], edges], dim=1)
    _, group, times = torch.unique(whole, dim=0, return_inverse=True, return_counts=True)
    bare = data.count - len(set(images.tolist()))

    def those(chosen: Tensor, severity: Severity, name: str, what: str, remedy: str) -> Finding:
        places = chosen.nonzero()[:, 0]
        paths = names(data, images[places])
        listed = [_box(path, edges[place]) for path, place in zip(paths, places, strict=False)]
        return found(name, severity, len(places), f"{counted(len(places), 'box', 'boxes')} {what}", remedy, listed)

    odd = [
        those(
            lost, "must fix", "lost boxes", "without area or wholly outside of the picture", "correct or delete them"
        ),
        those(beyond & ~lost, "should look", "boxes outside", "partly outside of the picture", "cut them at the edge"),
        those(tiny & ~lost, "should look", "tiny boxes", f"narrower than {TINY:g} px", "look whether they are slips"),
        those(times[group] > 1, "should look", "repeated boxes", "in the labels more than once", "keep one of each"),
    ]
    seen = f"{counted(len(images), 'box', 'boxes')}; {counted(bare, 'image')} without any"
    return [fine("boxes", seen), *(finding for finding in odd if finding.count)]


def _box(path: str, edges: Tensor) -> str:
    left, top, right, bottom = edges.tolist()
    return f"{path} (x {left:g} to {right:g}, y {top:g} to {bottom:g})"


def masks(data: DataSet, rows: Tensor) -> list[Finding]:
    """Find masks that are missing, are of another size than their image, or have one value only."""
    if "mask" not in data.index.column_names or data.root is None:
        return []
    wrong, empty, seen = list[str](), list[str](), 0
    for row, path in zip(rows.tolist(), data.index["mask"].take(rows.numpy()).to_pylist(), strict=True):
        if path is None:
            continue
        seen += 1
        size = tuple(data.sizes[row].tolist())
        problem, constant = _mask(data.root / path, size)
        if problem:
            wrong.append(f"{printable(path)} ({problem})")
        elif constant:
            empty.append(printable(path))
    findings = [fine("masks", f"{counted(seen, 'mask')} read; {counted(len(rows) - seen, 'image')} without one")]
    if wrong:
        text = f"{counted(len(wrong), 'mask')} that cannot be used"
        findings.append(found("broken masks", "must fix", len(wrong), text, "replace them", wrong))
    if empty:
        text = f"{counted(len(empty), 'mask')} with nothing or nothing else in them: all values are equal"
        remedy = "look whether the object is really not there"
        findings.append(found("empty masks", "should look", len(empty), text, remedy, empty))
    return findings


def _mask(path: Path, size: tuple[int, ...]) -> tuple[str, bool]:
    """Return what is wrong with a mask, and whether all its values are equal."""
    try:
        values = raw(path)
    except Exception as error:  # readers let nearly every kind of exception out on damaged files
        return ("the file is gone" if isinstance(error, FileNotFoundError) else "not an image"), False
    if values.shape[:2] != size:
        return f"{values.shape[1]}x{values.shape[0]}, but its image is {size[1]}x{size[0]}", False
    return "", bool((values == values[0, 0]).all())
