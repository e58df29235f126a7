"""Barlow Twins: the dimensions of two views' embeddings agree with themselves and with no other dimension.

Zbontar, Jing, Misra, LeCun, Deny: Barlow Twins, Self-Supervised Learning via Redundancy Reduction, ICML 2021,
arXiv:2103.03230.
"""

from typing import final

from torch import Tensor

from headstart.contracts import Backbone, Batch, Method, Recipe, Recipes
from headstart.distributed import gather
from headstart.losses.redundancy import barlow_twins
from headstart.nets import mlp
from headstart.settings import Positive, PositiveFloat


@final
class BarlowTwins(Method):
    """Barlow Twins with the three-layer projector of the paper.

    LARS takes the size of the loss out of the weights' steps, but not out of those of biases and normalisations. The
    authors train these at 0.0048, the weights at 0.2; one rate and a ``loss_scale`` of 0.024 do the same.
    """

    paper = "Zbontar et al. 2021, arXiv:2103.03230"
    views = ("byol-first", "byol-second")
    recipes = Recipes(
        natural=Recipe(200, 256, "lars", 0.2, weight_decay=1.5e-6),
        small_images=Recipe(
            200,
            256,
            "lars",
            0.3,
            weight_decay=1e-4,
            views=("simclr-small", "simclr-small"),
            method_args={"projection_dim": 2048},
        ),
        small_data={"epochs": 800, "batch_size": 128},
    )
    remedy = "a lower learning rate, or a larger method_args.redundancy_weight"

    def __init__(
        self,
        backbone: Backbone,
        *,
        redundancy_weight: PositiveFloat = 0.0051,
        loss_scale: PositiveFloat = 0.024,
        projection_dim: Positive = 8192,
    ) -> None:
        super().__init__(backbone)
        self.redundancy_weight, self.loss_scale = redundancy_weight, loss_scale
        self.projector = mlp([backbone.dim, projection_dim, projection_dim, projection_dim])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the distance of the cross-correlation matrix from the identity (eq. 1 of the paper), scaled."""
        first, second = (gather(self.embed(view)) for view in batch.views)
        return {"loss": self.loss_scale * barlow_twins(first, second, redundancy_weight=self.redundancy_weight)}
