"""LeJEPA: views agree, while random projections of the embeddings follow a normal distribution. No teacher, no queue.

Balestriero, LeCun: LeJEPA, Provable and Scalable Self-Supervised Learning Without the Heuristics, arXiv:2511.08544.
"""

from typing import final

import torch
from torch import Tensor, nn

from headstart.contracts import Backbone, Batch, Method, Recipe, Recipes
from headstart.distributed import gather
from headstart.losses.gaussian import prediction, sigreg
from headstart.nets import mlp
from headstart.randomness import directions
from headstart.settings import Positive, Share


@final
class LeJEPA(Method):
    """LeJEPA with multi-crop; the directions of the projections are drawn anew in every step."""

    paper = "Balestriero and LeCun 2025, arXiv:2511.08544"
    views = ("dino-first", "dino-second", *["dino-local"] * 6)
    more_views = True
    # the authors' example: adamw at 2e-3 for batch 256 and weight decay 0.05
    recipes = Recipes(
        natural=Recipe(200, 256, "adamw", 5e-4, weight_decay=0.05),
        small_images=Recipe(200, 256, "adamw", 2e-3, weight_decay=0.05, views=("simclr-small",) * 4),
        small_data={"epochs": 800, "batch_size": 128},
    )
    remedy = "a larger method_args.regularity_weight or a larger batch"

    def __init__(
        self,
        backbone: Backbone,
        *,
        regularity_weight: Share = 0.05,
        slices: Positive = 1024,
        hidden_dim: Positive = 2048,
        projection_dim: Positive = 64,
    ) -> None:
        super().__init__(backbone)
        self.regularity_weight, self.slices, self.projection_dim = regularity_weight, slices, projection_dim
        self.projector = mlp([backbone.dim, hidden_dim, hidden_dim, projection_dim])
        self.step = nn.Buffer(torch.zeros((), dtype=torch.int64))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of the views' distance from their centre and of SIGReg (eq. 7 of the paper)."""
        embeddings = torch.stack([gather(self.embed(view)) for view in batch.views])  # [v n d]
        drawn = directions(self.projection_dim, self.slices, int(self.step)).to(embeddings)
        agreement = prediction(embeddings, embeddings[:2].mean(dim=0))
        regularity = torch.stack([sigreg(view, drawn) for view in embeddings]).mean()
        loss = (1 - self.regularity_weight) * agreement + self.regularity_weight * regularity
        return {"loss": loss, "agreement_loss": agreement, "regularity_loss": regularity}

    def after_step(self, progress: float) -> None:
        """Count the step, so that the next one draws other directions."""
        self.step.add_(1)
