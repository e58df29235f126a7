"""SupCon without augmentation: the positive of an image is another image of its class.

The loss is that of Khosla et al.: Supervised Contrastive Learning, NeurIPS 2020, arXiv:2004.11362.
"""

from typing import Any, final

from torch import Tensor

from headstart.contracts import Backbone, Batch, Method, Planned, Recipe, Recipes
from headstart.distributed import gather
from headstart.errors import UserError
from headstart.losses.contrastive import supcon
from headstart.nets import mlp
from headstart.settings import Positive, PositiveFloat


@final
class SupConPairs(Method):
    """Supervised contrastive learning on images as they are, drawn so that none is the only one of its class.

    For crops whose classes differ in what an augmentation would change: size, colour, orientation.
    """

    paper = "after Khosla et al. 2020, arXiv:2004.11362"
    views = ("none",)
    needs = ("labels",)
    sampling = "balanced"
    recipes = Recipes(
        natural=Recipe(100, 256, "lars", 1.2, "sqrt", 1e-6),
        small_images=Recipe(100, 256, "sgd", 0.12),
        small_data={"epochs": 200, "batch_size": 128},
    )
    remedy = "a lower learning rate, a larger batch or a higher temperature"

    def __init__(self, backbone: Backbone, *, temperature: PositiveFloat = 0.1, projection_dim: Positive = 128) -> None:
        super().__init__(backbone)
        self.temperature = temperature
        self.projector = mlp([backbone.dim, backbone.dim, projection_dim], norm=False)

    @classmethod
    def planned(cls, arguments: dict[str, Any], plan: Planned) -> dict[str, Any]:
        """Return the hyper-parameters as they are; raise a UserError when a class or a batch cannot have two images."""
        counts = plan.labels[plan.labels >= 0].bincount(minlength=1)
        if int(counts.max()) < 2:
            raise UserError("labels: no class has two labelled images (allowed for supcon-pairs: 2 or more of a class)")
        classes = int((counts > 0).sum())
        if plan.batch_size % 2 and plan.batch_size <= classes:  # then every image has a turn of its own
            raise UserError(
                f"batch_size: {plan.batch_size} images are of as many of the {classes} classes"
                f" (allowed for supcon-pairs: an even number, or more than {classes})"
            )
        return arguments

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the supervised contrastive loss of the images, each seen once (eq. 2 of the paper)."""
        (images,) = batch.views
        embeddings, labels, rows = gather(self.embed(images)), gather(batch.labels), gather(batch.rows)
        return {"loss": supcon(embeddings, labels, rows, temperature=self.temperature)}
