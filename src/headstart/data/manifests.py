"""A split on disk: a reference to the data beside a list of its images, and how both are opened again."""

import csv
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import csv as arrow_csv
from torch import Tensor

from headstart.data.index import NO_LABEL, NO_SPLIT, OPTIONAL, SCHEMA, SPLITS, UNLABELLED, DataSet
from headstart.data.options import Options
from headstart.data.scan import printable
from headstart.errors import UserError, unknown
from headstart.runs import write_text

SPLIT, MANIFEST = "split.json", "manifest.csv"
_COLUMNS = ("image", "label", "split", "group")
_VERSION = 1  # of the form of these files


@dataclass(frozen=True)
class Reference:
    """What ``split.json`` says.

    Attributes:
        data: the DATA that was split.
        fingerprint: of the data, as they were opened.
        options: how they were opened.
        parts: the names of the parts, and their sizes in percent.
        seed: of the choice.
        group: what had to stay in one part, as the user wrote it; None for the groups of the data, if any.
        part: the part that the folder holds; None where it holds all of them.
    """

    data: str
    fingerprint: str
    options: Options
    parts: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    group: str | None = None
    part: str | None = None

    @property
    def named(self) -> bool:
        """Whether the parts have names of their own, and thus are data sets rather than splits of one."""
        return self.part is None and not set(self.parts) <= set(SPLITS)


def write_split(folder: Path, reference: Reference, data: DataSet, splits: Sequence[str] | None = None) -> None:
    """Write a data set as the reference to where it comes from and the list of its images.

    Args:
        folder: the folder to write into.
        reference: to the data that these images are some of.
        data: the images, with the labels, splits and groups that they are to have.
        splits: what to write as their splits; None for the names of their splits.
    """
    write_text(folder / SPLIT, json.dumps({**asdict(reference), "version": _VERSION}, indent=1, ensure_ascii=False))
    names = ("", *data.classes)
    labels = [names[label + 1] for label in data.labels.tolist()]
    written = [*SPLITS, ""]
    splits = [written[split] for split in data.splits.tolist()] if splits is None else splits
    groups = data.index["group"].to_pylist() if "group" in data.index.column_names else [None] * data.count
    write_text(folder / MANIFEST, csv_text(_COLUMNS, zip(data.paths.to_pylist(), labels, splits, groups, strict=True)))


def csv_text(head: Sequence[str], rows: Any) -> str:
    """Return lines of values as CSV with a head; values that are None are empty."""
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue()


def open_split(folder: Path, options: Options, open_data: Callable[[str, Options], DataSet]) -> DataSet:
    """Return the data set of a folder that ``write_split`` has written.

    The source is opened as it was then; channels and range of the pixels may be asked for anew. Boxes, masks and deep
    pixels are the source's, and images in the split unlabelled have no labels.

    Args:
        folder: the folder with ``split.json``.
        options: what is wanted of the data.
        open_data: opens the source.

    Raises:
        UserError: a file is damaged, the source is gone or has changed, or the folder holds several data sets.
    """
    reference = _read_reference(folder / SPLIT)
    if reference.named:
        parts = [str(folder / part) for part in reference.parts]
        raise UserError(f"data: {folder} holds several parts, each a data set of its own (allowed: {', '.join(parts)})")
    if Path(reference.data).resolve() == folder.resolve():
        raise UserError(f"data: {folder / SPLIT} refers to its own folder (allowed: other data)")
    then = reference.options
    channels = then.channels if options.channels == "auto" else options.channels
    pixel_range = then.pixel_range if options.pixel_range in ("auto", None) else options.pixel_range
    try:
        source = open_data(reference.data, replace(then, channels=channels, pixel_range=pixel_range))
    except UserError as error:
        raise UserError(f"data: {folder / SPLIT} refers to other data: {str(error).removeprefix('data: ')}") from None
    if source.fingerprint != reference.fingerprint:
        raise UserError(
            f"data: {reference.data} has changed since it was split into {folder}; split it again"
            f" (fingerprint {source.fingerprint}, then {reference.fingerprint})"
        )
    rows, splits, groups = _read_manifest(folder / MANIFEST, source)
    data = replace(parted(source, rows, splits), name=folder.resolve().name)
    return data if groups is None else with_groups(data, groups)


