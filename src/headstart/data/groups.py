"""Which images belong together: by a column of the data's table, or by what a pattern finds in their paths."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from headstart.data.index import DataSet
from headstart.data.scan import first, printable, within
from headstart.errors import UserError

TABLES = ("manifest.csv", "manifest.parquet")  # of a folder


def groups_of(data: DataSet, origin: str, group: str) -> pa.Array:
    """Return the group of each image, strings ``[n]``; null where a table has none for it.

    Args:
        data: the data set.
        origin: the DATA that it was opened from, whose table may have more columns than a data set keeps.
        group: ``group`` for that column of the data set, another column of the table, or a regular expression on
            paths whose only group names the image's group.

    Raises:
        UserError: it is neither, or there are images in which the pattern finds nothing.
    """
    if group == "group" and "group" in data.index.column_names:
        return data.index["group"].combine_chunks()
    columns = _columns(Path(origin))
    if group in columns:
        return _values(data, columns, group)
    try:
        pattern = re.compile(group)
    except re.error as error:
        raise _neither(group, columns, str(error)) from None
    if pattern.groups != 1:
        raise _neither(group, columns, f"it has {pattern.groups} groups")
    found = [(match and match[1]) or None for match in map(pattern.search, data.paths.to_pylist())]
    without = [printable(data.paths[row].as_py()) for row, name in enumerate(found) if name is None]
    if without:
        raise UserError(f"group: '{group}' finds nothing in {len(without)} of {data.count} paths: {first(without)}")
    return pa.array(found, pa.string())


def _neither(group: str, columns: Mapping[str, Any], why: str) -> UserError:
    allowed = ", ".join([*columns, "a regular expression with one group such as '^([^/]+)/'"])
    return UserError(
        f"group: '{group}' is no column of the data's table, and no regular expression with one group: {why}"
        f" (allowed: {allowed})"
    )


def _columns(path: Path) -> dict[str, pa.ChunkedArray]:
    """Return the columns of the table that a path names, or that lies in its folder; none without a table."""
    for place in [path / name for name in TABLES] if path.is_dir() else [path]:
        if place.suffix.lower() == ".csv" and place.is_file():
            found = _csv(place)
        elif place.suffix.lower() == ".parquet" and place.is_file():
            found = parquet.read_table(place)
        else:
            continue
        return dict(zip(found.column_names, found.columns, strict=True)) if "image" in found.column_names else {}
    return {}


def _csv(path: Path) -> pa.Table:
    """Return a table whose values are all text: 01 and 1 are two groups."""
    parse = arrow_csv.ParseOptions(newlines_in_values=True)
    with arrow_csv.open_csv(path, parse_options=parse) as file:
        names = file.schema.names
    convert = arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False)
    return arrow_csv.read_csv(path, parse_options=parse, convert_options=convert)


def _values(data: DataSet, columns: Mapping[str, pa.ChunkedArray], name: str) -> pa.Array:
    assert data.root is not None
    group_of, root = dict[str | None, Any](), data.root
    for image, group in zip(columns["image"].to_pylist(), columns[name].to_pylist(), strict=True):
        path = within(root, str(image))
        if group_of.setdefault(path, group) != group:
            raise UserError(f"group: the image {printable(str(image))} has two values of {name} (allowed: one)")
    groups = [group_of.get(path) for path in data.paths.to_pylist()]
    return pa.array([None if group in (None, "") else str(group) for group in groups], pa.string())
