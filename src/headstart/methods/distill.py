"""Distil: a student learns to give the features of a frozen teacher, which needs no labels.

Wei, Hu, Xie, Zhang, Cao, Bao, Chen, Guo: Contrastive Learning Rivals Masked Image Modeling in Fine-tuning via Feature
Distillation, arXiv:2205.14141.
"""

from pathlib import Path
from typing import Any, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.backbones import has_tokens
from headstart.backbones.given import DEFAULT_MODEL, PUBLISHED_SIZE, Initialised, initialise, run_settings
from headstart.contracts import Backbone, Batch, Features, Method, Planned, Recipe, Recipes
from headstart.errors import UserError
from headstart.losses.distillation import feature_distillation
from headstart.settings import Auto, NotNegative, Origin, Pixels, PositiveFloat


@final
class Distill(Method):
    """Feature distillation from any backbone: a RUN, a weights file, or a published torchvision/ or timm/ name.

    The pooled features are matched, and with ``dense_weight`` also the coarsest map, place by place, which is what a
    detector or a segmentation needs. The teacher sees the student's views, resized to the side that it was made for.
    """

    paper = "Wei et al. 2022, arXiv:2205.14141"
    views = ("standard",)
    recipes = Recipes(
        natural=Recipe(100, 256, "adamw", 5e-4, weight_decay=0.05),
        small_images=Recipe(100, 256, "adamw", 1e-3, weight_decay=0.05),
        small_data={"epochs": 400, "batch_size": 128},
    )
    remedy = "a lower learning rate or another teacher"

    def __init__(
        self,
        backbone: Backbone,
        *,
        teacher: Origin = "torchvision/resnet50",
        teacher_model: str = "auto",
        teacher_size: Pixels | Auto = "auto",
        dense_weight: NotNegative = 1.0,
        beta: PositiveFloat = 2.0,
    ) -> None:
        super().__init__(backbone)
        found = _teacher(teacher, teacher_model, teacher_size)
        self.teacher, self.teacher_size = found.backbone.requires_grad_(False).eval(), found.image_size
        self.dense_weight, self.beta = dense_weight, beta
        self.projector = nn.Linear(backbone.dim, self.teacher.dim)
        self.dense_projector = nn.Conv2d(backbone.dims[-1], self.teacher.dims[-1], 1)

    @classmethod
    def planned(cls, arguments: dict[str, Any], plan: Planned) -> dict[str, Any]:
        """Return the hyper-parameters with what the teacher is; raise a UserError when it cannot be one."""
        teacher = arguments["teacher"]
        published = not Path(teacher).exists()
        if published and not teacher.startswith(("torchvision/", "timm/")):
            allowed = "allowed: a RUN, a weights file, or a published torchvision/ or timm/ name"
            raise UserError(f"method_args.teacher: nothing is called {teacher} ({allowed})")
        try:
            if published:
                has_tokens(teacher)  # knows every name, and builds nothing
            stored = run_settings(teacher) or {}
        except UserError as error:
            raise _of_teacher(error) from None
        own = {
            "teacher_model": stored.get("model", teacher if published else DEFAULT_MODEL),
            "teacher_size": stored.get("image_size", PUBLISHED_SIZE),
        }
        return {**arguments, **{name: value for name, value in own.items() if arguments[name] == "auto"}}

    def train(self, mode: bool = True) -> Self:
        """Switch all but the teacher, whose batch normalisations keep the statistics that it came with."""
        super().train(mode)
        self.teacher.eval()
        return self

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return smooth L1 between projected and whitened features (eq. 2 and 3 of the paper)."""
        (images,) = batch.views
        student, teacher = self.backbone.features(images), self._teach(images)
        pooled = feature_distillation(self.projector(student.pooled), teacher.pooled, beta=self.beta)
        mine = self.dense_projector(student.maps[-1])
        theirs = F.interpolate(teacher.maps[-1], mine.shape[2:], mode="bilinear", antialias=True)
        dense = feature_distillation(mine.permute(0, 2, 3, 1), theirs.permute(0, 2, 3, 1), beta=self.beta)
        return {"loss": pooled + self.dense_weight * dense, "pooled_loss": pooled, "dense_loss": dense}

    def embed_target(self, images: Tensor) -> Tensor:
        """Return the teacher's whitened features, ``[b d]``."""
        features = self._teach(images).pooled
        return F.layer_norm(features, features.shape[1:])

    @torch.no_grad()
    def _teach(self, images: Tensor) -> Features:
        size = (self.teacher_size, self.teacher_size)
        resized = images if images.shape[2:] == size else F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.teacher.features(resized)


def _teacher(teacher: str, model: str, image_size: int | Auto) -> Initialised:
    try:
        return initialise(teacher, model=model, image_size=image_size)
    except UserError as error:
        raise _of_teacher(error) from None


def _of_teacher(error: UserError) -> UserError:
    return UserError(f"method_args.teacher: {str(error).removeprefix('init: ').removeprefix('model: ')}")
