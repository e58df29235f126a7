"""A classifier with its images."""

from pathlib import Path
from typing import Any, ClassVar, final

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart import runs
from headstart.data.loading import images_at
from headstart.evaluation.scores import classification_scores, confusion, per_class
from headstart.tasks.classification import Classifier
from headstart.verbs import figures, resolve
from headstart.verbs.finetuning.job import Job, Look


@final
class ClassifyJob(Job[Classifier]):
    """A classifier, and the images that it learns from."""

    score: ClassVar[str] = "accuracy"

    def look(self) -> Look:
        """Return accuracy and cross entropy on the validation images."""
        labels, logits = self._answers(self.splits.val)
        right = (logits.argmax(1) == labels).double().mean()
        return Look(float(right), float(F.cross_entropy(logits, labels)))

    def finish(self, folder: Path, *, lean: bool) -> dict[str, Any]:
        """Return the scores of the test images, over all and for each class, and their confusion matrix."""
        labels, logits = self._answers(self.splits.test)
        counts = confusion(labels, logits.argmax(1), len(self.data.classes))
        if not lean:
            metrics = runs.read_metrics(folder)
            panels = {"loss": ["loss", "val_loss"], "accuracy": ["train_accuracy", "val_accuracy"]}
            figures.curves(folder / "plots" / "curves.png", metrics, panels)
            figures.confusion_matrix(folder / "plots" / "confusion_matrix.png", counts.numpy(), self.data.classes)
        return {
            "scores": classification_scores(counts),
            "classes": list(self.data.classes),
            "per_class": {
                name: [round(float(value), 6) for value in values] for name, values in per_class(counts).items()
            },
            "confusion": counts.tolist(),
        }

    def _answers(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the labels ``[n]`` and the logits ``[n classes]`` of images, on the CPU."""
        self.task.eval()
        labels, logits = [], []
        batches = images_at(
            self.data,
            rows,
            int(self.settings.image_size),
            workers=resolve.workers(self.settings.workers),
            device=self.fabric.device,
        )
        with torch.inference_mode(), self.fabric.autocast():
            for batch in batches:
                labels.append(batch.labels.cpu())
                logits.append(self.task.logits(batch.views[0]).float().cpu())
        self.task.train()
        return torch.cat(labels), torch.cat(logits)
