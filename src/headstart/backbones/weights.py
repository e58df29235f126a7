"""Weights from files and libraries, and their way into a backbone: every tensor fits, or none is touched."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from math import isqrt
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from headstart.backbones.timm import check_name
from headstart.contracts import Backbone
from headstart.errors import UserError, unknown

PREFIXES = ("module.", "backbone.", "encoder.", "net.")
CONTAINERS = ("state_dict", "model_state_dict", "model")
TORCH_FILES = (".pt", ".pth", ".ckpt")
COUNTER = "num_batches_tracked"  # BatchNorm's; older files do not have it, and no forward pass reads it
SHOWN = 5


@dataclass(frozen=True)
class Matched:
    """How the tensors of a file fit those of a backbone.

    Attributes:
        matched: how many of the backbone's tensors the file has, in the right shape.
        total: how many the backbone has.
        unused: names in the file that the backbone has no place for, such as a classifier's.
        missing: names in the backbone that the file does not have.
        mismatched: names with the two shapes, where they differ.
        resampled: position embeddings that were interpolated to the backbone's own grid.
        spread: first convolutions whose three input channels were spread over the backbone's own.
    """

    matched: int
    total: int
    unused: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]
    resampled: tuple[str, ...] = ()
    spread: tuple[str, ...] = ()

    def describe(self) -> str:
        """Return one line for people.

        >>> Matched(2, 3, unused=("fc.bias",), missing=("conv1.weight",), mismatched=()).describe()
        'backbone 2/3 tensors; missing: conv1.weight; left over: fc.bias'
        """
        groups = {
            "missing": self.missing,
            "other shapes": self.mismatched,
            "resampled": self.resampled,
            "spread over the channels": self.spread,
            "left over": self.unused,
        }
        parts = [f"{title}: {some(names)}" for title, names in groups.items() if names]
        return "; ".join([f"backbone {self.matched}/{self.total} tensors", *parts])


def load_weights(backbone: Backbone, state: Mapping[str, Tensor], source: str) -> Matched:
    """Copy weights into a backbone, by name and shape.

    Position embeddings (timm's ``pos_embed``) of another grid are interpolated, and a first convolution for three
    channels is spread over another number of them, as timm does. What the file has beyond the backbone, such as a
    classifier, is left out and reported.

    Args:
        backbone: what receives the weights; it stays as it is when they do not fit.
        state: tensors by name; a prefix that all names share (``module.``, ``backbone.`` …) is taken off.
        source: where the weights come from, for the message.

    Raises:
        UserError: a tensor of the backbone is not among the weights, or has another shape there.
    """
    state = without_prefix(state)
    own = {name: tensor for name, tensor in backbone.net.state_dict().items() if name in state or COUNTER not in name}
    missing = tuple(name for name in own if name not in state)
    resampled = resample_positions(backbone.net, state)
    spread = spread_channels(backbone.net, state)
    fitting = {name: {**resampled, **spread}.get(name, state[name]) for name in own if name in state}
    mismatched = tuple(
        f"{name} {shape(tensor)} in place of {shape(own[name])}"
        for name, tensor in fitting.items()
        if tensor.shape != own[name].shape
    )
    matched = len(own) - len(missing) - len(mismatched)
    unused = tuple(name for name in state if name not in own)
    report = Matched(matched, len(own), unused, missing, mismatched, tuple(resampled), tuple(spread))
    if matched < len(own):
        raise UserError(f"init: {source} does not fit: {report.describe()}{stem_hint(backbone.net, mismatched)}")
    with torch.no_grad():
        for name, tensor in fitting.items():
            own[name].copy_(tensor)
    return report


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read tensors by name from ``.safetensors``, or from ``.pt``, ``.pth``, ``.ckpt`` without executing any pickle.

    A file that keeps them under ``state_dict``, ``model_state_dict`` or ``model`` is opened.

    Raises:
        UserError: there is no such file, it is damaged or of another kind, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"init: no file {path} (allowed: {', '.join(('.safetensors', *TORCH_FILES))})")
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    if path.suffix not in TORCH_FILES:
        raise unknown("init", path.name, [f"NAME{suffix}" for suffix in (".safetensors", *TORCH_FILES)])
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on bytes that are no checkpoint torch's reader fails in any way
        raise UserError(f"init: {path} is damaged or holds more than tensors (allowed: a state_dict)") from error
    return only_tensors(content, path)


def pretrained_state(model: str) -> dict[str, Tensor]:
    """Return the weights that a library publishes for a model, downloaded by that library into its own cache.

    Args:
        model: ``torchvision/NAME`` (its ``DEFAULT`` weights) or ``timm/NAME``, with or without a tag.

    Raises:
        UserError: the model is unknown, has no published weights, or they cannot be downloaded.
    """
    library, _, name = model.partition("/")
    if library == "torchvision":
        return torchvision_state(name)
    if library == "timm":
        return timm_state(name)
    raise unknown("init", model, ["torchvision/NAME", "timm/NAME"])


def torchvision_state(name: str) -> dict[str, Tensor]:
    """Return torchvision's best published weights for a model."""
    names = torchvision.models.list_models(module=torchvision.models)
    if name not in names:
        raise unknown("init", f"torchvision/{name}", [f"torchvision/{known}" for known in names])
    weights = torchvision.models.get_model_weights(name).DEFAULT
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    try:
        # without the default the hub would unpickle whatever it is sent
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (OSError, RuntimeError, HTTPException) as error:
        raise not_downloaded(f"torchvision/{name}", weights.url, folder / Path(weights.url).name, error) from error


def timm_state(name: str) -> dict[str, Tensor]:
    """Return the weights that timm publishes for a model, fitted to its present code by timm itself."""
    check_name(name)
    published = timm.models.get_pretrained_cfg(name)
    if published is None or not published.has_weights:
        raise UserError(f"init: timm publishes no weights for {name} (allowed: models of timm.list_pretrained())")
    address = str(published.hf_hub_id or published.url)
    try:
        return dict(timm.create_model(name, pretrained=True).state_dict())
    except (OSError, RuntimeError, HTTPException) as error:
        raise not_downloaded(f"timm/{name}", address, Path(HF_HUB_CACHE), error) from error


def not_downloaded(model: str, address: str, place: Path, error: Exception) -> UserError:
    """Return the error for published weights that are out of reach."""
    return UserError(
        f"init: the weights of {model} could not be downloaded from {address} ({first_line(error)}); "
        f"the library looks for them in {place}"
    )


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"init: {path} is not a readable safetensors file: {first_line(error)}") from error


