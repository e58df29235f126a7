"""The only training loop."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from torch import Tensor
from torch.optim import Optimizer

from headstart.contracts import Batch, Objective
from headstart.errors import UserError
from headstart.randomness import mix
from headstart.training.optim import set_learning_rate


class NonFiniteLossError(UserError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Step:
    """What happened in one optimiser step.

    Attributes:
        step: number of steps taken since the start of the training, 1 after the first.
        losses: the objective's named scalars, means over the step's parts.
        learning_rate: the one used.
        images: images seen, over all processes.
        seconds: duration.
        waited: seconds of it in which the loop waited for images.
        gradient_norm: the length of the whole gradient, before it is clipped.
        batch: the last part of the step.
    """

    step: int
    losses: dict[str, float]
    learning_rate: float
    images: int
    seconds: float
    waited: float
    gradient_norm: float
    batch: Batch


def fit(
    objective: Objective,
    batches: Iterator[Batch],
    optimizer: Optimizer,
    *,
    fabric: Fabric,
    learning_rates: Callable[[int], float],
    start: int,
    steps: int,
    parts: int,
    seed: int,
    clip_gradient: float | None = None,
) -> Iterator[Step]:
    """Train from step ``start`` up to ``steps``, and yield after each step, when the caller may save or evaluate.

    Args:
        objective: gives the losses; set up by ``fabric``, as is the optimiser.
        batches: ``parts`` batches per step, from the one of step ``start`` on.
        optimizer: moves the weights.
        fabric: device, precision and processes.
        learning_rates: the learning rate of each step, 0 is the first.
        start: steps taken already.
        steps: steps in all.
        parts: batches whose gradients one step adds up.
        seed: of whatever the objective draws.
        clip_gradient: the length to which a longer gradient is cut; None leaves it as it is.

    Raises:
        NonFiniteLossError: the loss or its gradient is not finite; names the step, the weights are those before it.
    """
    objective.train()
    for step in range(start, steps):
        begin, waited, images = time.perf_counter(), 0.0, 0
        set_learning_rate(optimizer, learning_rates(step))
        # dropout and the like: a function of seed and step, so that a resumed run draws what the first would have
        torch.manual_seed(mix(seed, step, fabric.global_rank))
        totals: dict[str, Tensor] = {}
        for part in range(parts):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            images += len(batch.rows) * fabric.world_size
            with fabric.no_backward_sync(objective, enabled=part < parts - 1):  # type: ignore[arg-type]
                losses = objective(batch)
                fabric.backward(losses["loss"] / parts)
            for name, value in losses.items():
                totals[name] = totals.get(name, 0.0) + value.detach() / parts
        length = _gradient_norm(objective, optimizer, fabric, clip_gradient)
        means = {name: float(value) for name, value in totals.items()}
        known = {**means, "gradient_norm": float(length)}
        # half precision scales the loss until gradients overflow now and then, and leaves out such a step
        finite = means if _scaler(fabric) is not None else known
        if not all(math.isfinite(value) for value in finite.values()):
            raise NonFiniteLossError(_explain(step + 1, finite, learning_rates(step)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        objective.after_step((step + 1) / steps)
        seconds = time.perf_counter() - begin
        yield Step(step + 1, means, learning_rates(step), images, seconds, waited, known["gradient_norm"], batch)


def _scaler(fabric: Fabric) -> torch.amp.GradScaler | None:
    """Return what scales the loss in half precision, None in any other."""
    return getattr(fabric._precision, "scaler", None)


def _gradient_norm(objective: Objective, optimizer: Optimizer, fabric: Fabric, longest: float | None) -> Tensor:
    """Return the length of the whole gradient, and cut it down where it is longer than allowed."""
    scaler = _scaler(fabric)
    if scaler is not None:
        scaler.unscale_(getattr(optimizer, "optimizer", optimizer))
    trained = [parameter for parameter in objective.parameters() if parameter.grad is not None]
    length = torch.nn.utils.get_total_norm([parameter.grad for parameter in trained if parameter.grad is not None])
    if longest is not None:
        torch.nn.utils.clip_grads_with_norm_(trained, longest, length)
    return length


def _explain(step: int, losses: dict[str, float], learning_rate: float) -> str:
    broken = ", ".join(f"{name} is {value}" for name, value in losses.items() if not math.isfinite(value))
    return f"learning_rate: {broken} at step {step}, learning rate {learning_rate:.2g} (try a lower one, or fp32)"
