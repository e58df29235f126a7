"""Files of weights for torchvision, timm and segmentation-models-pytorch, and as plain safetensors."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
import torchvision
from segmentation_models_pytorch.encoders import get_encoder
from torch import Tensor, nn

from headstart.backbones import build, load_weights, read_weights
from headstart.backbones.timm import create, own_arguments, sketch
from headstart.backbones.torchvision import RESIDUAL
from headstart.errors import UserError
from headstart.verbs.exporting.changes import Change, apply, changes, code, flat
from headstart.verbs.exporting.source import Source, difference

CLASSIFIERS = ("fc.", "classifier.")  # of torchvision's networks; the only tensors that an export leaves out


def write_state(source: Source, file: Path) -> None:
    """Write the tensors under their library's names, as safetensors or for ``torch.load``."""
    save(source.state, source, file)


def save(state: Mapping[str, Tensor], source: Source, file: Path) -> None:
    """Write tensors by name: safetensors with the facts about them, or what ``torch.load`` reads without pickle."""
    if file.suffix == ".safetensors":
        safetensors.torch.save_file(dict(state), file, metadata={"format": "pt", **source.texts()})
    else:
        torch.save(dict(state), file)


def call(name: str, arguments: Mapping[str, Any]) -> str:
    """Return the arguments of a call as Python writes them.

    >>> call("resnet18", {"in_chans": 1})
    '"resnet18", in_chans=1'
    """
    return ", ".join([quoted(name), *(f"{key}={quoted(value)}" for key, value in arguments.items())])


def quoted(value: object) -> str:
    """Return a value as Python writes it, a text in double quotes.

    >>> quoted("a"), quoted(1.5)
    ('"a"', '1.5')
    """
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


# torchvision


def torchvision_changes(source: Source) -> list[Change]:
    """Return the layers in which the backbone differs from torchvision's own network."""
    return changes(_torchvision_net(source), source.begun.backbone.net)


@torch.no_grad()
def check_torchvision(source: Source, file: Path) -> float:
    """Return the largest difference of the features when torchvision's own network has loaded the file."""
    net = _torchvision_net(source)
    apply(net, torchvision_changes(source))
    keys = net.load_state_dict(torch.load(file, weights_only=True), strict=False)
    if keys.unexpected_keys or not all(key.startswith(CLASSIFIERS) for key in keys.missing_keys):
        return float("inf")
    _behead(net)
    images = source.images()
    return difference(source.begun.backbone(images), net.eval()(images))


def load_torchvision(source: Source, file: str) -> list[str]:
    """Return the lines of Python that load the file."""
    return [
        "import torch",
        "from torch import nn",
        "from torchvision.models import get_model",
        f"net = get_model({call(source.name, source.begun.model_args)})",
        *code(torchvision_changes(source)),
        f"state = torch.load({quoted(file)}, weights_only=True)",
        "net.load_state_dict(state, strict=False)  # only the classifier is new",
        _behead_code(source),
    ]


def _torchvision_net(source: Source) -> nn.Module:
    net: nn.Module = torchvision.models.get_model(source.name, weights=None, **source.begun.model_args)
    return net


def _behead(net: Any) -> None:
    """Take the classifier off, in place, so that a network gives features."""
    if hasattr(net, "fc"):
        net.fc = nn.Identity()
    else:
        net.classifier = net.classifier[:2] if isinstance(net, torchvision.models.ConvNeXt) else nn.Identity()


def _behead_code(source: Source) -> str:
    if source.name.startswith(RESIDUAL):
        return "net.fc = nn.Identity()  # gives the features"
    kept = "net.classifier[:2]" if source.name.startswith("convnext") else "nn.Identity()"
    return f"net.classifier = {kept}  # gives the features"


# timm


@torch.no_grad()
def check_timm(source: Source, file: Path) -> float:
    """Return the largest difference of the features when timm's own network has loaded the file."""
    arguments = timm_arguments(source)
    changed = timm_changes(source)
    path = "" if changed else str(file)
    net = timm.create_model(source.name, num_classes=0, checkpoint_path=path, **arguments)
    apply(net, changed)
    if changed:
        timm.models.load_checkpoint(net, str(file))
    images = source.images()
    return difference(source.begun.backbone(images), net.eval()(images))


def load_timm(source: Source, file: str) -> list[str]:
    """Return the lines of Python that load the file."""
    arguments, changed = timm_arguments(source), timm_changes(source)
    if not changed:
        given = call(source.name, {"checkpoint_path": file, "num_classes": 0, **arguments})
        return ["import timm", f"net = timm.create_model({given})"]
    return [
        "import timm",
        "from torch import nn",
        f"net = timm.create_model({call(source.name, {'num_classes': 0, **arguments})})",
        *code(changed),
        f"timm.models.load_checkpoint(net, {quoted(file)})",
    ]


