"""The losses against lightly and pytorch-metric-learning, in float64: value and gradient."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.losses.clustering import sinkhorn, swapped_prediction
from headstart.losses.contrastive import info_nce, supcon
from headstart.losses.distillation import negative_cosine, self_distillation
from headstart.losses.gaussian import prediction, visreg_centre, visreg_scale, visreg_shape
from headstart.losses.redundancy import barlow_twins, vicreg


@pytest.fixture(scope="module")
def lightly():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations of what it imports are no concern of these tests
        return pytest.importorskip("lightly.loss")


@pytest.fixture(scope="module")
def lejepa(lightly):
    return pytest.importorskip("lightly.loss.lejepa_loss")


@pytest.fixture(scope="module")
def visreg(lightly):
    return pytest.importorskip("lightly.loss.visreg_loss")


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def unit_columns(*shape: int) -> Tensor:
    return F.normalize(draw(*shape, seed=9).detach(), dim=0)


def assert_agree(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found.detach(), expected.detach().reshape(()), rtol=1e-9, atol=0)
    gradients = (torch.autograd.grad(value, inputs) for value in (found, expected))
    for mine, theirs in zip(*gradients, strict=True):
        assert float(theirs.norm()) > 0
        assert float((mine - theirs).norm()) <= 1e-9 * float(theirs.norm())


def test_supcon_equals_pytorch_metric_learning_where_all_are_labelled():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    embeddings, labels = draw(16, 8), torch.arange(16) % 4
    peer = losses.SupConLoss(temperature=0.2)
    assert_agree(supcon(embeddings, labels, torch.arange(16), temperature=0.2), peer(embeddings, labels), [embeddings])


def test_info_nce_equals_lightly_with_a_memory_bank(lightly):
    queries, positives, negatives = draw(6, 8), draw(6, 8, seed=1), F.normalize(draw(20, 8, seed=2).detach())
    peer = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(20, 8)).double()
    peer.memory_bank.bank = negatives.clone()
    found = info_nce(queries, positives.detach(), negatives, temperature=0.2)
    assert_agree(found, peer(queries, positives), [queries])


def test_barlow_twins_equals_lightly(lightly):
    views = [draw(9, 6), draw(9, 6, seed=1)]
    peer = lightly.BarlowTwinsLoss(lambda_param=0.02)
    assert_agree(barlow_twins(*views, redundancy_weight=0.02), peer(*views), views)


def test_vicreg_equals_lightly(lightly):
    views = [draw(9, 6), draw(9, 6, seed=1)]
    peer = lightly.VICRegLoss(lambda_param=25.0, mu_param=20.0, nu_param=1.5)
    found = vicreg(*views, invariance_weight=25.0, variance_weight=20.0, covariance_weight=1.5)
    assert_agree(found, peer(*views), views)


def test_negative_cosine_equals_lightly(lightly):
    views = [draw(9, 6), draw(9, 6, seed=1)]
    assert_agree(negative_cosine(*views), lightly.NegativeCosineSimilarity()(*views), views)


def test_self_distillation_equals_lightly(lightly):
    student, teacher, centre = draw(5, 4, 7), draw(2, 4, 7, seed=1), draw(7, seed=2).detach()
    peer = lightly.DINOLoss(output_dim=7, student_temp=0.125).double()
    peer.center.copy_(centre)
    # a sixteenth, since lightly rounds the teacher's temperature to float32
    expected = peer(list(teacher), list(student), teacher_temp=0.0625)
    found = self_distillation(student, teacher, centre, student_temperature=0.125, teacher_temperature=0.0625)
    assert_agree(found, expected, [student, teacher])


def test_sinkhorn_equals_lightly(lightly):
    peer = pytest.importorskip("lightly.loss.swav_loss").sinkhorn
    scores = draw(10, 4).detach()
    for iterations in (1, 3, 10):
        expected = peer(scores, iterations=iterations, epsilon=0.3)
        torch.testing.assert_close(sinkhorn(scores, epsilon=0.3, iterations=iterations), expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("queue", [False, True])
def test_swapped_prediction_builds_the_loss_of_lightly(lightly, queue):
    # two global and two local views; each global view's codes are predicted from the three others
    views = [draw(6, 5, seed=seed) for seed in range(4)]
    queues = [draw(12, 5, seed=10 + view).detach() for view in range(2)] if queue else None
    terms = []
    for i in range(2):
        scores = torch.cat([views[i], queues[i]]) if queues else views[i]
        codes = sinkhorn(scores, epsilon=0.1, iterations=3)[:6]
        terms += [swapped_prediction(views[v], codes, temperature=0.2) for v in range(4) if v != i]
    peer = lightly.SwaVLoss(temperature=0.2, sinkhorn_iterations=3, sinkhorn_epsilon=0.1)
    assert_agree(torch.stack(terms).mean(), peer(views[:2], views[2:], queues), views)


def test_prediction_equals_lightly(lejepa):
    views = draw(5, 8, 6)
    expected = lejepa.lejepa_invariance_loss(all_proj=views, global_proj=views[:2])
    assert_agree(prediction(views, views[:2].mean(0)), expected, [views])


@pytest.mark.parametrize("shape", [(9, 6), (3, 9, 6)])
def test_visreg_equals_lightly(visreg, monkeypatch, shape):
    embeddings, directions = draw(*shape), unit_columns(6, 11)
    assert_agree(visreg_centre(embeddings), visreg.visreg_center_loss(embeddings), [embeddings])
    assert_agree(visreg_scale(embeddings), visreg.visreg_scale_loss(embeddings), [embeddings])
    monkeypatch.setattr(torch, "randn", lambda *_, **__: directions)
    found = visreg_shape(embeddings, directions)
    torch.testing.assert_close(found, visreg.visreg_shape_loss(embeddings, 11), rtol=1e-6, atol=0)
    # lightly computes the quantiles in float32; with those in float64 the two agree to the last digits
    positions = torch.arange(1, 10, dtype=torch.float64) / 10
    monkeypatch.setattr(visreg.Normal, "icdf", lambda *_: torch.special.ndtri(positions))
    assert_agree(found, visreg.visreg_shape_loss(embeddings, 11), [embeddings])
