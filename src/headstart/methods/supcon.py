"""SupCon: views of images of one class attract, all others repel; images without a label attract only themselves.

Khosla, Teterwak, Wang, Sarna, Tian, Isola, Maschinot, Liu, Krishnan: Supervised Contrastive Learning, NeurIPS 2020,
arXiv:2004.11362.
"""

from typing import final

import torch
from torch import Tensor

from headstart.contracts import Backbone, Batch, Method, Recipe, Recipes
from headstart.distributed import gather
from headstart.losses.contrastive import supcon
from headstart.nets import mlp
from headstart.settings import Positive, PositiveFloat


@final
class SupCon(Method):
    """Supervised contrastive learning, with labels for some or all images.

    Where only some are labelled (data with unlabelled images, or ``--labels 10%``), the others have their own
    augmented view for a positive, as in SimCLR.
    """

    paper = "Khosla et al. 2020, arXiv:2004.11362"
    views = ("simclr", "simclr")
    needs = ("labels",)
    # sec. 4: temperature 0.1, the optimiser as SimCLR's
    recipes = Recipes(
        natural=Recipe(200, 256, "lars", 1.2, "sqrt", 1e-6),
        small_images=Recipe(200, 256, "sgd", 0.12, views=("simclr-small", "simclr-small")),
        small_data={"epochs": 400, "batch_size": 128},
    )
    remedy = "a lower learning rate, a larger batch or a higher temperature"

    def __init__(self, backbone: Backbone, *, temperature: PositiveFloat = 0.1, projection_dim: Positive = 128) -> None:
        super().__init__(backbone)
        self.temperature = temperature
        self.projector = mlp([backbone.dim, backbone.dim, projection_dim], norm=False)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the supervised contrastive loss of all views (eq. 2 of the paper)."""
        count = len(batch.views)
        embeddings = torch.cat([gather(self.embed(view)) for view in batch.views])
        labels, images = gather(batch.labels).repeat(count), gather(batch.rows).repeat(count)
        return {"loss": supcon(embeddings, labels, images, temperature=self.temperature)}
