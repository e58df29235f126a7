"""NNCLR: as SimCLR, but the positive of a view is the nearest neighbour of the other view among earlier images.

Dwibedi, Aytar, Tompson, Sermanet, Zisserman: With a Little Help from My Friends, Nearest-Neighbor Contrastive Learning
of Visual Representations, ICCV 2021, arXiv:2104.14548.
"""

from typing import Any, final

from torch import Tensor

from headstart.contracts import Backbone, Batch, Method, Planned, Recipe, Recipes
from headstart.distributed import gather
from headstart.losses.contrastive import cross_nce
from headstart.methods.planning import queue_size
from headstart.nets import Queue, mlp
from headstart.settings import Auto, Positive, PositiveFloat


@final
class NNCLR(Method):
    """NNCLR with the three-layer projector, the predictor and the support set of the paper."""

    paper = "Dwibedi et al. 2021, arXiv:2104.14548"
    views = ("byol-first", "byol-second")
    recipes = Recipes(
        natural=Recipe(200, 256, "lars", 0.3, weight_decay=1e-6),
        small_images=Recipe(
            200,
            256,
            "sgd",
            0.12,
            views=("simclr-small", "simclr-small"),
            method_args={"projector_dim": 512},
        ),
        small_data={"epochs": 800, "batch_size": 128},
    )
    remedy = "a longer method_args.queue or a lower learning rate"

    def __init__(
        self,
        backbone: Backbone,
        *,
        temperature: PositiveFloat = 0.1,
        queue: Positive | Auto = "auto",
        projector_dim: Positive = 2048,
        predictor_dim: Positive = 4096,
        projection_dim: Positive = 256,
    ) -> None:
        super().__init__(backbone)
        assert queue != "auto", "resolved by planned"
        self.temperature = temperature
        self.projector = mlp([backbone.dim, projector_dim, projector_dim, projection_dim], last_norm=True)
        self.predictor = mlp([projection_dim, predictor_dim, projection_dim])
        self.queue = Queue(queue, projection_dim)

    @classmethod
    def planned(cls, arguments: dict[str, Any], plan: Planned) -> dict[str, Any]:
        """Return the hyper-parameters with a queue of 98,304, 4,096 for small images, at most a quarter of them."""
        most = 4096 if plan.image_size <= 64 else 98304
        return {**arguments, "queue": queue_size(arguments["queue"], plan, most, part=4)}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return InfoNCE of neighbours and predictions, the mean of both ways (eq. 2 and 3 of the paper)."""
        own = [self.embed(view) for view in batch.views]
        predictions = [gather(self.predictor(each)) for each in own]
        neighbours = [self._nearest(gather(each.detach())) for each in own]
        one = cross_nce(neighbours[0], predictions[1], temperature=self.temperature)
        other = cross_nce(neighbours[1], predictions[0], temperature=self.temperature)
        self.queue.hold(gather(own[0].detach()))
        return {"loss": (one + other) / 2}

    def after_step(self, progress: float) -> None:
        """Move the new embeddings into the support set."""
        self.queue.push()

    def _nearest(self, embeddings: Tensor) -> Tensor:
        """Return the entry of the support set that is most similar to each embedding, ``[b d]``."""
        return self.queue.entries[(embeddings.to(self.queue.entries.dtype) @ self.queue.entries.T).argmax(dim=1)]
