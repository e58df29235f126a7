"""DenseCL: MoCo v2 for whole images and, beside it, for the places of their feature maps.

Wang, Zhang, Shen, Kong, Li: Dense Contrastive Learning for Self-Supervised Visual Pre-Training, CVPR 2021,
arXiv:2011.09157.
"""

from typing import Any, final

import torch
from torch import Tensor, nn

from headstart.contracts import Backbone, Batch, Method, Planned, Recipe, Recipes
from headstart.distributed import gather
from headstart.losses.contrastive import info_nce
from headstart.losses.dense import correspondence, dense_info_nce
from headstart.methods.planning import check_splits, queue_size
from headstart.nets import Queue, follow, in_splits, mlp, teacher_of
from headstart.settings import Auto, Positive, PositiveFloat, Share


def dense_mlp(widths: tuple[int, int, int]) -> nn.Sequential:
    """Return an MLP without normalisation that is applied to every place of a map: 1 × 1 convolutions."""
    first, hidden, last = widths
    return nn.Sequential(nn.Conv2d(first, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, last, 1))


@final
class DenseCL(Method):
    """DenseCL: features whose places mean something, for segmentation and detection.

    A place of one view matches the most similar place of the other view in the backbone's own coarsest map.
    """

    paper = "Wang et al. 2021, arXiv:2011.09157"
    views = ("moco", "moco")
    recipes = Recipes(
        natural=Recipe(200, 256, "sgd", 0.03, weight_decay=1e-4, warmup=0.0),
        # as MoCo's
        small_images=Recipe(
            200,
            256,
            "sgd",
            0.06,
            views=("simclr-small", "simclr-small"),
            method_args={"temperature": 0.1, "momentum": 0.99},
        ),
        small_data={"epochs": 800, "batch_size": 128},
    )
    remedy = "a higher momentum (0.99 to 0.999) or a lower learning rate"

    def __init__(
        self,
        backbone: Backbone,
        *,
        dense_weight: Share = 0.5,
        temperature: PositiveFloat = 0.2,
        momentum: Share = 0.999,
        queue: Positive | Auto = "auto",
        splits: Positive = 8,
        projection_dim: Positive = 128,
    ) -> None:
        super().__init__(backbone)
        assert queue != "auto", "resolved by planned"
        self.dense_weight, self.temperature = dense_weight, temperature
        self.momentum, self.splits = momentum, splits
        self.projector = mlp([backbone.dim, backbone.dim, projection_dim], norm=False)
        self.dense_projector = dense_mlp((backbone.dims[-1], backbone.dims[-1], projection_dim))
        self.teacher_backbone, self.teacher_projector = teacher_of(backbone), teacher_of(self.projector)
        self.teacher_dense_projector = teacher_of(self.dense_projector)
        self.queue, self.dense_queue = Queue(queue, projection_dim), Queue(queue, projection_dim)

    @classmethod
    def planned(cls, arguments: dict[str, Any], plan: Planned) -> dict[str, Any]:
        """Return the hyper-parameters with queues of 65,536, 4,096 for small images, at most a quarter of them."""
        check_splits(arguments["splits"], plan)
        most = 4096 if plan.image_size <= 64 else 65536
        return {**arguments, "queue": queue_size(arguments["queue"], plan, most, part=4)}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the weighted sum of MoCo's loss and the same loss over places (eq. 1 to 3 of the paper)."""
        first, second = batch.views
        queries, dense_queries, maps = in_splits(self._queries, first, self.splits, shuffle=False)
        with torch.no_grad():
            keys, dense_keys, other_maps = in_splits(self._keys, second, self.splits, shuffle=True)
            places = correspondence(maps, other_maps)[:, None]  # [b 1 s]
            positives = dense_keys.gather(2, places.expand(-1, dense_keys.shape[1], -1))
        self.queue.hold(gather(keys))
        self.dense_queue.hold(gather(dense_keys.mean(dim=2)))
        whole = info_nce(queries, keys, self.queue.entries, temperature=self.temperature)
        dense = dense_info_nce(dense_queries, positives, self.dense_queue.entries, temperature=self.temperature)
        loss = (1 - self.dense_weight) * whole + self.dense_weight * dense
        return {"loss": loss, "whole_loss": whole, "dense_loss": dense}

    def after_step(self, progress: float) -> None:
        """Move the key encoder towards the query encoder, and the new keys into the queues."""
        follow(self.teacher_backbone, self.backbone, self.momentum)
        follow(self.teacher_projector, self.projector, self.momentum)
        follow(self.teacher_dense_projector, self.dense_projector, self.momentum)
        self.queue.push()
        self.dense_queue.push()

    def embed_target(self, images: Tensor) -> Tensor:
        """Return the keys of images, ``[b d]``."""
        keys: Tensor = self.teacher_projector(self.teacher_backbone(images))
        return keys

    def _queries(self, images: Tensor) -> tuple[Tensor, ...]:
        return _embedded(self.backbone, self.projector, self.dense_projector, images)

    def _keys(self, images: Tensor) -> tuple[Tensor, ...]:
        return _embedded(self.teacher_backbone, self.teacher_projector, self.teacher_dense_projector, images)


def _embedded(backbone: Backbone, projector: nn.Module, dense: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
    """Return embeddings ``[b d]``, those of the places ``[b d s]``, and the places' features ``[b c s]``."""
    pooled, maps = backbone.features(images)
    return projector(pooled), dense(maps[-1]).flatten(2), maps[-1].flatten(2)
