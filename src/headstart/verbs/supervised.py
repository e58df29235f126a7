"""The training of a classifier, with looks at the validation images, and what it leaves behind."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from headstart import runs
from headstart.config import Finetune
from headstart.data.index import DataSet
from headstart.data.loading import ViewLoader, images_at
from headstart.data.splits import Splits
from headstart.evaluation.scores import classification_scores, confusion, per_class
from headstart.progress import Track
from headstart.runs import Run
from headstart.tasks.classification import Classifier
from headstart.training import checkpoint
from headstart.training.fit import fit
from headstart.training.machine import prepared
from headstart.training.optim import build_optimizer, learning_rate, scale_learning_rate
from headstart.training.record import Recorder
from headstart.verbs import figures, resolve, start
from headstart.views import preset


class Best(NamedTuple):
    """The best look at the validation images so far, and the weights that it was at."""

    step: int
    accuracy: float
    loss: float
    state: Mapping[str, Tensor]

    def beaten_by(self, accuracy: float, loss: float) -> bool:
        """Say whether a look is better: more right answers, or as many with a lower loss."""
        return (accuracy, -loss) > (self.accuracy, -self.loss)


NO_LOOK = Best(0, -1.0, 0.0, {})


@dataclass(frozen=True)
class Supervised:
    """A classifier, and what it learns from.

    Attributes:
        settings: resolved.
        data: the opened data set.
        splits: its splits.
        rows: the labelled images, int64 ``[n]``.
        classifier: on the CPU, with its first weights.
        fabric: device, precision and processes.
    """

    settings: Finetune
    data: DataSet
    splits: Splits
    rows: Tensor
    classifier: Classifier
    fabric: Fabric

    @property
    def epoch_steps(self) -> int:
        """Optimiser steps in one pass over the labelled images."""
        return len(self.rows) // int(self.settings.batch_size)

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return max(self.settings.epochs * self.epoch_steps, self.settings.min_steps)

    def train(self, run: Run | None, last: Path | None, *, quiet: bool, lean: bool) -> tuple[Best, dict[str, Any]]:
        """Train from the last checkpoint, if there is one; return the best look and what the training took."""
        settings, fabric, steps = self.settings, self.fabric, self.steps
        optimizer = build_optimizer(self.classifier, settings.optimizer, weight_decay=settings.weight_decay)
        trained, set_up = fabric.setup(prepared(self.classifier, fabric), optimizer)
        first, best = self._restore(last, optimizer)
        batch_size = int(settings.batch_size)
        peak = scale_learning_rate(float(settings.learning_rate), batch_size, settings.learning_rate_scaling)
        looks = look_steps(steps, settings.evaluations)
        stopped = self._impatient(looks, best, first)  # a run that was killed after it had stopped early
        count = steps * batch_size
        show = Track("finetune", count, unit="images", start=first * batch_size, quiet=quiet or run is None)
        with show as track:
            recorder = Recorder(
                run,
                track,
                fabric,
                first=first,
                steps=steps,
                epoch_steps=self.epoch_steps,
                minutes=settings.checkpoint_every,
                save_last=not lean,
            )
            for step in fit(
                trained,
                iter(self._loader(first)),
                set_up,
                fabric=fabric,
                learning_rates=lambda step: learning_rate(step, steps=steps, warmup=float(settings.warmup), peak=peak),
                start=first,
                steps=first if stopped else steps,
                parts=settings.accumulate,
                seed=settings.seed,
            ):
                if step.step not in looks:
                    recorder.record(step)
                else:
                    accuracy, loss = self._look()
                    recorder.record(step, val_accuracy=accuracy, val_loss=loss)
                    if best.beaten_by(accuracy, loss):
                        best = Best(step.step, accuracy, loss, start.state_of(self.classifier))
                stopped = self._impatient(looks, best, step.step)
                if recorder.checkpoint_due(step) or stopped:
                    self._save_best(run, best)
                    recorder.save(step, self.classifier, optimizer)
                if stopped:
                    break
        return best, recorder.facts()

    def hand_over(self, run: Run, best: Best, took: Mapping[str, Any], *, lean: bool) -> None:
        """Score the best weights once on the test images, and write them, plots, and last of all the result."""
        self.classifier.load_state_dict(dict(best.state))
        start.check_weights(self.classifier)
        labels, logits = self._answers(self.splits.test)
        counts = confusion(labels, logits.argmax(1), len(self.data.classes))
        start.save_weights(run.folder / runs.BACKBONE, self.classifier.backbone.net)
        start.save_weights(run.folder / runs.HEAD, self.classifier.head)
        if not lean:
            metrics = runs.read_metrics(run.folder)
            panels = {"loss": ["loss", "val_loss"], "accuracy": ["train_accuracy", "val_accuracy"]}
            figures.curves(run.folder / "plots" / "curves.png", metrics, panels)
            plot = run.folder / "plots" / "confusion_matrix.png"
            figures.confusion_matrix(plot, counts.numpy(), self.data.classes)
        by_class = {name: [round(float(value), 6) for value in values] for name, values in per_class(counts).items()}
        run.finish(
            self.settings,
            {**classification_scores(counts), "val_accuracy": best.accuracy, "val_loss": best.loss},
            images=len(self.rows),
            best_epoch=round(best.step / self.epoch_steps, 3),
            classes=list(self.data.classes),
            per_class=by_class,
            confusion=counts.tolist(),
            **took,
        )
        if lean:
            run.drop_checkpoints()

    def _loader(self, first: int) -> ViewLoader:
        return ViewLoader(
            dataset=self.data,
            rows=self.rows,
            augments=(preset(self.settings.views),),
            image_size=int(self.settings.image_size),
            batch_size=int(self.settings.batch_size),
            parts=self.settings.accumulate,
            rank=self.fabric.global_rank,
            world=self.fabric.world_size,
            seed=self.settings.seed,
            start=first,
            stop=self.steps,
            workers=resolve.workers(self.settings.workers),
            device=self.fabric.device,
        )

    def _answers(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the labels ``[n]`` and the logits ``[n classes]`` of images, on the CPU."""
        self.classifier.eval()
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
                logits.append(self.classifier.logits(batch.views[0]).float().cpu())
        self.classifier.train()
        return torch.cat(labels), torch.cat(logits)

    def _look(self) -> tuple[float, float]:
        """Return accuracy and cross entropy on the validation images."""
        labels, logits = self._answers(self.splits.val)
        found = float((logits.argmax(1) == labels).double().mean()), float(F.cross_entropy(logits, labels))
        # batch statistics may differ between processes, the decision to stop must not
        return self.fabric.broadcast(found)

    def _impatient(self, looks: frozenset[int], best: Best, step: int) -> bool:
        patience = self.settings.patience
        return patience is not None and looks_between(looks, best.step, step) >= patience

    def _restore(self, last: Path | None, optimizer: Optimizer) -> tuple[int, Best]:
        if last is None:
            return 0, NO_LOOK
        first = checkpoint.restore(checkpoint.read(last, "resume"), objective=self.classifier, optimizer=optimizer)
        path = last.with_name(runs.BEST.name)
        if not path.exists():
            return first, NO_LOOK
        # It may be of a look after the last checkpoint: then the same look comes again and does not beat it.
        state = checkpoint.read(path, "resume")
        return first, Best(state["step"], state["val_accuracy"], state["val_loss"], state["objective"])

    def _save_best(self, run: Run | None, best: Best) -> None:
        if run is not None and best.step > 0:
            checkpoint.save(
                run.folder / runs.BEST,
                step=best.step,
                objective=best.state,
                val_accuracy=best.accuracy,
                val_loss=best.loss,
            )


def look_steps(steps: int, looks: int) -> frozenset[int]:
    """Return the steps after which to look at the validation images: evenly spaced, the last one among them.

    >>> sorted(look_steps(10, 4)), sorted(look_steps(2, 5))
    ([2, 5, 8, 10], [1, 2])
    """
    return frozenset(max(1, round(steps * (look + 1) / looks)) for look in range(looks))


def looks_between(looks: frozenset[int], first: int, last: int) -> int:
    """Return how many looks there are after step ``first``, up to step ``last``.

    >>> looks_between(frozenset({2, 4, 6, 8}), 2, 7), looks_between(frozenset({2, 4, 6, 8}), 8, 8)
    (2, 0)
    """
    return sum(first < look <= last for look in looks)
