"""Classification: one linear layer on the pooled features."""

from typing import final

import torch.nn.functional as F
from torch import Tensor, nn

from headstart.contracts import Backbone, Batch, Task


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
        # As published weights are fine-tuned: the new head starts at no opinion, so its first gradients do not tear
        # at the features before it has learned anything.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def logits(self, images: Tensor) -> Tensor:
        """Return class logits ``[b classes]``."""
        return self.head(self.features(images).pooled)  # type: ignore[no-any-return]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the cross entropy, a mean weighted by the classes' weights, and the share of right answers."""
        logits = self.logits(batch.views[0])
        loss = F.cross_entropy(logits, batch.labels, self.class_weights, label_smoothing=self.label_smoothing)
        right = (logits.detach().argmax(1) == batch.labels).float().mean()
        return {"loss": loss, "train_accuracy": right}
