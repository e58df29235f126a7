"""Linear probes: many multinomial logistic regressions on frozen features, solved together.

The problems of a table (label budgets x seeds x penalties) share their features, so those that also share their
number of rows become one batch of matrix products. Two exact changes of variables make each of them small and round:
features are centred per subset and rotated onto their principal axes, which leaves at most n of d columns where there
are fewer rows than features.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from headstart.errors import UserError
from headstart.evaluation.logistic import MEMORY, LogisticSolver

PENALTIES = torch.logspace(-4, 4, 9, dtype=torch.float64)
_NUMBERS_AT_ONCE = 2**24  # float64 numbers that one batch of problems may hold: 128 MiB


@dataclass(frozen=True)
class LinearModels:
    """Linear classifiers fitted by :func:`fit_linear`, one per problem, on standardised features.

    Attributes:
        weight: ``[p k d]``, acting on standardised features.
        bias: ``[p k]``; minus infinity for a class that has no row in the problem, so it is never predicted.
        mean: what was subtracted from each feature, ``[d]``.
        scale: what each feature was divided by, ``[d]``.
        loss: the objective reached in each problem, ``[p]``.
        converged: whether each problem reached its tolerance, ``[p]`` (bool).
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    scale: Tensor
    loss: Tensor
    converged: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits ``[p n k]`` of features ``[n d]``."""
        problems, classes, _ = self.weight.shape
        standardised = (features.to(self.weight) - self.mean) / self.scale
        flat = torch.addmm(self.bias.flatten(), standardised, self.weight.flatten(0, 1).T)  # [n p*k]
        return flat.view(len(features), problems, classes).transpose(0, 1)

    def predict(self, features: Tensor) -> Tensor:
        """Return the class numbers ``[p n]`` (int64) of features ``[n d]``."""
        chunk = max(1, _NUMBERS_AT_ONCE // (self.bias.numel() + features.shape[1]))
        return torch.cat([self.logits(part).argmax(2) for part in torch.split(features, chunk)], dim=1)


@dataclass(frozen=True)
class ProbeScore:
    """How one subset of labels did: the penalty was chosen on validation data, the test data were scored once.

    Attributes:
        penalty: the chosen penalty (scikit-learn's ``C``).
        val_accuracy: accuracy on the validation data with that penalty, in 0..1.
        test_accuracy: accuracy on the test data with that penalty, in 0..1.
        predictions: predicted class numbers of the test data, ``[n]`` (int64).
    """

    penalty: float
    val_accuracy: float
    test_accuracy: float
    predictions: Tensor


def standardise(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the standard deviation of each feature, both ``[d]``.

    They need no labels, so they come from all rows ``[n d]``, labelled or not. A feature that is constant up to
    rounding has scale 1; scikit-learn's ``StandardScaler`` does the same.
    """
    variance, mean = torch.var_mean(features, dim=0, correction=0)
    rounding = len(features) * torch.finfo(features.dtype).eps
    constant = variance <= rounding * variance + (rounding * mean).square()
    return mean, torch.where(constant, 1.0, variance.sqrt())


def choose_penalty(validation_accuracy: Tensor, penalties: Tensor) -> int:
    """Return the index of the penalty with the highest accuracy; ties go to the stronger one (smaller ``C``)."""
    best = validation_accuracy == validation_accuracy.max()
    return int(torch.where(best, penalties.to(best.device), torch.inf).argmin())


def probe(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    subsets: Sequence[Tensor],
    penalties: Tensor = PENALTIES,
    classes: int | None = None,
) -> list[ProbeScore]:
    """Fit every subset with every penalty, choose the penalty on validation data and score test data once.

    Args:
        train_features: ``[n d]``; all of them set the standardisation, labelled or not.
        train_labels: class numbers ``[n]`` (int64); rows in no subset may hold -1.
        val_features: ``[v d]``, used to choose the penalty and for nothing else.
        val_labels: ``[v]``.
        test_features: ``[t d]``.
        test_labels: ``[t]``.
        subsets: row numbers of the labelled training images, one tensor per problem (a budget and a seed).
        penalties: the grid, values of scikit-learn's ``C``.
        classes: how many classes there are; by default one more than the highest label.

    Returns:
        One score per subset, in their order.

    Raises:
        UserError: as :func:`fit_linear` does.
    """
    if classes is None:
        classes = 1 + int(max(labels.max() for labels in (train_labels, val_labels, test_labels)))
    repeated = [rows for rows in subsets for _ in penalties]
    models = fit_linear(train_features, train_labels, classes, repeated, penalties.repeat(len(subsets)))
    hits = models.predict(val_features) == val_labels.to(models.weight.device)
    accuracies = hits.double().mean(1).view(len(subsets), len(penalties))
    scores = []
    for subset, accuracy in enumerate(accuracies):
        index = choose_penalty(accuracy, penalties)
        predictions = _select(models, subset * len(penalties) + index).predict(test_features)[0]
        test_accuracy = float((predictions == test_labels.to(predictions.device)).double().mean())
        scores.append(ProbeScore(float(penalties[index]), float(accuracy[index]), test_accuracy, predictions))
    return scores


def fit_linear(
    features: Tensor,
    labels: Tensor,
    classes: int,
    subsets: Sequence[Tensor],
    penalties: Tensor,
    *,
    max_steps: int = 1000,
    tolerance: float = 1e-9,
    dtype: torch.dtype = torch.float64,
) -> LinearModels:
    """Fit one multinomial logistic regression per subset and penalty, all of them together.

    Minimises what scikit-learn's ``LogisticRegression(C=penalty)`` does, with an intercept that is not penalised:
    ``1/2 ||W||^2 + penalty * (sum of the cross-entropies of the subset's rows)``. Features are standardised with the
    mean and deviation of all rows given. A class without a row in a subset is never predicted there, as if it had been
    left out. Problems that are equal are solved once.

    Args:
        features: ``[n d]``, on any device with float64.
        labels: class numbers ``[n]`` (int64); rows in no subset may hold -1.
        classes: how many classes there are.
        subsets: row numbers of each problem, ``p`` tensors (the same one may come again with another penalty).
        penalties: scikit-learn's ``C`` of each problem, ``[p]``; the smaller, the stronger.
        max_steps: steps after which a problem is given up as not converged.
        tolerance: a problem is done when the decrease that its next step promises is this share of its loss.
        dtype: float32 is not enough to reach scikit-learn's optimum for weak penalties.

    Raises:
        UserError: when a subset is empty or holds a row without a class, a penalty is not positive, or a feature is not
            a finite number.
    """
    _check(features, labels, classes, subsets, penalties)
    features, labels = features.to(dtype), labels.to(features.device)
    mean, scale = standardise(features)
    problems, width = len(subsets), features.shape[1]
    models = LinearModels(
        weight=features.new_zeros(problems, classes, width),
        bias=features.new_zeros(problems, classes),
        mean=mean,
        scale=scale,
        loss=features.new_zeros(problems),
        converged=torch.zeros(problems, dtype=torch.bool, device=features.device),
    )
    for block in _blocks(subsets, penalties, classes, width):
        rows = block.rows.to(features.device)
        inputs = (features[rows] - mean) / scale
        _fit_block(models, block, inputs, labels[rows], max_steps, tolerance)
    return models


def _check(features: Tensor, labels: Tensor, classes: int, subsets: Sequence[Tensor], penalties: Tensor) -> None:
    if len(subsets) != len(penalties):
        raise UserError(f"penalties: {len(penalties)} for {len(subsets)} subsets (allowed: one per subset)")
    if not bool((penalties > 0).all()):
        raise UserError("penalties: not all positive (allowed: numbers above 0)")
    if not bool(features.isfinite().all()):
        raise UserError("features: hold values that are no finite numbers (allowed: finite numbers)")
    for rows in {id(rows): rows for rows in subsets}.values():
        held = labels[rows.to(labels.device)]
        if len(held) == 0 or int(held.min()) < 0 or int(held.max()) >= classes:
            raise UserError(f"subsets: one is empty or holds a row without a class (allowed labels: 0..{classes - 1})")


@dataclass(frozen=True)
class _Block:
    """Problems of one shape: ``s`` subsets of ``n`` rows, each with the same ``p`` penalties.

    Attributes:
        rows: row numbers ``[s n]``.
        penalties: ascending, ``p`` of them.
        problems: the numbers of the problems that each subset and penalty stand for, ``[s][p]``.
    """

    rows: Tensor
    penalties: tuple[float, ...]
    problems: list[list[list[int]]]


def _blocks(subsets: Sequence[Tensor], penalties: Tensor, classes: int, width: int) -> Iterator[_Block]:
    """Gather equal problems, then problems of equal shape, in blocks that fit into memory."""
    ordered = {id(rows): rows.sort().values.cpu() for rows in subsets}
    names = {key: rows.numpy().tobytes() for key, rows in ordered.items()}
    distinct = {names[key]: rows for key, rows in ordered.items()}
    wanted: dict[bytes, dict[float, list[int]]] = {name: {} for name in distinct}
    for problem, (rows, penalty) in enumerate(zip(subsets, penalties.tolist(), strict=True)):
        wanted[names[id(rows)]].setdefault(penalty, []).append(problem)
    shapes: dict[tuple[int, tuple[float, ...]], list[bytes]] = {}
    for name, found in wanted.items():
        shapes.setdefault((len(distinct[name]), tuple(sorted(found))), []).append(name)
    for (size, grid), members in shapes.items():
        # Solving one problem takes about 6 tensors of its logits and 2 * MEMORY + 6 of its weights.
        numbers = classes * (6 * size + (2 * MEMORY + 6) * min(size, width))
        together = max(1, _NUMBERS_AT_ONCE // numbers)
        for low in range(0, len(grid), together):
            part = grid[low : low + together]
            count = max(1, _NUMBERS_AT_ONCE // (numbers * len(part) + 2 * size * width))
            for first in range(0, len(members), count):
                chosen = members[first : first + count]
                problems = [[wanted[name][penalty] for penalty in part] for name in chosen]
                yield _Block(torch.stack([distinct[name] for name in chosen]), part, problems)


def _select(models: LinearModels, problem: int) -> LinearModels:
    one = slice(problem, problem + 1)
    return LinearModels(
        models.weight[one], models.bias[one], models.mean, models.scale, models.loss[one], models.converged[one]
    )


def _principal_axes(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate centred inputs ``[s n d]`` onto r = min(n, d) principal axes: ``[s n r]``, and the axes ``[s d r]``."""
    if inputs.shape[1] < inputs.shape[2]:
        span, triangle = torch.linalg.qr(inputs.mT)
        inputs = triangle.mT
        axes = torch.linalg.eigh(inputs.mT @ inputs).eigenvectors
        return inputs @ axes, span @ axes
    axes = torch.linalg.eigh(inputs.mT @ inputs).eigenvectors
    return inputs @ axes, axes


def _fit_block(
    models: LinearModels, block: _Block, inputs: Tensor, labels: Tensor, max_steps: int, tolerance: float
) -> None:
    """Solve a block of problems on inputs ``[s n d]`` and write the results into ``models``."""
    centre = inputs.mean(1, keepdim=True)
    rotated, axes = _principal_axes(inputs - centre)
    solver = LogisticSolver(rotated, labels, inputs.new_tensor(block.penalties), models.bias.shape[1])
    weights, losses, converged = solver.minimise(max_steps, tolerance)  # [s k p r+1]
    weight = torch.einsum("skpr,sdr->spkd", weights[..., :-1], axes)
    bias = weights[..., -1].mT - (weight * centre[:, :, None]).sum(3)
    for subset, row in enumerate(block.problems):
        for penalty, problems in enumerate(row):
            models.weight[problems] = weight[subset, penalty]
            models.bias[problems] = bias[subset, penalty]
            models.loss[problems] = losses[subset, penalty]
            models.converged[problems] = converged[subset, penalty]
