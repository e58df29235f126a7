"""What a training writes while it runs: metrics, progress, and checkpoints when they are due."""

import resource
import time
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import nn
from torch.optim import Optimizer

from headstart.progress import Track
from headstart.runs import LAST, Run
from headstart.training import checkpoint
from headstart.training.fit import Step

_LINES = 1000  # of metrics in a whole training, about


class Recorder:
    """Writes for the first process; the others only count.

    Args:
        run: the folder; None in every process but the first.
        track: shows the progress.
        fabric: knows the processes.
        first: steps that an earlier process took; metrics that it wrote after its last checkpoint are forgotten.
        steps: of the whole training.
        epoch_steps: of one epoch.
        minutes: between checkpoints.
        save_last: write one after the last step too.
    """

    def __init__(
        self,
        run: Run | None,
        track: Track,
        fabric: Fabric,
        *,
        first: int,
        steps: int,
        epoch_steps: int,
        minutes: float,
        save_last: bool,
    ) -> None:
        if run is not None:
            run.rewind(first)
        self.run, self.track, self.fabric = run, track, fabric
        self.steps, self.epoch_steps, self.minutes = steps, epoch_steps, minutes
        self.save_last = save_last
        self.every = max(1, steps // _LINES)
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
        self._saved = time.monotonic()
        self._held = (0, 0.0, 0.0)  # images, seconds and seconds waited since the last line

    def record(self, step: Step, **more: Any) -> None:
        """Count a step; write its line when it is one of those that are written, or when there is more to say."""
        self.images += step.images
        self.seconds += step.seconds
        self.waited += step.waited
        images, seconds, waited = self._held
        images, seconds, waited = images + step.images, seconds + step.seconds, waited + step.waited
        self._held = (images, seconds, waited)
        if self.run is None:
            return
        self.track.update(step.images, f"loss {step.losses['loss']:.3f} ")
        if step.step % self.every and step.step != self.steps and not more:
            return
        self._held = (0, 0.0, 0.0)
        self.run.append(
            step=step.step,
            epoch=round(step.step / self.epoch_steps, 3),
            **step.losses,
            learning_rate=step.learning_rate,
            gradient_norm=step.gradient_norm,
            images_per_second=round(images / seconds, 1),
            data_wait=round(waited / seconds, 4),
            **more,
        )

    def checkpoint_due(self, step: Step) -> bool:
        """Say whether to save now: minutes have passed, or the training is over. All processes hear the same."""
        last = step.step == self.steps
        due = self.save_last if last else time.monotonic() - self._saved >= 60 * self.minutes
        return bool(self.fabric.broadcast(due)) if self.fabric.world_size > 1 else due

    def save(self, step: Step, objective: nn.Module, optimizer: Optimizer, **more: Any) -> None:
        """Write the checkpoint from which the run can go on; ``more`` is kept in it."""
        if self.run is not None:
            state, moments = objective.state_dict(), optimizer.state_dict()
            checkpoint.save(self.run.folder / LAST, step=step.step, objective=state, optimizer=moments, **more)
        self._saved = time.monotonic()

    def facts(self) -> dict[str, Any]:
        """Return what the training took, for result.json."""
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "seconds": round(self.seconds, 2),
            "images_per_second": round(self.images / self.seconds, 1) if self.seconds else None,
            "data_wait": round(self.waited / self.seconds, 4) if self.seconds else None,
            "peak_memory_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else memory,
        }
