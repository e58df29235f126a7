"""VICReg: views agree, while every dimension keeps its variance and shares nothing with the others.

Bardes, Ponce, LeCun: VICReg, Variance-Invariance-Covariance Regularization for Self-Supervised Learning, ICLR 2022,
arXiv:2105.04906.
"""

from typing import final

from torch import Tensor

from headstart.contracts import Backbone, Batch, Method, Recipe, Recipes
from headstart.distributed import gather
from headstart.losses.redundancy import vicreg
from headstart.nets import mlp
from headstart.settings import NotNegative, Positive


@final
class VICReg(Method):
    """VICReg with the three-layer expander of the paper."""

    paper = "Bardes et al. 2022, arXiv:2105.04906"
    views = ("byol-first", "byol-second")
    recipes = Recipes(
        natural=Recipe(200, 256, "lars", 0.2, weight_decay=1e-6),
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
    remedy = "a larger method_args.variance_weight or a lower learning rate"

    def __init__(
        self,
        backbone: Backbone,
        *,
        invariance_weight: NotNegative = 25.0,
        variance_weight: NotNegative = 25.0,
        covariance_weight: NotNegative = 1.0,
        projection_dim: Positive = 8192,
    ) -> None:
        super().__init__(backbone)
        self.weights = {
            "invariance_weight": invariance_weight,
            "variance_weight": variance_weight,
            "covariance_weight": covariance_weight,
        }
        self.projector = mlp([backbone.dim, projection_dim, projection_dim, projection_dim])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of invariance, variance and covariance (eq. 6 of the paper)."""
        first, second = (gather(self.embed(view)) for view in batch.views)
        return {"loss": vicreg(first, second, **self.weights)}
