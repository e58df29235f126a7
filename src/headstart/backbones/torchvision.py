"""Backbones of torchvision: the ResNet family, and the networks that are one row of ``features``."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from math import prod
from operator import mul
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from headstart.backbones import stems
from headstart.contracts import Backbone, Features
from headstart.errors import UserError, unknown

RESIDUAL = ("resnet", "resnext", "wide_resnet")
SEQUENTIAL = ("mobilenet_v2", "mobilenet_v3", "efficientnet", "convnext")


class ResidualBackbone(Backbone):
    """A torchvision ResNet, ResNeXt or wide ResNet: maps of the first convolution and of each of the four layers."""

    net: Any  # torchvision is not typed

    def __init__(self, net: torchvision.models.ResNet, stem: stems.ResolvedStem) -> None:
        super().__init__()
        net.fc = nn.Identity()
        if stem == "small":
            stems.shrink(net, ["conv1", "maxpool"])
        self.net = net
        layers = (net.layer1, net.layer2, net.layer3, net.layer4)
        steps = [block.stride for block in (layer[0] for layer in layers)]
        steps[0] *= stems.stride_of(net.maxpool)
        self.dims = (net.conv1.out_channels, *(width(layer) for layer in layers))
        self.strides = tuple(accumulate([stems.stride_of(net.conv1), *steps], mul))
        self.dim = self.dims[-1]

    def features(self, images: Tensor) -> Features:
        """Return the features of images, float ``[b c h w]``, normalised."""
        net = self.net
        maps = [net.relu(net.bn1(net.conv1(images)))]
        coarse = net.maxpool(maps[0])
        for layer in (net.layer1, net.layer2, net.layer3, net.layer4):
            coarse = layer(coarse)
            maps.append(coarse)
        return Features(net.avgpool(coarse).flatten(1), maps)


class SequentialBackbone(Backbone):
    """A torchvision network whose ``features`` run one after the other: the last map of each size.

    The classifier goes, but for the normalisation in front of ConvNeXt's, without which its features are not scaled.
    """

    net: Any  # torchvision is not typed

    def __init__(self, net: Any, stem: stems.ResolvedStem) -> None:
        super().__init__()
        scaled = isinstance(net, torchvision.models.ConvNeXt)
        net.classifier = net.classifier[:2] if scaled else nn.Flatten()
        self.net = net
        self.levels = last_of_each(total_strides(net.features))
        if stem == "small":
            stems.shrink(net, early_modules(net.features))
        strides = total_strides(net.features)
        self.dims = tuple(width(net.features[level]) for level in self.levels)
        self.strides = tuple(strides[level] for level in self.levels)
        self.dim = self.dims[-1]

    def features(self, images: Tensor) -> Features:
        """Return the features of images, float ``[b c h w]``, normalised."""
        maps = []
        coarse = images
        for index, stage in enumerate(self.net.features):
            coarse = stage(coarse)
            if index in self.levels:
                maps.append(coarse)
        return Features(self.net.classifier(coarse.mean((2, 3), keepdim=True)), maps)


def build(
    name: str, *, stem: stems.ResolvedStem, image_size: int, model_args: Mapping[str, object], channels: int = 3
) -> Backbone:
    """Build a backbone of torchvision with random weights; see ``headstart.backbones.build``."""
    net = create(name, model_args)
    stems.take_channels(net, channels)
    return ResidualBackbone(net, stem) if name.startswith(RESIDUAL) else SequentialBackbone(net, stem)


def create(name: str, model_args: Mapping[str, object]) -> Any:
    """Create a model with random weights, or raise when torchvision does not know it or its arguments."""
    if name not in list_models():
        raise not_supported(name)
    try:
        return torchvision.models.get_model(name, weights=None, **model_args)
    except (TypeError, ValueError) as error:
        raise UserError(f"model_args: torchvision/{name} does not take them: {' '.join(str(error).split())}") from error


def has_tokens(name: str, model_args: Mapping[str, object]) -> bool:
    """Say that no supported model of torchvision is a vision transformer; raise as ``build`` would."""
    with torch.device("meta"):
        create(name, model_args)
    return False


def width(stage: nn.Module) -> int:
    """Return the channels that a stage gives: those of its last convolution."""
    return [layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)][-1].out_channels


def total_strides(stages: Iterable[nn.Module]) -> list[int]:
    """Return for each of the stages in a row by how much the image is downsampled after it."""
    convolutions = [[layer for layer in stage.modules() if isinstance(layer, nn.Conv2d)] for stage in stages]
    return list(accumulate((prod(map(stems.stride_of, stage)) for stage in convolutions), mul))


def last_of_each(strides: Sequence[int]) -> list[int]:
    """Return where each stride occurs for the last time.

    >>> last_of_each([2, 2, 4, 4, 4, 8])
    [1, 4, 5]
    """
    return [index for index, stride in enumerate(strides) if [*strides, 0][index + 1] != stride]


def early_modules(stages: nn.Sequential) -> list[str]:
    """Return the names, in the whole network, of the modules that a small stem does not let downsample."""
    early = [index for index, stride in enumerate(total_strides(stages)) if stride <= stems.REDUCTION]
    return [f"features.{name}" for name, _ in stages[: len(early)].named_modules() if name]


def list_models() -> list[str]:
    """Return the names of the supported models."""
    return [name for name in library_models() if name.startswith(RESIDUAL + SEQUENTIAL)]


def library_models() -> list[str]:
    """Return the names of all image classifiers of torchvision."""
    return list(torchvision.models.list_models(module=torchvision.models))


def not_supported(name: str) -> UserError:
    """Return the error for a model that torchvision does not have, or that gives no feature maps here."""
    if name in library_models():
        families = ", ".join(f"{family}*" for family in RESIDUAL + SEQUENTIAL)
        return UserError(f"model: torchvision/{name} gives no feature maps here (allowed of torchvision: {families})")
    return unknown("model", f"torchvision/{name}", [f"torchvision/{known}" for known in list_models()])
