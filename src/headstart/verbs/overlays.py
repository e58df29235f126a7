"""Pictures of segmentations: images under the colours of their classes."""

from collections.abc import Iterator, Sequence
from colorsys import hsv_to_rgb
from itertools import count
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from headstart.losses.segmentation import VOID
from headstart.verbs.figures import save

BACKGROUND = "background"
# Told apart by people who see fewer colours: Okabe and Ito 2008, without black, which images are full of.
_SAFE = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167))
_GOLDEN = 0.618  # of a turn: hues so far apart are never near one another
_OPACITY = 0.45
_VOID = (1.0, 1.0, 1.0, 0.7)
_CONTOUR = 1 / 200  # share of the shorter side
_SHOWN = 400  # pixels of the longer side of a picture among others
_LISTED = 20  # classes in a legend


class Example(NamedTuple):
    """An image with what is in it and what was predicted.

    Attributes:
        image: uint8, or float in 0..1, ``[c h w]``.
        truth: the class of each pixel, integers ``[h w]``; -1 for void.
        predicted: the same as predicted.
        title: stands above them.
        note: stands above the prediction.
    """

    image: Tensor
    truth: Tensor
    predicted: Tensor
    title: str
    note: str


def palette(classes: Sequence[str]) -> Tensor:
    """Return a colour and an opacity for each class, float ``[classes + 1, 4]`` in 0..1, the last of them for void.

    The first class is transparent if it is called background.
    """
    transparent = bool(classes) and classes[0].lower() == BACKGROUND
    colours, clear = _colours(), [(0.0, 0.0, 0.0, 0.0)] * transparent
    painted = [(*next(colours), _OPACITY) for _ in classes[transparent:]]
    return torch.tensor([*clear, *painted, _VOID])


def overlay(image: Tensor, classes: Tensor, colours: Tensor) -> Tensor:
    """Return an image under the colours of its classes, with an opaque line along the border of each.

    Args:
        image: uint8, or float in 0..1, ``[c h w]``; of many channels three are shown, of one or two the first.
        classes: of each pixel, integers ``[h w]``; -1 for void.
        colours: as ``palette`` gives them.

    Returns:
        uint8 ``[3 h w]``.
    """
    seen = visible(image)
    painted = colours.to(seen.device)[classes.long()].movedim(2, 0)  # [4 h w]; that of -1 is the last
    colour, opacity = painted[:3], painted[3]
    opacity = torch.where(_contours(classes) & (opacity > 0) & (classes != VOID), 1.0, opacity)
    return (255 * (seen * (1 - opacity) + colour * opacity)).round().to(torch.uint8)


def visible(image: Tensor) -> Tensor:
    """Return an image of any number of channels as float ``[3 h w]`` in 0..1."""
    seen = image if image.is_floating_point() else image.float() / 255
    return (seen[:3] if len(seen) >= 3 else seen[:1].expand(3, -1, -1)).float().clamp(0, 1)


def example(image: Tensor, truth: Tensor, predicted: Tensor, *, title: str, note: str) -> Example:
    """Return an example in the size of a picture among others, which needs little memory."""
    height, width = truth.shape
    shrunk = min(1.0, _SHOWN / max(height, width))
    size = (max(1, round(height * shrunk)), max(1, round(width * shrunk)))
    small = F.interpolate(visible(image)[None], size, mode="bilinear", antialias=True)[0]
    masks = torch.stack([truth, predicted])[:, None].float()  # class numbers are exact in float32
    truth, predicted = F.interpolate(masks, size, mode="nearest-exact").long()[:, 0].unbind()
    return Example(small.cpu(), truth.cpu(), predicted.cpu(), title, note)


def examples(path: Path, shown: Sequence[Example], classes: Sequence[str]) -> None:
    """Draw examples, each as image, truth and prediction side by side, in one column or two.

    Args:
        path: the PNG.
        shown: the examples, at least one.
        classes: the class names.
    """
    columns = 1 if len(shown) <= 4 else 2
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(6.6 * columns, 2.2 * rows + 0.5), layout="constrained")
    rooms = figure.subplots(rows, 3 * columns, squeeze=False).reshape(-1, 3)
    colours = palette(classes)
    for line, one in zip(rooms, shown, strict=False):
        pictures = (visible(one.image), *(overlay(one.image, mask, colours) for mask in (one.truth, one.predicted)))
        titles = (one.title if len(one.title) <= 28 else f"…{one.title[-27:]}", "truth", one.note)
        for room, picture, title in zip(line, pictures, titles, strict=True):
            room.imshow(picture.movedim(0, 2).numpy())
            room.set_title(title, fontsize=8)
    for room in rooms.ravel():
        room.set_axis_off()
    figure.legend(handles=_legend(shown, classes, colours), loc="outside lower center", ncols=6, fontsize=8)
    save(figure, path)


def _legend(shown: Sequence[Example], classes: Sequence[str], colours: Tensor) -> list[Patch]:
    """Return what says which colour is which class, for those that are shown."""
    seen = {number for one in shown for mask in (one.truth, one.predicted) for number in mask.flatten().tolist()}
    painted = [number for number in sorted(seen - {VOID}) if colours[number, 3] > 0][:_LISTED]
    patches = [Patch(color=tuple(colours[number, :3].tolist()), label=classes[number]) for number in painted]
    return patches + [Patch(facecolor="white", edgecolor="grey", label="void")] * (VOID in seen)


def _contours(classes: Tensor) -> Tensor:
    """Return which pixels lie at the border of their class, bool ``[h w]``."""
    radius = max(1, round(min(classes.shape) * _CONTOUR))
    numbers = classes.float()[None]
    highest = F.max_pool2d(numbers, 2 * radius + 1, stride=1, padding=radius)
    lowest = -F.max_pool2d(-numbers, 2 * radius + 1, stride=1, padding=radius)
    return (highest != lowest)[0]


def _colours() -> Iterator[tuple[float, float, float]]:
    """Yield colours without end, red, green and blue in 0..1: first those that everybody can tell apart."""
    for red, green, blue in _SAFE:
        yield red / 255, green / 255, blue / 255
    for number in count():
        yield hsv_to_rgb(number * _GOLDEN % 1, 0.7, (0.95, 0.65)[number % 2])
