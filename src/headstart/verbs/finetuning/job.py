"""A task with its images: what the supervised loop must know of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

from lightning.fabric import Fabric
from torch import Tensor

from headstart.config import Finetune
from headstart.contracts import Batch, Task
from headstart.data.index import DataSet
from headstart.data.loading import ViewLoader
from headstart.data.splits import Splits
from headstart.data.targets import Targets
from headstart.verbs import resolve
from headstart.views import preset

TaskT = TypeVar("TaskT", bound=Task)


class Look(NamedTuple):
    """What a look at the validation images found: a score in 0..1, where more is better, and the loss."""

    score: float
    loss: float


@dataclass(frozen=True)
class Job(ABC, Generic[TaskT]):
    """A task, and what it learns from.

    Attributes:
        settings: resolved.
        data: the opened data set.
        splits: its splits.
        rows: the labelled images, int64 ``[n]``.
        task: the head on its backbone; the loop trains it where it lies, and puts the best weights back into it.
        fabric: device, precision and processes.
        score: the name of what is looked at, such as ``accuracy``.
        targets: what is learned beside each image.
    """

    settings: Finetune
    data: DataSet
    splits: Splits
    rows: Tensor
    task: TaskT
    fabric: Fabric
    score: ClassVar[str]
    targets: ClassVar[Targets] = "labels"

    def batches(self, start: int, stop: int) -> Iterable[Batch]:
        """Return the batches of the steps start … stop - 1: one view of each image, and what is learned beside it."""
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
            start=start,
            stop=stop,
            targets=self.targets,
            workers=resolve.workers(self.settings.workers),
            device=self.fabric.device,
        )

    @abstractmethod
    def look(self) -> Look:
        """Return what there is to say of the validation images, with the task as it is now."""

    @abstractmethod
    def finish(self, folder: Path, *, lean: bool) -> dict[str, Any]:
        """Return what ``result.json`` holds: ``scores`` of the test images among it; a lean run gets no curves."""
