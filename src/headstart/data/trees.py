"""Data sets as ordinary folders that other programs read: class folders, YOLO's layout, images and masks."""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path, PurePosixPath

import torch
import yaml
from PIL import Image

from headstart.data.images import THREADS
from headstart.data.index import NO_LABEL, NO_SPLIT, SPLITS, UNLABELLED, DataSet
from headstart.data.scan import printable
from headstart.data.yolo import label_file
from headstart.errors import UserError
from headstart.runs import write_text

_BLOCK = 1 << 12  # files that are written before the next ones are planned


def write_tree(
    data: DataSet, folder: Path, class_folders: Sequence[str], *, link: bool, written: Callable[[], object]
) -> None:
    """Write a data set as a tree of its files.

    * labelled images: ``SPLIT/CLASS/FILE``, and without labels ``SPLIT/FILE``;
    * boxes: ``images/SPLIT/FILE``, ``labels/SPLIT/STEM.txt`` and ``data.yaml``, as Ultralytics reads them;
    * masks: ``images/SPLIT/FILE``, ``masks/SPLIT/STEM.png`` and ``classes.txt``.

    Of data that have no splits there is no folder SPLIT, except for boxes, of which all are in train. Two files of one
    name get numbers.

    Args:
        data: the data set.
        folder: the folder to write into.
        class_folders: the name of the folder of each class.
        link: write symbolic links; images that are no files of their own are written as files all the same.
        written: is called after each image.

    Raises:
        UserError: images with and without labels are in one split, which class folders cannot tell.
    """
    places = _places(data, class_folders)
    for parent in {(folder / place).parent for place in places}:
        parent.mkdir(parents=True, exist_ok=True)

    with ThreadPoolExecutor(THREADS) as pool:
        for begin in range(0, data.count, _BLOCK):
            rows = range(begin, min(begin + _BLOCK, data.count))
            for _ in pool.map(lambda row: _put(data, row, folder / places[row], link), rows):
                written()
    if data.objects is not None:
        _write_labels(data, folder, places)
    elif "mask" in data.index.column_names:
        _put_masks(data, folder, places, link)


def _places(data: DataSet, class_folders: Sequence[str]) -> list[str]:
    """Return where each image goes, relative to the folder."""
    boxes, masks = data.objects is not None, "mask" in data.index.column_names
    splits, labels = data.splits.tolist(), data.labels.tolist()
    if not (boxes or masks):
        _check_labelled(data)
    paths = data.paths.to_pylist()
    taken, places = set[str](), list[str]()
    for path, split, label in zip(paths, splits, labels, strict=True):
        parts = [SPLITS[split]] if split != NO_SPLIT else ["train"] if boxes else []
        if boxes or masks:
            parts.insert(0, "images")
        elif label != NO_LABEL:
            parts.append(class_folders[label])
        name = PurePosixPath(path) if data.images is None else PurePosixPath(path).with_suffix(".png")
        number, stem = 1, name.stem
        while (key := "/".join([*parts, stem]).lower()) in taken:
            number += 1
            stem = f"{name.stem}_{number}"
        taken.add(key)
        places.append("/".join([*parts, stem + name.suffix]))
    return places


def _check_labelled(data: DataSet) -> None:
    shown = data.splits != UNLABELLED
    without = shown & (data.labels == NO_LABEL)
    if without.any() and (shown & (data.labels != NO_LABEL)).any():
        path = printable(data.paths[int(without.nonzero()[0])].as_py())
        raise UserError(
            f"by: {int(without.sum())} images among labelled ones have no label, such as {path}, which class folders"
            " cannot tell (allowed: manifest)"
        )


def _put(data: DataSet, row: int, target: Path, link: bool) -> None:
    if data.images is not None:
        pixels = data.images[row]
        array = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
        Image.fromarray(array.contiguous().numpy()).save(target)
        return
    source = data.file(row)
    if isinstance(source, BytesIO):
        target.write_bytes(source.getvalue())
    else:
        _put_file(source, target, link)


def _put_file(source: Path, target: Path, link: bool) -> None:
    if link:
        target.symlink_to(source.resolve())
        return
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError as error:
        raise UserError(f"data: {printable(str(source))} is gone since the data were opened") from error


def _write_labels(data: DataSet, folder: Path, places: Sequence[str]) -> None:
    assert data.objects is not None
    columns = {name: torch.tensor(data.objects[name].to_numpy()).double() for name in data.objects.column_names}
    images = columns["image"].long()
    heights, widths = data.sizes[images].double().unbind(1)
    numbers = [
        (columns["left"] + columns["right"]) / 2 / widths,
        (columns["top"] + columns["bottom"]) / 2 / heights,
        (columns["right"] - columns["left"]) / widths,
        (columns["bottom"] - columns["top"]) / heights,
    ]
    lines = [
        f"{int(label)} {' '.join(f'{value:.9f}' for value in box)}\n"
        for label, *box in zip(columns["label"].tolist(), *(column.tolist() for column in numbers), strict=True)
    ]
    starts = torch.searchsorted(images, torch.arange(data.count + 1)).tolist()
    for row, place in enumerate(places):
        target = folder / label_file(place)
        target.parent.mkdir(parents=True, exist_ok=True)
        if data.splits[row] != UNLABELLED:
            target.write_text("".join(lines[starts[row] : starts[row + 1]]))
    folders = sorted({place.split("/")[1] for place in places}, key=SPLITS.index)
    names = dict(enumerate(data.classes))
    described = {**{name: f"images/{name}" for name in folders if name != SPLITS[UNLABELLED]}, "names": names}
    write_text(folder / "data.yaml", yaml.safe_dump(described, sort_keys=False, allow_unicode=True))


def _put_masks(data: DataSet, folder: Path, places: Sequence[str], link: bool) -> None:
    assert data.root is not None
    for mask, place in zip(data.index["mask"].to_pylist(), places, strict=True):
        if mask is None:
            continue
        target = folder / PurePosixPath("masks", *PurePosixPath(place).parts[1:]).with_suffix(Path(mask).suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        _put_file(data.root / mask, target, link)
    if data.classes:
        write_text(folder / "classes.txt", "".join(f"{name}\n" for name in data.classes))
