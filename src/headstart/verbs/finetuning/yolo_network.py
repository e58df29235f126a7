"""A YOLO network of Ultralytics around a given backbone, and the features by which it is known that it is in there."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from headstart.backbones import yolo
from headstart.backbones.given import Initialised
from headstart.backbones.weights import Matched, shape
from headstart.backbones.yolo_pixels import fold, framed_in_black
from headstart.data.loading import normalisation
from headstart.errors import UserError
from headstart.randomness import mix
from headstart.verbs.exporting.ultralytics import description
from headstart.verbs.finetuning.transfer import images

SIDE = 128  # pixels, of the random images that features are compared on


@dataclass(frozen=True)
class Draft:
    """What a network is made of.

    Attributes:
        begun: the backbone with its first weights, for normalised images.
        classes: the names of the objects.
        channels: of the images.
        seed: of the head.
    """

    begun: Initialised
    classes: tuple[str, ...]
    channels: int
    seed: int

    @property
    def layers(self) -> int:
        """How many layers of the network are the backbone."""
        return len(self.begun.backbone.net.model)  # type: ignore[arg-type]

    @property
    def names(self) -> dict[int, str]:
        """The names of the objects as Ultralytics has them."""
        return dict(enumerate(self.classes))

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation of the images that the first weights are for: random ones are for pixels themselves."""
        if self.begun.matched is None:
            return (0.0,) * self.channels, (1.0,) * self.channels
        return normalisation(self.channels)

    def build(self) -> nn.Module:
        """Return a network with random weights, of which those of the head are decided by the seed alone."""
        begun, kind = self.begun, yolo.library("nn.tasks").DetectionModel
        described = description(begun.model.partition("/")[2], begun.model_args, begun.stem, self.channels)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(self.seed, 1))
            net: nn.Module = kind(described, ch=self.channels, nc=len(self.classes), verbose=False)
        return net

    def state(self) -> dict[str, Tensor]:
        """Return the tensors of the backbone, for pixels in 0..1."""
        net = deepcopy(self.begun.backbone.net).cpu()
        fold(net, *self.normalisation)
        return dict(net.state_dict())

    @torch.no_grad()
    def expected(self) -> list[Tensor]:
        """Return the feature maps of random images that the given backbone gives."""
        backbone = deepcopy(self.begun.backbone).cpu().float().eval()
        return framed_in_black(backbone, self._pixels(), *self.normalisation).maps

    @torch.no_grad()
    def features(self, net: Any) -> list[Tensor]:
        """Return those that a network's backbone gives of them; the network stays as it is."""
        backbone: Any = self.begun.backbone
        found, maps = list[Tensor](), self._pixels()
        for level, layer in enumerate(deepcopy(net.model[: self.layers]).cpu().float().eval()):
            maps = layer(maps)
            found += [maps] if level in backbone.levels else []
        return found

    def _pixels(self) -> Tensor:
        return images(self.channels, SIDE).sigmoid()


def put(state: dict[str, Tensor], net: nn.Module, layers: int) -> Matched:
    """Copy weights into the first layers of a network of Ultralytics.

    Raises:
        UserError: a tensor is missing, left over, or of another shape; then the network stays as it is.
    """
    own = part(net, range(layers))
    missing = tuple(name for name in own if name not in state)
    unused = tuple(name for name in state if name not in own)
    mismatched = tuple(
        f"{name} {shape(state[name])} in place of {shape(tensor)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    )
    found = Matched(len(own) - len(missing) - len(mismatched), len(own), unused, missing, mismatched)
    if missing or unused or mismatched:
        raise UserError(f"init: the weights do not fit Ultralytics' network: {found.describe()}")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(state[name])
    return found


def part(net: nn.Module, layers: range) -> dict[str, Tensor]:
    """Return the tensors of some layers of a network of Ultralytics, under its own names."""
    return {name: tensor for name, tensor in net.state_dict().items() if int(name.split(".")[1]) in layers}
