"""VISReg: views agree, while the embeddings' centre, scale and shape are each held to a normal distribution's.

Wu et al.: VISReg, arXiv:2606.02572. It stands here in the place of LeJEPA (arXiv:2511.08544), whose prediction
loss it shares: on three seeds its features were better, see benchmarks/results.
"""

from typing import final

import torch
from torch import Tensor, nn

from headstart.contracts import Backbone, Batch, Method, Recipe, Recipes
from headstart.distributed import gather
from headstart.losses.gaussian import prediction, visreg_centre, visreg_scale, visreg_shape
from headstart.nets import mlp
from headstart.randomness import directions
from headstart.settings import NotNegative, Positive, Share


@final
class VISReg(Method):
    """VISReg with multi-crop; the directions along which the shape is compared are drawn anew in every step."""

    paper = "Wu et al. 2026, arXiv:2606.02572"
    views = ("dino-first", "dino-second", *["dino-local"] * 6)
    more_views = True
    # tables 3 and 12 of the paper: 0.9 for large data, 0.6 for small; optimiser and projector as LeJEPA's
    recipes = Recipes(
        natural=Recipe(200, 256, "adamw", 5e-4, weight_decay=0.05),
        small_images=Recipe(200, 256, "adamw", 2e-3, weight_decay=0.05, views=("simclr-small",) * 4),
        small_data={"epochs": 800, "batch_size": 128, "method_args": {"regularity_weight": 0.6}},
    )
    remedy = "a larger method_args.regularity_weight or a larger batch"

    def __init__(
        self,
        backbone: Backbone,
        *,
        regularity_weight: Share = 0.9,
        centre_weight: NotNegative = 1.0,
        scale_weight: NotNegative = 1.0,
        shape_weight: NotNegative = 1.0,
        slices: Positive = 4096,
        hidden_dim: Positive = 2048,
        projection_dim: Positive = 64,
    ) -> None:
        super().__init__(backbone)
        self.regularity_weight, self.slices, self.projection_dim = regularity_weight, slices, projection_dim
        self.centre_weight, self.scale_weight, self.shape_weight = centre_weight, scale_weight, shape_weight
        self.projector = mlp([backbone.dim, hidden_dim, hidden_dim, projection_dim])
        self.step = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of the views' distance from their centre and of the three terms (alg. 1)."""
        embeddings = torch.stack([gather(self.embed(view)) for view in batch.views])  # [v n d]
        drawn = directions(self.projection_dim, self.slices, int(self.step)).to(embeddings)
        agreement = prediction(embeddings, embeddings[:2].mean(dim=0))
        regularity = torch.stack(
            [
                self.centre_weight * visreg_centre(view)
                + self.scale_weight * visreg_scale(view)
                + self.shape_weight * visreg_shape(view, drawn)
                for view in embeddings
            ]
        ).mean()
        loss = (1 - self.regularity_weight) * agreement + self.regularity_weight * regularity
        return {"loss": loss, "agreement_loss": agreement, "regularity_loss": regularity}

    def after_step(self, progress: float) -> None:
        """Count the step, so that the next one draws other directions."""
        self.step.add_(1)
