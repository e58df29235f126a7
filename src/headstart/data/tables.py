"""Tables, CSV and Parquet, with one row for each image or for each object."""

import csv
import re
from array import array
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow_csv
from pyarrow import parquet

from headstart.data.index import DataSet
from headstart.data.options import Options
from headstart.data.rows import SIDES, open_rows
from headstart.data.scan import first, printable
from headstart.errors import UserError

_TEXTS = ("image", "label", "mask", "split", "group")
_TRIMMED = ("label", "split", "group")  # a file's name may begin with a space


def open_table(path: Path, options: Options) -> DataSet:
    """Return the data set that a CSV or Parquet file describes.

    Its columns: ``image``, and optionally ``label`` (a name or a number), ``mask``, ``split`` (train, val, test or
    unlabelled) and ``group``; an empty value is none. With ``left``, ``top``, ``right`` and ``bottom`` (pixels) each
    row is an object, unless there is a column ``picture``, which the box then is of. Other columns are ignored. Paths
    are relative to the folder of the table and stay below it. CSV is UTF-8 with commas, quoted as in RFC 4180.

    Raises:
        UserError: the file cannot be read, has no column ``image``, or as ``open_rows`` says.
    """
    where = _Lines(path)
    rows = _csv(path) if path.suffix.lower() == ".csv" else _parquet(path)
    for column in (name for name in _TEXTS if name in rows.column_names):
        values = pc.utf8_trim_whitespace(rows[column]) if column in _TRIMMED else rows[column]
        values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.string()), values)
        rows = rows.set_column(rows.column_names.index(column), column, values)
    if not rows.num_rows:
        raise UserError(f"data: {path.name} has no rows (allowed: one for each image)")
    if rows["image"].null_count:
        row = pc.index(rows["image"].is_null(), True).as_py()
        raise UserError(f"data: {where(row)}: no image (allowed: the path of one in every row)")
    names = ", ".join(rows.column_names)
    name = path.absolute().parent.name if path.stem == "manifest" else path.stem  # a manifest stands for its folder
    return open_rows(name, path.parent, rows, options, layout=f"a table with {names}", where=where)


def _csv(path: Path) -> pa.Table:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = next(csv.reader(file), [])
    except UnicodeDecodeError as error:
        with path.open("rb") as lines:
            number = next(number for number, line in enumerate(lines, start=1) if not _is_text(line))
        raise UserError(f"data: {path.name}:{number}: not UTF-8 (allowed: CSV in UTF-8)") from error
    except csv.Error as error:
        raise UserError(f"data: {path.name}:1: {error} (allowed: CSV in UTF-8)") from error
    columns = _columns(path, header)
    try:
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(use_threads=False),  # or errors would not name the row
            parse_options=arrow_csv.ParseOptions(newlines_in_values=True),
            convert_options=arrow_csv.ConvertOptions(
                include_columns=columns,
                column_types={name: pa.float64() if name in SIDES else pa.string() for name in columns},
                strings_can_be_null=False,  # an image may well be called NA
            ),
        )
    except pa.ArrowException as error:
        reason = " ".join(str(error).split())
        row = re.search(r"Row #(\d+): ", reason)
        place = _Lines(path)(int(row[1]) - 2) if row else path.name
        raise UserError(f"data: {place}: {reason[row.end() :] if row else reason}") from error


def _is_text(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _parquet(path: Path) -> pa.Table:
    try:
        columns = _columns(path, parquet.read_schema(path).names)
        rows = parquet.read_table(path, columns=columns, memory_map=True, partitioning=None)
    except pa.ArrowException as error:
        raise UserError(f"data: {path.name} is not a Parquet file ({' '.join(str(error).split())})") from error
    return pa.table({name: _cast(path, name, rows[name]) for name in columns})


def _cast(path: Path, name: str, values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column as what it is in a CSV file; numbers that pandas made floats because some are missing as such."""
    if pa.types.is_struct(values.type) or pa.types.is_binary(values.type):
        raise UserError(
            f"data: {path.name}: the column {name} holds no paths but {values.type}"
            f" (allowed: text; hf:{path.parent} opens files that hold images)"
        )
    try:
        if name in SIDES:
            return values.cast(pa.float64())
        if pa.types.is_floating(values.type):
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
            whole = pc.all(pc.equal(pc.floor(values), values)).as_py() is not False
            values = values.cast(pa.int64()) if whole else values
        return values.cast(pa.string())
    except pa.ArrowException as error:
        raise UserError(f"data: {path.name}: the column {name} is {values.type} (allowed: text or numbers)") from error


def _columns(path: Path, header: list[str]) -> list[str]:
    """Return the columns to read, in our order; raise a UserError for missing and repeated ones."""
    boxed = "picture" not in header  # a manifest of crops says where in a picture each of them was
    columns = [name for name in (*_TEXTS, *(SIDES if boxed else ())) if name in header]
    sides = [name for name in columns if name in SIDES]
    missing = "image" if "image" not in header else next((name for name in SIDES if name not in sides), None)
    if missing == "image" or (missing and sides):
        found = first([printable(name) for name in header]) or "nothing"
        raise UserError(f"data: {path.name}:1: no column '{missing}' (found: {found})")
    twice = [name for name in columns if header.count(name) > 1]
    if twice:
        raise UserError(f"data: {path.name}:1: the column '{twice[0]}' is there twice (allowed: once)")
    return columns


class _Lines:
    """Names the place of a row as FILE:LINE, which a value with a line break makes another number than the row's."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, row: int) -> str:
        return f"{self.path.name}:{self._starts[row + 1] if self.path.suffix.lower() == '.csv' else row + 1}"

    @cached_property
    def _starts(self) -> "array[int]":
        """The first line of the header and of each row of a CSV file; empty lines are no rows."""
        starts, line = array("q"), 1
        with self.path.open(encoding="utf-8", errors="replace", newline="") as file:
            reader = csv.reader(file)
            for values in reader:
                if values:
                    starts.append(line)
                line = reader.line_num + 1
        return starts
