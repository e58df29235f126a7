"""Folders of images, and what their folders mean."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc

from headstart.data.images import EXTENSIONS
from headstart.data.index import NO_LABEL, NO_SPLIT, TEST, TRAIN, UNLABELLED, VAL, DataSet
from headstart.data.options import Options
from headstart.data.scan import assemble, check_bad, scan
from headstart.errors import UserError

SPLIT_FOLDERS = {
    "train": TRAIN,
    "val": VAL,
    "valid": VAL,
    "validation": VAL,
    "test": TEST,
    "unlabelled": UNLABELLED,
    "unlabeled": UNLABELLED,
}


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
    splits = [SPLIT_FOLDERS.get(part[0].lower(), NO_SPLIT) if part else NO_SPLIT for part in parts]
    outside = [folder or "." for folder, split in zip(folders, splits, strict=True) if split == NO_SPLIT]
    if outside and TRAIN in splits and {VAL, TEST} & set(splits):
        raise UserError(
            f"data: train/ stands beside images that are in no split: '{outside[0]}'"
            f" (allowed there: {', '.join(SPLIT_FOLDERS)})"
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


def open_folder(root: Path, options: Options) -> DataSet:
    """Return the data set of a folder of images, of which ``read_layout`` says what its folders mean.

    Raises:
        UserError: there are no images, too many are broken, or the layout mixes splits with others.
    """
    listing = Listing(root)
    found = scan(root, listing)
    check_bad(found.bad, found.columns.num_rows, root, options.max_bad, listing.ignored)
    folders = pc.replace_substring_regex(found.columns["path"], r"/?[^/]*$", "").combine_chunks().dictionary_encode()
    layout = read_layout(folders.dictionary.to_pylist())
    places = folders.indices.to_numpy()
    return assemble(
        root.resolve().name,
        root,
        found.columns,
        labels=np.array(layout.labels)[places],
        splits=np.array(layout.splits)[places],
        classes=layout.classes,
        layout=layout.reason,
        bad=found.bad,
        ignored=listing.ignored,
        options=options,
    )


class Listing:
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