def only_tensors(content: object, path: Path) -> dict[str, Tensor]:
    """Return the tensors by name that a loaded file holds, directly or in one of the usual containers."""
    for container in CONTAINERS:
        if isinstance(content, Mapping) and isinstance(content.get(container), Mapping):
            content = content[container]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"init: {path} holds no tensors by name (allowed: a state_dict, plain or under {CONTAINERS})")
    return {str(name): value for name, value in content.items() if isinstance(value, Tensor)}


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off the well-known prefixes that all names share, as wrappers put them there."""
    stripped = dict(state)
    while prefix := next(
        (prefix for prefix in PREFIXES if stripped and all(n.startswith(prefix) for n in stripped)), ""
    ):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in stripped.items()}
    return stripped


def spread_channels(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the first convolution for the network's input channels, if those given are for three.

    Repeated and scaled by timm's ``adapt_input_conv``, so that features keep their size; for one channel they are added
    up, so that grey images give the features that they gave in three equal channels.
    """
    name, conv = next(
        (f"{name}.weight", module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d)
    )
    given = state.get(name)
    if given is None or given.ndim != 4 or given.shape[1] != 3 or conv.in_channels == 3:
        return {}
    return {name: adapt_input_conv(conv.in_channels, given)}


def resample_positions(net: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Interpolate a vision transformer's position embedding to the network's own grid, where the grids differ."""
    own, given = getattr(net, "pos_embed", None), state.get("pos_embed")
    if own is None or given is None or own.ndim != 3 or given.ndim != 3 or own.shape == given.shape:
        return {}
    prefix = 0 if getattr(net, "no_embed_class", False) else int(getattr(net, "num_prefix_tokens", 1))
    side = isqrt(max(0, given.shape[1] - prefix))
    if own.shape[-1] != given.shape[-1] or side == 0 or side * side + prefix != given.shape[1]:
        return {}
    grid = list(net.patch_embed.grid_size)
    return {"pos_embed": resample_abs_pos_embed(given, new_size=grid, num_prefix_tokens=prefix)}


def stem_hint(net: nn.Module, mismatched: Iterable[str]) -> str:
    """Return the advice to choose the other stem, when it is the first convolution that does not fit."""
    first = next((name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)), None)
    if any(line.startswith(f"{first}.") for line in mismatched):
        return "; the first convolution differs, try the other --stem (allowed: small, standard)"
    return ""


def shape(tensor: Tensor) -> str:
    """Return a shape as people write it.

    >>> shape(torch.zeros(64, 3, 7, 7))
    '64×3×7×7'
    """
    return "×".join(map(str, tensor.shape)) or "scalar"


def some(names: Sequence[str]) -> str:
    """Return the first few of many names on one line."""
    return ", ".join(names[:SHOWN]) + (f" … {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def first_line(error: Exception) -> str:
    """Return the first line of a library's message, which may be long."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
