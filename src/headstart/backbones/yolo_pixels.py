"""Pixels for networks of Ultralytics, normalised images for ours: the first layer takes up the difference.

Ultralytics gives its networks pixels in 0..1 that nobody normalises. So the mean and the deviation that a backbone
was trained with go into its first layer: the convolution's weights are divided by the deviation, and what the mean adds
goes into the running mean of the batch normalisation behind it. ``unfold`` is the way back. What neither can move is
the frame that convolutions put around an image: black for Ultralytics, of the mean colour here.
"""

from copy import deepcopy
from pathlib import Path

import torch
import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from headstart.backbones import yolo
from headstart.contracts import Backbone, Features
from headstart.errors import UserError

NORMALISATION = {3: (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD), 1: ((0.449,), (0.226,))}  # by channels


def fold(net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Make a network for normalised images one for pixels in 0..1, in place."""
    conv, norm = first_layers(net)
    with torch.no_grad():
        weight = conv.weight.double() / _across(std)
        conv.weight.copy_(weight)
        _shift(norm, (weight * _across(mean)).sum((1, 2, 3)))


def unfold(net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Make a network for pixels in 0..1 one for normalised images, in place; only the running mean is moved by it."""
    conv, norm = first_layers(net)
    with torch.no_grad():
        weight = conv.weight.double()
        conv.weight.copy_(weight * _across(std))
        _shift(norm, -(weight * _across(mean)).sum((1, 2, 3)))


def first_layers(net: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return the first convolution of a network of Ultralytics, and the batch normalisation behind it."""
    conv = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert conv.bias is None
    assert norm.num_features == conv.out_channels
    return conv, norm


def framed_in_black(backbone: Backbone, pixels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Features:
    """Return a backbone's features of pixels in 0..1, with a black frame in place of one of the mean colour.

    Args:
        backbone: for normalised images, in evaluation mode; it stays as it is.
        pixels: float ``[b c h w]``.
        mean: of each channel, which images are normalised by.
        std: the deviation of each channel.
    """
    backbone = deepcopy(backbone)
    conv, _ = first_layers(backbone)
    down, across = (int(side) for side in conv.padding)
    conv.padding = (0, 0)
    framed = F.pad(pixels, (across, across, down, down))
    return backbone.features((framed - _across(mean).to(framed)) / _across(std).to(framed))


def normalised_state(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a network that Ultralytics has written, such as ``yolov8n.pt``, for normalised images.

    Raises:
        UserError: the file is none of Ultralytics, its batch normalisations are fused, or it is for other channels.
    """
    net = yolo.read_network(path, "init")
    conv = next((module for module in net.modules() if isinstance(module, nn.Conv2d)), None)
    if conv is None or conv.bias is not None:
        raise UserError(f"init: {path} has no batch normalisation in its first layer (allowed: a .pt as trained)")
    if conv.in_channels not in NORMALISATION:
        raise UserError(f"init: {path} is for {conv.in_channels} channels (allowed: 1, 3)")
    unfold(net, *NORMALISATION[conv.in_channels])
    return dict(net.state_dict())


def _across(values: tuple[float, ...]) -> Tensor:
    """Return a number for each channel such that it meets images ``[b c h w]`` and filters ``[n c h w]``."""
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def _shift(norm: nn.BatchNorm2d, by: Tensor) -> None:
    assert norm.running_mean is not None
    norm.running_mean.copy_(norm.running_mean + by)
