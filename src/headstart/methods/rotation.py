"""Rotation: tell by which quarter turn an image was rotated.

Gidaris, Singh, Komodakis: Unsupervised Representation Learning by Predicting Image Rotations, ICLR 2018,
arXiv:1803.07728.
"""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.contracts import Backbone, Batch, Method, Recipe, Recipes
from headstart.losses.precision import exact

TURNS = 4


@final
class Rotation(Method):
    """RotNet: every image in all four rotations, and a linear classifier of them.

    Corners of photographs give the turn away by vignettes, borders and time stamps: ``circular_mask`` shows the method
    only the disc that looks the same in every rotation. The last layers know about rotations, those before them about
    objects: probe every stage (``headstart probe RUN --stages``).
    """

    paper = "Gidaris et al. 2018, arXiv:1803.07728"
    views = ("rotation",)
    # the authors' ImageNet and CIFAR-10 recipes: SGD, 0.1 at batch 192 and 128 images, weight decay 5e-4
    recipes = Recipes(
        natural=Recipe(100, 256, "sgd", 0.1, weight_decay=5e-4, warmup=0.0),
        small_images=Recipe(100, 128, "sgd", 0.2, weight_decay=5e-4, warmup=0.0),
        small_data={"epochs": 400},
    )
    remedy = "a lower learning rate"

    def __init__(self, backbone: Backbone, *, circular_mask: bool = False) -> None:
        super().__init__(backbone)
        self.circular_mask = circular_mask
        self.projector = nn.Linear(backbone.dim, TURNS)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross entropy of the turns (eq. 2 and 3 of the paper), and the share of right answers."""
        (images,) = batch.views
        if self.circular_mask:
            images = images * disc(images.shape[-1], images)
        turned = torch.cat([images.rot90(turn, dims=(2, 3)) for turn in range(TURNS)])
        turns = torch.arange(TURNS, device=images.device).repeat_interleave(len(images))
        logits = self.projector(self.backbone(turned))
        right = (logits.detach().argmax(dim=1) == turns).to(logits.dtype).mean()
        return {"loss": exact(F.cross_entropy)(logits, turns), "rotation_accuracy": right}

    def embed(self, images: Tensor) -> Tensor:
        """Return the features ``[b d]``: four logits are too few to see a collapse in."""
        features: Tensor = self.backbone(images)
        return features


def disc(side: int, like: Tensor) -> Tensor:
    """Return 1 inside of the largest circle of a square and 0 outside, ``[side side]``."""
    places = torch.arange(side, device=like.device) - (side - 1) / 2
    return (places[:, None] ** 2 + places**2 <= (side / 2) ** 2).to(like.dtype)
