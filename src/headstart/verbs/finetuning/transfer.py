"""The proof that weights arrived: the backbone that a trainer holds gives the features that the given weights give."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from headstart.backbones.given import Initialised
from headstart.backbones.weights import Matched
from headstart.contracts import Backbone
from headstart.errors import UserError
from headstart.verbs.exporting.source import difference

TOLERANCE = 1e-5  # of the largest feature: what the order of sums does in float32 stays below
COUNT = 2  # random images


@dataclass
class Transfer:
    """The features that given weights give, to be compared with those of the backbone that is trained.

    Attributes:
        matched: how the weights fit the backbone.
        image_size: side of the random images in pixels.
        before: the features of random images, float32, on the CPU.
        head: how many tensors the task has beside its backbone.
        found: by how much the features differ, as a share of the largest; None before ``check``.
    """

    matched: Matched
    image_size: int
    before: list[Tensor]
    head: int = 0
    found: float | None = None

    @classmethod
    def of(cls, begun: Initialised) -> Self:
        """Return the features of a backbone whose weights were given."""
        assert begun.matched is not None
        return cls(begun.matched, begun.image_size, features_of(begun.backbone, begun.image_size))

    def check(self, backbone: Backbone, head: nn.Module | None = None) -> None:
        """Compare with the backbone that is about to be trained, wherever it lies.

        Raises:
            UserError: it gives other features.
        """
        self.head = len(head.state_dict()) if head is not None else 0
        self.found = check(self.before, features_of(backbone, self.image_size))

    @property
    def line(self) -> str:
        """What was found, in one line."""
        assert self.found is not None
        return line(self.matched, self.head, self.found)


@torch.no_grad()
def features_of(backbone: Backbone, image_size: int, count: int = COUNT) -> list[Tensor]:
    """Return the features of random images, pooled and of every map, float32, computed on the CPU in evaluation mode.

    The backbone stays as it is, wherever it lies, and no generator is drawn from. The maps are there because a change
    of the first layers may all but vanish in the pooled features of an untrained network.
    """
    still = deepcopy(backbone).cpu().float().eval()
    found = still.features(images(channels_of(still), image_size, count))
    return [found.pooled, *found.maps]


def images(channels: int, size: int, count: int = COUNT) -> Tensor:
    """Return random images, float ``[count c h w]``, the same ones each time."""
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(0))


def channels_of(net: nn.Module) -> int:
    """Return how many channels the images of a network have."""
    return next(module.in_channels for module in net.modules() if isinstance(module, nn.Conv2d))


def check(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Return by how much features differ at most, as a share of the largest of their map.

    Raises:
        UserError: by more than ``TOLERANCE``: what is trained does not have the weights that were given.
    """
    found = max(difference(*pair) for pair in zip(before, after, strict=True))
    if not found <= TOLERANCE:
        raise UserError(
            f"init: the weights did not arrive: the features of the backbone to be trained differ by {found:.1g} of"
            f" the largest from those of the given weights (allowed: {TOLERANCE:g})"
        )
    return found


def line(matched: Matched, head: int, found: float) -> str:
    """Return in one line what arrived: tensors of the backbone, new ones of the head, and how equal features are.

    >>> line(Matched(122, 122, (), (), ()), 2, 3e-7)
    'backbone 122/122 tensors, head 0/2 (new); features equal to 3e-07'
    """
    tensors = f"backbone {matched.matched}/{matched.total} tensors"
    fresh = f", head 0/{head} (new)" if head else ""
    return f"{tensors}{fresh}; features equal to {found:.1g}"
