"""DINO: a student predicts, from any crop, the distribution that a slowly moving, centred and sharpened teacher gives.

Caron, Touvron, Misra, Jégou, Mairal, Bojanowski, Joulin: Emerging Properties in Self-Supervised Vision Transformers,
ICCV 2021, arXiv:2104.14294.
"""

from typing import final

import torch
from torch import Tensor, nn

from headstart.contracts import Backbone, Batch, Method, Recipe, Recipes
from headstart.distributed import gather
from headstart.losses.distillation import self_distillation
from headstart.nets import Prototypes, follow, mlp, rising, teacher_of
from headstart.settings import Positive, PositiveFloat, Share


@final
class DINO(Method):
    """DINO with multi-crop. The paper evaluates the teacher, and so it is handed on.

    The last layer has rows of length 1, and rests in the first ``frozen`` of the training (an epoch of 100 in the
    authors' code). The teacher's temperature rises over the first ``temperature_warmup`` of it.
    """

    paper = "Caron et al. 2021, arXiv:2104.14294"
    views = ("dino-first", "dino-second", *["dino-local"] * 6)
    more_views = True
    recipes = Recipes(
        # the authors' recipe for ResNet-50, whose gradients are not clipped; a ViT wants adamw, 5e-4 and 0.04
        natural=Recipe(200, 256, "sgd", 0.03, weight_decay=1e-4),
        # lightly's CIFAR-10 table: 2048 outputs, normalised projector, no small crops
        small_images=Recipe(
            200,
            256,
            "sgd",
            0.12,
            views=("simclr-small", "simclr-small"),
            method_args={"prototypes": 2048, "norm": True, "momentum": 0.99},
        ),
        small_data={"epochs": 800, "batch_size": 128},
    )
    remedy = "a lower method_args.teacher_temperature, fewer prototypes or a lower learning rate"

    def __init__(
        self,
        backbone: Backbone,
        *,
        prototypes: Positive = 65536,
        momentum: Share = 0.996,
        student_temperature: PositiveFloat = 0.1,
        teacher_temperature: PositiveFloat = 0.04,
        warmup_teacher_temperature: PositiveFloat = 0.04,
        temperature_warmup: Share = 0.1,
        centre_momentum: Share = 0.9,
        frozen: Share = 0.01,
        norm: bool = False,
        hidden_dim: Positive = 2048,
        bottleneck_dim: Positive = 256,
    ) -> None:
        super().__init__(backbone)
        self.momentum, self.centre_momentum, self.frozen = momentum, centre_momentum, frozen
        self.student_temperature = student_temperature
        self.teacher_temperatures = (warmup_teacher_temperature, teacher_temperature)
        self.temperature_warmup = temperature_warmup
        self.projector = mlp([backbone.dim, hidden_dim, hidden_dim, bottleneck_dim], norm=norm, activation=nn.GELU)
        self.prototypes = Prototypes(bottleneck_dim, prototypes)
        self.teacher_backbone, self.teacher_projector = teacher_of(backbone), teacher_of(self.projector)
        self.teacher_prototypes = teacher_of(self.prototypes)
        self.centre = nn.Buffer(torch.zeros(prototypes))
        self.progress = nn.Buffer(torch.zeros(()))
        self._means: list[Tensor] = []

    @property
    def handed_on(self) -> Backbone:
        """The teacher's backbone."""
        return self.teacher_backbone

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross entropy of every view with each other large view (alg. 1 and eq. 3 of the paper)."""
        progress = float(self.progress)
        student = [self.prototypes(self.embed(view), trained=progress >= self.frozen) for view in batch.views]
        with torch.no_grad():
            teacher = torch.stack([self.teacher_prototypes(self.embed_target(view)) for view in batch.views[:2]])
        self._means.append(gather(teacher.mean(dim=1)).mean(dim=0))
        loss = self_distillation(
            torch.stack(student),
            teacher,
            self.centre,
            student_temperature=self.student_temperature,
            teacher_temperature=self._teacher_temperature(progress),
        )
        return {"loss": loss}

    def after_step(self, progress: float) -> None:
        """Move the teacher towards the student, and the centre towards the teacher's mean output (eq. 4)."""
        momentum = rising(self.momentum, progress)
        follow(self.teacher_backbone, self.backbone, momentum)
        follow(self.teacher_projector, self.projector, momentum)
        follow(self.teacher_prototypes, self.prototypes, momentum)
        if self._means:
            mean = torch.stack(self._means).mean(dim=0)
            self.centre.lerp_(mean.to(self.centre.dtype), 1 - self.centre_momentum)
            self._means.clear()
        self.progress.fill_(progress)

    def embed_target(self, images: Tensor) -> Tensor:
        """Return the teacher's embeddings of images, ``[b d]``."""
        embeddings: Tensor = self.teacher_projector(self.teacher_backbone(images))
        return embeddings

    def _teacher_temperature(self, progress: float) -> float:
        first, last = self.teacher_temperatures
        if progress >= self.temperature_warmup:
            return last
        return first + (last - first) * progress / self.temperature_warmup
