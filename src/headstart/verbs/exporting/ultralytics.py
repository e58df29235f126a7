"""A checkpoint of Ultralytics: the RUN's backbone in the first layers, and a fresh head.

Ultralytics gives its networks pixels in 0..1 that nobody normalises, which ``backbones.yolo_pixels`` makes up for.
"""

import shutil
from collections.abc import Mapping
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from headstart import runs
from headstart.backbones import yolo
from headstart.backbones.stems import REDUCTION, ResolvedStem
from headstart.backbones.yolo_pixels import fold, framed_in_black
from headstart.verbs.exporting.libraries import quoted
from headstart.verbs.exporting.source import Source, difference


def write_ultralytics(source: Source, file: Path) -> None:
    """Write a checkpoint as Ultralytics' own trainer does, of which ``yolo train model=FILE`` goes on.

    That of a detector which was trained by Ultralytics' trainer is handed over whole, with its head.
    """
    trained = source.folder / runs.DETECTOR
    if trained.exists():
        shutil.copyfile(trained, file)
        return
    tasks = yolo.library("nn.tasks")
    kind = tasks.ClassificationModel if source.name.endswith("-cls") else tasks.DetectionModel
    described = description(source.name, source.begun.model_args, source.begun.stem, source.channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # of the head
        net = kind(described, ch=source.channels, verbose=False)
    backbone = deepcopy(source.begun.backbone.net)
    fold(backbone, *source.normalisation)
    net.load_state_dict(backbone.state_dict(), strict=False)
    torch.save(checkpoint_of(net, {"task": "classify" if source.name.endswith("-cls") else "detect"}), file)


def checkpoint_of(net: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return what Ultralytics keeps of a finished training: the network, and some of its arguments."""
    net.args = dict(arguments)
    return {
        "epoch": -1,
        "model": net,
        "ema": None,
        "optimizer": None,
        "train_args": net.args,
        "version": version("ultralytics"),
    }


def description(name: str, model_args: Mapping[str, object], stem: ResolvedStem, channels: int) -> dict[str, Any]:
    """Return Ultralytics' description of a network, in which a small stem is written as strides of 1."""
    found = yolo.describe(name, model_args)
    found["yaml_file"] = f"{name}.yaml"
    if stem == "small":
        layers, _ = yolo.library("nn.tasks").parse_model({**found, "head": []}, channels, verbose=False)
        strides = [stride for _, stride in yolo.widths_and_strides(layers, channels)]
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


@torch.no_grad()
def check_ultralytics(source: Source, file: Path) -> float:
    """Return the largest difference of the features when the file has been read again, of images framed in black."""
    net: Any = yolo.read_network(file, "out")
    images = source.images().sigmoid()  # pixels in 0..1
    found = images
    for layer in net.model[: len(source.begun.backbone.net.model)]:  # type: ignore[arg-type]
        found = layer(found)
    expected = framed_in_black(source.begun.backbone, images, *source.normalisation)
    return difference(expected.pooled, found.mean((2, 3)))


def load_ultralytics(source: Source, file: str) -> list[str]:
    """Return the lines of Python that load the file."""
    return [
        "from ultralytics import YOLO",
        f"net = YOLO({quoted(file)})  # or: yolo train model=FILE data=DATA",
    ]
