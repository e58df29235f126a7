"""MoCo v2: a query finds its key, made by a slowly moving encoder, among a long queue of other images' keys.

He, Fan, Wu, Xie, Girshick: Momentum Contrast for Unsupervised Visual Representation Learning, CVPR 2020,
arXiv:1911.05722. Chen, Fan, Girshick, He: Improved Baselines with Momentum Contrastive Learning, arXiv:2003.04297.
"""

from typing import Any, final

import torch
from torch import Tensor

from headstart.contracts import Backbone, Batch, Method, Planned, Recipe, Recipes
from headstart.distributed import gather
from headstart.losses.contrastive import info_nce
from headstart.methods.planning import check_splits, queue_size
from headstart.nets import Queue, follow, in_splits, mlp, teacher_of
from headstart.settings import Auto, Positive, PositiveFloat, Share


@final
class MoCo(Method):
    """MoCo v2: an MLP as projector and stronger views than MoCo.

    Batch normalisation can tell a query which key was normalised with it, and so which one is its own. On one device
    the batch is therefore normalised in ``splits`` pieces, and keys in pieces of other images than queries. The
    symmetric loss, in which both views are queries, is that of the authors' CIFAR-10 demonstration.
    """

    paper = "Chen et al. 2020, arXiv:2003.04297"
    views = ("moco", "moco")
    recipes = Recipes(
        natural=Recipe(200, 256, "sgd", 0.03, weight_decay=1e-4, warmup=0.0),
        # The authors' demonstration: 0.06 at batch 512 with half the weight on each direction. It has 0.1 and 0.99.
        small_images=Recipe(
            200,
            256,
            "sgd",
            0.06,
            views=("simclr-small", "simclr-small"),
            method_args={"temperature": 0.1, "momentum": 0.99, "symmetric": True},
        ),
        small_data={"epochs": 800, "batch_size": 128},
    )
    remedy = "a higher momentum (0.99 to 0.999) or a lower learning rate"

    def __init__(
        self,
        backbone: Backbone,
        *,
        temperature: PositiveFloat = 0.2,
        momentum: Share = 0.999,
        queue: Positive | Auto = "auto",
        splits: Positive = 8,
        symmetric: bool = False,
        projection_dim: Positive = 128,
    ) -> None:
        super().__init__(backbone)
        assert queue != "auto", "resolved by planned"
        self.temperature, self.momentum, self.splits, self.symmetric = temperature, momentum, splits, symmetric
        self.projector = mlp([backbone.dim, backbone.dim, projection_dim], norm=False)
        self.teacher_backbone, self.teacher_projector = teacher_of(backbone), teacher_of(self.projector)
        self.queue = Queue(queue, projection_dim)

    @classmethod
    def planned(cls, arguments: dict[str, Any], plan: Planned) -> dict[str, Any]:
        """Return the hyper-parameters with a queue of 65,536, 4,096 for small images, at most a quarter of them."""
        check_splits(arguments["splits"], plan)
        most = 4096 if plan.image_size <= 64 else 65536
        return {**arguments, "queue": queue_size(arguments["queue"], plan, most, part=4)}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return InfoNCE of queries against the queue (alg. 1 of MoCo), the mean of both directions if symmetric."""
        first, second = batch.views
        loss = self._direction(first, second)
        if self.symmetric:
            loss = (loss + self._direction(second, first)) / 2
        return {"loss": loss}

    def after_step(self, progress: float) -> None:
        """Move the key encoder towards the query encoder, and the new keys into the queue."""
        follow(self.teacher_backbone, self.backbone, self.momentum)
        follow(self.teacher_projector, self.projector, self.momentum)
        self.queue.push()

    def embed_target(self, images: Tensor) -> Tensor:
        """Return the keys of images, ``[b d]``."""
        keys: Tensor = self.teacher_projector(self.teacher_backbone(images))
        return keys

    def _direction(self, images: Tensor, others: Tensor) -> Tensor:
        (queries,) = in_splits(lambda piece: (self.embed(piece),), images, self.splits, shuffle=False)
        with torch.no_grad():
            (keys,) = in_splits(lambda piece: (self.embed_target(piece),), others, self.splits, shuffle=True)
        self.queue.hold(gather(keys))
        return info_nce(queries, keys, self.queue.entries, temperature=self.temperature)
