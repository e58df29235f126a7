"""An index is kept in the cache folder, so that a folder of images is looked through only once.

The file is a row of Arrow streams, uncompressed so that its columns can be mapped into memory: the images, with all
else about the data set as JSON in the metadata of the schema; the objects, if there are any; and the stamps (size and
times) of what was looked at. A CRC-32 of all that ends it.

Fresh is an index whose stamps are those of today. Stamps are kept of

* every folder: a file that comes, goes or is renamed changes the times of the folder that it is in;
* every file that is no image, since it may hold labels;
* the images themselves, masks too, where there are at most ``FEW`` of them: a million would take longer than the
  images' first step.

So in a larger folder one change is not noticed: an image that is overwritten in place. Its pixels are read anew in
every training, and a new height or width is found and listed there; only checksum and fingerprint are those of before.
"""

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from headstart.data.home import cache_folder
from headstart.data.images import EXTENSIONS
from headstart.data.index import BadImage, DataSet, Pixels
from headstart.data.options import Options
from headstart.progress import say
from headstart.runs import replace as replace_file

FEW = 50_000  # image files that are looked at one by one: 20 µs each on a busy machine
SETTLED = 2.0  # seconds; file systems count time in steps of up to that, within which two changes look like one
_LONG = 10.0  # seconds of reading that deserve a word
_BLOCK = 1 << 20  # bytes
_FACTS = b"headstart"  # the key in the metadata of the schema
_PLAIN = sorted(  # fields that JSON has a form for
    {field.name for field in fields(DataSet)} - {"index", "root", "images", "pixels", "objects", "mask_values", "bad"}
)
_STAMP = np.dtype((np.int64, 3))
_GONE = (-1, -1, -1)
_STAMPS = pa.schema({"path": pa.binary(), "bytes": pa.int64(), "modified": pa.int64(), "changed": pa.int64()})

Opener = Callable[[Path, Options], DataSet]


def cached(opener: Opener, path: Path, options: Options, watched: Sequence[Path] = ()) -> DataSet:
    """Return what ``opener(path, options)`` returns, from the index of an earlier call where that is fresh.

    A stale, damaged or foreign index is replaced, and where the cache folder cannot be written there is none. Several
    processes may do this at once. Data that lie in memory are not kept, nor those that changed in the last seconds.

    Args:
        opener: what reads the data; its module and its name are a part of what the index is known by.
        path: the data: a folder, a file or a pattern.
        options: what is wanted of the data; ``classes`` is not the openers' business, so one index does for all.
        watched: files and folders that decide the data and lie neither at ``path`` nor below the data set's root.

    Raises:
        UserError: as the opener.
    """
    file = index_file(opener, path, options)
    stored = _read(file, path)
    if stored is not None:
        return stored
    begin = time.time()
    data = opener(path, options)
    if time.time() - begin > _LONG:
        rate = data.count / (time.time() - begin)
        say(f"data: {data.count:,} images of {data.name} looked through, {rate:,.0f} images/s")
    if data.root is None or data.images is not None:
        return data
    stamps = _stamps([path, data.root, *watched])
    latest = max(_numbers(stamps["changed"]), default=0) / 1e9
    if latest < begin - SETTLED:
        with suppress(OSError):
            replace_file(file, lambda temporary: _write(temporary, data, path, stamps))
    return data


def index_file(opener: Opener, path: Path, options: Options) -> Path:
    """Return where the index of data is kept."""
    named = [opener.__module__, opener.__qualname__, str(path.resolve()), repr(replace(options, classes=None))]
    key = sha256("\0".join(named).encode(errors="surrogateescape")).hexdigest()[:32]
    return cache_folder() / "index" / f"{key}.arrow"


def _write(file: Path, data: DataSet, path: Path, stamps: pa.Table) -> None:
    facts = {
        **{name: getattr(data, name) for name in _PLAIN},
        "code": _code(),
        "root": _relative(data, path),
        "pixels": asdict(data.pixels),
        "mask_values": data.mask_values,
        "bad": [[bad.path, bad.reason] for bad in data.bad],
        "objects": data.objects is not None,
    }
    index = data.index.replace_schema_metadata({_FACTS: json.dumps(facts)})
    with pa.OSFile(str(file), "wb") as sink:
        for table in (index, data.objects, stamps):
            if table is not None:
                with pa.ipc.new_stream(sink, table.schema) as stream:
                    stream.write_table(table)
    with file.open("ab") as end:
        end.write(_checksum(file, file.stat().st_size).to_bytes(4, "little"))


