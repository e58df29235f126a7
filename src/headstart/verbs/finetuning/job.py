"""What the supervised loop must know of a task."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from headstart.contracts import Backbone, Batch, Objective


class Look(NamedTuple):
    """What a look at the validation images found: a score in 0..1, where more is better, and the loss."""

    score: float
    loss: float


class Job(ABC):
    """A task with its images.

    Attributes:
        task: the head on its backbone; the loop trains it where it lies, and puts the best weights back into it.
        score: the name of what is looked at, such as ``accuracy``.
    """

    task: Objective
    score: ClassVar[str]

    @property
    @abstractmethod
    def backbone(self) -> Backbone:
        """The backbone of the task."""

    @property
    @abstractmethod
    def head(self) -> Any:
        """All of the task that is not its backbone, as a module."""

    @abstractmethod
    def batches(self, start: int, stop: int) -> Iterable[Batch]:
        """Return the batches of the steps start … stop - 1."""

    @abstractmethod
    def look(self) -> Look:
        """Return what there is to say of the validation images, with the task as it is now."""

    @abstractmethod
    def finish(self, folder: Path, *, lean: bool) -> dict[str, Any]:
        """Return what ``result.json`` holds: ``scores`` of the test images among it; write plots unless it is lean."""
