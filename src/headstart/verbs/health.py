"""Looks at a pretraining while it runs, and says so when it collapses."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor

from headstart.contracts import Batch, Method
from headstart.errors import UserError
from headstart.evaluation.health import health

SMALLEST_STD = 0.1

_GRACE_LOOKS = 2
_GRACE = 0.05  # share of the steps
_ENOUGH = 8  # images and dimensions
_USUAL_EVERY = 50
_SMALLEST_EVERY = 40
_FEWEST_LOOKS = 5
_IMAGES = 256


class CollapseError(UserError):
    """All embeddings have become nearly alike, and the user wants the training to stop then."""


def looks(steps: int, asked: int | Literal["auto"]) -> int:
    """Return after how many steps to look again.

    A look is two forward passes of at most 256 images, one for each view. A step is two forward and two backward
    passes, a backward pass as long as two forward ones: six units of time. So a look is a third of a step, or less with
    larger batches. A teacher adds one unit; MoCo's step, of which only one view is trained, then has four units and its
    look three. Auto looks every 50 steps (1.5 % of the time at most), more often for five looks in a short training,
    but never more often than every 40, where three quarters of a step are 1.9 %.

    Args:
        steps: of the whole training.
        asked: number of steps, or ``auto``.
    """
    return max(_SMALLEST_EVERY, min(_USUAL_EVERY, steps // _FEWEST_LOOKS)) if asked == "auto" else asked


def smallest_rank(limit: float) -> float:
    """Return the effective rank below which embeddings have collapsed, of ``limit`` that are possible."""
    return max(1.5, 0.02 * limit)


def is_collapsed(figures: Mapping[str, float]) -> bool:
    """Say whether one look shows a collapse.

    Either all embeddings are nearly one point (complete collapse: a standard deviation below 0.1 of what it is on a
    sphere is a mean cosine similarity of different images above 0.99), or nearly on one line or in a few dimensions
    (dimensional collapse). From fewer than 8 images or dimensions nothing is concluded: two images are alike by chance,
    and the logits of a few classes, as of four rotations, are right to be alike.
    """
    limit = figures["health_rank_limit"]
    if limit < _ENOUGH:
        return False
    small_std = figures.get("health_std", math.inf) < SMALLEST_STD
    return small_std or figures.get("health_rank", math.inf) < smallest_rank(limit)


class Watch:
    """Looks at a method every few steps, in the first process only, and leaves no trace in the training.

    A collapse is certain when two looks in a row show it, since one batch may be an odd one. The first 5 % of the steps
    and the first two looks do not count: a network with random weights sees all images much alike.

    Args:
        method: what is trained, not what Fabric wrapped around it.
        fabric: knows the processes and the arithmetic.
        every: steps between two looks; the last step is always looked at.
        steps: of the whole training.
        on_collapse: say so once, or stop the training.
        say: prints one line.
        past: lines of the metrics that an earlier process left, for a training that goes on.
        images: at most so many of a batch are looked at.
    """

    def __init__(
        self,
        method: Method,
        *,
        fabric: Fabric,
        every: int,
        steps: int,
        on_collapse: Literal["warn", "stop"],
        say: Callable[[str], None],
        past: Iterable[Mapping[str, Any]] = (),
        images: int = _IMAGES,
    ) -> None:
        self.method, self.fabric, self.every, self.steps = method, fabric, every, steps
        self.on_collapse, self.say, self.images = on_collapse, say, images
        self.figures: dict[str, float] = {}
        self.collapsed_at: int | None = None
        self._looks, self._suspected = 0, False
        for line in past:
            if "health_rank_limit" in line:
                self._take(line["step"], {name: value for name, value in line.items() if name.startswith("health_")})

    def due(self, step: int) -> bool:
        """Say whether to look after this step, of which 1 is the first."""
        return step % self.every == 0 or step == self.steps

    def look(self, step: int, batch: Batch) -> dict[str, float]:
        """Return the figures of a batch, for the metrics; those that cannot be computed are left out.

        The look that makes a collapse certain has a further one, ``collapsed``, which is true. Only the first process
        looks, the others return nothing.
        """
        if not self.fabric.is_global_zero:
            return {}
        figures = {name: value for name, value in self._see(batch).items() if math.isfinite(value)}
        if not self._take(step, figures):
            return figures
        if self.on_collapse == "warn":
            self.say(self.explain())
        return {**figures, "collapsed": True}

    def stop(self) -> None:
        """Raise a CollapseError in all processes when the method has collapsed and that is to stop the training."""
        if self.on_collapse == "stop" and self.fabric.broadcast(self.collapsed_at is not None):
            raise CollapseError(self.explain() if self.fabric.is_global_zero else "collapse")

    def explain(self) -> str:
        """Return one line that says when and how far the method collapsed, and what usually helps."""
        std, rank = (self.figures.get(name, math.nan) for name in ("health_std", "health_rank"))
        return (
            f"collapse at step {self.collapsed_at}: standard deviation of the embeddings {std:.2g} of 1, "
            f"effective rank {rank:.1f} of {self.figures['health_rank_limit']:.0f}. "
            f"Usual remedy for {type(self.method).__name__}: {self.method.remedy}"
        )

    def facts(self) -> dict[str, Any]:
        """Return the step of the collapse, None without one, and the last figures, for result.json."""
        return {"collapsed_at_step": self.collapsed_at, "health": self.figures}

    def _take(self, step: int, figures: dict[str, float]) -> bool:
        """Take in the figures of a look, and say whether they make a collapse certain."""
        self._looks += 1
        self.figures = figures
        counts = self._looks > _GRACE_LOOKS and step > _GRACE * self.steps
        before, self._suspected = self._suspected, counts and is_collapsed(figures)
        if not (before and self._suspected) or self.collapsed_at is not None:
            return False
        self.collapsed_at = step
        return True

    def _see(self, batch: Batch) -> dict[str, float]:
        first = batch.views[0]
        count = min(self.images, len(first))
        # evenly spaced, because some batches have images of one class first
        places = torch.arange(count, device=first.device) * len(first) // count
        views = [view[places] for view in batch.views if view.shape == first.shape][:2]
        features: list[Tensor] = []  # those of the embeddings' own passes
        backbone = self.method.backbone.register_forward_hook(lambda module, images, output: features.append(output))
        with _undisturbed(self.method, first.device), self.fabric.autocast(), backbone:
            embeddings = [self.method.embed(view) for view in views]
            target = self.method.embed_target(views[0])
        return health(embeddings, target, features[0])


@contextmanager
def _undisturbed(method: Method, device: torch.device) -> Iterator[None]:
    """Evaluate without gradients, and leave modes and random numbers of the training as they were."""
    modes = [(module, module.training) for module in method.modules()]
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        try:
            for module, _ in modes:
                module.training = False
            yield
        finally:
            for module, training in modes:
                module.training = training