def _read(file: Path, path: Path) -> DataSet | None:
    """Return the data set of a file, None where it is missing, damaged, of other code or stale."""
    try:
        if not _is_whole(file):
            return None
        source = pa.memory_map(str(file))
        index = pa.ipc.open_stream(source).read_all()
        facts = json.loads(index.schema.metadata[_FACTS])
        if facts["code"] != _code():
            return None
        objects = pa.ipc.open_stream(source).read_all() if facts["objects"] else None
        stamps = pa.ipc.open_stream(source).read_all()
    except (OSError, pa.ArrowException):
        return None
    if not _is_fresh(stamps):
        return None
    return _data_set(facts, index.replace_schema_metadata(None), objects, path)


def _data_set(facts: dict[str, Any], index: pa.Table, objects: pa.Table | None, path: Path) -> DataSet:
    channels, scale = facts["pixels"]["channels"], facts["pixels"]["range"]
    plain: dict[str, Any] = {name: facts[name] for name in _PLAIN}
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in plain.items()}
    return DataSet(
        **plain,
        index=index,
        root=_base(path) / facts["root"],
        pixels=Pixels(channels, tuple((low, high) for low, high in scale) if scale else None),
        objects=objects,
        mask_values=tuple(map(tuple, facts["mask_values"])),
        bad=tuple(BadImage(name, reason) for name, reason in facts["bad"]),
    )


def _relative(data: DataSet, path: Path) -> str:
    """Return the data set's root as seen from the data, since the same data may be named by another path next time."""
    assert data.root is not None
    return os.path.relpath(data.root.resolve(), _base(path).resolve())


def _base(path: Path) -> Path:
    return path if path.is_dir() else path.parent


@cache
def _code() -> str:
    """Return a hash of this room's own code: an index that other code made may mean something else."""
    digest = sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _is_whole(file: Path) -> bool:
    size = file.stat().st_size - 4
    with file.open("rb") as opened:
        opened.seek(max(size, 0))
        end = opened.read()
    return size > 0 and int.from_bytes(end, "little") == _checksum(file, size)


def _checksum(file: Path, size: int) -> int:
    """Return the CRC-32 of the first bytes of a file; read block by block, since mapped bytes would stay in memory."""
    crc = 0
    with file.open("rb") as opened:
        while size > 0 and (block := opened.read(min(_BLOCK, size))):
            crc, size = zlib.crc32(block, crc), size - len(block)
    return crc


def _stamps(places: Iterable[Path]) -> pa.Table:
    """Return the stamps of files, and of folders with what is below them; paths are absolute."""
    paths, images = list[bytes](), list[bytes]()
    for place in dict.fromkeys(place.resolve() for place in places):
        if not place.is_dir():
            paths.append(os.fsencode(place))
        for folder, below, files in os.walk(os.fsencode(place)):
            below[:] = [name for name in below if not name.startswith(b".")]
            paths.append(folder)
            for name in files:
                is_image = os.fsdecode(name).lower().endswith(EXTENSIONS)
                if not is_image and not name.startswith(b"."):
                    paths.append(folder + b"/" + name)
                elif is_image and len(images) <= FEW:
                    images.append(folder + b"/" + name)
    paths += images if len(images) <= FEW else []
    return pa.table([pa.array(paths, pa.binary()), *_look(paths, len(paths)).T], schema=_STAMPS)


def _is_fresh(stamps: pa.Table) -> bool:
    names = _STAMPS.names[1:]
    now = _look(_each(stamps["path"]), stamps.num_rows)
    return all(np.array_equal(now[:, place], _numbers(stamps[name])) for place, name in enumerate(names))


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    return np.from_dlpack(column.combine_chunks())  # to_numpy would import pandas, if that is there


def _each(column: pa.ChunkedArray) -> Iterator[bytes]:
    return (value.as_py() for value in column)


def _look(paths: Iterable[bytes], count: int) -> np.ndarray:
    """Return size in bytes and times of change, of contents and of anything, in nanoseconds: int64 ``[n 3]``."""
    return np.fromiter((_stamp(path) for path in paths), _STAMP, count)


def _stamp(path: bytes) -> tuple[int, int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 (a Path of each would take longer than the look)
    except OSError:
        return _GONE
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns
