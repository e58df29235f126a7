"""From the one string that names the data to a data set."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch

from headstart.data.images import DEPTH, EXTENSIONS, THREADS, DecodeError, Header, inspect
from headstart.data.index import (
    NO_LABEL,
    NO_SPLIT,
    SCHEMA,
    TEST,
    TRAIN,
    UNLABELLED,
    VAL,
    BadImage,
    DataSet,
    array_data,
    fingerprint,
)
from headstart.errors import UserError, unknown

_SPLIT_FOLDERS = {
    "train": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "test": TEST,
    "unlabelled": UNLABELLED,
    "unlabeled": UNLABELLED,
}
_BLOCK = 1 << 14  # files that are looked at before the next ones are listed


def open_data(data: str | Path, *, max_bad: float = 0.01) -> DataSet:
    """Return the data set that the string names.

    A name of ``KNOWN_DATA`` is that data set, even where a folder has this name (write ``./digits`` for it).
    Anything else is the path of a folder of images; ``read_layout`` says how its folders are understood.

    Args:
        data: a known name or a path.
        max_bad: the share of broken files above which the folder is refused; below it they are left out and listed.

    Raises:
        UserError: there is no such data, it has no images, too many are broken, or one is more than 8 bits deep.
    """
    name = str(data)
    if name in KNOWN_DATA:
        return KNOWN_DATA[name]()
    root = Path(name).expanduser()
    if root.is_dir():
        return _open_folder(root, max_bad)
    if root.exists():
        raise UserError(f"data: {name} is a file (allowed: a folder of images, {', '.join(KNOWN_DATA)})")
    raise unknown("data", name, [f"a folder of images (there is none at {root.absolute()})", *KNOWN_DATA])


def cache_folder() -> Path:
    """Return where known data sets are kept: $HEADSTART_DATA, by default ~/.cache/headstart/data."""
    return Path(os.environ.get("HEADSTART_DATA") or "~/.cache/headstart/data").expanduser()


class Layout(NamedTuple):
    """What folders mean: per folder a split and a label (-1: none), the classes, and the reason in one line."""

    splits: list[int]
    labels: list[int]
    classes: tuple[str, ...]
    reason: str


def read_layout(folders: Sequence[str]) -> Layout:
    """Return what the folders that directly hold images mean.

    Splits: if every folder lies in (or is) a top folder called train, val, valid, validation, test, unlabelled or
    unlabeled, those are the splits. Labels: if, below the splits, every folder but the unlabelled ones lies at depth
    one, as that of ``cat/1.jpg`` does, those folders are the classes, sorted by name as torchvision's ``ImageFolder``
    sorts them. In every other case the images have no labels.

    Args:
        folders: paths relative to the root; "" is the root itself.

    Raises:
        UserError: train and held-out folders stand beside others: test images could get into training.
    """
    parts = [PurePosixPath(folder).parts for folder in folders]
    splits = [_SPLIT_FOLDERS.get(part[0].lower(), NO_SPLIT) if part else NO_SPLIT for part in parts]
    outside = [folder or "." for folder, split in zip(folders, splits, strict=True) if split == NO_SPLIT]
    if outside and TRAIN in splits and {VAL, TEST} & set(splits):
        raise UserError(
            f"data: train/ stands beside images that are in no split: '{outside[0]}'"
            f" (allowed there: {', '.join(_SPLIT_FOLDERS)})"
        )
    if outside:
        splits = [NO_SPLIT] * len(parts)
    else:
        parts = [part[1:] for part in parts]
    to_label = [part for part, split in zip(parts, splits, strict=True) if split != UNLABELLED]
    odd = [folder for folder, part, split in zip(folders, parts, splits, strict=True)
           if split != UNLABELLED and len(part) != 1]  # fmt: skip
    above = "" if outside else " under split folders"
    if odd or not to_label:
        reason = f"images in '{odd[0] or '.'}' are in no class folder" if odd else "all images are in unlabelled/"
        return Layout(splits, [NO_LABEL] * len(parts), (), reason)
    classes = sorted({part[0] for part in to_label})
    numbers = {name: number for number, name in enumerate(classes)}
    labels = [NO_LABEL if split == UNLABELLED else numbers[part[0]] for part, split in zip(parts, splits, strict=True)]
    return Layout(splits, labels, tuple(classes), f"class folders{above}")


class _Scan(NamedTuple):
    """A folder of images: which folder each image is in, its path and header as columns, and what was left out."""

    folders: list[str]
    places: np.ndarray
    columns: pa.Table
    bad: tuple[BadImage, ...]
    ignored: int


def _open_folder(root: Path, max_bad: float) -> DataSet:
    scan = _scan(root)
    _check(scan, root, max_bad)
    layout = read_layout(scan.folders)
    index = (
        scan.columns.append_column("label", pa.array(np.array(layout.labels, np.int32)[scan.places]))
        .append_column("split", pa.array(np.array(layout.splits, np.int8)[scan.places]))
        .select(SCHEMA.names)
        .cast(SCHEMA)
        .sort_by("path")
    )
    return DataSet(
        name=root.resolve().name,
        classes=layout.classes,
        index=index,
        fingerprint=fingerprint(index, layout.classes),
        layout=layout.reason,
        root=root,
        bad=scan.bad,
        ignored=scan.ignored,
    )


def _scan(root: Path) -> _Scan:
    """Look at the header and end of every image file below the root."""
    listing = _Listing(root)
    files = iter(listing)
    folders: dict[str, int] = {}
    places, batches, bad = [], [], list[BadImage]()
    names = ["path", *Header._fields]
    with ThreadPoolExecutor(THREADS) as pool:
        while block := list(islice(files, _BLOCK)):
            rows = []
            for path, found in zip(block, pool.map(lambda path: _try_inspect(root, path), block), strict=True):
                if isinstance(found, Header):
                    folder = path.rpartition("/")[0]
                    places.append(folders.setdefault(folder, len(folders)))
                    rows.append((path, *found))
                else:
                    bad.append(BadImage(_printable(path), str(found)))
            schema = pa.schema([SCHEMA.field(name) for name in names])
            columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
            batches.append(pa.record_batch(columns, schema=schema))
    columns = pa.Table.from_batches(batches) if batches else pa.table({})
    return _Scan(list(folders), np.array(places, np.int64), columns, tuple(bad), listing.ignored)


class _Listing:
    """The relative paths of the image files below a folder, folder by folder; counts what it leaves out."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ignored = 0

    def __iter__(self) -> Iterator[str]:
        for folder, below, files in os.walk(self.root, onerror=_refuse):
            here = Path(folder)
            entered = sorted(name for name in below if not name.startswith(".") and not (here / name).is_symlink())
            images = sorted(name for name in files if not name.startswith(".") and name.lower().endswith(EXTENSIONS))
            self.ignored += len(below) - len(entered) + len(files) - len(images)
            below[:] = entered
            for name in images:
                yield (here / name).relative_to(self.root).as_posix()


