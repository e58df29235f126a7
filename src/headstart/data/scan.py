"""A look at many image files, and what becomes of it: the columns of a data set."""

import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from headstart.data.depth import pixels_of
from headstart.data.images import EXTENSIONS, THREADS, DecodeError, Header, inspect
from headstart.data.index import OBJECTS, OPTIONAL, SCHEMA, BadImage, DataSet, fingerprint
from headstart.data.options import DEFAULT, Options
from headstart.errors import UserError

_BLOCK = 1 << 14  # files that are looked at before the next ones are listed
_HEADER = pa.schema([SCHEMA.field(name) for name in ("path", *Header._fields)])


class Scan(NamedTuple):
    """What a look at files found.

    Attributes:
        columns: ``path`` and the fields of ``Header``, one row for each image, in the order of the listing.
        listed: the number in the listing of each row, int64 ``[n]``.
        bad: the files that cannot be decoded.
    """

    columns: pa.Table
    listed: np.ndarray
    bad: tuple[BadImage, ...]


def scan(root: Path, paths: Iterable[str]) -> Scan:
    """Look at the header and the end of image files, many at a time.

    Args:
        root: the folder that the paths are relative to.
        paths: relative paths with forward slashes.
    """
    files = enumerate(paths)
    listed, batches, bad = list[np.ndarray](), list[pa.RecordBatch](), list[BadImage]()
    with ThreadPoolExecutor(THREADS) as pool:
        while block := list(islice(files, _BLOCK)):
            headers = pool.map(lambda file: _try_inspect(root, file[1]), block)
            rows, numbers = [], []
            for (number, path), found in zip(block, headers, strict=True):
                if isinstance(found, Header):
                    rows.append((path, *found))
                    numbers.append(number)
                else:
                    bad.append(BadImage(printable(path), str(found)))
            columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in _HEADER]
            batches.append(pa.record_batch(columns, schema=_HEADER))
            listed.append(np.array(numbers, np.int64))
    if not batches:
        return Scan(_HEADER.empty_table(), np.zeros(0, np.int64), ())
    return Scan(pa.Table.from_batches(batches), np.concatenate(listed), tuple(bad))


def check_bad(bad: Sequence[BadImage], good: int, root: Path, max_bad: float, ignored: int = 0) -> None:
    """Raise a UserError when there is no image that can be used, or when more than that share of them is broken."""
    total = good + len(bad)
    if total == 0:
        raise UserError(
            f"data: no images in {root} (allowed: {' '.join(EXTENSIONS)}; links to folders are not followed);"
            f" {ignored} other files"
        )
    if len(bad) > max_bad * total or not good:
        listed = [f"{file.path} ({file.reason})" for file in bad]
        allowed = percent(max_bad) if len(bad) > max_bad * total else "not all of them"
        raise UserError(
            f"data: {len(bad)} of {total} images in {root} are broken (allowed: {allowed}): {first(listed)}"
        )


def assemble(
    name: str,
    root: Path,
    columns: pa.Table,
    *,
    labels: np.ndarray,
    splits: np.ndarray,
    classes: Sequence[str],
    layout: str,
    more: Mapping[str, Sequence[Any]] | None = None,
    objects: pa.Table | None = None,
    contents: bytes = b"",
    bad: Sequence[BadImage] = (),
    ignored: int = 0,
    options: Options = DEFAULT,
) -> DataSet:
    """Return the data set of images that were scanned, in the order of their paths.

    Args:
        name: of the data set.
        root: the folder that the paths are relative to.
        columns: those of a ``Scan``.
        labels: class numbers, -1 for none, one for each row of the columns.
        splits: positions in ``SPLITS``, -1 for none, one for each row.
        classes: the class names.
        layout: how labels and splits were read, in one line.
        more: columns of ``OPTIONAL`` by name, one value for each row.
        objects: the columns of ``OBJECTS``, whose ``image`` is a row of the columns.
        contents: checksums of what else decides the contents, such as mask files, in the order of the columns.
        bad: files that were left out.
        ignored: how many other files and links are in the folder.
        options: what the user wants of the data.

    Raises:
        UserError: two rows have one path, or the pixels of the images are of different kinds.
    """
    schema = pa.schema([*SCHEMA, *(OPTIONAL.field(column) for column in more or {})])
    index = columns.append_column("label", pa.array(labels, pa.int32())).append_column(
        "split", pa.array(splits, pa.int8())
    )
    for column, values in (more or {}).items():
        index = index.append_column(column, pa.array(values, OPTIONAL.field(column).type))
    order = pc.sort_indices(index["path"])
    index = index.take(order).select(schema.names).cast(schema).combine_chunks()
    _check_twins(index)
    if objects is not None:
        objects = _renumbered(objects, order.to_numpy())
    data = DataSet(
        name=name,
        classes=tuple(classes),
        index=index,
        fingerprint=fingerprint(index, classes, contents, objects),
        layout=layout,
        root=root,
        objects=objects,
        bad=tuple(bad),
        ignored=ignored,
    )
    return pixels_of(data, options)


def within(root: Path, path: str) -> str | None:
    """Return the shortest spelling of a path relative to the root, or None if it leads out of it, or can be no path.

    >>> within(Path("/data"), "a/../b/./c.png"), within(Path("/data"), "/data/c.png"), within(Path("/data"), "../c.png")
    ('b/c.png', 'c.png', None)
    """
    base = os.path.abspath(root)  # noqa: PTH100  pathlib would keep the dots
    place = Path(os.path.normpath(os.path.join(base, path)))  # noqa: PTH118
    return place.relative_to(base).as_posix() if place.is_relative_to(base) and "\0" not in path else None


def first(names: Sequence[str]) -> str:
    """Return the first of many names in one line."""
    return ", ".join(names[:5]) + (f", … {len(names) - 5} more" if len(names) > 5 else "")


def percent(share: float) -> str:
    """Return a share as people write it.

    >>> percent(0.01), percent(0.0005)
    ('1%', '0.05%')
    """
    return f"{100 * share:g}%"


def printable(path: str) -> str:
    """Return the path with everything that is not to be printed escaped."""
    return path if path.isprintable() else ascii(path)[1:-1]


def _try_inspect(root: Path, path: str) -> Header | DecodeError:
    try:
        path.encode()
        return inspect(root / path)
    except UnicodeEncodeError:
        return DecodeError("a file name that is not UTF-8")
    except DecodeError as error:
        return error


def _check_twins(index: pa.Table) -> None:
    paths = index["path"]
    same = pc.equal(paths[1:], paths[:-1]) if len(paths) > 1 else pa.array([], pa.bool_())
    if pc.any(same).as_py():
        twin = paths[1:].filter(same)[0].as_py()
        raise UserError(f"data: the image {printable(twin)} is listed twice (allowed: once)")


def _renumbered(objects: pa.Table, order: np.ndarray) -> pa.Table:
    """Return the objects, sorted by the new rows of their images; within an image they keep their order."""
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    images = places[objects["image"].to_numpy()]
    sequence = np.argsort(images, kind="stable")
    columns = {**{name: objects[name].take(sequence) for name in OBJECTS.names}, "image": images[sequence]}
    return pa.table(columns, schema=OBJECTS).combine_chunks()
