"""The figures of a pretraining's health."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from headstart.evaluation.health import effective_rank, health, top_singular
from headstart.verbs.health import is_collapsed


def naive(first, second, target, features):
    """Return the figures by loops over images and dimensions, in numpy."""
    count, dims = first.shape
    unit = np.array([row / np.linalg.norm(row) for row in first])
    other = np.array([row / np.linalg.norm(row) for row in second])
    pairs = list(itertools.combinations(range(count), 2))
    similarities = [float(np.dot(unit[i], unit[j])) for i, j in pairs]
    potentials = [math.exp(-2 * sum((unit[i] - unit[j]) ** 2)) for i, j in pairs]
    variances = np.linalg.svd(first - first.mean(0), compute_uv=False) ** 2
    distances = [1 - np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first, target, strict=True)]
    return {
        "health_std": np.mean([np.std(unit[:, dim]) for dim in range(dims)]) * math.sqrt(dims),
        "health_rank": naive_rank(first),
        "health_rank_limit": min(count, dims),
        "health_features_rank": naive_rank(features),
        "health_top_singular": variances[0] / variances.sum(),
        "health_top5_singular": variances[:5].sum() / variances.sum(),
        "health_uniformity": math.log(sum(potentials) / len(potentials)),
        "health_negatives": np.mean(similarities),
        "health_negatives_std": np.std(similarities),
        "health_alignment": np.mean([sum((a - b) ** 2) for a, b in zip(unit, other, strict=True)]),
        "health_positives": np.mean([np.dot(a, b) for a, b in zip(unit, other, strict=True)]),
        "health_target_distance": np.mean(distances),
    }


def naive_rank(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    shares = [value / sum(values) for value in values]
    return math.exp(-sum(share * math.log(share) for share in shares if share > 0))


@pytest.mark.parametrize("shape", [(30, 7), (9, 20), (12, 12)])
def test_figures_are_those_of_their_papers(shape):
    generator = np.random.default_rng(0)
    arrays = [generator.normal(0.3, 1, shape) for _ in range(3)] + [generator.normal(1, 2, (shape[0], 15))]
    first, second, target, features = map(torch.from_numpy, arrays)
    found = health([first, second], target, features)
    expected = naive(*arrays)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-9, abs=1e-9), name


def test_embeddings_evenly_over_the_sphere_are_healthy():
    figures = health([torch.randn(400, 32)], None, torch.randn(400, 8))
    assert figures["health_std"] == pytest.approx(1, abs=0.01)
    assert figures["health_rank"] > 0.95 * 32
    assert figures["health_negatives"] == pytest.approx(0, abs=0.01)
    assert figures["health_top_singular"] < 0.06
    assert not is_collapsed(figures)


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_one_point_is_a_collapse(value):
    figures = health([torch.full((40, 32), value)] * 2, None, torch.full((40, 8), value))
    assert figures["health_std"] == pytest.approx(0, abs=1e-7)
    assert figures["health_rank"] == pytest.approx(1, abs=1e-6)
    assert figures["health_uniformity"] == pytest.approx(0, abs=1e-9)
    assert figures["health_alignment"] == 0
    assert math.isnan(figures["health_top_singular"])
    assert is_collapsed(figures)


def test_a_collapse_with_a_little_noise_is_one_too():
    figures = health([torch.ones(64, 32) + 1e-3 * torch.randn(64, 32)], None, torch.randn(64, 8))
    assert figures["health_std"] < 0.01
    assert figures["health_rank"] < 1.5


def test_two_clusters_lie_on_one_line():
    corners = torch.zeros(60, 16)
    corners[:30, 0], corners[30:, 1] = 1, 1
    figures = health([corners], None, corners)
    assert figures["health_rank"] == pytest.approx(2)
    assert figures["health_top_singular"] == pytest.approx(1)
    assert figures["health_negatives"] == pytest.approx((2 * 30 * 29) / (60 * 59))


def test_embeddings_along_one_direction_have_rank_one_whatever_their_spread():
    line = torch.randn(50, 1) * torch.randn(1, 32)
    figures = health([line], None, line)
    assert figures["health_rank"] == pytest.approx(1, abs=1e-4)
    assert figures["health_std"] > 0.5
    assert is_collapsed(figures)


def test_scale_and_order_of_the_images_do_not_matter():
    first, second, features = torch.randn(3, 20, 9, dtype=torch.float64)
    order = torch.randperm(20)
    expected = health([first, second], second, features)
    found = health([100 * first[order], second[order]], second[order], features[order])
    assert found == pytest.approx(expected, rel=1e-9)


def test_one_view_has_no_positives_and_no_teacher_no_distance():
    figures = health([torch.randn(8, 4)], None, torch.randn(8, 4))
    assert not figures.keys() & {"health_positives", "health_alignment", "health_target_distance"}


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_embeddings_that_are_no_numbers_give_nan(wrong):
    embeddings = torch.randn(12, 6)
    embeddings[3, 2] = wrong
    figures = health([embeddings, embeddings], embeddings, embeddings)
    assert [name for name, value in figures.items() if not math.isnan(value)] == ["health_rank_limit"]


@pytest.mark.parametrize("count", [1, 2])
def test_the_smallest_batches_end_nothing(count):
    figures = health([torch.randn(count, 6)] * 2, None, torch.randn(count, 9))
    assert figures["health_positives"] == pytest.approx(1)
    assert figures["health_rank_limit"] == count
    assert math.isnan(figures["health_negatives"]) == math.isnan(figures["health_std"]) == (count == 1)
    assert not is_collapsed(figures)


def test_rows_of_zeros_count_as_points_at_the_origin():
    embeddings = torch.randn(10, 4, dtype=torch.float64)
    embeddings[:2] = 0
    figures = health([embeddings], None, embeddings)
    distances = torch.cdist(*[F.normalize(embeddings, dim=1)] * 2).square()
    above = distances[torch.triu(torch.ones(10, 10), 1) > 0]
    assert figures["health_uniformity"] == pytest.approx(float(above.mul(-2).exp().mean().log()), rel=1e-9)
    assert all(math.isfinite(value) for value in figures.values())


def test_autocast_and_gradients_are_left_outside():
    embeddings = torch.randn(30, 8, dtype=torch.bfloat16, requires_grad=True)
    expected = effective_rank(embeddings.detach().double())
    with torch.autocast("cpu", torch.bfloat16):
        assert effective_rank(embeddings) == expected
        assert top_singular(embeddings, 8) == pytest.approx(1, abs=1e-12)
