"""What must not change a loss, what collapsed embeddings give, and that mixed precision costs no digits."""

import importlib
import inspect
import math
import pkgutil

import pytest
import torch
from torch import Tensor

import headstart.losses
from headstart.losses.clustering import sinkhorn, swapped_prediction
from headstart.losses.contrastive import cross_nce, info_nce, nt_xent, supcon
from headstart.losses.dense import correspondence, dense_info_nce
from headstart.losses.distillation import feature_distillation, negative_cosine, self_distillation
from headstart.losses.gaussian import prediction, visreg_centre, visreg_scale, visreg_shape
from headstart.losses.masked import masked_patches
from headstart.losses.redundancy import barlow_twins, vicreg
from headstart.losses.segmentation import binary_cross_entropy, cross_entropy, dice, focal

VICREG = {"invariance_weight": 25.0, "variance_weight": 25.0, "covariance_weight": 1.0}
PIXELS = torch.arange(30).view(1, 6, 5) % 3 - 1  # void, the first and the second class
ORDER = torch.tensor([3, 0, 5, 1, 4, 2])
UNLABELLED = torch.full((6,), -1)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scales(*shape: int) -> Tensor:
    return draw(*shape, seed=7).exp()


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


# on pairs of rows [6 5]
PAIRS = {
    "info_nce": lambda a, b: info_nce(a, b, a.flip(1), temperature=0.2),
    "cross_nce": lambda a, b: cross_nce(a, b, temperature=0.2),
    "barlow_twins": lambda a, b: barlow_twins(a, b, redundancy_weight=0.01),
    "vicreg": lambda a, b: vicreg(a, b, **VICREG),
    "negative_cosine": negative_cosine,
    "feature_distillation": lambda a, b: feature_distillation(a, b, beta=2.0),
    "swapped_prediction": lambda a, b: swapped_prediction(a, sinkhorn(b, epsilon=0.3, iterations=3), temperature=0.1),
    "supcon": lambda a, b: supcon(torch.cat([a, b]), torch.full((12,), -1), torch.arange(6).repeat(2), temperature=0.2),
}


@pytest.mark.parametrize("name", PAIRS)
def test_free_of_the_order_of_the_pairs(name):
    first, second = draw(6, 5), draw(6, 5, seed=1)
    assert_same(PAIRS[name](first[ORDER], second[ORDER]), PAIRS[name](first, second))
    assert abs(float(PAIRS[name](first[ORDER], second) - PAIRS[name](first, second))) > 1e-4


@pytest.mark.parametrize("name", ["barlow_twins", "vicreg", "negative_cosine", "supcon"])
def test_symmetric(name):
    first, second = draw(6, 5), draw(6, 5, seed=1)
    assert_same(PAIRS[name](second, first), PAIRS[name](first, second))


@pytest.mark.parametrize("name", ["info_nce", "cross_nce", "negative_cosine", "supcon"])
def test_free_of_the_scale_of_rows(name):
    first, second = draw(6, 5), draw(6, 5, seed=1)
    assert_same(PAIRS[name](first * scales(6, 1), second / scales(6, 1)), PAIRS[name](first, second))


def test_dense_losses_are_free_of_scale_and_of_the_order_of_places():
    queries, positives, negatives = draw(2, 5, 6), draw(2, 5, 6, seed=1), draw(4, 5, seed=2)
    expected = dense_info_nce(queries, positives, negatives, temperature=0.2)
    found = dense_info_nce(queries[..., ORDER] * scales(2, 1, 6), positives[..., ORDER], negatives, temperature=0.2)
    assert_same(found, expected)
    assert torch.equal(
        correspondence(queries * scales(2, 1, 6), positives / scales(2, 1, 6)), correspondence(queries, positives)
    )
    assert torch.equal(correspondence(queries, queries[..., ORDER]), ORDER.argsort().expand(2, 6))


def test_supcon_without_labels_is_nt_xent():
    first, second = draw(6, 5), draw(6, 5, seed=1)
    assert_same(PAIRS["supcon"](first, second), nt_xent(first, second, temperature=0.2))


