"""The few types that the rooms of the house hand to each other."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn


class Objects(NamedTuple):
    """The labelled boxes in an image.

    Attributes:
        boxes: left, top, right and bottom in pixels of the image, float32 ``[n 4]``.
        labels: class numbers, int64 ``[n]``.
    """

    boxes: Tensor
    labels: Tensor


class Batch(NamedTuple):
    """What one optimiser step, or one part of it, sees.

    Attributes:
        views: one tensor per view, each float ``[b c h w]``, normalised.
        labels: class numbers ``[b]`` (int64), -1 where an image has no label; those of every pixel of the only view,
            ``[b h w]``, where masks are learned.
        rows: the images' row numbers in their data set, ``[b]`` (int64).
        objects: the boxes in the only view of each image, where these are learned.
    """

    views: tuple[Tensor, ...]
    labels: Tensor
    rows: Tensor
    objects: tuple[Objects, ...] = ()


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
    """What training minimises: a pretraining method and a downstream task are both one, so there is one loop.

    Attributes:
        constant: names of the parts whose learning rate stays at its peak.
    """

    constant: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return named scalars; ``loss`` is differentiated, the rest is logged. Leaves no lasting side effect."""

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses; a wrapper around the module (distributed training) hooks in here."""
        return self.losses(batch)

    def after_step(self, progress: float) -> None:
        """Move what is not trained by gradient (moving average, centre, queue); progress in (0, 1]."""


class Task(Objective):
    """What a backbone does for its user: a head on it, both trained or the head alone.

    Args:
        backbone: gives features and maps.
        freeze: train the head alone. The backbone then keeps the statistics of its normalisation too.

    Attributes:
        backbone: with its first weights, later the trained ones.
        head: all that is not the backbone.
        freeze: as above.
    """

    head: nn.Module

    def __init__(self, backbone: Backbone, *, freeze: bool) -> None:
        super().__init__()
        self.backbone = backbone
        self.freeze = freeze
        backbone.requires_grad_(not freeze)

    def train(self, mode: bool = True) -> Self:
        """Switch to training, in which a frozen backbone stays as it is in evaluation."""
        super().train(mode)
        if self.freeze:
            self.backbone.eval()
        return self

    @property
    def handed_on(self) -> nn.Module:
        """The head as it is kept, for the features as the backbone gives them."""
        return self.head

    def features(self, images: Tensor) -> Features:
        """Return the backbone's features of images, ``[b c h w]``, without gradient if it is frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze):
            return self.backbone.features(images)


class TokenBackbone(Backbone):
    """A vision transformer, which also gives the tokens of a part of an image's patches, for masked methods.

    Attributes:
        grid: rows and columns of patches in an image.
        patch_size: the side of a patch in pixels.
    """

    grid: tuple[int, int]
    patch_size: int

    @abstractmethod
    def tokens(self, images: Tensor, keep: Tensor) -> Tensor:
        """Return the tokens of the patches that are kept, after the last block and normalisation.

        Args:
            images: float ``[b c h w]``, normalised.
            keep: numbers of patches, row by row from the upper left, int64 ``[b n]``.

        Returns:
            ``[b n d]``: in the order of ``keep``, without class or register tokens.
        """


@dataclass(frozen=True)
class Recipe:
    """Settings of a pretraining that suit a method, for data of one kind.

    Attributes:
        epochs: passes over the images.
        batch_size: images per step.
        optimizer: ``sgd``, ``lars`` or ``adamw``.
        learning_rate: the peak, for a batch of 256.
        learning_rate_scaling: how it grows with the batch: ``linear``, ``sqrt`` or ``none``.
        weight_decay: of all but biases and normalisations.
        warmup: share of the steps over which the learning rate rises.
        betas: AdamW's decay of its two moments.
        views: presets; empty for the method's own.
        method_args: hyper-parameters that differ from the method's defaults.
    """

    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "lars", "adamw"]
    learning_rate: float
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = "linear"
    weight_decay: float = 5e-4
    warmup: float = 0.1
    betas: tuple[float, float] = (0.9, 0.999)
    views: tuple[str, ...] = ()
    method_args: Mapping[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> Self:
        """Return the recipe with other values."""
        return replace(self, **changes)


class Recipes(NamedTuple):
    """The recipes of a method.

    Attributes:
        natural: for photographs above 64 px.
        small_images: for images of at most 64 px.
        small_data: what changes in either below 10,000 images.
    """

    natural: Recipe
    small_images: Recipe
    small_data: Mapping[str, Any]


class Planned(NamedTuple):
    """What is known of a pretraining before any image is decoded.

    Attributes:
        images: how many there are to pretrain on.
        image_size: side of the views in pixels.
        batch_size: images that a method sees together: those of one part of a step, over all devices.
        labels: the labels that the method may see, int64 ``[images]``, -1 for none.
        classes: the names of the classes.
        devices: each of them normalises its share of the batch by itself.
    """

    images: int
    image_size: int
    batch_size: int
    labels: Tensor
    classes: tuple[str, ...]
    devices: int = 1


Need = Literal["labels", "vit"]
Sampling = Literal["shuffled", "balanced", "anchored"]


class Method(Objective):
    """A way to pretrain, whose constructor takes the backbone, then keyword-only hyper-parameters with defaults.

    Attributes:
        backbone: what is pretrained.
        projector: what maps features to the space of the loss, and is kept beside the backbone.
        paper: authors, year and arXiv number.
        views: the augmentation preset of each view that a batch has.
        more_views: whether further views, of any number and size, may follow.
        needs: what it cannot do without: labels, or a vision transformer.
        sampling: how its batches are drawn: every image once per epoch, every class equally often, or anchors of one
            class before images of others.
        recipes: the settings that suit it.
        remedy: what usually helps when it collapses.
    """

    paper: ClassVar[str]
    views: ClassVar[tuple[str, ...]]
    more_views: ClassVar[bool] = False
    needs: ClassVar[tuple[Need, ...]] = ()
    sampling: ClassVar[Sampling] = "shuffled"
    recipes: ClassVar[Recipes]
    remedy: ClassVar[str]
    projector: nn.Module

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    @classmethod
    def planned(cls, arguments: dict[str, Any], plan: Planned) -> dict[str, Any]:
        """Return the hyper-parameters with those that are ``auto`` resolved.

        Raises:
            UserError: what is planned cannot work, such as a queue larger than the data.
        """
        return arguments

    @property
    def handed_on(self) -> Backbone:
        """The backbone that is worth keeping: the trained one, unless the paper evaluates its moving average."""
        return self.backbone

    def embed(self, images: Tensor) -> Tensor:
        """Return the embeddings ``[b d]`` in which a collapse would show: what the loss compares, not normalised."""
        embeddings: Tensor = self.projector(self.backbone(images))
        return embeddings

    def embed_target(self, images: Tensor) -> Tensor | None:
        """Return the teacher's embeddings ``[b d]`` in the same space, None where there is no teacher."""
        return None
