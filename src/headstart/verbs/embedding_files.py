"""Files of features, written block by block: Parquet, CSV and npz."""

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import NamedTuple
from zipfile import ZipFile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from headstart.data.index import SPLITS, DataSet

ABOUT = "headstart"  # in the metadata of a Parquet file, and among the arrays of an npz: what the features are, as JSON
_GROUP = 1 << 24  # numbers in a row group of Parquet, 64 MiB


class Block(NamedTuple):
    """Some rows of the file: the images' paths, class names and splits, and their features, float32 ``[n d]``."""

    images: list[str]
    labels: list[str | None]
    splits: list[str | None]
    features: np.ndarray

    @property
    def texts(self) -> tuple[Sequence[str | None], ...]:
        """The columns of texts, in their order."""
        return self.images, self.labels, self.splits


class Columns(NamedTuple):
    """What is known of the columns before the first block.

    Attributes:
        dim: the width of the features.
        widths: the characters of the longest text in ``image``, ``label`` and ``split``.
        about: what the features are, as JSON.
    """

    dim: int
    widths: dict[str, int]
    about: str


def columns_of(data: DataSet, dim: int, about: str) -> Columns:
    """Return the columns of a file for features of a width and a data set's images."""
    longest = pc.max(pc.utf8_length(data.paths)).as_py()
    widths = {"image": longest, "label": max(map(len, data.classes), default=0), "split": max(map(len, SPLITS))}
    return Columns(dim, widths, about)


def write_parquet(path: Path, columns: Columns, blocks: Iterable[Block]) -> None:
    """Write a Parquet file whose ``features`` are lists of one length."""
    kind = pa.list_(pa.float32(), columns.dim)
    schema = pa.schema([*_texts(), ("features", kind)], metadata={ABOUT: columns.about})
    with parquet.ParquetWriter(path, schema, use_dictionary=["label", "split"]) as writer:
        for tables in _grouped(blocks, max(1, _GROUP // columns.dim)):
            arrays = [
                pa.concat_arrays([pa.array(texts, pa.string()) for texts in column])
                for column in zip(*(block.texts for block in tables), strict=True)
            ]
            features = pa.array(np.concatenate([block.features for block in tables]).ravel())
            lists = pa.FixedSizeListArray.from_arrays(features, type=kind)
            writer.write_table(pa.Table.from_arrays([*arrays, lists], schema=schema))


def write_csv(path: Path, columns: Columns, blocks: Iterable[Block]) -> None:
    """Write a CSV file with a column for each feature; its digits give the same float32 when they are read."""
    features = [(f"f{number:04d}", pa.float32()) for number in range(columns.dim)]
    schema = pa.schema([*_texts(), *features])
    with csv.CSVWriter(path, schema) as writer:
        for block in blocks:
            texts = [pa.array(values, pa.string()) for values in block.texts]
            numbers = [pa.array(np.ascontiguousarray(column)) for column in block.features.T]
            writer.write_batch(pa.RecordBatch.from_arrays([*texts, *numbers], schema=schema))


def write_npz(path: Path, columns: Columns, blocks: Iterable[Block]) -> None:
    """Write a file that ``numpy.load`` opens without pickle.

    Its arrays begin with their number of rows, which is known last: until then they lie in files without a name.
    """
    kinds = {name: np.dtype(f"<U{max(1, width)}") for name, width in columns.widths.items()}
    kinds["features"] = np.dtype("<f4")
    count = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context(TemporaryFile(dir=path.parent)) for name in kinds}
        for block in blocks:
            for name, texts in zip(columns.widths, block.texts, strict=True):
                files[name].write(np.array([text or "" for text in texts], kinds[name]).tobytes())
            files["features"].write(np.asarray(block.features, kinds["features"]).tobytes())
            count += len(block.images)
        with ZipFile(path, "w") as archive:
            for name, kind in kinds.items():
                shape = (count, columns.dim) if name == "features" else (count,)
                header = {"descr": kind.str, "fortran_order": False, "shape": shape}
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array_header_1_0(member, header)
                    files[name].seek(0)
                    shutil.copyfileobj(files[name], member)
            with archive.open(f"{ABOUT}.npy", "w") as member:
                np.lib.format.write_array(member, np.array(columns.about))


WRITERS: dict[str, Callable[[Path, Columns, Iterable[Block]], None]] = {
    ".parquet": write_parquet,
    ".csv": write_csv,
    ".npz": write_npz,
}


def _texts() -> list[tuple[str, pa.DataType]]:
    return [(name, pa.string()) for name in ("image", "label", "split")]


def _grouped(blocks: Iterable[Block], rows: int) -> Iterator[list[Block]]:
    """Yield blocks together until they have so many rows, or are the last ones."""
    group: list[Block] = []
    for block in blocks:
        group.append(block)
        if sum(len(block.images) for block in group) >= rows:
            yield group
            group = []
    if group:
        yield group
