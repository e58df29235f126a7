"""Pictures of what was found, small enough to be looked at."""

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision_functional

from headstart.data.index import DataSet
from headstart.data.streaming import decoded
from headstart.tasks.detection import Found
from headstart.verbs.drawing import draw_boxes
from headstart.verbs.overlays import overlay, palette, visible

LARGEST = 1024  # pixels of the long side
SMALLEST = 512  # pixels of the long side, to which pictures with names are enlarged by a whole number
QUALITY = 90  # of JPEG


def save_overlay(images: DataSet, row: int, classes: Tensor, names: Sequence[str], path: Path) -> None:
    """Write an image under the colours of its classes as JPEG.

    Args:
        images: the images.
        row: of the image.
        classes: of each of its pixels, integers ``[h w]``.
        names: of the classes.
        path: of the picture.
    """
    image = shrunk(decoded(images, row))
    small = F.interpolate(classes[None, None].float(), image.shape[1:], mode="nearest-exact")[0, 0].long()
    _save(overlay(image, small, palette(names)).permute(1, 2, 0), path)


def save_drawing(images: DataSet, row: int, found: Found, names: Sequence[str], path: Path) -> None:
    """Write an image with boxes as JPEG.

    Args:
        images: the images.
        row: of the image.
        found: boxes in pixels of the image.
        names: of the classes.
        path: of the picture.
    """
    image = shrunk(decoded(images, row))
    height, width = image.shape[1:]
    high, wide = images.sizes[row].tolist()
    drawn = draw_boxes(
        bytes_of(visible(image)).permute(1, 2, 0).contiguous().numpy(),
        (found.boxes * found.boxes.new_tensor([width / wide, height / high] * 2)).numpy(),
        found.labels.tolist(),
        names,
        found.scores.tolist(),
        scale=max(1, SMALLEST // max(height, width)),
    )
    _save(torch.from_numpy(drawn.copy()), path)


def shrunk(image: Tensor) -> Tensor:
    """Return an image ``[c h w]`` with a long side of at most 1024 pixels."""
    height, width = image.shape[1:]
    longest = max(height, width)
    if longest <= LARGEST:
        return image
    size = [max(1, round(side * LARGEST / longest)) for side in (height, width)]
    resized: Tensor = torchvision_functional.resize(image, size, antialias=True)
    return resized


def bytes_of(image: Tensor) -> Tensor:
    """Return an image as uint8, of which float pixels are in 0..1."""
    return (image * 255).round().to(torch.uint8) if image.is_floating_point() else image


def _save(picture: Tensor, path: Path) -> None:
    Image.fromarray(picture.contiguous().numpy()).save(path, quality=QUALITY)