def test_supcon_leaves_out_what_has_no_positive():
    embeddings = draw(6, 5).requires_grad_()
    alone = supcon(embeddings, UNLABELLED, torch.arange(6), temperature=0.2)
    assert alone.item() == 0
    assert torch.autograd.grad(alone, embeddings)[0].abs().max() == 0
    # where two of six have a positive, the mean is over these two
    labels = torch.tensor([4, -1, 7, 4, -1, 9])
    others = [[j for j in range(6) if j != i] for i in (0, 3)]
    unit = torch.nn.functional.normalize(embeddings, dim=1)
    terms = [
        (unit[i] @ unit[j] / 0.2) - torch.logsumexp(unit[i] @ unit[rest].T / 0.2, 0)
        for i, j, rest in zip((0, 3), (3, 0), others, strict=True)
    ]
    assert_same(supcon(embeddings, labels, torch.arange(6), temperature=0.2), -torch.stack(terms).mean())


def test_info_nce_without_a_negative_counts_as_nothing():
    queries, positives = draw(3, 5).requires_grad_(), draw(3, 5, seed=1)
    allowed = torch.tensor([[False, False], [True, True], [False, False]])
    value = info_nce(queries, positives, draw(2, 5, seed=2), temperature=0.2, allowed=allowed)
    (gradient,) = torch.autograd.grad(value, queries)
    assert gradient[[0, 2]].abs().max() == 0
    assert gradient[1].abs().max() > 0
    assert_same(value * 3, info_nce(queries[1:2], positives[1:2], draw(2, 5, seed=2), temperature=0.2))


def test_byol_is_an_affine_function_of_negative_cosine():
    first, second = draw(6, 5), draw(6, 5, seed=1)
    gap = torch.nn.functional.normalize(first, dim=1) - torch.nn.functional.normalize(second, dim=1)
    assert_same(2 + 2 * negative_cosine(first, second), gap.square().sum(1).mean())


def test_barlow_twins_is_free_of_scale_and_shift_of_dimensions():
    first, second = draw(64, 5), draw(64, 5, seed=1)
    found = barlow_twins(first * scales(5) + 3, second, redundancy_weight=0.01)
    torch.testing.assert_close(found, barlow_twins(first, second, redundancy_weight=0.01), rtol=1e-3, atol=0)


def test_distillation_ignores_the_scale_of_the_teacher_and_constants():
    student, teacher = draw(4, 6, 32), draw(2, 6, 32, seed=1)
    settings = {"student_temperature": 0.1, "teacher_temperature": 0.05}
    expected = self_distillation(student, teacher, draw(32, seed=2), **settings)
    assert_same(self_distillation(student + 3, teacher - 5, draw(32, seed=2), **settings), expected)
    found = feature_distillation(student[0], teacher[0] * 9 + 4, beta=2.0)
    torch.testing.assert_close(found, feature_distillation(student[0], teacher[0], beta=2.0), rtol=1e-4, atol=0)


def test_gaussian_losses_know_neither_order_nor_sign_nor_other_batches():
    views, directions = draw(2, 6, 4), torch.nn.functional.normalize(draw(4, 8, seed=1), dim=0)
    expected = torch.stack([visreg_shape(view, directions) for view in views]).mean()
    assert_same(visreg_shape(views[:, ORDER], directions), expected)
    assert_same(visreg_shape(views, directions.flip(1)), expected)
    assert_same(visreg_shape(views, -directions), expected)
    assert_same(visreg_scale(views + 3), visreg_scale(views))
    torch.testing.assert_close(
        visreg_shape(views * 50 + 3, directions), visreg_shape(views, directions), rtol=1e-3, atol=0
    )


