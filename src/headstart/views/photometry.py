"""Changes of colour and sharpness with one parameter per image, as torchvision defines them for one image.

All functions take float images ``[b c h w]`` in 0..1 and return new ones in 0..1; parameters are ``[b]``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from headstart.views.geometry import separably

Adjustment = Callable[[Tensor, Tensor], Tensor]  # of images, by one factor each

_LUMA = (0.2989, 0.587, 0.114)  # ITU-R 601, the digits that torchvision uses


def adjust_brightness(images: Tensor, factors: Tensor) -> Tensor:
    """Return the images times their factors; 0 is black, 1 leaves an image as it is."""
    return images.mul(_per_image(factors, images)).clamp_(0, 1)


def adjust_contrast(images: Tensor, factors: Tensor) -> Tensor:
    """Return blends of the images with their mean luminance; 0 is uniform, 1 leaves an image as it is."""
    means = _luminance(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blend(images, means, factors)


def adjust_saturation(images: Tensor, factors: Tensor) -> Tensor:
    """Return blends of the RGB images with their gray versions; 0 is gray, 1 leaves an image as it is."""
    return _blend(images, _luminance(images), factors)


def adjust_hue(images: Tensor, shifts: Tensor) -> Tensor:
    """Return the RGB images with their hues shifted around the colour circle by a share of it, from -0.5 to 0.5.

    The shift is that of HSV, without its selections, which cost several times the arithmetic on a CPU. With chroma
    c = max - min, the hue is 1 + (g + b - r - min) / c sixths of the circle away from red, on green's side where g > b.
    """
    red, green, blue = images.unbind(1)  # [b h w]
    low = torch.minimum(torch.minimum(red, green), blue)
    chroma = torch.maximum(torch.maximum(red, green), blue).sub_(low)
    distances = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-12)).add_(1)
    hues = distances.copysign_(green - blue).add_(6 * shifts.to(images.dtype)[:, None, None])
    hues.sub_((hues / 6).floor_(), alpha=6)  # 0 red, 2 green, 4 blue
    shares = [(hues - 3).abs_().sub_(1), (hues - 2).abs_().neg_().add_(2), (hues - 4).abs_().neg_().add_(2)]
    return torch.stack([share.clamp_(0, 1).mul_(chroma).add_(low) for share in shares], dim=1)


def jitter(images: Tensor, operations: Sequence[Adjustment], factors: Tensor, order: Tensor, active: Tensor) -> Tensor:
    """Return the images after the operations, each image with its own factors and in its own order.

    Args:
        images: float ``[b c h w]`` in 0..1.
        operations: ``n`` of the adjustments above.
        factors: one for each image and operation, ``[b n]``.
        order: the numbers of each image's first, second … and last operation, int64 ``[b n]``.
        active: which images are changed at all, bool ``[b]``.
    """
    images = images.clone()
    for position in range(len(operations)):
        for number, operation in enumerate(operations):
            rows = (active & (order[:, position] == number)).nonzero().squeeze(1)
            images[rows] = operation(images[rows], factors[rows, number])
    return images


def grayscale(images: Tensor, mask: Tensor) -> Tensor:
    """Return the RGB images, those in the mask (bool ``[b]``) with their luminance in all three channels."""
    images = images.clone()
    images[mask] = _luminance(images[mask]).expand(-1, 3, -1, -1)
    return images


def gaussian_blur(images: Tensor, sigmas: Tensor, kernel: int) -> Tensor:
    """Return the images blurred with Gaussians of their own standard deviations, borders reflected.

    Args:
        images: float ``[b c h w]``.
        sigmas: standard deviations in pixels, above 0, ``[b]``.
        kernel: the width of the window that the Gaussian is cut to, odd, in pixels.
    """
    height, width = images.shape[-2:]
    sigmas = sigmas.to(images.dtype)
    return separably(images, _blurring(sigmas, kernel, height), _blurring(sigmas, kernel, width)).clamp_(0, 1)


def solarize(images: Tensor, threshold: float, mask: Tensor) -> Tensor:
    """Return the images, those in the mask (bool ``[b]``) with the pixels from the threshold on inverted."""
    return torch.where((images >= threshold) & mask[:, None, None, None], 1 - images, images)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    return values.to(images.dtype)[:, None, None, None]


def _luminance(images: Tensor) -> Tensor:
    """Return the luminance ``[b 1 h w]`` of RGB images, and images of any other number of channels as they are."""
    if images.shape[1] != 3:
        return images
    red, green, blue = images.unbind(1)
    return red.mul(_LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])[:, None]


def _blend(images: Tensor, others: Tensor, factors: Tensor) -> Tensor:
    shares = _per_image(factors, images)
    return images.mul(shares).add_(others * (1 - shares)).clamp_(0, 1)


def _blurring(sigmas: Tensor, kernel: int, size: int) -> Tensor:
    """Return the matrices that blur a line of ``size`` pixels whose ends are mirrors, ``[b size size]``.

    A matrix, because a convolution with a kernel per image is one with a group per image, whose shape changes with the
    number of blurred images: libraries then choose and compile an algorithm for every batch.
    """
    reach = kernel // 2
    sources = torch.arange(size, device=sigmas.device)
    targets = sources[:, None]
    direct = (targets - sources).abs()
    before = torch.where(sources > 0, targets + sources, kernel)  # a distance of `kernel` is outside of the window
    after = torch.where(sources < size - 1, 2 * (size - 1) - targets - sources, kernel)
    distances = torch.arange(reach + 1, device=sigmas.device)
    paths = (torch.stack([direct, before, after]) == distances[:, None, None, None]).sum(dim=1)  # [distance size size]
    bells = (-0.5 * (distances / sigmas[:, None]) ** 2).exp()  # [b distance]
    weights = (bells @ paths.to(bells.dtype).flatten(1)).view(-1, size, size)
    return weights / weights.sum(dim=2, keepdim=True)
