"""A checkpoint of Ultralytics: the RUN's backbone in the first layers, and a fresh head.

Ultralytics gives its networks pixels in 0..1 that nobody normalises. So the mean and the deviation that the backbone
was trained with go into its first layer: the convolution's weights are divided by the deviation, and what the mean adds
goes into the running mean of the batch normalisation behind it. What is left is the frame that convolutions put around
an image: black for Ultralytics, of the mean colour in the RUN.
"""

from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.backbones import yolo
from headstart.backbones.stems import REDUCTION
from headstart.verbs.exporting.libraries import quoted
from headstart.verbs.exporting.source import Source, difference


def write_ultralytics(source: Source, file: Path) -> None:
    """Write a checkpoint as Ultralytics' own trainer does, of which ``yolo train model=FILE`` goes on."""
    tasks = yolo.library("nn.tasks")
    kind = tasks.ClassificationModel if source.name.endswith("-cls") else tasks.DetectionModel
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the head
        net = kind(description(source), ch=source.channels, verbose=False)
    backbone = deepcopy(source.begun.backbone.net)
    fold(backbone, *source.normalisation)
    net.load_state_dict(backbone.state_dict(), strict=False)
    net.args = {"task": "classify" if source.name.endswith("-cls") else "detect"}
    checkpoint = {
        "epoch": -1,
        "model": net,
        "ema": None,
        "optimizer": None,
        "train_args": net.args,
        "version": version("ultralytics"),
    }
    torch.save(checkpoint, file)


def description(source: Source) -> dict[str, Any]:
    """Return Ultralytics' description of the network, in which a small stem is written as strides of 1."""
    found = yolo.describe(source.name, source.begun.model_args)
    found["yaml_file"] = f"{source.name}.yaml"
    if source.begun.stem == "small":
        layers, _ = yolo.library("nn.tasks").parse_model({**found, "head": []}, source.channels, verbose=False)
        strides = [stride for _, stride in yolo.widths_and_strides(layers, source.channels)]
        early = sum(stride <= REDUCTION for stride in strides)
        found["backbone"] = [*map(without_stride, found["backbone"][:early]), *found["backbone"][early:]]
    return found


def without_stride(row: list[Any]) -> list[Any]:
    """Return a row of a description with stride 1, and a kernel of 3 in place of a wide or an even one.

    >>> without_stride([-1, 1, "Conv", [64, 3, 2]]), without_stride([-1, 1, "Conv", [64, 6, 2, 2]])
    ([-1, 1, 'Conv', [64, 3, 1]], [-1, 1, 'Conv', [64, 3, 1]])
    """
    origin, repeats, module, arguments = row
    if module != "Conv" or len(arguments) < 3:
        return row
    width, kernel = arguments[:2]
    return [origin, repeats, module, [width, 3 if kernel >= 5 or kernel % 2 == 0 else kernel, 1]]


def fold(net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """Take the normalisation of images into the first convolution and the batch normalisation behind it, in place."""
    conv, norm = first_layers(net)
    with torch.no_grad():
        weight = conv.weight.double() / torch.tensor(std, dtype=torch.float64).view(1, -1, 1, 1)
        shift = (weight * torch.tensor(mean, dtype=torch.float64).view(1, -1, 1, 1)).sum((1, 2, 3))
        conv.weight.copy_(weight)
        assert norm.running_mean is not None
        norm.running_mean.copy_(norm.running_mean + shift)


def first_layers(net: nn.Module) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """Return the first convolution of a network of Ultralytics, and the batch normalisation behind it."""
    conv = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
    norm = next(module for module in net.modules() if isinstance(module, nn.BatchNorm2d))
    assert conv.bias is None
    assert norm.num_features == conv.out_channels
    return conv, norm


@torch.no_grad()
def check_ultralytics(source: Source, file: Path) -> float:
    """Return the largest difference of the features when the file has been read again, of images framed in black."""
    net: Any = yolo.read_network(file, "out")
    images = source.images().sigmoid()  # pixels in 0..1
    found = images
    for layer in net.model[: len(source.begun.backbone.net.model)]:  # type: ignore[arg-type]
        found = layer(found)
    return difference(framed_in_black(source, images), found.mean((2, 3)))


def framed_in_black(source: Source, images: Tensor) -> Tensor:
    """Return the RUN's features of pixels in 0..1, with a black frame in place of one of the mean colour."""
    backbone = deepcopy(source.begun.backbone)
    conv, _ = first_layers(backbone)
    down, across = (int(side) for side in conv.padding)
    conv.padding = (0, 0)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in source.normalisation)
    features: Tensor = backbone((F.pad(images, (across, across, down, down)) - mean) / std)
    return features


def load_ultralytics(source: Source, file: str) -> list[str]:
    """Return the lines of Python that load the file."""
    return [
        "from ultralytics import YOLO",
        f"net = YOLO({quoted(file)})  # or: yolo train model=FILE data=DATA",
    ]
