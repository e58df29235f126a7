"""SimCLR: two views of an image attract, all other images of the batch repel.

Chen, Kornblith, Norouzi, Hinton: A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
arXiv:2002.05709.
"""

from typing import final

from torch import Tensor

from headstart.contracts import Backbone, Batch, Method, Recipe, Recipes
from headstart.distributed import gather
from headstart.losses.contrastive import nt_xent
from headstart.nets import mlp
from headstart.settings import Positive, PositiveFloat


@final
class SimCLR(Method):
    """SimCLR with the two-layer projector of the paper, whose hidden layer is as wide as the features (none)."""

    paper = "Chen et al. 2020, arXiv:2002.05709"
    views = ("simclr", "simclr")
    # sec. 2.1 and app. B.1: LARS, 10 warm-up epochs, and for batches below 1024 the square root rule, 0.075 sqrt(batch)
    recipes = Recipes(
        natural=Recipe(200, 256, "lars", 1.2, "sqrt", 1e-6, method_args={"temperature": 0.1}),
        small_images=Recipe(200, 256, "sgd", 0.12, views=("simclr-small", "simclr-small")),
        small_data={"epochs": 800, "batch_size": 128},
    )
    remedy = "a lower learning rate, a larger batch or a higher temperature"

    def __init__(
        self,
        backbone: Backbone,
        *,
        temperature: PositiveFloat = 0.2,
        hidden_dim: Positive | None = None,
        projection_dim: Positive = 128,
    ) -> None:
        super().__init__(backbone)
        self.temperature = temperature  # 0.1 in the paper at batch 4096, 0.5 in its CIFAR-10 recipe (app. B.9)
        self.projector = mlp([backbone.dim, hidden_dim or backbone.dim, projection_dim])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the NT-Xent loss of the two views (fig. 2 of the paper)."""
        first, second = (gather(self.embed(view)) for view in batch.views)
        return {"loss": nt_xent(first, second, temperature=self.temperature)}
