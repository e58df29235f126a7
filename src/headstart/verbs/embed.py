"""The verb ``embed``: the features of images as a table, written while they are computed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from headstart import runs
from headstart.backbones.given import Initialised, initialise, run_settings
from headstart.config.handing_over import Embed
from headstart.data.images import DecodeError, decode
from headstart.data.index import SPLITS, BadImage, DataSet
from headstart.data.loading import images_at, normalisation
from headstart.data.scan import first, printable
from headstart.errors import UserError, unknown
from headstart.evaluation.features import extract, hash_weights
from headstart.progress import Track, say
from headstart.settings import signature
from headstart.training.machine import resolve_precision
from headstart.verbs import embedding_files, parameters, resolve, start


@dataclass(frozen=True)
class Embedded:
    """A file of features, and what they are of.

    Attributes:
        out: the file.
        data: the name of the data set.
        model: MODEL.
        images: how many rows the file has.
        dim: the width of the features.
        bad: the images that are not in it because they cannot be read, and why.
    """

    out: Path
    data: str
    model: str
    images: int
    dim: int
    bad: tuple[BadImage, ...]

    def __str__(self) -> str:
        """Return what was written, and what was left out."""
        text = f"{self.out}: {self.images:,} images of {printable(self.data)}, {self.dim} features of {self.model} each"
        if not self.bad:
            return text
        listed = first([f"{printable(bad.path)} ({bad.reason})" for bad in self.bad])
        return f"{text}\nleft out: {len(self.bad):,} images: {listed}"


def embed(
    init: str | Path,
    *,
    out: str | Path,
    config: str | Path | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> Embedded:
    """Write the features of images with their file names, labels and splits, as Parquet, CSV or npz.

    Columns: ``image`` (path within the data), ``label`` (the class's name), ``split`` (the data's own), and
    ``features``, float32: lists of one length in Parquet, an array ``[n d]`` in npz, columns ``f0000``, … in CSV.
    A missing label or split is empty. Rows are in the order of the paths. Memory does not grow with the data.

    Args:
        init: a RUN, a weights file, a published torchvision/ or timm/ name, or none for random features.
        out: the file, FILE.parquet, FILE.csv or FILE.npz.
        config: a YAML file of settings; those given win.
        overwrite: replace the file that is there.
        quiet: show no progress.
        **given: the settings of `headstart.config.handing_over.Embed`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    file = Path(out)
    settings = start.settings(Embed, {**given, "init": str(init)}, check, config=config, out=None, resume=False)
    check_file(file, overwrite=overwrite)
    data = start.opened(settings, settings.init)
    start.check_outside(file, settings.data)
    return run_embed(settings, data, file, quiet=quiet)


embed.__signature__ = signature(  # type: ignore[attr-defined]
    Embed,
    before=parameters.EMBED,
)


def check(settings: Embed) -> Embed:
    """Return the settings with all that can be known before anything is loaded checked and resolved."""
    run_settings(settings.init)
    return settings.updated(precision=resolve_precision(settings.precision))


def check_file(file: Path, *, overwrite: bool) -> None:
    """Raise a UserError unless the file is of a known kind and may be written."""
    if file.suffix not in embedding_files.WRITERS:
        raise unknown("out", file.name, [f"FILE{suffix}" for suffix in embedding_files.WRITERS])
    if file.is_dir():
        raise UserError(f"out: {file} is a folder, not a file")
    if file.exists() and not overwrite:
        raise UserError(f"out: {file} is there already (allowed: another file, or --overwrite)")


def run_embed(settings: Embed, data: DataSet, file: Path, *, quiet: bool) -> Embedded:
    """Embed an opened data set with checked settings."""
    rows = rows_of(data, settings.splits)
    size = start.image_size(settings.init, settings.image_size, data)
    begun = initialise(
        settings.init,
        model=settings.model,
        model_args=settings.model_args,
        stem=settings.stem,
        image_size=size,
        channels=data.pixels.channels,
        seed=settings.seed,
    )
    if begun.matched is not None and not quiet:
        say(begun.matched.describe())
    seen = torch.zeros(data.count, dtype=torch.bool)
    about = json.dumps(_about(begun, data, size))
    try:
        with Track("embed", len(rows), unit="images", quiet=quiet) as track:
            blocks = _blocks(settings, begun, data, rows, seen, track)
            columns = embedding_files.columns_of(data, begun.backbone.dim, about)
            runs.replace(file, lambda temporary: embedding_files.WRITERS[file.suffix](temporary, columns, blocks))
    except OSError as error:
        raise UserError(f"out: {file} cannot be written ({error.strerror or error})") from None
    unread = tuple(_unread(data, row) for row in rows[~seen[rows]].tolist())
    return Embedded(file, data.name, begun.model, int(seen.sum()), begun.backbone.dim, (*data.bad, *unread))


def rows_of(data: DataSet, splits: tuple[str, ...] | None) -> Tensor:
    """Return the rows of the splits, int64 ``[n]``; all of them for None.

    Raises:
        UserError: the data have none of these splits.
    """
    if splits is None:
        return torch.arange(data.count)
    rows = torch.isin(data.splits, torch.tensor([SPLITS.index(name) for name in splits])).nonzero().squeeze(1)
    if not len(rows):
        found = [name for code, name in enumerate(SPLITS) if bool((data.splits == code).any())]
        raise UserError(f"splits: no image is in {', '.join(splits)} (allowed here: {', '.join([*found, 'none'])})")
    return rows


def _blocks(
    settings: Embed, begun: Initialised, data: DataSet, rows: Tensor, seen: Tensor, track: Track
) -> Iterator[embedding_files.Block]:
    """Yield the features batch by batch, and mark the rows that are there."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batches = images_at(
        data,
        rows,
        begun.image_size,
        batch_size=settings.batch_size,
        workers=resolve.workers(settings.workers),
        device=device,
    )
    for batch in batches:
        found = extract(begun.backbone, [batch], device=device, precision=settings.precision)
        seen[found.rows] = True
        labels, splits = data.labels[found.rows].tolist(), data.splits[found.rows].tolist()
        track.update(len(found.rows))
        yield embedding_files.Block(
            images=data.paths.take(pa.array(found.rows.numpy())).to_pylist(),
            labels=[data.classes[label] if label >= 0 else None for label in labels],
            splits=[SPLITS[split] if split >= 0 else None for split in splits],
            features=found.features.numpy(),
        )


def _about(begun: Initialised, data: DataSet, size: int) -> dict[str, Any]:
    """Return what the features are, to be kept in a file that has a place for it."""
    mean, std = normalisation(data.pixels.channels)
    return {
        "model": begun.model,
        "model_args": begun.model_args,
        "stem": begun.stem,
        "weights": hash_weights(begun.backbone),
        "image_size": size,
        "channels": data.pixels.channels,
        "pixel_range": data.pixels.range,
        "mean": mean,
        "std": std,
        "data": data.name,
        "fingerprint": data.fingerprint,
    }


def _unread(data: DataSet, row: int) -> BadImage:
    """Return an image that could not be read, and why."""
    path = str(data.paths[row].as_py())
    try:
        decode(data.file(row), data.pixels)
    except (DecodeError, OSError) as error:
        return BadImage(path, str(error))
    return BadImage(path, "its size has changed")
