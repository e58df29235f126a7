"""Views of masks and boxes: the same crop, flips and rotation as those of the image that they belong to."""

from collections.abc import Sequence

import torch
from torch import Tensor

from headstart.contracts import Objects
from headstart.views.augment import Augment, Key
from headstart.views.geometry import crop_boxes, nearest_crops, rotate_nearest
from headstart.views.rendering import angles, flipped, flips

VOID = -1  # the class of pixels of which nothing is known
SMALLEST_SHARE = 0.25  # of a box that is left in the view; a smaller part rarely shows what the object is
SMALLEST_SIDE = 2.0  # pixels of the view, below which a box shows nothing


def render_masks(masks: Tensor, augment: Augment, key: Key, size: int) -> Tensor:
    """Return the mask of each view that ``render`` makes with the same key.

    Args:
        masks: the class of each pixel, whole numbers ``[b h w]``, -1 for none.
        augment: how the views are made.
        key: names the images and the view.
        size: the side of the views, in pixels.

    Returns:
        int64 ``[b size size]``.
    """
    count, height, width = masks.shape
    heights = torch.full((count,), height, device=masks.device)
    widths = torch.full((count,), width, device=masks.device)
    return finish_masks(nearest_crops(masks, crop_boxes(augment, key, heights, widths), size), augment, key)


def finish_masks(crops: Tensor, augment: Augment, key: Key) -> Tensor:
    """Return the mask of each view that ``finish`` makes with the same key.

    What a rotation brings in from outside of the crop is of no class, although the image repeats its border there.

    Args:
        crops: what ``nearest_crops`` made, whole numbers ``[b size size]``.
        augment: how the views are made.
        key: names the images and the view.

    Returns:
        int64 ``[b size size]``.
    """
    masks = flipped(crops, augment, key)
    if augment.rotate:
        with torch.autocast(masks.device.type, enabled=False):  # half precision would move pixels
            masks = rotate_nearest(masks, angles(augment, key), VOID)
    return masks.long()


def view_objects(
    objects: Sequence[Objects], crops: Tensor, augment: Augment, key: Key, size: int
) -> tuple[Objects, ...]:
    """Return the objects that are left in each view, in pixels of the view.

    A box is cut off at the border of the view, and left out where that leaves less than a quarter of its area, or less
    than 2 pixels of one of its sides. A rotated box becomes the upright one around its corners, as in torchvision.

    Args:
        objects: those of each image, in pixels of the image.
        crops: the part of each image that the view shows, from ``crop_boxes``, int64 ``[b, 4]``.
        augment: how the views are made.
        key: names the images and the view.
        size: the side of the views, in pixels.
    """
    counts = [len(one.labels) for one in objects]
    owners = torch.arange(len(objects), device=crops.device).repeat_interleave(
        torch.tensor(counts, device=crops.device)
    )
    labels = torch.cat([one.labels for one in objects])
    top, left, height, width = crops[owners].float().unbind(1)
    moved = torch.cat([one.boxes for one in objects]) - torch.stack([left, top, left, top], dim=1)
    boxes, share = _cut(moved * size / torch.stack([width, height, width, height], dim=1), size)
    flip, flip_vertical = flips(augment, key)
    boxes = torch.where(flip[owners, None], _mirrored(boxes, size, 0), boxes)
    boxes = torch.where(flip_vertical[owners, None], _mirrored(boxes, size, 1), boxes)
    if augment.rotate:
        boxes, again = _cut(_rotated(boxes, angles(augment, key)[owners], size), size)
        share = share * again
    kept = (share >= SMALLEST_SHARE) & ((boxes[:, 2:] - boxes[:, :2]) >= SMALLEST_SIDE).all(dim=1)
    left_over = torch.bincount(owners[kept], minlength=len(objects)).tolist()
    parts = zip(torch.split(boxes[kept], left_over), torch.split(labels[kept], left_over), strict=True)
    return tuple(Objects(*part) for part in parts)


def _cut(boxes: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the parts of boxes that are in the view, and their shares of the boxes' areas, ``[n]``."""
    inside = boxes.clamp(0, size)
    return inside, _areas(inside) / _areas(boxes)


def _areas(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _mirrored(boxes: Tensor, size: int, axis: int) -> Tensor:
    """Return boxes flipped left to right (axis 0) or upside down (1)."""
    boxes = boxes.clone()
    boxes[:, [axis, axis + 2]] = size - boxes[:, [axis + 2, axis]]
    return boxes


def _rotated(boxes: Tensor, degrees: Tensor, size: int) -> Tensor:
    """Return the upright boxes around boxes that are rotated counter-clockwise about the centre of the view."""
    across, down = (boxes - size / 2)[:, [0, 2, 0, 2]], (boxes - size / 2)[:, [1, 1, 3, 3]]  # of the corners, [n 4]
    sine, cosine = degrees.deg2rad().sin()[:, None], degrees.deg2rad().cos()[:, None]
    corners = torch.stack([across * cosine + down * sine, down * cosine - across * sine], dim=2) + size / 2  # [n 4 2]
    return torch.cat([corners.amin(dim=1), corners.amax(dim=1)], dim=1)
