"""Which part of an image a view shows, and where its pixels come from."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as torchvision_functional

from headstart.views.augment import Augment, Key, Stream

_TRIES = 10  # as torchvision's RandomResizedCrop


def crop_boxes(augment: Augment, key: Key, heights: Tensor, widths: Tensor) -> Tensor:
    """Return one crop per image, distributed as torchvision's ``RandomResizedCrop`` draws them.

    Areas and the logarithms of ratios are uniform; the first of ten draws that fits into the image is taken. Where none
    fits, the crop is the largest one in the centre whose ratio is within the range.

    Args:
        augment: its ``crop`` and ``ratio``; without a crop, the box is the largest square in the centre.
        key: names the images, ``b`` of them.
        heights: of the images, int64 ``[b]``, pixels.
        widths: likewise.

    Returns:
        int64 ``[b, 4]``: top, left, height, width, in pixels.
    """
    if augment.crop is None:
        side = torch.minimum(heights, widths)
        return _centred(side, side, heights, widths)
    draws = key.draws(Stream.CROP, 2 * _TRIES + 2).double()
    areas = _between(draws[:, :_TRIES], *augment.crop) * (heights * widths)[:, None]  # [b tries]
    ratios = _between(draws[:, _TRIES:-2], math.log(augment.ratio[0]), math.log(augment.ratio[1])).exp()
    tried_widths = (areas * ratios).sqrt().round().long()
    tried_heights = (areas / ratios).sqrt().round().long()
    fits = (tried_widths > 0) & (tried_widths <= widths[:, None])
    fits &= (tried_heights > 0) & (tried_heights <= heights[:, None])
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)  # of equal values argmax returns the first
    height = tried_heights.gather(1, first).squeeze(1)
    width = tried_widths.gather(1, first).squeeze(1)
    top = (draws[:, -2] * (heights - height + 1)).long()
    left = (draws[:, -1] * (widths - width + 1)).long()
    drawn = torch.stack([top, left, height, width], dim=1)
    return torch.where(fits.any(dim=1, keepdim=True), drawn, _fallback(augment, heights, widths))


def resized_crops(
    images: Tensor, boxes: Tensor, size: int, flip: Tensor | None = None, flip_vertical: Tensor | None = None
) -> Tensor:
    """Return the crops, resized to squares with antialiased bilinear interpolation.

    Resizing is linear and separable, so that each crop is two small matrices, rows and columns, and a batch of them is
    two batched products. The weights are those of torchvision and Pillow with ``antialias=True``.

    Args:
        images: uint8, or float in 0..1, ``[b c h w]``.
        boxes: int64 ``[b, 4]``: top, left, height, width.
        size: the side of the crops, in pixels.
        flip: which crops are flipped left to right, bool ``[b]``.
        flip_vertical: which crops are flipped upside down, bool ``[b]``.

    Returns:
        float ``[b c size size]`` in 0..1.
    """
    height, width = images.shape[-2:]
    values = images if images.is_floating_point() else images.float()
    rows = _resampling(boxes[:, 0], boxes[:, 2], height, size, flip_vertical, values.dtype)  # [b size h]
    columns = _resampling(boxes[:, 1], boxes[:, 3], width, size, flip, values.dtype)  # [b size w]
    crops = separably(values, rows, columns)
    crops = crops if images.is_floating_point() else crops.div_(255)
    return crops.clamp_(0, 1)  # weights that add up to 1 may overshoot by rounding


def separably(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the images times a matrix per image along their height, and another along their width.

    Args:
        images: float ``[b c h w]``.
        rows: float ``[b y h]``.
        columns: float ``[b x w]``.

    Returns:
        float ``[b c y x]``.
    """
    count, channels, height, width = images.shape
    # Images are kept on their sides between the products, so that each is one product per image for all channels.
    sides = columns @ images.reshape(count, channels * height, width).mT  # [b x, c h]
    sides = sides.view(count, columns.shape[1] * channels, height) @ rows.mT  # [b, x c, y]
    return sides.view(count, columns.shape[1], channels, rows.shape[1]).permute(0, 2, 3, 1).contiguous()


def crop_one(image: Tensor, box: Sequence[int] | Tensor, size: int) -> Tensor:
    """Return one crop of one image, resized to a square: for workers that decode large images.

    Args:
        image: uint8, or float in 0..1, ``[c h w]``.
        box: top, left, height, width, in pixels.
        size: the side of the crop, in pixels.

    Returns:
        As the image, ``[c size size]``.
    """
    top, left, height, width = (int(edge) for edge in box)
    crop: Tensor = torchvision_functional.resized_crop(image, top, left, height, width, [size, size], antialias=True)
    return crop


