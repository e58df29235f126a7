"""The few types that the rooms of the house hand to each other."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class Batch(NamedTuple):
    """What one optimiser step, or one part of it, sees.

    Attributes:
        views: one tensor per view, each float ``[b c h w]``, normalised.
        labels: class numbers ``[b]`` (int64), -1 where an image has no label.
        rows: the images' row numbers in their data set, ``[b]`` (int64).
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    rows: Tensor


class Features(NamedTuple):
    """What a backbone sees in images: ``pooled`` is ``[b d]``, ``maps`` are ``[b c h w]`` from fine to coarse."""

    pooled: Tensor
    maps: list[Tensor]


class Backbone(nn.Module, ABC):
    """A network that gives features, and says beforehand what shape they have.

    ``net`` is the bare module of the library that it comes from, so that ``net.state_dict()`` has that library's own
    key names and can be handed back to it.

    Attributes:
        net: the library's own module, without its classifier.
        dim: the width of the pooled features.
        dims: the channels of each feature map, from fine to coarse.
        strides: how many pixels of the image one pixel of each map covers, from fine to coarse.
    """

    net: nn.Module
    dim: int
    dims: tuple[int, ...]
    strides: tuple[int, ...]

    @abstractmethod
    def features(self, images: Tensor) -> Features:
        """Return the features of images, float ``[b c h w]``, normalised."""

    def forward(self, images: Tensor) -> Tensor:
        """Return the pooled features ``[b d]``."""
        return self.features(images).pooled


class Objective(nn.Module, ABC):
    """What training minimises: a pretraining method and a downstream task are both one, so there is one loop."""

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return named scalars; ``loss`` is differentiated, the rest is logged. Leaves no lasting side effect."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses; a wrapper around the module (distributed training) hooks in here."""
        return self.losses(batch)

    def after_step(self, progress: float) -> None:
        """Move what is not trained by gradient (moving average, centre, queue); progress in (0, 1]."""


class Method(Objective):
    """A way to pretrain, whose constructor takes the backbone, then keyword-only hyper-parameters with defaults.

    Attributes:
        backbone: what is pretrained, and handed on.
        projector: what maps features to the space of the loss, and is kept beside the backbone.
        paper: authors, year and arXiv number.
        views: the augmentation preset of each view that a batch has.
    """

    paper: ClassVar[str]
    views: ClassVar[tuple[str, ...]]
    projector: nn.Module

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