def _refuse(error: OSError) -> None:
    raise UserError(f"data: cannot read the folder {error.filename} ({error.strerror})")


def _try_inspect(root: Path, path: str) -> Header | DecodeError:
    try:
        path.encode()
        return inspect(root / path)
    except UnicodeEncodeError:
        return DecodeError("a file name that is not UTF-8")
    except DecodeError as error:
        return error


def _printable(path: str) -> str:
    """Return the path with everything that is not to be printed escaped."""
    return path if path.isprintable() else ascii(path)[1:-1]


def _check(scan: _Scan, root: Path, max_bad: float) -> None:
    total = len(scan.places) + len(scan.bad)
    if total == 0:
        raise UserError(
            f"data: no images in {root} (allowed: {' '.join(EXTENSIONS)}; links to folders are not followed);"
            f" {scan.ignored} other files"
        )
    deep = [bad.path for bad in scan.bad if bad.reason == DEPTH]
    if deep:
        raise UserError(f"data: {len(deep)} of {total} images have {DEPTH}: {_first(deep)}")
    if len(scan.bad) > max_bad * total:
        listed = [f"{bad.path} ({bad.reason})" for bad in scan.bad]
        raise UserError(
            f"data: {len(scan.bad)} of {total} images in {root} are broken (allowed: {max_bad:.0%}): {_first(listed)}"
        )


def _first(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f", … {len(names) - 5} more" if len(names) > 5 else "")


def _digits() -> DataSet:
    from sklearn.datasets import load_digits  # here, because it takes longer to import than the digits to load

    digits = load_digits()
    grey = torch.from_numpy((digits.images * 255 / 16).round().astype(np.uint8))
    images = grey[:, None].expand(-1, 3, -1, -1).contiguous()
    names = [str(name) for name in digits.target_names]
    return array_data("digits", images, digits.target.tolist(), [NO_SPLIT] * len(images), names)


def _cifar(name: str, kind: str) -> DataSet:
    train, test = (_torchvision(name, kind, train=train) for train in (True, False))
    pixels = torch.from_numpy(np.concatenate([train.data, test.data])).permute(0, 3, 1, 2).contiguous()
    splits = [TRAIN] * len(train.data) + [TEST] * len(test.data)
    return array_data(name, pixels, [*train.targets, *test.targets], splits, train.classes)


def _torchvision(name: str, kind: str, *, train: bool) -> Any:
    """Return a data set of torchvision from the cache folder; download it if it is not there."""
    from torchvision import datasets  # here, because the other forms of data do without it

    folder, maker = cache_folder(), getattr(datasets, kind)
    try:
        return maker(folder, train=train, download=False)
    except RuntimeError:
        try:
            return maker(folder, train=train, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"data: {name} is not in {folder} and cannot be downloaded ({error}); put its folder"
                f" '{maker.base_folder}' into {folder}, or let HEADSTART_DATA name the folder that has it"
            ) from error


KNOWN_DATA: dict[str, Callable[[], DataSet]] = {
    "digits": _digits,
    "cifar10": lambda: _cifar("cifar10", "CIFAR10"),
    "cifar100": lambda: _cifar("cifar100", "CIFAR100"),
}
