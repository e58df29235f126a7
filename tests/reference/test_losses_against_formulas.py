"""Each loss against naive loops over the formula of its paper, in float64: value, gradient, numerical gradient."""

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from headstart.losses.clustering import swapped_prediction
from headstart.losses.contrastive import cross_nce, info_nce, supcon
from headstart.losses.dense import dense_info_nce
from headstart.losses.distillation import feature_distillation, negative_cosine, self_distillation
from headstart.losses.gaussian import prediction, visreg_centre, visreg_scale, visreg_shape
from headstart.losses.masked import masked_patches
from headstart.losses.redundancy import barlow_twins, vicreg

ALLOWED = torch.tensor([[True, False, True], [False, False, False], [True, True, True], [False, True, False]])
LABELS = torch.tensor([0, -1, 2, 0, -1, 0, 2, -1])
IMAGES = torch.tensor([0, 1, 2, 3, 1, 0, 4, 5])
MASKED = torch.tensor([[True, False, True], [False, True, False]])


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def unit_columns(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(draw(*shape, seed=9).detach(), dim=0)


def cosine(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum() / (one.square().sum().sqrt() * other.square().sum().sqrt())


def mean(values: list[Tensor]) -> Tensor:
    return sum(values) / len(values)


def variance(values: Tensor, correction: int) -> Tensor:
    return (values - values.sum() / len(values)).square().sum() / (len(values) - correction)


def share(own: Tensor, candidates: list[Tensor], temperature: float) -> Tensor:
    return (own / temperature).exp() / sum((candidate / temperature).exp() for candidate in candidates)


def naive_info_nce(queries, positives, negatives, *, temperature, allowed=None):
    terms = []
    for i, query in enumerate(queries):
        own = cosine(query, positives[i])
        others = [cosine(query, key) for j, key in enumerate(negatives) if allowed is None or allowed[i, j]]
        terms.append(-share(own, [own, *others], temperature).log())
    return mean(terms)


def naive_cross_nce(queries, keys, *, temperature):
    similar = [[cosine(query, key) for key in keys] for query in queries]
    return mean([-share(row[i], row, temperature).log() for i, row in enumerate(similar)])


def naive_supcon(embeddings, labels, images, *, temperature):
    terms = []
    for i, anchor in enumerate(embeddings):
        others = [j for j in range(len(embeddings)) if j != i]
        positives = [j for j in others if images[j] == images[i] or labels[j] == labels[i] != -1]
        candidates = [cosine(anchor, embeddings[j]) for j in others]
        if positives:
            logs = [share(cosine(anchor, embeddings[j]), candidates, temperature).log() for j in positives]
            terms.append(-mean(logs))
    return mean(terms)


def naive_barlow_twins(first, second, *, redundancy_weight):
    count, dim = first.shape
    first, second = (
        torch.stack([(c - c.mean()) / (variance(c, 0) + 1e-5).sqrt() for c in view.T], dim=1)
        for view in (first, second)
    )
    total = 0
    for i in range(dim):
        for j in range(dim):
            correlation = (first[:, i] * second[:, j]).sum() / count
            total = total + ((1 - correlation) ** 2 if i == j else redundancy_weight * correlation**2)
    return total


def naive_vicreg(first, second, *, invariance_weight, variance_weight, covariance_weight):
    count, dim = first.shape
    invariance = sum((a - b).square().sum() for a, b in zip(first, second, strict=True)) / (count * dim)
    short, related = 0, 0
    for view in (first, second):
        centred = view - sum(view) / count
        short = short + sum(torch.relu(1 - (variance(c, 1) + 1e-4).sqrt()) for c in view.T) / dim
        covariance = sum(torch.outer(row, row) for row in centred) / (count - 1)
        related = related + sum(covariance[i, j] ** 2 for i in range(dim) for j in range(dim) if i != j) / dim
    return invariance_weight * invariance + variance_weight * short / 2 + covariance_weight * related


def naive_negative_cosine(predictions, targets):
    return mean([-cosine(p, t) for p, t in zip(predictions, targets, strict=True)])


def naive_self_distillation(student, teacher, centre, *, student_temperature, teacher_temperature):
    terms = []
    for t, seen in enumerate(teacher):
        for v, answer in enumerate(student):
            for i in range(len(answer)):
                if v != t:
                    target = ((seen[i] - centre) / teacher_temperature).exp()
                    said = (answer[i] / student_temperature).exp()
                    terms.append(-(target / target.sum() * (said / said.sum()).log()).sum())
    return mean(terms)


def naive_feature_distillation(student, teacher, *, beta):
    terms = []
    for answer, seen in zip(student.flatten(0, -2), teacher.flatten(0, -2), strict=True):
        white = (seen - seen.mean()) / (variance(seen, 0) + 1e-5).sqrt()
        for gap in (answer - white).abs():
            terms.append(gap**2 / (2 * beta) if gap <= beta else gap - beta / 2)
    return mean(terms)


def naive_swapped_prediction(scores, codes, *, temperature):
    terms = []
    for row, code in zip(scores, codes, strict=True):
        terms.append(-sum(q * share(score, list(row), temperature).log() for q, score in zip(code, row, strict=True)))
    return mean(terms)


def naive_dense_info_nce(queries, positives, negatives, *, temperature):
    places = [(q[:, s], p[:, s]) for q, p in zip(queries, positives, strict=True) for s in range(q.shape[1])]
    return mean([naive_info_nce(q[None], p[None], negatives, temperature=temperature) for q, p in places])


def naive_prediction(views, centres):
    return mean([(view[i, j] - centres[i, j]) ** 2 for view in views for i, j in np.ndindex(*centres.shape)])


def naive_visreg_centre(embeddings):
    return mean([(sum(column) / len(column)) ** 2 for column in embeddings.T])


def naive_visreg_scale(embeddings):
    return mean([(1 - variance(column, 0).sqrt()) ** 2 for column in embeddings.T])


def naive_visreg_shape(embeddings, directions):
    count = len(embeddings)
    columns = [(c - c.mean()) / (variance(c, 0).sqrt().detach() + 1e-4) for c in embeddings.T]
    terms = []
    for direction in directions.T:
        ordered = sorted(sum(c * weight for c, weight in zip(columns, direction, strict=True)))
        for rank, value in enumerate(ordered, start=1):
            terms.append((value - scipy.stats.norm.ppf(rank / (count + 1))) ** 2)
    return mean(terms)


def naive_masked_patches(predictions, patches, masked, *, normalise):
    terms = []
    for i, j in np.ndindex(*masked.shape):
        if masked[i, j]:
            patch = patches[i, j]
            if normalise:
                patch = (patch - patch.mean()) / (variance(patch, 1) + 1e-6).sqrt()
            terms.append((predictions[i, j] - patch).square().mean())
    return mean(terms)


VICREG = {"invariance_weight": 25.0, "variance_weight": 20.0, "covariance_weight": 1.5}
DINO = {"student_temperature": 0.1, "teacher_temperature": 0.04}
# loss, formula, tensors that get a gradient, other arguments, keyword arguments
CASES = {
    "info_nce": (info_nce, naive_info_nce, [draw(4, 5), draw(4, 5, seed=1), draw(3, 5, seed=2)], [], {}),
    "info_nce-allowed": (
        info_nce,
        naive_info_nce,
        [draw(4, 5), draw(4, 5, seed=1), draw(3, 5, seed=2)],
        [],
        {"allowed": ALLOWED},
    ),
    "cross_nce": (cross_nce, naive_cross_nce, [draw(6, 5), draw(6, 5, seed=1)], [], {}),
    "supcon": (supcon, naive_supcon, [draw(8, 5)], [LABELS, IMAGES], {}),
    "barlow_twins": (
        barlow_twins,
        naive_barlow_twins,
        [draw(6, 4), draw(6, 4, seed=1)],
        [],
        {"redundancy_weight": 0.02},
    ),
    "vicreg": (vicreg, naive_vicreg, [draw(6, 4), draw(6, 4, seed=1)], [], VICREG),
    "negative_cosine": (negative_cosine, naive_negative_cosine, [draw(6, 4), draw(6, 4, seed=1)], [], {}),
    "self_distillation": (
        self_distillation,
        naive_self_distillation,
        [draw(4, 3, 5), draw(2, 3, 5, seed=1), draw(5, seed=2)],
        [],
        DINO,
    ),
    "feature_distillation": (
        feature_distillation,
        naive_feature_distillation,
        [draw(2, 3, 5), draw(2, 3, 5, seed=1)],
        [],
        {"beta": 0.7},
    ),
    "swapped_prediction": (
        swapped_prediction,
        naive_swapped_prediction,
        [draw(5, 4)],
        [draw(5, 4, seed=1).detach().softmax(1)],
        {},
    ),
    "dense_info_nce": (
        dense_info_nce,
        naive_dense_info_nce,
        [draw(2, 5, 3), draw(2, 5, 3, seed=1), draw(4, 5, seed=2)],
        [],
        {},
    ),
    "prediction": (prediction, naive_prediction, [draw(3, 4, 2), draw(4, 2, seed=1)], [], {}),
    "visreg_centre": (visreg_centre, naive_visreg_centre, [draw(7, 4)], [], {}),
    "visreg_scale": (visreg_scale, naive_visreg_scale, [draw(7, 4)], [], {}),
    "visreg_shape": (visreg_shape, naive_visreg_shape, [draw(7, 4)], [unit_columns(4, 6)], {}),
    "masked_patches": (
        masked_patches,
        naive_masked_patches,
        [draw(2, 3, 5), draw(2, 3, 5, seed=1)],
        [MASKED],
        {"normalise": False},
    ),
    "masked_patches-normalised": (
        masked_patches,
        naive_masked_patches,
        [draw(2, 3, 5), draw(2, 3, 5, seed=1)],
        [MASKED],
        {"normalise": True},
    ),
}
TEMPERED = {"info_nce", "info_nce-allowed", "cross_nce", "supcon", "swapped_prediction", "dense_info_nce"}


@pytest.mark.parametrize("name", CASES)
def test_value_and_gradient_equal_the_formula(name):
    loss, formula, inputs, others, settings = CASES[name]
    for temperature in (0.05, 1.0) if name in TEMPERED else (None,):
        arguments = settings | ({} if temperature is None else {"temperature": temperature})
        found, expected = loss(*inputs, *others, **arguments), formula(*inputs, *others, **arguments)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)  # the shape and the dtype, too
        gradients = (torch.autograd.grad(value, inputs) for value in (found, expected))
        for mine, theirs in zip(*gradients, strict=True):
            assert float(theirs.norm()) > 0
            assert float((mine - theirs).norm()) <= 1e-9 * float(theirs.norm())


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"visreg_shape"}))  # which hides a part of its gradient
def test_gradient_is_numerically_right(name):
    loss, _, inputs, others, settings = CASES[name]
    arguments = settings | ({"temperature": 0.5} if name in TEMPERED else {})
    assert torch.autograd.gradcheck(lambda *tensors: loss(*tensors, *others, **arguments), inputs, fast_mode=True)
