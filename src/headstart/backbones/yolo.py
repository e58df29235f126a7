"""Backbones of Ultralytics' YOLO networks, and its checkpoints, of which no pickle is ever executed.

Ultralytics is AGPL-3.0 and an extra of its own, so that it is imported when it is needed and not before.
"""

import atexit
import os
import shutil
import sys
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from copy import deepcopy
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from headstart.backbones import stems
from headstart.backbones.torchvision import last_of_each
from headstart.contracts import Backbone, Features
from headstart.errors import UserError, unknown

FAMILIES = {"yolov5": "nsmlx", "yolov8": "nsmlx", "yolov9": "tsmc", "yolov10": "nsmblx", "yolo11": "nsmlx",
            "yolo26": "nsmlx"}  # fmt: skip
CLASSIFIERS = ("yolov8", "yolo11", "yolo26")  # have a shorter backbone of their own in NAME-cls
SCALING = ("depth", "width", "max_channels")  # in the order in which Ultralytics' files have them
QUIET = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
TRACED = 256  # pixels; any multiple of the largest stride


class YoloBackbone(Backbone):
    """The backbone of a YOLO network, up to its neck: one map for each downsampling, P1 to P5.

    The state of ``net`` has the names of Ultralytics' own networks, ``model.0.conv.weight`` and so on.
    """

    net: Any  # a row of layers, which mypy does not index by name

    def __init__(self, layers: nn.Sequential, stem: stems.ResolvedStem, channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(OrderedDict(model=layers))
        strides = [stride for _, stride in widths_and_strides(layers, channels)]
        self.levels = last_of_each(strides)
        if stem == "small":
            stems.shrink(self.net, early_modules(layers, strides))
        shapes = widths_and_strides(layers, channels)
        self.dims = tuple(shapes[level][0] for level in self.levels)
        self.strides = tuple(shapes[level][1] for level in self.levels)
        self.dim = self.dims[-1]

    def features(self, images: Tensor) -> Features:
        """Return the features of images, float ``[b c h w]``, normalised; the coarsest map is pooled by its mean."""
        maps = []
        coarse = images
        for index, layer in enumerate(self.net.model):
            coarse = layer(coarse)
            if index in self.levels:
                maps.append(coarse)
        return Features(coarse.mean((2, 3)), maps)


def build(
    name: str, *, stem: stems.ResolvedStem, image_size: int, model_args: Mapping[str, object], channels: int = 3
) -> Backbone:
    """Build a backbone of Ultralytics with random weights; see ``headstart.backbones.build``.

    ``model_args`` may hold ``depth``, ``width`` and ``max_channels``, as the scales in Ultralytics' own files do.
    """
    description = describe(name, model_args)
    layers, _ = library("nn.tasks").parse_model({**description, "head": []}, channels, verbose=False)
    if not name.endswith("-cls"):  # whose normalisations Ultralytics leaves as torch has them
        library("utils.torch_utils").initialize_weights(layers)
    return YoloBackbone(layers, stem, channels)


def describe(name: str, model_args: Mapping[str, object]) -> dict[str, Any]:
    """Return Ultralytics' own description of a network, as its YAML file has it, at the scale that is asked for.

    Raises:
        UserError: there is no such network, it does not take the arguments, or Ultralytics is not installed.
    """
    family, scale, task = parts_of(name)
    check_arguments(name, model_args)
    # found by its whole path: Ultralytics would take a file of that name from the working folder instead
    folder = Path(library("cfg").__file__).parent / "models"
    names = (f"{family}{task}.yaml", f"{family}{scale}{task}.yaml")
    file = next(path for path in sorted(folder.glob("*/*.yaml")) if path.name in names)
    description: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    if "scales" in description:
        given = dict(zip(SCALING, description["scales"][scale], strict=True)) | dict(model_args)
        description |= {"scale": scale, "scales": {scale: [given[key] for key in SCALING]}}
    return description


def check_arguments(name: str, model_args: Mapping[str, object]) -> None:
    """Raise unless a network takes the arguments: positive numbers, where its family comes in scales."""
    allowed = () if name.startswith("yolov9") else SCALING
    for key, value in model_args.items():
        if key not in allowed:
            raise UserError(
                f"model_args: ultralytics/{name} does not take {key} (allowed: {', '.join(allowed) or 'none'})"
            )
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UserError(f"model_args: {key} is {value!r} (allowed: a number above 0)")


def has_tokens(name: str, model_args: Mapping[str, object]) -> bool:
    """Say that no network of Ultralytics here is a vision transformer; raise as ``build`` would."""
    parts_of(name)
    check_arguments(name, model_args)
    return False


def list_models() -> list[str]:
    """Return the names of the supported networks; does not need Ultralytics.

    >>> [name for name in list_models() if name.startswith("yolov8n")]
    ['yolov8n', 'yolov8n-cls']
    """
    return list(_MODELS)


def parts_of(name: str) -> tuple[str, str, str]:
    """Return the family, the scale and the task of a network by its name.

    >>> parts_of("yolo11s-cls")
    ('yolo11', 's', '-cls')
    """
    if name not in _MODELS:
        raise unknown("model", f"ultralytics/{name}", [f"ultralytics/{known}" for known in _MODELS])
    return _MODELS[name]


def widths_and_strides(layers: nn.Sequential, channels: int) -> list[tuple[int, int]]:
    """Return for each of the layers in a row its channels and by how much the image is downsampled after it.

    The layers of this library do not tell; torch's meta device works it out without computing anything.
    """
    image = torch.empty(1, channels, TRACED, TRACED, device="meta")
    found = []
    with torch.no_grad():
        for layer in deepcopy(layers).to("meta"):
            image = layer(image)
            found.append((image.shape[1], TRACED // image.shape[2]))
    return found


def early_modules(layers: nn.Sequential, strides: Sequence[int]) -> list[str]:
    """Return the names, in the whole network, of the modules that a small stem does not let downsample."""
    early = sum(stride <= stems.REDUCTION for stride in strides)
    return [f"model.{name}" for name, _ in layers[:early].named_modules() if name]


def read_network(path: Path, field: str) -> nn.Module:
    """Read the network in a checkpoint of Ultralytics, which is a pickle, without executing it.

    Ultralytics' own restricted loader is used: torch's ``weights_only`` with an allow-list of the layers that
    Ultralytics and torch define.

    Args:
        path: the ``.pt`` file.
        field: the setting that names it, for the message.

    Returns:
        The network, float32 and in evaluation mode; its ``args`` are the settings that it was trained with.

    Raises:
        UserError: there is no such file, it is damaged, or it holds anything else.
    """
    if not path.is_file():
        raise UserError(f"{field}: no file {path}")
    load = library("nn.tasks").torch_safe_load
    try:
        with TemporaryDirectory() as folder:
            # Ultralytics takes some names, yolov5n.pt among them, for those of other files, and would download these
            link = Path(folder, "checkpoint.pt")
            link.symlink_to(path.resolve())
            checkpoint, _ = load(str(link), safe_only=True)
        network = checkpoint.get("ema") or checkpoint["model"]
        network.args = checkpoint.get("train_args") or {}
        if not isinstance(network, nn.Module):
            raise TypeError(f"a {type(network).__name__} in place of a network")
    except Exception as error:  # on bytes that are no checkpoint the reader fails in any way
        raise UserError(
            f"{field}: {path} is damaged or holds more than layers of Ultralytics, and is not executed"
            " (allowed: a .pt that Ultralytics has written)"
        ) from error
    return network.float().eval()


def library(module: str) -> Any:
    """Return a module of Ultralytics, imported such that it reports, downloads and installs nothing.

    Raises:
        UserError: Ultralytics is not installed.
    """
    os.environ.update(QUIET)
    if "ultralytics" not in sys.modules:  # it writes its settings when it is imported; not into the user's home
        os.environ.setdefault("YOLO_CONFIG_DIR", _short_lived())
    opened, saved = Image.open, torch.save  # which Ultralytics replaces for the whole process
    try:
        return import_module(f"ultralytics.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in ("ultralytics", "cv2"):
            raise
        raise UserError("model: Ultralytics is not installed: pip install 'headstart[yolo]' (AGPL-3.0)") from None
    finally:
        Image.open, torch.save = opened, saved


def _short_lived() -> str:
    """Return a folder that is deleted when this process ends."""
    folder = mkdtemp(prefix="headstart-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


_MODELS = {
    f"{family}{scale}{task}": (family, scale, task)
    for family, scales in FAMILIES.items()
    for task in ("", "-cls")
    for scale in scales
    if not task or family in CLASSIFIERS
}
