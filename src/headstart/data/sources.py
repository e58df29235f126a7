"""From the one string that names the data to a data set."""

import os
from pathlib import Path

from headstart.data.cache import Opener, cached
from headstart.data.classes import select_classes
from headstart.data.coco import open_coco
from headstart.data.depth import in_asked_channels
from headstart.data.folders import open_folder
from headstart.data.hugging_face import open_hugging_face
from headstart.data.index import DataSet
from headstart.data.known import KNOWN_DATA
from headstart.data.manifests import SPLIT, open_split
from headstart.data.masks import is_masks, open_masks
from headstart.data.options import DEFAULT, Options
from headstart.data.scan import printable
from headstart.data.shards import open_shards
from headstart.data.tables import open_table
from headstart.data.voc import is_voc, open_voc
from headstart.data.yolo import open_yolo
from headstart.errors import UserError, unknown

HUGGING_FACE, SHARDS = "hf:", "wds:"
MANIFESTS = ("manifest.csv", "manifest.parquet")
YOLO, COCO = "data.yaml", "instances.json"
_FORMS = "a folder of images, a file of annotations or a table, hf:NAME, wds:SHARDS"
FILES: dict[str, Opener] = {
    ".yaml": open_yolo,
    ".yml": open_yolo,
    ".json": open_coco,
    ".csv": open_table,
    ".parquet": open_table,
}


def open_data(data: str | Path, options: Options = DEFAULT) -> DataSet:
    """Return the data set that the string names.

    A name of ``KNOWN_DATA`` is that data set, even where a folder has this name (write ``./digits`` for it).
    ``hf:NAME`` is a data set of Hugging Face, ``wds:SHARDS`` the tar files of WebDataset. Anything else is a path: of a
    file (YOLO's data.yaml, COCO's JSON, a table), or of a folder, which is what the first of these makes of it: what
    ``headstart split`` wrote, a table called manifest, data.yaml, instances.json, images/ and masks/, annotations of
    VOC, or else folders of images, which ``read_layout`` understands.

    Args:
        data: the string.
        options: what is wanted of the data.

    Raises:
        UserError: there is no such data, it has no images, too many are broken, or they are of several kinds.
    """
    try:
        found = _opened(str(data), options)
    except OSError as error:
        place = printable(str(error.filename or data))
        raise UserError(f"data: {place} cannot be read ({error.strerror or error})") from error
    return select_classes(found, options.classes) if options.classes else found


def _opened(name: str, options: Options) -> DataSet:
    if name in ("", HUGGING_FACE, SHARDS):
        raise UserError(f"data: '{name}' names nothing (allowed: a folder such as '.', a file, hf:NAME, wds:SHARDS)")
    if name in KNOWN_DATA:
        known = KNOWN_DATA[name](options)
        return known if known.images is None else in_asked_channels(known, options.channels)
    if name.startswith(HUGGING_FACE):
        return open_hugging_face(name.removeprefix(HUGGING_FACE), options)
    if name.startswith(SHARDS):
        return open_shards(name.removeprefix(SHARDS), options)
    path = Path(os.path.expanduser(name))  # noqa: PTH111  a Path would raise an error for ~nobody
    try:
        os.path.realpath(path).encode()
    except UnicodeEncodeError:
        raise UserError(f"data: the name {printable(name)} is not UTF-8 (allowed: a path that is)") from None
    if path.is_file():
        if path.suffix.lower() not in FILES:
            raise UserError(f"data: {name} is a file (allowed: {', '.join(FILES)}, a folder of images)")
        return cached(FILES[path.suffix.lower()], path, options)
    if path.is_dir():
        return _open_folder(path, options)
    if os.sep in name:
        raise UserError(f"data: there is no {printable(name)} (allowed: {_FORMS}, {', '.join(KNOWN_DATA)})")
    raise unknown("data", printable(name), [*KNOWN_DATA, _FORMS])


def _open_folder(folder: Path, options: Options) -> DataSet:
    if (folder / SPLIT).is_file():
        return open_split(folder, options, open_data)
    for name in MANIFESTS:
        if (folder / name).is_file():
            return cached(open_table, folder / name, options)
    if (folder / YOLO).is_file():
        return cached(open_yolo, folder, options)
    if (folder / COCO).is_file():
        return cached(open_coco, folder / COCO, options)
    if is_masks(folder):
        return cached(open_masks, folder, options)
    return cached(open_voc if is_voc(folder) else open_folder, folder, options)
