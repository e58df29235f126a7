"""The folder that Ultralytics' trainer reads: links to images, text files of boxes, and ``data.yaml``.

Files have the number of their row in the data set for a name, so that none collide and what is found in an image can be
traced to its row.
"""

import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import yaml
from PIL import Image
from torch import Tensor

from headstart.data.images import THREADS, DecodeError, decode
from headstart.data.index import DataSet
from headstart.runs import write_text

DESCRIPTION = "data.yaml"
LINKED = (".jpg", ".jpeg", ".png", ".bmp", ".webp")  # read by Ultralytics as by us; others are written as PNG
SIDES = ("left", "top", "right", "bottom")


def write_yolo_data(data: DataSet, parts: Mapping[str, Tensor], folder: Path) -> Path:
    """Write some images of a data set with boxes as Ultralytics reads them, in place of what the folder held.

    Images that are 8-bit files of their own are linked. Others, such as those in tar files, in memory, or with deeper
    pixels, are written as 8-bit PNG; those that cannot be decoded are left out.

    Args:
        data: the data set.
        parts: the rows of ``train``, ``val`` and ``test``, int64 ``[n]`` each.
        folder: of nothing else.

    Returns:
        The path of ``data.yaml``.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for part, rows in parts.items():
        for kind in ("images", "labels"):
            (folder / kind / part).mkdir(parents=True)
        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(lambda row, part=part: _put(data, row, folder / "images" / part), rows.tolist()))
        for row, text in _labels(data, rows).items():
            (folder / "labels" / part / f"{row:09d}.txt").write_text(text)
    described = {
        **{part: f"images/{part}" for part in parts},
        "names": dict(enumerate(data.classes)),
        "channels": data.pixels.channels,
    }
    write_text(folder / DESCRIPTION, yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
    return folder / DESCRIPTION


def row_of(file: str) -> int:
    """Return the row of an image by its file.

    >>> row_of("RUN/ultralytics/data/images/test/000000017.jpg")
    17
    """
    return int(Path(file).stem)


def _put(data: DataSet, row: int, folder: Path) -> None:
    name = f"{row:09d}"
    suffix = Path(data.paths[row].as_py()).suffix.lower()
    if data.images is None and data.pixels.range is None and suffix in LINKED:
        source = data.file(row)
        if isinstance(source, Path):
            (folder / (name + suffix)).symlink_to(source.resolve())
            return
    try:
        pixels = data.images[row] if data.images is not None else decode(data.file(row), data.pixels)
    except DecodeError:
        return
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().to(torch.uint8)
    array = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
    Image.fromarray(array.contiguous().numpy()).save(folder / f"{name}.png")


def _labels(data: DataSet, rows: Tensor) -> dict[int, str]:
    """Return the text of the boxes of each row: a line of class, centre, width and height, as shares of the image."""
    assert data.objects is not None
    images = torch.tensor(data.objects["image"].to_numpy())
    chosen = torch.isin(images, rows)
    images = images[chosen]
    labels = torch.tensor(data.objects["label"].to_numpy())[chosen]
    left, top, right, bottom = (torch.tensor(data.objects[side].to_numpy())[chosen].double() for side in SIDES)
    heights, widths = data.sizes[images].double().unbind(1)
    shares = [
        (left + right) / 2 / widths,
        (top + bottom) / 2 / heights,
        (right - left) / widths,
        (bottom - top) / heights,
    ]
    texts = dict.fromkeys(rows.tolist(), "")
    for row, label, *box in zip(images.tolist(), labels.tolist(), *(share.tolist() for share in shares), strict=True):
        texts[row] += f"{label} {' '.join(f'{share:.9f}' for share in box)}\n"
    return texts