def timm_changes(source: Source) -> list[Change]:
    """Return the layers in which the backbone differs from timm's own network."""
    return changes(create(source.name, timm_arguments(source)), source.begun.backbone.net)


def timm_arguments(source: Source) -> dict[str, Any]:
    """Return what timm's constructor has to be given for the network of the RUN."""
    begun = source.begun
    found = own_arguments(sketch(source.name, begun.model_args), begun.stem, begun.image_size)
    found.pop("zero_init_last", None)  # is about weights that will be loaded over
    channels = {"in_chans": source.channels} if source.channels != 3 else {}
    return {**found, **begun.model_args, **channels}


# segmentation-models-pytorch


def write_smp(source: Source, file: Path) -> None:
    """Write the tensors under the names of the encoder of the same network."""
    encoder, prefix = _encoder(source)
    state = {flat(name): tensor for name, tensor in source.state.items()}
    wanted = {name: flat(name.removeprefix(prefix)) for name in encoder.state_dict()}
    missing = [name for name, own in wanted.items() if own not in state]
    if missing:
        raise UserError(f"format: smp's encoder {encoder_name(source)} is another network, with {missing[0]}")
    save({name: state[own] for name, own in wanted.items()}, source, file)


@torch.no_grad()
def check_smp(source: Source, file: Path) -> float:
    """Return the largest difference of the coarsest feature map when smp's own encoder has loaded the file."""
    encoder, prefix = _encoder(source)
    apply(encoder, changes(encoder, source.begun.backbone.net, prefix))
    encoder.load_state_dict(torch.load(file, weights_only=True))
    images = source.images()
    return difference(source.begun.backbone.features(images).maps[-1], encoder.eval()(images)[-1])


def load_smp(source: Source, file: str) -> list[str]:
    """Return the lines of Python that load the file into a U-Net."""
    encoder, prefix = _encoder(source)
    changed = changes(encoder, source.begun.backbone.net, prefix)
    arguments = {"encoder_weights": None, **_encoder_arguments(source)}
    return [
        "import segmentation_models_pytorch as smp",
        "import torch",
        *(["from torch import nn"] if changed else []),
        f"net = smp.Unet({call(encoder_name(source), arguments)})",
        *code(changed, "net.encoder"),
        f"net.encoder.load_state_dict(torch.load({quoted(file)}, weights_only=True))",
    ]


def encoder_name(source: Source) -> str:
    """Return smp's name of the network: torchvision's own, tu-NAME for timm's."""
    return f"tu-{source.name}" if source.library == "timm" else source.name


def _encoder_arguments(source: Source) -> dict[str, Any]:
    return {"in_channels": source.channels, **(source.begun.model_args if source.library == "timm" else {})}


def _encoder(source: Source) -> tuple[nn.Module, str]:
    """Return smp's encoder with random weights, and what its names begin with.

    Raises:
        UserError: smp has no such encoder.
    """
    name = encoder_name(source)
    if source.library == "torchvision" and (
        not source.name.startswith((*RESIDUAL, "mobilenet_v2")) or source.begun.model_args
    ):
        raise UserError(
            f"format: smp has no encoder equal to this {source.begun.model} (allowed: torchvision, safetensors, onnx)"
        )
    try:
        encoder = get_encoder(name, weights=None, **_encoder_arguments(source))
    except (KeyError, ValueError, RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"format: smp has no encoder {name}: {reason}") from error
    return encoder, "model." if source.library == "timm" else ""


# safetensors


@torch.no_grad()
def check_safetensors(source: Source, file: Path) -> float:
    """Return the largest difference of the features when a backbone has loaded the file."""
    begun = source.begun
    backbone = build(
        begun.model,
        stem=begun.stem,
        image_size=begun.image_size,
        model_args=begun.model_args,
        channels=source.channels,
    ).eval()
    load_weights(backbone, read_weights(file), str(file))
    images = source.images()
    return difference(begun.backbone(images), backbone(images))


def load_safetensors(source: Source, file: str) -> list[str]:
    """Return the lines of Python that load the file."""
    begun = source.begun
    arguments: dict[str, Any] = {"stem": begun.stem, "image_size": begun.image_size}
    arguments |= {"model_args": begun.model_args} if begun.model_args else {}
    arguments |= {"channels": source.channels} if source.channels != 3 else {}
    return [
        "from headstart.backbones import build, load_weights, read_weights",
        f"net = build({call(begun.model, arguments)})",
        f'load_weights(net, read_weights({quoted(file)}), "the file")',
    ]
