"""Networks that methods are built from, against plain loops and formulas."""

import math
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from headstart.nets import Prototypes, Queue, follow, in_splits, mlp, rising, teacher_of


@pytest.mark.parametrize("pushes", [[3], [3, 3, 3], [5, 4, 7], [8], [20], [2, 20, 3], [1] * 19])
def test_a_queue_holds_the_latest_entries_like_a_deque(pushes):
    queue, expected = Queue(8, 4), deque(maxlen=8)
    expected.extend(queue.entries.clone())
    for count in pushes:
        new = torch.randn(count, 4)
        queue.hold(new)
        queue.push()
        expected.extend(F.normalize(new, dim=1))
    oldest_first = queue.entries.roll(-int(queue.place), 0)
    torch.testing.assert_close(oldest_first, torch.stack(list(expected)))
    assert queue.full == (sum(pushes) >= 8)


def test_a_queue_takes_what_is_held_only_when_it_is_pushed_and_once():
    queue, first, second = Queue(6, 3), torch.randn(2, 3), torch.randn(2, 3, requires_grad=True)
    before = queue.entries.clone()
    queue.hold(first)
    queue.hold(second)
    assert torch.equal(queue.entries, before)
    queue.push()
    expected = torch.cat([F.normalize(torch.cat([first, second]), dim=1), before[4:]])
    assert torch.equal(queue.entries, expected)
    assert not queue.entries.requires_grad
    queue.push()
    assert torch.equal(queue.entries, expected)
    assert (int(queue.place), int(queue.seen)) == (4, 4)


def test_a_queue_is_full_of_directions_and_goes_on_from_its_state():
    queue = Queue(5, 4)
    torch.testing.assert_close(queue.entries.norm(dim=1), torch.ones(5))
    assert not queue.full
    queue.hold(torch.randn(3, 4))
    queue.push()
    other = Queue(5, 4)
    other.load_state_dict(queue.state_dict())
    new = torch.randn(4, 4)
    for one in (queue, other):
        one.hold(new)
        one.push()
    assert torch.equal(queue.entries, other.entries)
    assert other.full


def test_a_queue_keeps_its_own_precision():
    queue = Queue(4, 4)
    queue.hold(torch.randn(2, 4, dtype=torch.bfloat16))
    queue.push()
    assert queue.entries.dtype == torch.float32


def test_a_teacher_is_a_copy_without_gradient():
    student = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    teacher = teacher_of(student)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert all(torch.equal(one, other) for one, other in zip(teacher.parameters(), student.parameters(), strict=True))
    with torch.no_grad():
        student[0].weight.zero_()
    assert teacher[0].weight.abs().sum() > 0


def test_a_teacher_follows_by_the_formula_and_keeps_its_own_statistics():
    student = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).double()
    teacher = teacher_of(nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).double())
    student(torch.randn(7, 3, dtype=torch.float64))
    before = [parameter.clone() for parameter in teacher.parameters()]
    follow(teacher, student, 0.9)
    for old, own, new in zip(before, student.parameters(), teacher.parameters(), strict=True):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * own, rtol=1e-12, atol=0)
        assert not new.requires_grad
    assert torch.equal(teacher[1].running_mean, torch.zeros(5, dtype=torch.float64))
    follow(teacher, student, 1.0)
    torch.testing.assert_close(teacher[0].weight, 0.9 * before[0] + 0.1 * student[0].weight, rtol=1e-12, atol=0)
    follow(teacher, student, 0.0)
    assert all(torch.equal(one, other) for one, other in zip(teacher.parameters(), student.parameters(), strict=True))


def test_a_rising_momentum_follows_half_a_cosine():
    progress = [step / 10 for step in range(11)]
    found = [rising(0.9, each) for each in progress]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0.9, 1.0)
    assert found[5] == pytest.approx(0.95)
    assert found == pytest.approx([0.9 + 0.1 * math.sin(math.pi * each / 2) ** 2 for each in progress])
    assert rising(1.0, 0.3) == 1.0


