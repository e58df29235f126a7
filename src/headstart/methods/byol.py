"""BYOL: a predictor guesses, from one view, what a slowly moving teacher makes of the other. There are no negatives.

Grill et al.: Bootstrap Your Own Latent, a New Approach to Self-Supervised Learning, NeurIPS 2020, arXiv:2006.07733.
"""

from typing import final

import torch
from torch import Tensor

from headstart.contracts import Backbone, Batch, Method, Recipe, Recipes
from headstart.losses.distillation import negative_cosine
from headstart.nets import follow, mlp, rising, teacher_of
from headstart.settings import Positive, Share


@final
class BYOL(Method):
    """BYOL with the projector and the predictor of the paper, and its momentum that rises to 1."""

    paper = "Grill et al. 2020, arXiv:2006.07733"
    views = ("byol-first", "byol-second")
    # app. B: 0.2 at batch 256 for 1000 epochs, 0.45 and momentum 0.99 for 300; weight decay 1.5e-6 and 1e-6
    recipes = Recipes(
        natural=Recipe(200, 256, "lars", 0.45, weight_decay=1e-6, method_args={"momentum": 0.99}),
        # The rate of lightly's CIFAR-10 table, 0.12, over 4: its loss is a quarter of the paper's.
        small_images=Recipe(
            200,
            256,
            "sgd",
            0.03,
            views=("simclr-small", "simclr-small"),
            method_args={"momentum": 0.99, "hidden_dim": 1024},
        ),
        small_data={"epochs": 800, "batch_size": 128},
    )
    remedy = "a lower learning rate or a higher momentum"

    def __init__(
        self,
        backbone: Backbone,
        *,
        momentum: Share = 0.996,
        hidden_dim: Positive = 4096,
        projection_dim: Positive = 256,
    ) -> None:
        super().__init__(backbone)
        self.momentum = momentum
        self.projector = mlp([backbone.dim, hidden_dim, projection_dim])
        self.predictor = mlp([projection_dim, hidden_dim, projection_dim])
        self.teacher_backbone, self.teacher_projector = teacher_of(backbone), teacher_of(self.projector)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the squared distance of normalised predictions and targets, both ways (eq. 2 of the paper)."""
        predictions = [self.predictor(self.embed(view)) for view in batch.views]
        with torch.no_grad():
            targets = [self.embed_target(view) for view in batch.views]
        first, second = negative_cosine(predictions[0], targets[1]), negative_cosine(predictions[1], targets[0])
        return {"loss": (2 + 2 * first) + (2 + 2 * second)}

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student, ever more slowly."""
        momentum = rising(self.momentum, progress)
        follow(self.teacher_backbone, self.backbone, momentum)
        follow(self.teacher_projector, self.projector, momentum)

    def embed_target(self, images: Tensor) -> Tensor:
        """Return the teacher's projections of images, ``[b d]``."""
        targets: Tensor = self.teacher_projector(self.teacher_backbone(images))
        return targets
