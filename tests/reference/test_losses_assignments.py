"""Assignments, which have no gradient, against a search and against the loop of the paper."""

import numpy as np
import pytest
import torch
from torch import Tensor

from headstart.losses.clustering import sinkhorn
from headstart.losses.dense import correspondence


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_correspondence_equals_a_search():
    first, second = draw(2, 4, 6), draw(2, 4, 5, seed=1)
    found = correspondence(first, second)
    assert found.dtype == torch.int64
    for image, place in np.ndindex(2, 6):
        similar = [torch.cosine_similarity(first[image, :, place], other, dim=0) for other in second[image].T]
        assert int(found[image, place]) == int(np.argmax(similar))


def test_sinkhorn_equals_the_loop_of_the_paper():
    scores = draw(8, 3)
    share_of = np.exp(scores.numpy().T / 0.5)
    for _ in range(3):
        for k in range(3):
            share_of[k] /= share_of[k].sum() * 3
        for b in range(8):
            share_of[:, b] /= share_of[:, b].sum() * 8
    np.testing.assert_allclose(sinkhorn(scores, epsilon=0.5, iterations=3).numpy(), share_of.T * 8, rtol=1e-9)


def test_sinkhorn_reaches_both_marginals():
    assignments = sinkhorn(draw(12, 4), epsilon=0.5, iterations=60)
    torch.testing.assert_close(assignments.sum(1), torch.ones(12, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(assignments.sum(0), torch.full((4,), 3.0, dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_sinkhorn_survives_extreme_scores_in_float32(scale):
    # scores over epsilon reach 4e5, where the exponential of most differences is 0 and that of others infinite
    assignments = sinkhorn(draw(12, 4).float() * scale, epsilon=0.05, iterations=3)
    torch.testing.assert_close(assignments.sum(1), torch.ones(12))


def test_sinkhorn_knows_no_bias_of_a_prototype_and_no_order():
    scores, bias, order = draw(12, 4), draw(4, seed=1), torch.randperm(12)
    expected = sinkhorn(scores, epsilon=0.5, iterations=3)
    torch.testing.assert_close(sinkhorn(scores + bias, epsilon=0.5, iterations=3), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(sinkhorn(scores[order], epsilon=0.5, iterations=3), expected[order], rtol=1e-9, atol=0)


def test_no_assignment_carries_a_gradient():
    scores = draw(2, 4, 6).requires_grad_()
    assert not sinkhorn(scores[0], epsilon=0.5, iterations=3).requires_grad
    assert not correspondence(scores, scores).requires_grad
