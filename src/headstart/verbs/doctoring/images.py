"""Findings about the images: files that are broken, odd sizes, channels and colours."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from headstart.data.examination import Examined
from headstart.data.index import DTYPES, BadImage, DataSet
from headstart.data.scan import percent
from headstart.verbs.doctoring.finding import Finding, counted, fine, found, names

SMALLEST = 32  # pixels of the shorter side
LONGEST = 4.0  # aspect ratio
EXTREME = 16.0  # times the median area
FEW, MOST = 0.05, 0.95  # shares of grey images between which they are a mixture


def files(data: DataSet, failures: Sequence[BadImage], max_bad: float) -> Finding:
    """Find files that cannot be decoded; above the share ``max_bad`` no training would begin."""
    broken = [*data.bad, *failures]
    total = data.count + len(data.bad)
    if not broken:
        return fine("broken files", "none")
    above = len(broken) > max_bad * total
    examples = [f"{file.path} ({file.reason})" for file in broken]
    text = f"{len(broken):,} of {total:,} files cannot be used"
    remedy = "repair or delete them" + (f"; {percent(max_bad)} of the files may be broken (--max-bad)" if above else "")
    return found("broken files", "must fix" if above else "should look", len(broken), text, remedy, examples)


def sizes(data: DataSet) -> list[Finding]:
    """Find images that are very small, very long, or much larger or smaller than the others."""
    sides = data.sizes.double()
    short, long = sides.min(dim=1).values, sides.max(dim=1).values
    area = sides.prod(dim=1)
    middle = area.median()
    smallest, largest = (f"{data.sizes[row, 1]}x{data.sizes[row, 0]}" for row in (area.argmin(), area.argmax()))
    same = bool((data.sizes == data.sizes[0]).all())
    text = f"all {largest} pixels" if same else f"{smallest} to {largest} pixels, median area {middle:,.0f}"
    small = ((short < SMALLEST) & (short < short.median() / 2)).nonzero()[:, 0]
    thin = (long / short > LONGEST).nonzero()[:, 0]
    extreme = ((area > EXTREME * middle) | (area < middle / EXTREME)).nonzero()[:, 0]
    found_odd = [
        _odd_sizes(
            data, small, "small images", f"below {SMALLEST} px on the shorter side", "look whether they are icons"
        ),
        _odd_sizes(
            data, thin, "long images", f"over {LONGEST:g} times as long as wide", "cut them: a view sees a part"
        ),
        _odd_sizes(data, extreme, "extreme sizes", f"{EXTREME:g} times larger or smaller than most", "resize them"),
    ]
    return [fine("sizes", text), *(finding for finding in found_odd if finding.count)]


def _odd_sizes(data: DataSet, rows: Tensor, name: str, what: str, remedy: str) -> Finding:
    shown = [
        f"{path} ({width}x{height})"
        for path, (height, width) in zip(names(data, rows), data.sizes[rows].tolist(), strict=False)
    ]
    return found(name, "should look", len(rows), f"{counted(len(rows), 'image')} {what}", remedy, shown)


def modes(data: DataSet) -> Finding:
    """Find data whose files have different numbers of channels."""
    stored = torch.from_numpy(data.index["channels"].to_numpy().astype(np.int64))
    kind = DTYPES[data.index["dtype"][0].as_py()]
    kinds, counts = torch.unique(stored, return_counts=True)
    if len(kinds) == 1:
        return fine("modes", f"all files have {counted(int(kinds[0]), 'channel')} of {kind}")
    rare = kinds[counts.argmin()]
    rows = (stored == rare).nonzero()[:, 0]
    listed = ", ".join(
        f"{count:,} with {counted(channels, 'channel')}"
        for channels, count in zip(kinds.tolist(), counts.tolist(), strict=True)
    )
    remedy = "look whether the grey files are of another camera; they are read as colour images with equal channels"
    return found("modes", "should look", len(rows), f"{listed}, of {kind}", remedy, names(data, rows))


def colours(data: DataSet, examined: Examined) -> Finding | None:
    """Find grey images among colour images; None where colours mean nothing or nothing was decoded."""
    if data.pixels.channels != 3 or not len(examined.rows):
        return None
    share = float(examined.grey.mean())
    rows = examined.rows[torch.from_numpy(examined.grey)]
    text = f"{share:.1%} of the decoded images are grey"
    if share == 1:
        return fine("grey images", "all; colour operations change nothing, --channels 1 makes the first layer smaller")
    if not FEW < share < MOST:
        return fine("grey images", text)
    remedy = "look whether colour depends on the class: a network would learn that; --channels 1 makes all grey"
    return found("grey images", "should look", len(rows), text, remedy, names(data, rows))


def constants(data: DataSet, examined: Examined) -> Finding:
    """Find images of which all pixels are equal."""
    rows = examined.rows[torch.from_numpy(examined.constant)]
    if not len(rows):
        return fine("constant images", "none")
    text = f"{counted(len(rows), 'image')} with nothing in them: all pixels are equal"
    return found("constant images", "should look", len(rows), text, "delete them", names(data, rows))
