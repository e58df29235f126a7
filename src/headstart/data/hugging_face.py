"""Data sets of Hugging Face, which become shards: the encoded images as they are, a label and a split."""

import fcntl
import hashlib
import re
import shutil
import tarfile
from collections.abc import Iterable
from functools import partial
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from typing import Any, TypedDict

from headstart.data.folders import SPLIT_FOLDERS
from headstart.data.home import cache_folder
from headstart.data.images import EXTENSIONS
from headstart.data.index import DataSet
from headstart.data.options import Options
from headstart.data.shards import CLASSES, open_shards
from headstart.errors import UserError
from headstart.progress import Track, say
from headstart.runs import replace, write_text

SHARD_BYTES = 450_000_000  # the image that reaches it is a shard's last one, so that it stays below 500 MB

_STARTS = (
    (b"\x89PNG", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"RIFF", ".webp"),
    (b"II", ".tif"),
    (b"MM", ".tif"),
)


class _Image(TypedDict):
    bytes: bytes | None
    path: str | None


_Sample = tuple[str, _Image | None, str | int | None]  # its key, image and label


def open_hugging_face(name: str, options: Options) -> DataSet:
    """Return a data set of the Hugging Face hub, or of a folder that the library ``datasets`` reads.

    The first time it is written as tar shards into the cache folder; after that neither the hub nor the library is
    asked for a name of the hub. The images are the column of type ``Image``, the labels the column of type
    ``ClassLabel`` (``label`` first), and the splits those of the data set.

    Args:
        name: ``NAME``, ``NAME:CONFIG``, or a folder: a saved data set, image files or Parquet files.
        options: what the user wants of the data.

    Raises:
        UserError: the data cannot be had, have no images, or as ``open_shards`` says.
    """
    path, config = _parsed(name)
    splits = _load(path, config) if Path(path).is_dir() else None
    prints = [part._fingerprint for part in splits.values()] if splits else []
    key = hashlib.sha256("\0".join([path, config or "", *prints]).encode()).hexdigest()[:8]
    folder = cache_folder() / "hugging_face" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-.')}-{key}"
    if not folder.is_dir():
        _write(splits or _load(path, config), folder)
    return open_shards(f"{folder}/*.tar", options)


def _parsed(name: str) -> tuple[str, str | None]:
    """Return the name or folder, and the configuration or None."""
    if Path(name).expanduser().exists():
        return str(Path(name).expanduser().resolve()), None
    path, _, config = name.partition(":")
    if Path(path).expanduser().is_dir():
        path = str(Path(path).expanduser().resolve())
    return path, config or None


def _load(path: str, config: str | None) -> Any:
    """Return the splits of a data set by name, with images that are not decoded."""
    try:
        import datasets  # type: ignore[import-untyped]  # here, because it is in an extra, and takes seconds to import
    except ImportError as error:
        raise UserError("data: hf: needs the library datasets: pip install 'headstart[hf]'") from error
    try:
        saved = any((Path(path) / file).is_file() for file in ("dataset_dict.json", "state.json"))
        splits = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, config)
    except Exception as error:  # the library, the hub and the network let out many kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"data: hf:{path} cannot be had ({reason[:300]}); without a network, let hf:FOLDER name a copy that"
            " datasets.load_dataset or datasets.load_from_disk reads"
        ) from error
    return splits if isinstance(splits, dict) else {str(splits.split or "train"): splits}


def _write(splits: Any, folder: Path) -> None:
    """Write the splits as shards, so that the folder is there whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be writing the same data
        if folder.is_dir():
            return
        part = folder.with_name(f".{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
        chosen = _chosen(splits)
        total = sum(len(rows) for rows in chosen.values())
        with Track(f"writing {folder.name}", total, unit="images") as track:
            for prefix, rows in chosen.items():
                _write_split(part, prefix, rows, track)
        part.rename(folder)


def _chosen(splits: Any) -> dict[str, Any]:
    """Return the splits by the word that their shards' names begin with; where some are known, the others stay out."""
    words = {name: "unlabelled" if name == "unsupervised" else name for name in splits}
    known = {word: splits[name] for name, word in words.items() if word.lower() in SPLIT_FOLDERS}
    left_out = [name for name, word in words.items() if known and word not in known]
    if left_out:
        say(f"hf: the splits {', '.join(left_out)} are left out (read: {', '.join(known)})")
    return known or {f"images-{name}": splits[name] for name in splits}


def _write_split(folder: Path, prefix: str, rows: Any, track: Track) -> None:
    from datasets import ClassLabel, Image

    image, label = _columns(rows.features)
    if label and isinstance(rows.features[label], ClassLabel):
        write_text(folder / CLASSES, "".join(f"{name}\n" for name in rows.features[label].names))
    rows = rows.select_columns([column for column in (image, label) if column]).cast_column(image, Image(decode=False))
    samples = ((f"{number:09}", row[image], row[label] if label else None) for number, row in enumerate(rows))
    for shard in count():
        first = next(samples, None)
        if first is None:
            return
        path = folder / f"{prefix}-{shard:05}.tar"
        replace(path, partial(_write_shard, chain([first], samples), track))


def _write_shard(samples: Iterable[_Sample], track: Track, path: Path) -> None:
    """Write samples into a tar file until it is full."""
    with tarfile.open(path, "w") as archive:
        for key, image, label in samples:
            content = _content(image)
            _add(archive, f"{key}{_extension(image, content)}", content)
            if label not in (None, "", -1):
                _add(archive, f"{key}.cls", str(label).encode())
            track.update()
            if archive.offset >= SHARD_BYTES:
                return


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, BytesIO(content))


def _columns(features: Any) -> tuple[str, str | None]:
    """Return the column of the images, and that of the labels or None."""
    from datasets import ClassLabel, Image, Value

    images = _first(features, "image", Image)
    if images is None:
        raise UserError(f"data: hf: no column of type Image (found: {', '.join(features)})")
    named = features.get("label")
    plain = isinstance(named, Value) and named.dtype.startswith(("int", "uint", "string", "large_string"))
    return images, _first(features, "label", ClassLabel) or ("label" if plain else None)


def _first(features: Any, name: str, kind: type) -> str | None:
    found = [column for column, feature in features.items() if isinstance(feature, kind)]
    return name if name in found else next(iter(found), None)


def _content(image: _Image | None) -> bytes:
    """Return the encoded image; an empty one, which is listed as broken, where there is none."""
    if image is None:
        return b""
    if image["bytes"] is not None:
        return image["bytes"]
    try:
        return Path(image["path"] or "").read_bytes()
    except OSError:
        return b""


def _extension(image: _Image | None, content: bytes) -> str:
    named = Path((image and image["path"]) or "").suffix.lower()
    return (
        named if named in EXTENSIONS else next((kind for start, kind in _STARTS if content.startswith(start)), ".jpg")
    )
