"""Classification: one linear layer on the pooled features."""

from copy import deepcopy
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headstart.contracts import Backbone, Batch, Task

SAME = 1e-5  # a feature that varies by less of its mean does so by rounding


@final
class Classifier(Task):
    """A linear classifier on a backbone, frozen or not.

    Args:
        backbone: gives the features.
        classes: number of classes.
        freeze: train the head alone. The backbone then keeps the statistics of its normalisation too.
        label_smoothing: share of the target spread evenly over all classes.
        class_weights: of each class in the loss, ``[classes]``; None for equal ones.
    """

    class_weights: Tensor | None
    mean: Tensor
    deviation: Tensor
    head: nn.Linear

    def __init__(
        self,
        backbone: Backbone,
        *,
        classes: int,
        freeze: bool = False,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__(backbone, freeze=freeze)
        self.head = nn.Linear(backbone.dim, classes)
        self.label_smoothing = label_smoothing
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.register_buffer("mean", torch.zeros(backbone.dim))
        self.register_buffer("deviation", torch.ones(backbone.dim))
        # As published weights are fine-tuned: the new head starts at no opinion, so its first gradients do not tear
        # at the features before it has learned anything.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def standardise(self, features: Tensor) -> None:
        """Let the head see features with mean 0 and deviation 1 from now on, given those of the images, ``[n d]``.

        For a frozen backbone, whose features may be of any size: those of some networks are so small that a head with
        a usual learning rate would never move. A feature that does not vary is left as it is.
        """
        found = features.float()
        deviation = found.std(0, correction=0)
        self.mean.copy_(found.mean(0))
        self.deviation.copy_(torch.where(deviation > SAME * self.mean.abs(), deviation, 1.0))

    @property
    def handed_on(self) -> nn.Linear:
        """The linear layer for features that are not standardised."""
        head = deepcopy(self.head)
        with torch.no_grad():
            weight = self.head.weight.double() / self.deviation.double()
            head.weight.copy_(weight)
            head.bias.copy_(self.head.bias.double() - weight @ self.mean.double())
        return head

    def logits(self, images: Tensor) -> Tensor:
        """Return class logits ``[b classes]``."""
        pooled = self.features(images).pooled
        return self.head((pooled - self.mean) / self.deviation)  # type: ignore[no-any-return]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross entropy, a mean weighted by the classes' weights, and the share of right answers."""
        logits = self.logits(batch.views[0])
        loss = F.cross_entropy(logits, batch.labels, self.class_weights, label_smoothing=self.label_smoothing)
        right = (logits.detach().argmax(1) == batch.labels).float().mean()
        return {"loss": loss, "train_accuracy": right}
