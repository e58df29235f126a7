"""Anchors of one class: an object and its augmented view attract, images of the background repel.

The third strategy of a comparison on crops of aerial pictures, in which it was the most effective one. The loss is
InfoNCE: van den Oord, Li, Vinyals, Representation Learning with Contrastive Predictive Coding, arXiv:1807.03748, eq. 4.
"""

from typing import Any, final

import torch
from torch import Tensor

from headstart.contracts import Backbone, Batch, Method, Planned, Recipe, Recipes
from headstart.errors import UserError, unknown
from headstart.losses.contrastive import info_nce
from headstart.nets import mlp
from headstart.settings import Positive, PositiveFloat


@final
class SupConAnchor(Method):
    """InfoNCE between anchors and backgrounds: with one anchor, its view and batch - 2 backgrounds fill the batch.

    More ``anchors`` share the backgrounds of their step: then it is batch - 2 x anchors backgrounds. ``background`` is
    the name of a class; ``auto`` takes the class of that name where there is one, else every class in turn is the
    object, and images of all others are its background.
    """

    paper = "InfoNCE: van den Oord et al. 2018, arXiv:1807.03748"
    views = ("none", "simclr")
    needs = ("labels",)
    sampling = "anchored"
    recipes = Recipes(
        natural=Recipe(100, 256, "lars", 1.2, "sqrt", 1e-6),
        small_images=Recipe(100, 256, "sgd", 0.12, views=("none", "simclr-small")),
        small_data={"epochs": 200, "batch_size": 128},
    )
    remedy = "a lower learning rate, a larger batch or a higher temperature"

    def __init__(
        self,
        backbone: Backbone,
        *,
        anchors: Positive = 1,
        background: str = "auto",
        temperature: PositiveFloat = 0.1,
        projection_dim: Positive = 128,
    ) -> None:
        super().__init__(backbone)
        self.anchors, self.temperature = anchors, temperature
        self.projector = mlp([backbone.dim, backbone.dim, projection_dim], norm=False)

    @classmethod
    def planned(cls, arguments: dict[str, Any], plan: Planned) -> dict[str, Any]:
        """Return the hyper-parameters with the class of the background, or `any other`.

        Raises:
            UserError: no labelled image is of the background, there are fewer objects than anchors, or the batch has no
                room for two backgrounds.
        """
        anchors, background = arguments["anchors"], arguments["background"]
        counts = plan.labels[plan.labels >= 0].bincount(minlength=len(plan.classes)).tolist()
        objects = {name: count for name, count in zip(plan.classes, counts, strict=True) if count}
        if background == "auto":
            background = "background" if "background" in objects else "any other"
        if background not in (*objects, "any other"):
            raise unknown("method_args.background", background, (*objects, "any other"))
        fewest = min(objects.values()) if background == "any other" else sum(counts) - objects[background]
        if anchors > fewest:
            raise UserError(
                f"method_args.anchors: {anchors}, but there are {fewest} labelled images of an object"
                f" (allowed: 1 to {fewest})"
            )
        own = plan.batch_size // plan.devices
        if own < 2 * anchors + 2:
            raise UserError(
                f"batch_size: {own} is too small for {anchors} anchors, their views and two backgrounds"
                f" (allowed: {2 * anchors + 2} and more)"
            )
        return {**arguments, "background": background}

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return InfoNCE of each anchor: its augmented view among images of other classes (eq. 4 of the paper)."""
        plain, augmented = batch.views
        embeddings = self.embed(torch.cat([plain, augmented[: self.anchors]]))  # normalised together
        anchors, backgrounds, positives = embeddings.tensor_split([self.anchors, len(plain)])
        others = batch.labels[: self.anchors, None] != batch.labels[None, self.anchors :]  # [a n]
        loss = info_nce(anchors, positives, backgrounds, temperature=self.temperature, allowed=others)
        return {"loss": loss}