def nearest_crops(masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Return the crops of masks, resized to squares: each pixel is the one of the mask that its centre falls into.

    That is torchvision's ``NEAREST_EXACT``, in whole numbers, so that rounding never decides between two pixels.

    Args:
        masks: ``[b h w]``.
        boxes: int64 ``[b, 4]``: top, left, height, width.
        size: the side of the crops, in pixels.

    Returns:
        As the masks, ``[b size size]``.
    """
    centres = 2 * torch.arange(size, device=masks.device) + 1  # in halves of an output pixel
    top, left, height, width = boxes[:, :, None].unbind(1)  # [b 1]
    rows = top + torch.div(centres * height, 2 * size, rounding_mode="floor")  # [b size]
    columns = left + torch.div(centres * width, 2 * size, rounding_mode="floor")
    images = torch.arange(len(masks), device=masks.device)[:, None, None]
    return masks[images, rows[:, :, None], columns[:, None, :]]


def rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """Return each image rotated about its centre, counter-clockwise, with bilinear interpolation.

    The corners are filled with the nearest pixel of the image's border: black corners would show the angle, and a
    network would learn to look at them instead of the image.

    Args:
        images: float ``[b c h w]``.
        degrees: one angle per image, ``[b]``.
    """
    grid = _rotation(images, degrees)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp_(0, 1)


def rotate_nearest(masks: Tensor, degrees: Tensor, outside: int) -> Tensor:
    """Return each mask rotated as ``rotate`` does images; each pixel is the nearest one, or ``outside`` of the mask.

    Args:
        masks: whole numbers below 2^24, ``[b h w]``.
        degrees: one angle per mask, ``[b]``.
        outside: the value of what was no pixel before.

    Returns:
        As the masks, ``[b h w]``.
    """
    values = (masks - outside).float()[:, None]  # outside is 0, which is what the grid is padded with
    rotated = F.grid_sample(
        values, _rotation(values, degrees), mode="nearest", padding_mode="zeros", align_corners=False
    )
    return rotated[:, 0].to(masks.dtype) + outside


def _rotation(images: Tensor, degrees: Tensor) -> Tensor:
    """Return where the pixels of rotated images come from, ``[b h w 2]``, in the coordinates of ``grid_sample``."""
    height, width = images.shape[-2:]
    angles = degrees.to(images.dtype).deg2rad()
    sine, cosine, zero = angles.sin(), angles.cos(), torch.zeros_like(angles)
    # affine_grid works in coordinates from -1 to 1 along each side, which in oblong images differ in length.
    horizontal = torch.stack([cosine, -sine * height / width, zero], dim=1)
    vertical = torch.stack([sine * width / height, cosine, zero], dim=1)
    return F.affine_grid(torch.stack([horizontal, vertical], dim=1), list(images.shape), align_corners=False)


def _between(draws: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * draws


def _centred(height: Tensor, width: Tensor, heights: Tensor, widths: Tensor) -> Tensor:
    top = torch.div(heights - height, 2, rounding_mode="floor")
    left = torch.div(widths - width, 2, rounding_mode="floor")
    return torch.stack([top, left, height, width], dim=1)


def _fallback(augment: Augment, heights: Tensor, widths: Tensor) -> Tensor:
    """Return the largest centred boxes whose ratio is within the range, int64 ``[b, 4]``."""
    low, high = augment.ratio
    height = torch.minimum(heights, (widths.double() / low).round().long())
    width = torch.minimum(widths, (heights.double() * high).round().long())
    return _centred(height, width, heights, widths)


def _resampling(
    start: Tensor, length: Tensor, source: int, size: int, reverse: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Return the matrices that resize a stretch of ``source`` pixels to ``size`` pixels, ``[b size source]``.

    Each output pixel is a mean of input pixels, weighted by a triangle around its centre that reaches one input pixel
    to either side, or one output pixel where the stretch shrinks. Outside the stretch the weights are 0.
    """
    scale = length.to(dtype)[:, None] / size
    reach = scale.clamp(min=1)
    outputs = torch.arange(size, device=start.device).expand(len(start), size)
    if reverse is not None:
        outputs = torch.where(reverse[:, None], size - 1 - outputs, outputs)
    centres = (outputs + 0.5) * scale / reach  # [b size], from the start of the stretch, in reaches
    inputs = torch.arange(source, device=start.device) - start[:, None]  # [b source]
    inside = (inputs >= 0) & (inputs < length[:, None])
    places = torch.where(inside, (inputs + 0.5) / reach, torch.inf)
    weights = (places[:, None, :] - centres[:, :, None]).abs_().neg_().add_(1).clamp_(min=0)
    return weights.div_(weights.sum(dim=2, keepdim=True))
