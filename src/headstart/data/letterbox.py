"""Whole images on square canvases, for tasks that say where something is, and the way back to the images' own pixels.

A centre crop would hide a part of each image, and a stretch would distort it. So the long side of an image becomes the
side of the canvas, and the image lies in the upper left corner, where its coordinates differ from its own by a factor.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as torchvision_functional

from headstart.data.images import DecodeError
from headstart.data.index import DataSet
from headstart.data.loading import mean_and_deviation
from headstart.data.schedule import InOrder
from headstart.data.streaming import decoded, read_parts


class Letterboxed(NamedTuple):
    """Whole images on square canvases.

    Attributes:
        images: normalised, float ``[b c s s]``; 0, the mean colour, beside the image.
        rows: the images' row numbers in their data set, int64 ``[b]``.
        sizes: height and width of the part of the canvas that is image, int64 ``[b 2]``, on the CPU.
    """

    images: Tensor
    rows: Tensor
    sizes: Tensor


class _Part(NamedTuple):
    """What a worker hands over: canvases as uint8, or float in 0..1 of deep pixels, and failures by path."""

    canvases: Tensor
    rows: Tensor
    sizes: Tensor
    failures: dict[str, str]


class _Canvases(Dataset[_Part]):
    """Batches of canvases by their number."""

    def __init__(self, dataset: DataSet, rows: Tensor, side: int, batch_size: int) -> None:
        self.dataset, self.rows, self.side = dataset, rows, side
        self.schedule = InOrder(len(rows), batch_size)

    def __len__(self) -> int:
        return len(self.schedule)

    def __getitem__(self, index: int) -> _Part:
        pixels, rows = self.dataset.pixels, self.rows[self.schedule.at(index).positions]
        dtype = torch.float32 if pixels.range else torch.uint8
        canvases = torch.zeros(len(rows), pixels.channels, self.side, self.side, dtype=dtype)
        sizes, kept, failures = torch.zeros(len(rows), 2, dtype=torch.int64), list[int](), dict[str, str]()
        for slot, row in enumerate(rows.tolist()):
            try:
                image = decoded(self.dataset, row)
            except DecodeError as error:
                failures[self.dataset.paths[row].as_py()] = str(error)
                continue
            height, width = fitted(image.shape[-2], image.shape[-1], self.side)
            resized = torchvision_functional.resize(image, [height, width], antialias=True)
            canvases[slot, :, :height, :width] = resized
            sizes[slot] = torch.tensor([height, width])
            kept.append(slot)
        return _Part(canvases[kept], rows[kept], sizes[kept], failures)


def letterboxed(
    dataset: DataSet,
    rows: Tensor,
    image_size: int,
    *,
    batch_size: int,
    workers: int,
    device: torch.device | str,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    bad: dict[str, str] | None = None,
) -> Iterator[Letterboxed]:
    """Yield whole images in order: the long side resized to ``image_size`` with antialiasing, the aspect kept.

    Images that cannot be decoded are left out. The memory that is needed depends on the size of a batch and the number
    of workers, not on that of the images.

    Args:
        dataset: the data.
        rows: which images, int64.
        image_size: the side of the canvases, in pixels.
        batch_size: images per batch; there are fewer in the last one, and where images are left out.
        workers: processes that decode; 0 decodes in this one.
        device: where the batches are made.
        mean: of each channel, subtracted from pixels in 0..1; None for those of ``loading.normalisation``.
        std: of each channel, which they are then divided by; None for those of ``loading.normalisation``.
        bad: gets the reasons why images could not be decoded, by their path.
    """
    device = torch.device(device)
    means, deviations = mean_and_deviation(mean, std, dataset)
    offset = torch.tensor(means, device=device).view(-1, 1, 1)
    scale = torch.tensor(deviations, device=device).view(-1, 1, 1)
    canvases = _Canvases(dataset, rows, image_size, batch_size)
    for part in read_parts(canvases, workers, pin=device.type == "cuda"):
        if bad is not None:
            bad.update(part.failures)
        if len(part.rows):
            pixels = part.canvases.to(device, non_blocking=True)
            pixels = pixels if pixels.is_floating_point() else pixels.float().div_(255)
            inside = _inside(part.sizes.to(device), image_size)
            images = torch.where(inside, (pixels - offset) / scale, 0.0)
            yield Letterboxed(images, part.rows.to(device, non_blocking=True), part.sizes)


def fitted(height: int, width: int, side: int) -> tuple[int, int]:
    """Return the height and width of an image on a square canvas, at least 1 pixel each.

    >>> fitted(300, 400, 128), fitted(30, 40, 128), fitted(1, 1000, 128)
    ((96, 128), (96, 128), (1, 128))
    """
    longest = max(height, width)
    return max(1, round(height * side / longest)), max(1, round(width * side / longest))


def restored(maps: Tensor, size: tuple[int, int], native: tuple[int, int]) -> Tensor:
    """Return maps of a canvas at the resolution of the image itself, by bilinear interpolation.

    Args:
        maps: float ``[c s s]``, such as the probability of each class.
        size: height and width of the part of the canvas that is image.
        native: height and width of the image itself, in pixels.

    Returns:
        float ``[c h w]``.
    """
    height, width = size
    part = maps[None, :, :height, :width]
    return F.interpolate(part, native, mode="bilinear", align_corners=False)[0]


def restored_boxes(boxes: Tensor, size: tuple[int, int], native: tuple[int, int]) -> Tensor:
    """Return boxes of a canvas in pixels of the image itself, cut off at its border.

    Args:
        boxes: left, top, right and bottom in pixels of the canvas, float ``[n 4]``.
        size: height and width of the part of the canvas that is image.
        native: height and width of the image itself, in pixels.
    """
    (height, width), (high, wide) = size, native
    limits = boxes.new_tensor([wide, high, wide, high])
    scaled = boxes * limits / boxes.new_tensor([width, height, width, height])
    return scaled.clamp(min=0).minimum(limits)


def _inside(sizes: Tensor, side: int) -> Tensor:
    """Return which pixels of canvases are image, bool ``[b 1 side side]``."""
    places = torch.arange(side, device=sizes.device)
    rows, columns = (places < sizes[:, axis, None] for axis in (0, 1))
    return (rows[:, :, None] & columns[:, None, :])[:, None]