def test_no_gradient_of_the_shape_changes_the_scale():
    embeddings = draw(8, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(visreg_shape(embeddings, torch.eye(3, dtype=torch.float64)), embeddings)
    assert gradient.sum(0).abs().max() < 1e-12  # no shift either
    assert gradient.abs().max() > 1e-3
    (gradient,) = torch.autograd.grad(visreg_scale(torch.zeros(8, 3, requires_grad=True) + embeddings * 0), embeddings)
    assert gradient.isfinite().all()


def test_masked_patches_see_only_what_was_masked():
    predictions, patches = draw(2, 3, 8), draw(2, 3, 8, seed=1)
    masked = torch.tensor([[True, False, True], [False, True, False]])
    other = predictions + 10 * (~masked)[..., None]
    for normalise in (False, True):
        expected = masked_patches(predictions, patches, masked, normalise=normalise)
        assert_same(masked_patches(other, patches, masked, normalise=normalise), expected)
    torch.testing.assert_close(
        masked_patches(predictions, patches * 5 + 2, masked, normalise=True), expected, rtol=1e-4, atol=0
    )
    assert masked_patches(predictions, patches * 0 + 0.5, masked, normalise=True).isfinite()


SAME = torch.ones(6, 5, dtype=torch.float64)
COLLAPSED = {
    "info_nce": (info_nce(SAME, SAME, SAME[:4], temperature=0.1), math.log(5)),
    "cross_nce": (cross_nce(SAME, SAME, temperature=0.1), math.log(6)),
    "supcon": (supcon(SAME, torch.zeros(6), torch.arange(6), temperature=0.1), math.log(5)),
    "dense_info_nce": (dense_info_nce(SAME[None], SAME[None], SAME[:3, :1].repeat(1, 6), temperature=0.1), math.log(4)),
    "barlow_twins": (barlow_twins(SAME, SAME, redundancy_weight=0.01), 5),
    "vicreg": (vicreg(SAME, SAME, **VICREG), 25 * (1 - 0.01)),
    "negative_cosine": (negative_cosine(SAME, SAME), -1),
    "self_distillation": (
        self_distillation(
            SAME[None].repeat(3, 1, 1), SAME[None], SAME[0], student_temperature=1, teacher_temperature=1
        ),
        math.log(5),
    ),
    "swapped_prediction": (swapped_prediction(SAME, SAME / 5, temperature=0.1), math.log(5)),
    "prediction": (prediction(SAME[None], SAME), 0),
    "visreg_scale": (visreg_scale(SAME), 1),
    "visreg_centre": (visreg_centre(SAME), 1),
    "feature_distillation": (feature_distillation(SAME, SAME, beta=2.0), 0.25),  # 1² / (2 · 2) from whitened zeros
}


@pytest.mark.parametrize("name", COLLAPSED)
def test_collapsed_embeddings_give_the_known_value(name):
    found, expected = COLLAPSED[name]
    assert float(found) == pytest.approx(expected, rel=1e-12)


ALL = PAIRS | {
    "nt_xent": lambda a, b: nt_xent(a, b, temperature=0.2),
    "sinkhorn": lambda a, b: sinkhorn(a, epsilon=0.05, iterations=3),
    "correspondence": lambda a, b: correspondence(a[None], b[None]),
    "dense_info_nce": lambda a, b: dense_info_nce(a[None], b[None], a.T, temperature=0.2),
    "self_distillation": lambda a, b: self_distillation(
        torch.stack([a, b]), b[None], a[0], student_temperature=0.1, teacher_temperature=0.04
    ),
    "prediction": lambda a, b: prediction(a[None], b),
    "visreg_centre": lambda a, b: visreg_centre(a),
    "visreg_scale": lambda a, b: visreg_scale(a),
    "visreg_shape": lambda a, b: visreg_shape(a, b.T),
    "cross_entropy": lambda a, b: cross_entropy(torch.stack([a, b])[None], PIXELS),
    "binary_cross_entropy": lambda a, b: binary_cross_entropy(a[None, None], PIXELS),
    "dice": lambda a, b: dice(torch.stack([a, b])[None], PIXELS),
    "focal": lambda a, b: focal(torch.stack([a, b])[None], PIXELS),
    "masked_patches": lambda a, b: masked_patches(a[None], b[None], UNLABELLED[None] < 0, normalise=True),
}


def test_every_loss_stands_in_the_table():
    found = set()
    for module in pkgutil.iter_modules(headstart.losses.__path__, "headstart.losses."):
        members = inspect.getmembers(importlib.import_module(module.name), inspect.isfunction)
        found |= {name for name, member in members if member.__module__ == module.name and not name.startswith("_")}
    assert found - {"exact", "parse", "combined"} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_is_computed_in_float32_under_autocast_and_from_bfloat16(name):
    views = [draw(6, 5).bfloat16(), draw(6, 5, seed=1).bfloat16()]
    expected = ALL[name](*(view.float() for view in views))
    with torch.autocast("cpu", torch.bfloat16):
        found, from_float = ALL[name](*views), ALL[name](*(view.float() for view in views))
    assert torch.equal(from_float, expected)
    assert torch.equal(found, expected)
    assert found.dtype == expected.dtype
    assert found.dtype in (torch.float32, torch.int64)
