"""SwAV: one view predicts which prototypes the other was assigned to, when the batch must be spread over all of them.

Caron, Misra, Mairal, Goyal, Bojanowski, Joulin: Unsupervised Learning of Visual Features by Contrasting Cluster
Assignments, NeurIPS 2020, arXiv:2006.09882.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from headstart.contracts import Backbone, Batch, Method, Planned, Recipe, Recipes
from headstart.distributed import gather, own_part
from headstart.errors import UserError
from headstart.losses.clustering import sinkhorn, swapped_prediction
from headstart.methods.planning import queue_size
from headstart.nets import Prototypes, Queue, mlp
from headstart.settings import Auto, NotNegativeInt, Positive, PositiveFloat, Share


@final
class SwAV(Method):
    """SwAV with multi-crop, and for batches smaller than the prototypes a queue of earlier embeddings.

    Prototypes have length 1 inside of the graph, where the authors shorten them before each step. They rest in the
    first ``frozen`` of the training (one epoch of 100, in the authors' code), the queue in the first ``queue_start``.
    """

    paper = "Caron et al. 2020, arXiv:2006.09882"
    views = ("swav", "swav", *["swav-local"] * 6)
    more_views = True
    recipes = Recipes(
        # the authors' recipe for batch 256: 0.6, and a queue of 3840 from epoch 15 of 200
        natural=Recipe(200, 256, "lars", 0.6, weight_decay=1e-6, warmup=0.0),
        # lightly's CIFAR-10 benchmark: Adam at 1e-3 for batch 128, 512 prototypes and no small crops
        small_images=Recipe(
            200,
            256,
            "adamw",
            2e-3,
            weight_decay=1e-6,
            views=("simclr-small", "simclr-small"),
            method_args={"hidden_dim": 512},
        ),
        small_data={"epochs": 800, "batch_size": 128},
    )
    remedy = "a lower method_args.epsilon, fewer prototypes or a lower learning rate"

    def __init__(
        self,
        backbone: Backbone,
        *,
        prototypes: Positive | Auto = "auto",
        temperature: PositiveFloat = 0.1,
        epsilon: PositiveFloat = 0.05,
        iterations: Positive = 3,
        queue: NotNegativeInt | Auto = "auto",
        queue_start: Share = 0.075,
        frozen: Share = 0.005,
        hidden_dim: Positive = 2048,
        projection_dim: Positive = 128,
    ) -> None:
        super().__init__(backbone)
        assert queue != "auto", "resolved by planned"
        assert prototypes != "auto", "resolved by planned"
        self.temperature, self.epsilon, self.iterations = temperature, epsilon, iterations
        self.queue_start, self.frozen = queue_start, frozen
        self.projector = mlp([backbone.dim, hidden_dim, projection_dim])
        self.prototypes = Prototypes(projection_dim, prototypes)
        self.queues = nn.ModuleList(Queue(queue, projection_dim) for _ in range(2 if queue else 0))  # one for each view
        self.progress = nn.Buffer(torch.zeros(()))

    @classmethod
    def planned(cls, arguments: dict[str, Any], plan: Planned) -> dict[str, Any]:
        """Return the hyper-parameters with 3,000 prototypes, 512 for small images, at most one for every 20 images.

        Where the batch is smaller than the prototypes, they get a queue of 15 batches.

        Raises:
            UserError: batch and queue together are fewer than the prototypes, which could not all be used then.
        """
        prototypes, asked = arguments["prototypes"], arguments["queue"]
        if prototypes == "auto":
            prototypes = min(512 if plan.image_size <= 64 else 3000, max(2, plan.images // 20))
        if asked == 0 or (asked == "auto" and plan.batch_size >= prototypes):
            queue = 0
        else:
            queue = queue_size(asked, plan, max(15 * plan.batch_size, prototypes))
        if plan.batch_size + queue < prototypes:
            most, needed = plan.batch_size + plan.images, prototypes - plan.batch_size
            longer = f"a queue of {needed} and more, or " if prototypes <= most else ""
            raise UserError(
                f"method_args.prototypes: {prototypes} are more than the batch of {plan.batch_size} and the queue of "
                f"{queue} (allowed: {longer}up to {plan.batch_size + queue} prototypes)"
            )
        return {**arguments, "prototypes": prototypes, "queue": queue}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean loss of predicting each of the first two views' codes from all other views (eq. 2)."""
        progress = float(self.progress)
        embeddings = [self.embed(view) for view in batch.views]
        scores = [self.prototypes(each, trained=progress >= self.frozen) for each in embeddings]
        losses = []
        for number in range(2):
            codes = self._codes(number, embeddings[number], progress)
            losses += [
                swapped_prediction(other, codes, temperature=self.temperature)
                for view, other in enumerate(scores)
                if view != number
            ]
        return {"loss": torch.stack(losses).mean()}

    def after_step(self, progress: float) -> None:
        """Move the new embeddings into the queues."""
        self.progress.fill_(progress)
        for queue in self._queues():
            queue.push()

    @torch.no_grad()
    def _codes(self, number: int, embeddings: Tensor, progress: float) -> Tensor:
        """Return this process's part of the assignments ``[b k]`` of the whole batch, spread with the queue's."""
        whole = gather(embeddings)
        scores = [self.prototypes(whole)]
        if self.queues:
            queue = self._queues()[number]
            queue.hold(whole)
            if progress >= self.queue_start and queue.full:
                scores.append(self.prototypes(queue.entries))
        codes = sinkhorn(torch.cat(scores), epsilon=self.epsilon, iterations=self.iterations)
        return own_part(codes[: len(whole)])

    def _queues(self) -> list[Queue]:
        return [queue for queue in self.queues if isinstance(queue, Queue)]
