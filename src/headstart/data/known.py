"""Known data sets: those that have a name, and where they are kept."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headstart.data import known_folders
from headstart.data.home import cache_folder as cache_folder
from headstart.data.index import NO_LABEL, NO_SPLIT, TEST, TRAIN, UNLABELLED, DataSet, array_data
from headstart.data.options import Options
from headstart.runs import replace

_BLOCK = 4096  # images that are copied at once


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
            raise known_folders.absent(name, f"'{maker.base_folder}'", error) from error


def _stl10() -> DataSet:
    """Return STL-10 (Coates et al. 2011): 5,000 and 8,000 labelled images, 100,000 without a label."""
    folder = known_folders.fetched("stl10", "stl10_binary", "STL10")
    parts = [("train", TRAIN), ("test", TEST), ("unlabeled", UNLABELLED)]
    try:
        files = [folder / f"{part}_X.bin" for part, _ in parts]
        pixels = [np.memmap(file, np.uint8, "r").reshape(-1, 3, 96, 96).swapaxes(2, 3) for file in files]
        named = [np.fromfile(folder / f"{part}_y.bin", np.uint8).astype(np.int64) - 1 for part, _ in parts[:2]]
        classes = (folder / "class_names.txt").read_text().split()
    except (OSError, ValueError) as error:
        raise known_folders.absent("stl10", "'stl10_binary'", error) from error
    counts = [len(part) for part in pixels]
    labels = np.concatenate([*named, np.full(counts[2], NO_LABEL)])
    splits = np.repeat([split for _, split in parts], counts)
    contents = hashlib.sha256(b"".join(_ends(file) for file in files)).digest()
    images = _joined(folder / "images.npy", pixels, max(file.stat().st_mtime for file in files))
    return array_data("stl10", images, labels.tolist(), splits.tolist(), classes, contents)


def _joined(path: Path, parts: Sequence[np.ndarray], changed: float) -> Tensor:
    """Return images, uint8 ``[n c h w]``, mapped from one file, which is written if it is not there or is older."""

    def write(temporary: Path) -> None:
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        images = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
        place = 0
        for part in parts:
            for start in range(0, len(part), _BLOCK):
                block = part[start : start + _BLOCK]
                images[place : place + len(block)] = block
                place += len(block)
        images.flush()

    if not path.exists() or path.stat().st_mtime < changed:
        replace(path, write)
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _ends(path: Path) -> bytes:
    """Return the size and both ends of a file, which stand for its contents as they do for images."""
    with path.open("rb") as file:
        start = file.read(1 << 12)
        size = path.stat().st_size
        file.seek(max(0, size - (1 << 12)))
        return str(size).encode() + start + file.read()


KNOWN_DATA: dict[str, Callable[[Options], DataSet]] = {
    "digits": lambda options: _digits(),
    "cifar10": lambda options: _cifar("cifar10", "CIFAR10"),
    "cifar100": lambda options: _cifar("cifar100", "CIFAR100"),
    "stl10": lambda options: _stl10(),
    "oxford_pets": known_folders.oxford_pets,
    "oxford_pets_trimaps": known_folders.oxford_pets_trimaps,
    "tiny_imagenet": known_folders.tiny_imagenet,
    "plant_seedlings": known_folders.plant_seedlings,
    "cats_vs_dogs": known_folders.cats_vs_dogs,
}
