"""Known data sets that are folders of image files in a layout of their own."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from headstart.data.cache import cached
from headstart.data.folders import open_folder
from headstart.data.home import cache_folder
from headstart.data.hugging_face import open_hugging_face
from headstart.data.index import DataSet
from headstart.data.options import Options
from headstart.data.rows import open_rows
from headstart.errors import UserError


class _Row(NamedTuple):
    """An image: its path, its class or None, its split, where that is written, and its mask or None."""

    image: str
    label: str | None
    split: str
    where: str
    mask: str | None = None


def oxford_pets(options: Options) -> DataSet:
    """Return Oxford-IIIT Pet (Parkhi et al. 2012): 37 breeds, trimaps as masks, and the official trainval and test."""
    root = fetched("oxford_pets", "oxford-iiit-pet", "OxfordIIITPet")
    return cached(_open_pets, root, options)


def oxford_pets_trimaps(options: Options) -> DataSet:
    """Return the images of Oxford-IIIT Pet whose classes are those of their trimaps: foreground, background, border."""
    root = fetched("oxford_pets_trimaps", "oxford-iiit-pet", "OxfordIIITPet")
    return cached(_open_trimaps, root, options)


def tiny_imagenet(options: Options) -> DataSet:
    """Return Tiny ImageNet (CS231n): 200 classes by their WordNet id, train and val; its test images have no labels."""
    name = "tiny-imagenet-200"
    root = cache_folder() / name
    if not root.is_dir():
        raise absent("tiny_imagenet", f"{name} (unpacked from http://cs231n.stanford.edu/{name}.zip)")
    return cached(_open_tiny, root, options)


def plant_seedlings(options: Options) -> DataSet:
    """Return Plant Seedlings (Giselsson et al. 2017, arXiv:1711.05458), whose class folders lie in the cache folder.

    Kaggle's ``test`` has no labels and is left out.
    """
    root = cache_folder() / "plant_seedlings"
    if not root.is_dir():
        raise absent(
            "plant_seedlings", "plant_seedlings (class folders, or train/ of Kaggle's plant-seedlings-classification)"
        )
    labelled = any(path.is_dir() for path in (root / "test").glob("*"))
    train = root / "train"
    data = cached(open_folder, train if train.is_dir() and not labelled else root, options)
    return replace(data, name="plant_seedlings")


def cats_vs_dogs(options: Options) -> DataSet:
    """Return Cats vs. Dogs (Elson et al. 2007), from Hugging Face, or Microsoft's own folders if they are there."""
    folder = cache_folder() / "cats_vs_dogs"
    if folder.is_dir():
        within = folder / "PetImages"
        data = cached(open_folder, within if within.is_dir() else folder, options)
    else:
        try:
            data = open_hugging_face("microsoft/cats_vs_dogs", options)
        except UserError as error:
            raise absent(
                "cats_vs_dogs", "cats_vs_dogs (with Microsoft's PetImages/Cat and PetImages/Dog)", error
            ) from error
    return replace(data, name="cats_vs_dogs")


def fetched(name: str, folder: str, kind: str, **arguments: object) -> Path:
    """Return a folder of the cache folder, after torchvision has downloaded it if it is not there.

    Args:
        name: of the data set.
        folder: that torchvision keeps it in.
        kind: the class of torchvision.
        arguments: of that class.
    """
    from torchvision import datasets  # here, because the other forms of data do without it

    place = cache_folder() / folder
    if not place.is_dir():
        try:
            getattr(datasets, kind)(cache_folder(), download=True, **arguments)
        except BaseException as error:
            shutil.rmtree(place, ignore_errors=True)  # or half of it would count as the data set next time
            if isinstance(error, OSError | RuntimeError):
                raise absent(name, folder, error) from error
            raise
    return place


def absent(name: str, folder: str, error: Exception | None = None) -> UserError:
    """Return the error for a data set that is not in the cache folder, which says where to put it."""
    failed = f" and cannot be downloaded ({' '.join(str(error).split())})" if error else ""
    return UserError(
        f"data: {name} is not in {cache_folder()}{failed}; put its folder {folder} into {cache_folder()},"
        " or let HEADSTART_DATA name the folder that has it"
    )


def _open(name: str, root: Path, rows: Iterator[_Row], options: Options) -> DataSet:
    columns = list(map(list, zip(*rows, strict=True))) or [[] for _ in _Row._fields]
    table = pa.table([pa.array(column, pa.string()) for column in columns], names=list(_Row._fields))
    places = table["where"]
    empty = [column for column in ("label", "mask") if table[column].null_count == len(table)]
    table = table.drop_columns(["where", *empty])
    return open_rows(name, root, table, options, layout="a known data set", where=lambda row: str(places[row].as_py()))


def _open_pets(root: Path, options: Options) -> DataSet:
    return _open("oxford_pets", root, _pets(root), options)


def _open_trimaps(root: Path, options: Options) -> DataSet:
    rows = (row._replace(label=None) for row in _pets(root))
    return _open("oxford_pets_trimaps", root, rows, options)


def _open_tiny(root: Path, options: Options) -> DataSet:
    return _open("tiny_imagenet", root, _tiny(root), options)


def _pets(root: Path) -> Iterator[_Row]:
    for file, split in (("trainval.txt", "train"), ("test.txt", "test")):
        for where, line in _lines(root, f"annotations/{file}"):
            image = line.split()[0]
            breed = " ".join(word.title() for word in image.split("_")[:-1])
            yield _Row(f"images/{image}.jpg", breed, split, where, f"annotations/trimaps/{image}.png")


def _tiny(root: Path) -> Iterator[_Row]:
    classes = [(where, line.strip()) for where, line in _lines(root, "wnids.txt")]
    for where, label in classes:
        for path in sorted((root / "train" / label / "images").glob("*.JPEG")):
            yield _Row(f"train/{label}/images/{path.name}", label, "train", where)
    names = {label for _, label in classes}
    for where, line in _lines(root, "val/val_annotations.txt"):
        image, label, *_ = [*line.split("\t"), ""]
        if label not in names:
            raise UserError(f"data: {where}: unknown class '{label}' (allowed: those of wnids.txt)")
        yield _Row(f"val/images/{image}", label, "val", where)


def _lines(root: Path, file: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a file that are neither empty nor comments, each with its place, FILE:LINE."""
    try:
        lines = (root / file).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise UserError(f"data: {root} has no {file} (allowed: the data set as it was published)") from error
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.startswith("#"):
            yield f"{file}:{number}", line