def parted(source: DataSet, rows: Tensor, splits: Tensor) -> DataSet:
    """Return some images of a data set, with other splits.

    Images in the split unlabelled lose their labels, masks and objects.

    Args:
        source: the data set.
        rows: the rows to keep, int64 ``[n]`` ascending.
        splits: their splits, int64 ``[n]``.
    """
    data = source.take(rows)
    hidden = splits == UNLABELLED
    index = _with(data.index, "split", pa.array(splits.numpy(), SCHEMA.field("split").type))
    labels = torch.where(hidden, NO_LABEL, data.labels)
    index = _with(index, "label", pa.array(labels.numpy(), SCHEMA.field("label").type))
    if "mask" in index.column_names:
        masks = pc.if_else(pa.array(hidden.numpy()), pa.scalar(None, pa.string()), index["mask"])
        index = _with(index, "mask", masks)
    objects = data.objects
    if objects is not None:
        objects = objects.filter(pa.array(~hidden[torch.tensor(objects["image"].to_numpy())].numpy()))
    return replace(
        data,
        index=index.combine_chunks(),
        objects=objects,
        fingerprint=_hashed(data.fingerprint, splits.numpy().astype("<i8").tobytes()),
        layout=f"a split of {source.name}: {source.layout}",
    )


def with_groups(data: DataSet, groups: pa.Array) -> DataSet:
    """Return the data set with other groups: strings ``[n]``, or null for an image that stands for itself."""
    contents = json.dumps(groups.to_pylist()).encode()
    return replace(data, index=_with(data.index, "group", groups), fingerprint=_hashed(data.fingerprint, contents))


def _hashed(fingerprint: str, contents: bytes) -> str:
    return hashlib.sha256(fingerprint.encode() + contents).hexdigest()[:16]


def _with(index: pa.Table, column: str, values: pa.Array) -> pa.Table:
    if column not in index.column_names:
        return index.append_column(OPTIONAL.field(column), values)
    place = index.column_names.index(column)
    return index.set_column(place, index.schema.field(column), values)


def _read_reference(path: Path) -> Reference:
    try:
        stored = json.loads(path.read_text())
        version, options = stored.pop("version"), stored.pop("options")
        if version != _VERSION:
            raise UserError(f"data: {path} has version {version} (allowed: {_VERSION})")
        classes, pixel_range = options.pop("classes"), options.pop("pixel_range")
        if classes is not None:
            classes = {str(name): tuple(parts) for name, parts in classes.items()}
        if pixel_range not in ("auto", None):
            pixel_range = tuple((float(low), float(high)) for low, high in pixel_range)
        data, parts = str(stored.pop("data")), {str(part): float(size) for part, size in stored.pop("parts").items()}
        then = Options(**options, classes=classes, pixel_range=pixel_range)
        return Reference(data=data, parts=parts, options=then, **stored)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"data: {path} is no reference to split data ({type(error).__name__}: {error})") from None


def _read_manifest(path: Path, source: DataSet) -> tuple[Tensor, Tensor, pa.Array | None]:
    """Return the rows in the source of the images that are listed, ascending, their splits and their groups."""
    convert = arrow_csv.ConvertOptions(column_types=dict.fromkeys(_COLUMNS, pa.string()), strings_can_be_null=False)
    parse = arrow_csv.ParseOptions(newlines_in_values=True)
    try:
        table = arrow_csv.read_csv(path, parse_options=parse, convert_options=convert)
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"data: {path} cannot be read ({' '.join(str(error).split())})") from None
    for column in _COLUMNS:
        if column not in table.column_names:
            raise UserError(f"data: {path} has no column {column} (allowed: {', '.join(_COLUMNS)})")
    found = pc.index_in(table["image"], value_set=source.paths)
    if found.null_count:
        line = found.to_pylist().index(None)
        raise UserError(
            f"data: {path}:{line + 2}: no image '{printable(table['image'][line].as_py())}' in {source.name}"
        )
    order = pc.sort_indices(found)
    rows = torch.tensor(found.take(order).to_numpy()).long()
    if (rows[1:] == rows[:-1]).any():
        twin = source.paths[int(rows[1:][rows[1:] == rows[:-1]][0])].as_py()
        raise UserError(f"data: {path}: the image {printable(twin)} is listed twice (allowed: once)")
    codes = {**{name: code for code, name in enumerate(SPLITS)}, "": NO_SPLIT}
    names = table["split"].take(order).to_pylist()
    for line, name in enumerate(table["split"].to_pylist()):
        if name not in codes:
            raise unknown(f"data: {path}:{line + 2}: split", name, SPLITS)
    groups = table["group"].take(order).combine_chunks()
    groups = pc.if_else(pc.equal(groups, ""), pa.scalar(None, pa.string()), groups)
    return rows, torch.tensor([codes[name] for name in names]), groups if groups.null_count < len(groups) else None
