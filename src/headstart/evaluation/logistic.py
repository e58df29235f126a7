"""Batched L-BFGS for multinomial logistic regressions that share their shape.

Liu & Nocedal, On the limited memory BFGS method for large scale optimization, 1989, with the inverse of a diagonal
estimate of the curvature as its first matrix, computed anew at every step: without it problems with weak penalties
take ten times as many steps.
"""

from collections import deque

import torch
import torch.nn.functional as F
from torch import Tensor

MEMORY = 10  # steps that L-BFGS remembers
_SUFFICIENT = 1e-4  # the share of the promised decrease that a step must bring (Armijo, 1966)
_HALVINGS = 30


class LogisticSolver:
    """``s * p`` regressions of ``s`` subsets with ``p`` penalties each, every one with its own steps and its own end.

    A step costs two matrix products: one for the gradient, one for the logits of the direction, along which the search
    for a step length then needs no further one. Weights are ``[s k p r+1]``, the bias last; logits are ``[s k p n]``,
    because a softmax over an outer axis is several times faster on CPUs than one over a short inner axis.

    Args:
        inputs: ``[s n r]``.
        labels: class numbers ``[s n]`` (int64) in 0..classes - 1.
        penalties: scikit-learn's ``C``, ``[p]``.
        classes: how many classes there are; one without rows in a subset gets a bias of minus infinity there.
    """

    def __init__(self, inputs: Tensor, labels: Tensor, penalties: Tensor, classes: int) -> None:
        subsets, rows, width = inputs.shape
        self._inputs = F.pad(inputs, (0, 1), value=1.0)  # [s n r+1]
        self._energy = self._inputs.square().sum(1)[:, None, None]  # [s 1 1 r+1]
        self._decay = inputs.new_ones(width + 1)
        self._decay[-1] = 0
        self._labels = labels[:, None, None]  # [s 1 1 n]
        self._penalties = penalties
        self._weights = inputs.new_zeros(subsets, classes, len(penalties), width + 1)
        # The best bias while the other weights are zero; minus infinity has no gradient and stays.
        self._weights[..., -1] = F.one_hot(labels, classes).to(inputs).mean(1)[:, :, None].log()
        self._logits = self._weights[..., -1:].expand(-1, -1, -1, rows)
        self._log_probabilities, self._losses = self._cross_entropy(self._logits)
        self._gradient, self._curvature = self._slopes()
        self._history: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)

    def minimise(self, max_steps: int, tolerance: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the weights ``[s k p r+1]``, the losses ``[s p]`` and whether each problem converged ``[s p]``.

        A problem has converged when the decrease that its next step promises is at most ``tolerance * loss``.
        """
        weights, losses = self._weights.clone(), self._losses.clone()
        converged = torch.zeros_like(losses, dtype=torch.bool)
        left = torch.arange(len(self._penalties), device=losses.device)
        for _ in range(max_steps):
            direction = self._direction()
            slope = _inner(self._gradient, direction)
            converged[:, left] |= -slope <= tolerance * self._losses
            busy = ~converged[:, left]
            unfinished = busy.any(0)
            if not bool(unfinished.all()):
                weights[:, :, left], losses[:, left] = self._weights, self._losses
                self._keep(unfinished)
                direction, slope, busy = direction[:, :, unfinished], slope[:, unfinished], busy[:, unfinished]
                left = left[unfinished]
            if len(left) == 0:
                return weights, losses, converged
            self._step(direction * busy[:, None, :, None], slope * busy)
        weights[:, :, left], losses[:, left] = self._weights, self._losses
        return weights, losses, converged

    def _cross_entropy(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities ``[s k p n]`` and the penalised sums of the cross-entropies ``[s p]``."""
        log_probabilities = logits.log_softmax(1)
        picked = log_probabilities.gather(1, self._labels.expand(-1, 1, logits.shape[2], -1))
        return log_probabilities, -self._penalties * picked.sum((1, 3))

    def _slopes(self) -> tuple[Tensor, Tensor]:
        """Return the gradient and the estimate of the Hessian's diagonal, both ``[s k p r+1]``.

        The estimate takes the mean of p (1 - p) over the rows for every row's own, which needs no matrix product.
        """
        probabilities = self._log_probabilities.exp()
        variance = (probabilities - probabilities.square()).mean(3, keepdim=True)
        penalties = self._penalties[:, None]
        curvature = self._decay + penalties * self._energy * variance + torch.finfo(variance.dtype).eps
        places = self._labels.expand(-1, 1, len(self._penalties), -1)
        surprise = probabilities.scatter_add_(1, places, -torch.ones_like(places, dtype=probabilities.dtype))
        product = (surprise.flatten(1, 2) @ self._inputs).view_as(self._weights)
        return penalties * product + torch.where(self._decay > 0, self._weights, 0.0), curvature

    def _direction(self) -> Tensor:
        """Return minus the approximate inverse Hessian times the gradient, by the two-loop recursion."""
        direction = -self._gradient
        shares: list[Tensor] = []
        for step, change, inverse in reversed(self._history):
            shares.append(_spread(inverse * _inner(step, direction)))
            direction = direction - shares[-1] * change
        direction = direction / self._curvature
        if self._history:
            _, change, inverse = self._history[-1]
            scale = inverse * _inner(change, change / self._curvature)
            direction = direction / _spread(torch.where(scale > 0, scale, 1.0))
        for (step, change, inverse), share in zip(self._history, reversed(shares), strict=True):
            direction = direction + (share - _spread(inverse * _inner(change, direction))) * step
        return direction

    def _step(self, direction: Tensor, slope: Tensor) -> None:
        """Go along the direction, halving each problem's length until its loss has fallen enough."""
        slant = (direction.flatten(1, 2) @ self._inputs.mT).view_as(self._logits)
        weights, moves = self._weights[..., :-1], direction[..., :-1]
        square, cross, bend = _inner(weights, weights) / 2, _inner(weights, moves), _inner(moves, moves) / 2
        length = torch.ones_like(slope)
        for _ in range(_HALVINGS):
            logits = torch.addcmul(self._logits, _spread(length), slant)
            log_probabilities, losses = self._cross_entropy(logits)
            losses = losses + square + length * cross + length.square() * bend
            too_long = losses > self._losses + _SUFFICIENT * length * slope
            if not bool(too_long.any()):
                break
            length = torch.where(too_long, length / 2, length)
        step, before = _spread(length) * direction, self._gradient
        self._weights, self._logits = self._weights + step, logits
        self._log_probabilities, self._losses = log_probabilities, losses
        self._gradient, self._curvature = self._slopes()
        change = self._gradient - before
        product = _inner(step, change)
        self._history.append((step, change, torch.where(product > 0, 1 / product, 0.0)))

    def _keep(self, penalties: Tensor) -> None:
        """Go on with the penalties of this mask ``[p]`` only."""
        self._penalties, self._losses = self._penalties[penalties], self._losses[:, penalties]
        for name in ("_weights", "_logits", "_log_probabilities", "_gradient", "_curvature"):
            setattr(self, name, getattr(self, name)[:, :, penalties])
        for _ in range(len(self._history)):
            step, change, inverse = self._history.popleft()
            self._history.append((step[:, :, penalties], change[:, :, penalties], inverse[:, penalties]))


def _inner(left: Tensor, right: Tensor) -> Tensor:
    """Return the inner product of each problem's weights, twice ``[s k p r]`` to ``[s p]``."""
    return (left * right).sum((1, 3))


def _spread(values: Tensor) -> Tensor:
    """Return one value per problem ``[s p]`` in a shape that goes with weights and logits, ``[s 1 p 1]``."""
    return values[:, None, :, None]
