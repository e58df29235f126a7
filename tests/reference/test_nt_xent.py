"""NT-Xent against a naive loop over eq. 1 of SimCLR, and against an independent library, in float64."""

import math

import pytest
import torch
from torch import Tensor

from headstart.losses.contrastive import nt_xent


def naive(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    embeddings = torch.cat([first, second])
    count = len(first)
    total = torch.zeros((), dtype=embeddings.dtype)
    for i in range(2 * count):
        j = (i + count) % (2 * count)
        similarity = [torch.cosine_similarity(embeddings[i], other, dim=0) / temperature for other in embeddings]
        total = total - torch.log(similarity[j].exp() / sum(s.exp() for k, s in enumerate(similarity) if k != i))
    return total / (2 * count)


def pair(count=7, dim=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, dim, dtype=torch.float64, generator=generator, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("temperature", [0.05, 0.2, 1.0])
def test_value_and_gradient_equal_the_formula(temperature):
    first, second = pair()
    found, expected = nt_xent(first, second, temperature=temperature), naive(first, second, temperature)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    for mine, theirs in zip(
        torch.autograd.grad(found, [first, second]), torch.autograd.grad(expected, [first, second]), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-15)


def test_value_and_gradient_equal_pytorch_metric_learning():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    first, second = pair(count=16, dim=8, seed=1)
    peer = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.2))
    found, expected = nt_xent(first, second, temperature=0.2), peer(first, second)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    mine, theirs = torch.autograd.grad(found, first)[0], torch.autograd.grad(expected, first)[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-12)


def test_gradient_is_numerically_right():
    first, second = pair(count=3, dim=4)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.5), (first, second))


def test_symmetric_and_free_of_scale_and_of_the_order_of_pairs():
    first, second = pair()
    value = nt_xent(first, second, temperature=0.2)
    order = torch.randperm(len(first))
    scales = torch.rand(len(first), 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(nt_xent(second, first, temperature=0.2), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(nt_xent(first[order], second[order], temperature=0.2), value, rtol=1e-12, atol=0)
    torch.testing.assert_close(nt_xent(first * scales, second / scales, temperature=0.2), value, rtol=1e-12, atol=0)


def test_collapsed_embeddings_give_the_log_of_the_number_of_candidates():
    same = torch.ones(8, 3, dtype=torch.float64)
    assert float(nt_xent(same, same, temperature=0.1)) == pytest.approx(math.log(15), rel=1e-12)


def test_is_computed_in_float32_under_autocast():
    first, second = (view.detach().float() for view in pair(count=32, dim=16))
    expected = nt_xent(first, second, temperature=0.05)
    with torch.autocast("cpu", torch.bfloat16):
        found = nt_xent(first, second, temperature=0.05)
    assert torch.equal(found, expected)
    assert nt_xent(first.bfloat16(), second.bfloat16(), temperature=0.05).dtype == torch.float32
