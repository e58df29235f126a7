"""SimSiam: as BYOL, but the teacher is the student itself, through which no gradient flows back.

Chen, He: Exploring Simple Siamese Representation Learning, CVPR 2021, arXiv:2011.10566.
"""

from typing import final

from torch import Tensor

from headstart.contracts import Backbone, Batch, Method, Recipe, Recipes
from headstart.losses.distillation import negative_cosine
from headstart.nets import mlp
from headstart.settings import Positive


@final
class SimSiam(Method):
    """SimSiam with the three-layer projector and the bottleneck predictor of the paper.

    The predictor's learning rate does not fall, as in the authors' code (sec. 4.2 of the paper).
    """

    paper = "Chen and He 2021, arXiv:2011.10566"
    views = ("moco", "moco")
    constant = ("predictor",)
    recipes = Recipes(
        natural=Recipe(200, 256, "sgd", 0.05, weight_decay=1e-4, warmup=0.0),
        # app. D: weight decay 5e-4 and a projector of two layers. With its rate of 0.03 features had not overtaken
        # random ones after 1,000 steps (benchmarks/results), with lightly's of 0.12 they had.
        small_images=Recipe(
            200, 256, "sgd", 0.12, warmup=0.0, views=("simclr-small", "simclr-small"), method_args={"layers": 2}
        ),
        small_data={"epochs": 800, "batch_size": 128},
    )
    remedy = "a lower learning rate or a larger batch"

    def __init__(
        self,
        backbone: Backbone,
        *,
        layers: Positive = 3,
        projection_dim: Positive = 2048,
        predictor_dim: Positive = 512,
    ) -> None:
        super().__init__(backbone)
        self.projector = mlp([backbone.dim, *[projection_dim] * layers], last_norm=True)
        self.predictor = mlp([projection_dim, predictor_dim, projection_dim])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the negative cosine similarity of predictions and targets, the mean of both ways (alg. 1)."""
        first, second = (self.embed(view) for view in batch.views)
        one = negative_cosine(self.predictor(first), second.detach())
        other = negative_cosine(self.predictor(second), first.detach())
        return {"loss": (one + other) / 2}