def kinds(network):
    return [type(layer).__name__ for layer in network]


def test_an_mlp_normalises_between_its_layers_and_needs_no_bias_there():
    network = mlp([4, 6, 5, 3])
    between = ["Linear", "BatchNorm1d", "ReLU"]
    assert kinds(network) == [*between, *between, "Linear"]
    linear = [layer for layer in network if isinstance(layer, nn.Linear)]
    assert [layer.weight.shape for layer in linear] == [(6, 4), (5, 6), (3, 5)]
    assert [layer.bias is not None for layer in linear] == [False, False, True]
    assert all(layer.affine for layer in network if isinstance(layer, nn.BatchNorm1d))


def test_an_mlp_without_normalisation_has_biases():
    network = mlp([4, 6, 3], norm=False, activation=nn.GELU)
    assert kinds(network) == ["Linear", "GELU", "Linear"]
    assert all(layer.bias is not None for layer in network if isinstance(layer, nn.Linear))


def test_an_mlp_can_end_in_a_normalisation_without_weights():
    network = mlp([4, 6, 3], last_norm=True)
    assert kinds(network) == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    assert network[-2].bias is None
    assert not network[-1].affine
    embeddings = network(torch.randn(64, 4))
    torch.testing.assert_close(embeddings.mean(0), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(embeddings.var(0, correction=0), torch.ones(3), rtol=1e-2, atol=0)


def test_an_mlp_of_two_widths_is_linear():
    assert kinds(mlp([4, 3])) == ["Linear"]


def test_prototypes_give_cosine_similarities():
    prototypes, embeddings = Prototypes(5, 7), torch.randn(4, 5)
    with torch.no_grad():
        prototypes.weight.mul_(3)
    expected = F.cosine_similarity(embeddings[:, None], prototypes.weight[None], dim=2)
    torch.testing.assert_close(prototypes(embeddings), expected)
    torch.testing.assert_close(prototypes(embeddings, trained=False), expected)


@pytest.mark.parametrize("trained", [True, False])
def test_prototypes_that_rest_get_a_gradient_of_zero_and_pass_on_the_embeddings(trained):
    prototypes, embeddings = Prototypes(5, 7), torch.randn(4, 5, requires_grad=True)
    prototypes(embeddings, trained=trained).square().sum().backward()
    assert prototypes.weight.grad is not None
    assert bool(prototypes.weight.grad.any()) == trained
    assert embeddings.grad.abs().sum() > 0


@pytest.mark.parametrize("shuffle", [False, True])
def test_splits_are_what_separate_networks_make_of_the_pieces(shuffle):
    network, images = nn.BatchNorm1d(3, affine=False), torch.randn(10, 3)
    torch.manual_seed(4)
    found, plain = in_splits(lambda piece: (network(piece), 2 * piece), images, 4, shuffle=shuffle)
    torch.manual_seed(4)
    order = torch.randperm(10) if shuffle else torch.arange(10)
    expected = torch.empty_like(images)
    for piece in order.tensor_split(4):
        expected[piece] = nn.BatchNorm1d(3, affine=False)(images[piece])
    torch.testing.assert_close(found, expected)
    assert torch.equal(plain, 2 * images)  # put back in place


def test_one_split_is_the_plain_network():
    network, images = nn.BatchNorm1d(3), torch.randn(10, 3)
    (found,) = in_splits(lambda piece: (network(piece),), images, 1, shuffle=False)
    torch.testing.assert_close(found, network(images))


def test_a_gradient_flows_through_shuffled_splits_to_the_right_images():
    images = torch.randn(9, 3, requires_grad=True)
    weights = torch.arange(9.0)[:, None]
    squares, maps = in_splits(lambda piece: (piece.square(), piece[:, :, None]), images, 3, shuffle=True)
    assert maps.shape == (9, 3, 1)
    (weights * squares).sum().backward()
    torch.testing.assert_close(images.grad, 2 * weights * images.detach())
