"""From images to views: draw the parameters, then apply the operations to the whole batch."""

import torch
from torch import Tensor

from headstart.views import photometry
from headstart.views.augment import Augment, Blur, Jitter, Key, Stream
from headstart.views.geometry import crop_boxes, resized_crops, rotate

_SOLARIZE_THRESHOLD = 0.5  # as BYOL, arXiv:2006.07733, appendix B


def render(images: Tensor, augment: Augment, key: Key, size: int) -> Tensor:
    """Return one view of each image: the whole path, for images that live on the device.

    Args:
        images: uint8, or float in 0..1, ``[b c h w]``.
        augment: how a view is made.
        key: names the images and the view; equal keys give equal views.
        size: the side of the views, in pixels.

    Returns:
        float ``[b c size size]`` in 0..1.
    """
    count, _, height, width = images.shape
    heights = torch.full((count,), height, device=images.device)
    widths = torch.full((count,), width, device=images.device)
    boxes = crop_boxes(augment, key, heights, widths)
    flip, flip_vertical = flips(augment, key)
    with torch.autocast(images.device.type, enabled=False):  # half precision would round the pixels
        return _after_flips(resized_crops(images, boxes, size, flip, flip_vertical), augment, key)


def finish(crops: Tensor, augment: Augment, key: Key) -> Tensor:
    """Return the views of crops that workers made with ``crop_boxes`` and ``crop_one``.

    Equal to ``render`` with the same key, up to the rounding of the crops to whole numbers.

    Args:
        crops: uint8, or float in 0..1, ``[b c size size]``.
        augment: how a view is made.
        key: names the images and the view.

    Returns:
        float ``[b c size size]`` in 0..1.
    """
    crops = flipped(crops, augment, key)
    with torch.autocast(crops.device.type, enabled=False):
        return _after_flips(crops if crops.is_floating_point() else crops.float().div_(255), augment, key)


def flipped(crops: Tensor, augment: Augment, key: Key) -> Tensor:
    """Return the crops of images or masks, ``[b … size size]``, with those flipped that the augment draws."""
    flip, flip_vertical = (chosen.view(-1, *[1] * (crops.ndim - 1)) for chosen in flips(augment, key))
    if augment.flip:
        crops = torch.where(flip, crops.flip(-1), crops)
    if augment.flip_vertical:
        crops = torch.where(flip_vertical, crops.flip(-2), crops)
    return crops


def flips(augment: Augment, key: Key) -> tuple[Tensor, Tensor]:
    """Return which views are flipped left to right, and which upside down, bool ``[b]`` each."""
    return _chosen(key, Stream.FLIP, augment.flip), _chosen(key, Stream.FLIP_VERTICAL, augment.flip_vertical)


def angles(augment: Augment, key: Key) -> Tensor:
    """Return by how many degrees each view is rotated counter-clockwise, ``[b]``."""
    return (2 * key.draws(Stream.ROTATE, 1)[:, 0] - 1) * augment.rotate


def _after_flips(views: Tensor, augment: Augment, key: Key) -> Tensor:
    if augment.rotate:
        views = rotate(views, angles(augment, key))
    if augment.jitter:
        views = _jittered(views, augment.jitter, key)
    if augment.gray and views.shape[1] == 3:
        views = photometry.grayscale(views, _chosen(key, Stream.GRAY, augment.gray))
    if augment.blur:
        views = _blurred(views, augment.blur, key)
    if augment.solarize:
        views = photometry.solarize(views, _SOLARIZE_THRESHOLD, _chosen(key, Stream.SOLARIZE, augment.solarize))
    return views


def _chosen(key: Key, stream: Stream, probability: float) -> Tensor:
    """Return which images an operation of that probability falls on, bool ``[b]``."""
    return key.draws(stream, 1)[:, 0] < probability


def _jittered(views: Tensor, jitter: Jitter, key: Key) -> Tensor:
    operations = [
        (photometry.adjust_brightness, max(0.0, 1 - jitter.brightness), 1 + jitter.brightness),
        (photometry.adjust_contrast, max(0.0, 1 - jitter.contrast), 1 + jitter.contrast),
        (photometry.adjust_saturation, max(0.0, 1 - jitter.saturation), 1 + jitter.saturation),
        (photometry.adjust_hue, -jitter.hue, jitter.hue),
    ]
    colourful = views.shape[1] == 3
    chosen = [number for number, (_, low, high) in enumerate(operations) if low < high and (colourful or number < 2)]
    draws = key.draws(Stream.JITTER, 1 + 2 * len(operations))
    active, strengths, places = draws[:, 0] < jitter.probability, draws[:, 1:5], draws[:, 5:]
    lows = torch.tensor([operations[number][1] for number in chosen], device=views.device)
    highs = torch.tensor([operations[number][2] for number in chosen], device=views.device)
    factors = lows + (highs - lows) * strengths[:, chosen]
    order = places[:, chosen].argsort(dim=1, stable=True)
    return photometry.jitter(views, [operations[number][0] for number in chosen], factors, order, active)


def _blurred(views: Tensor, blur: Blur, key: Key) -> Tensor:
    chance, place = key.draws(Stream.BLUR, 2).unbind(1)
    rows = (chance < blur.probability).nonzero().squeeze(1)
    sigmas = blur.sigma[0] + (blur.sigma[1] - blur.sigma[0]) * place[rows]
    views = views.clone()
    views[rows] = photometry.gaussian_blur(views[rows], sigmas, _blur_kernel(views.shape[-1]))
    return views


def _blur_kernel(size: int) -> int:
    """Return the odd number at a tenth of the size; at least 3, because a window of one pixel blurs nothing."""
    return max(3, 2 * (size // 20) + 1)
