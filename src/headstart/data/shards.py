"""WebDataset shards: tar files whose members are read where they lie, so that an image is a row like any other."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from headstart.data.cache import cached
from headstart.data.folders import SPLIT_FOLDERS
from headstart.data.images import THREADS, DecodeError, Header, inspect
from headstart.data.index import NO_SPLIT, SCHEMA, TAR, BadImage, DataSet
from headstart.data.members import Member, read_shard
from headstart.data.options import Options
from headstart.data.remote import find_files
from headstart.data.rows import Numbered, numbered
from headstart.data.scan import assemble, check_bad, printable
from headstart.errors import UserError

CLASSES = "classes.txt"  # beside the shards: the name of each class number, one per line

_SPLIT = re.compile(rf"({'|'.join(SPLIT_FOLDERS)})(?![a-z])", re.IGNORECASE)
_HEADER = pa.schema([SCHEMA.field(name) for name in ("path", *Header._fields)])
_UNKNOWN = -2  # a label that is none of the listed classes


class _Found(NamedTuple):
    """Images of a shard: the columns of a ``Scan``, where their bytes begin, their labels; and what is broken."""

    columns: pa.Table
    offsets: np.ndarray
    labels: pa.Array
    bad: list[BadImage]
    ignored: int


def open_shards(pattern: str, options: Options) -> DataSet:
    """Return the data set of WebDataset shards, which are not unpacked.

    Members ``KEY.jpg`` (or another kind of image) are images; ``KEY.cls`` (a number or a name), or the ``label`` of
    ``KEY.json``, is the label. A file ``classes.txt`` beside the shards names the numbers. Where the names of all
    shards begin with a split, as ``train-0001.tar`` does, those are the splits. Images are rows of an index, so their
    order is drawn and resumed as that of files is, and no buffer is shuffled.

    Args:
        pattern: paths with braces and wildcards, as ``data/train-{0000..0099}.tar``, or such a URL for fsspec, whose
            shards are copied once into the cache folder.
        options: what the user wants of the data.

    Raises:
        UserError: there are no such shards, one is not a whole tar file or has names that lead out of it, or too many
            images are broken.
    """
    paths = find_files(pattern)

    def read(pattern: Path, options: Options) -> DataSet:
        return _open(paths, options)

    return cached(read, Path(pattern), options)


def _open(paths: Sequence[Path], options: Options) -> DataSet:
    root = Path(os.path.commonpath([path.parent for path in paths]))
    shards = [_look(path, path.relative_to(root).as_posix()) for path in paths]
    columns = pa.concat_tables([shard.columns for shard in shards])
    labels, classes = _numbered(root, pa.chunked_array([shard.labels for shard in shards]))
    offsets = np.concatenate([shard.offsets for shard in shards])
    splits = np.repeat(_splits(paths), [len(shard.offsets) for shard in shards])
    bad = [broken for shard in shards for broken in shard.bad]
    good = labels != _UNKNOWN
    bad += [BadImage(printable(columns["path"][row].as_py()), f"a label that is not in {CLASSES}")
            for row in np.flatnonzero(~good).tolist()]  # fmt: skip
    check_bad(bad, int(good.sum()), root, options.max_bad)
    return assemble(
        root.resolve().name,
        root,
        columns.filter(pa.array(good)),
        labels=labels[good],
        splits=splits[good],
        classes=classes,
        layout=f"WebDataset, {len(paths)} shard{'s' * (len(paths) > 1)}",
        more={"offset": offsets[good]},
        bad=bad,
        ignored=sum(shard.ignored for shard in shards),
        options=options,
    )


def _look(path: Path, name: str) -> _Found:
    """Look at the contents of a shard, many images at a time."""
    if not name.endswith(TAR[:-1]) or TAR in name:
        raise UserError(f"data: {printable(name)} is no shard (allowed: tar files whose names end with .tar)")
    shard = read_shard(path, name)
    rows, kept, bad = [], list[Member](), list(shard.bad)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(THREADS) as pool:
            headers = pool.map(lambda member: _try_inspect(descriptor, member), shard.images)
            for member, header in zip(shard.images, headers, strict=True):
                if isinstance(header, Header):
                    rows.append((f"{name}/{member.name}", *header))
                    kept.append(member)
                else:
                    bad.append(BadImage(printable(f"{name}/{member.name}"), str(header)))
    finally:
        os.close(descriptor)
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in _HEADER]
    return _Found(
        pa.table(columns, schema=_HEADER),
        np.array([member.offset for member in kept], np.int64),
        pa.array([member.label for member in kept], pa.string()),
        bad,
        shard.ignored,
    )


def _try_inspect(descriptor: int, member: Member) -> Header | DecodeError:
    try:
        member.name.encode()
        return inspect(BytesIO(os.pread(descriptor, member.size, member.offset)))
    except UnicodeEncodeError:
        return DecodeError("a file name that is not UTF-8")
    except DecodeError as error:
        return error


def _numbered(root: Path, names: pa.ChunkedArray) -> Numbered:
    """Return the numbers of labels, of which ``classes.txt`` has the names if it is there."""
    listed = root / CLASSES
    if not listed.is_file():
        return numbered(names)
    try:
        classes = listed.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"data: {listed} is not a text file (allowed: a class name in each line)") from None
    places = {name: number for number, name in enumerate(classes)}
    places |= {str(number): number for number in range(len(classes))}
    labels, found = numbered(names)
    numbers = np.array([*(places.get(name, _UNKNOWN) for name in found), -1])  # no label is -1, which is the last one
    return Numbered(numbers[labels], tuple(classes))


def _splits(paths: Sequence[Path]) -> np.ndarray:
    """Return the split of each shard, -1 unless the names of all begin with one."""
    found = [_SPLIT.match(path.name) for path in paths]
    return np.array([SPLIT_FOLDERS[match[1].lower()] if all(found) and match else NO_SPLIT for match in found])
