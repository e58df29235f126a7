"""The losses of pixels against torch, torchvision and segmentation-models-pytorch, in float64: value and gradient."""

import pytest
import segmentation_models_pytorch as smp
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.losses._functional import softmax_focal_loss_with_logits
from torchvision.ops import sigmoid_focal_loss

from headstart.errors import UserError
from headstart.losses.segmentation import (
    LOSSES,
    VOID,
    binary_cross_entropy,
    combined,
    cross_entropy,
    dice,
    focal,
    parse,
)

CASES = [("bce", 1), ("ce", 2), ("ce", 4), ("dice", 1), ("dice", 4), ("focal", 1), ("focal", 4)]


def draw(channels, *, void=True, seed=0):
    """Logits that ask for gradients and labels, some of them void."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(3, channels, 5, 7, dtype=torch.float64, generator=generator)
    labels = torch.randint(VOID if void else 0, max(channels, 2), (3, 5, 7), generator=generator)
    return logits.requires_grad_(), labels


def assert_agree(found, expected, logits):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=0)
    mine, theirs = (torch.autograd.grad(value, logits)[0] for value in (found, expected))
    assert float(theirs.norm()) > 0
    assert float((mine - theirs).norm()) <= 1e-9 * float(theirs.norm())


@pytest.mark.parametrize("weights", [None, [0.5, 3.0, 0.0, 1.0]])
def test_cross_entropy_is_that_of_torch(weights):
    logits, labels = draw(4)
    weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    expected = F.cross_entropy(logits, labels, weights, ignore_index=VOID)
    assert_agree(cross_entropy(logits, labels, weights), expected, logits)


def test_binary_cross_entropy_is_that_of_torch():
    logits, labels = draw(1)
    known = labels != VOID
    expected = F.binary_cross_entropy_with_logits(logits[:, 0][known], labels[known].double())
    assert_agree(binary_cross_entropy(logits, labels), expected, logits)


def test_binary_cross_entropy_is_the_cross_entropy_of_two_logits():
    logits, labels = draw(1)
    both, weights = torch.cat([torch.zeros_like(logits), logits], dim=1), torch.tensor([0.3, 2.0]).double()
    assert_agree(
        binary_cross_entropy(logits, labels, weights),
        F.cross_entropy(both, labels, weights, ignore_index=VOID),
        logits,
    )


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("void", [False, True])
def test_dice_is_that_of_segmentation_models_pytorch(channels, void):
    logits, labels = draw(channels, void=void)
    peer = smp.losses.DiceLoss("binary" if channels == 1 else "multiclass", ignore_index=VOID)
    assert_agree(dice(logits, labels), peer(logits, labels), logits)


@pytest.mark.parametrize("channels", [1, 4])
def test_dice_of_classes_without_pixels_is_that_of_segmentation_models_pytorch(channels):
    logits, labels = draw(channels)
    labels = labels.clamp_max(1) if channels > 1 else labels.clamp_max(0)
    peer = smp.losses.DiceLoss("binary" if channels == 1 else "multiclass", ignore_index=VOID)
    torch.testing.assert_close(dice(logits, labels), peer(logits, labels), rtol=1e-9, atol=0)


def test_dice_is_over_the_batch_and_not_over_images():
    logits, labels = draw(1, void=False)
    apart = torch.stack([dice(logits[[row]], labels[[row]]) for row in range(3)]).mean()
    assert abs((dice(logits, labels) - apart).item()) > 1e-6


def test_focal_loss_of_one_logit_is_that_of_torchvision_and_segmentation_models_pytorch():
    logits, labels = draw(1)
    known = labels != VOID
    expected = sigmoid_focal_loss(logits[:, 0][known], labels[known].double(), alpha=-1, gamma=2, reduction="mean")
    assert_agree(focal(logits, labels), expected, logits)
    peer = smp.losses.FocalLoss("binary", gamma=2.0, ignore_index=VOID)
    assert_agree(focal(logits, labels), peer(logits, labels), logits)


def test_the_weights_of_the_focal_loss_are_the_alpha_of_the_paper():
    logits, labels = draw(1, void=False)
    each = sigmoid_focal_loss(logits[:, 0], labels.double(), alpha=0.25, gamma=2)
    weights = torch.tensor([0.75, 0.25], dtype=torch.float64)
    assert_agree(focal(logits, labels, weights), each.sum() / weights[labels].sum(), logits)


def test_focal_loss_of_several_logits_is_that_of_segmentation_models_pytorch():
    logits, labels = draw(4, void=False)
    assert_agree(focal(logits, labels), softmax_focal_loss_with_logits(logits, labels, gamma=2.0), logits)


@pytest.mark.parametrize("channels", [1, 4])
def test_focal_loss_without_focus_is_the_cross_entropy(channels):
    logits, labels = draw(channels)
    expected = (binary_cross_entropy if channels == 1 else cross_entropy)(logits, labels)
    assert_agree(focal(logits, labels, gamma=0.0), expected, logits)


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_void_pixels_change_nothing(name, channels):
    logits, labels = draw(channels)
    changed = torch.where((labels == VOID)[:, None], -logits, logits)
    torch.testing.assert_close(LOSSES[name](logits, labels, None), LOSSES[name](changed, labels, None))


@pytest.mark.parametrize("weights", [None, torch.tensor([0.0, 1.0, 2.0, 3.0])])
@pytest.mark.parametrize(("name", "channels"), CASES)
def test_a_batch_of_nothing_but_void_has_no_loss_and_no_gradient(name, channels, weights):
    logits, labels = draw(channels)
    loss = LOSSES[name](logits, torch.full_like(labels, VOID), weights)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_losses_are_computed_in_float32_at_least(name, channels):
    logits, labels = draw(channels)
    half = logits.detach().bfloat16().expand(3, channels, 5, 7)
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](half, labels, None)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, LOSSES[name](half.float(), labels, None))


@pytest.mark.parametrize(("name", "channels"), CASES)
def test_huge_logits_give_finite_gradients(name, channels):
    logits, labels = draw(channels)
    huge = (1e4 * logits.detach().float()).requires_grad_()
    loss = LOSSES[name](huge, labels, None)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(huge.grad).all()


def test_a_sum_of_losses_adds_up():
    logits, labels = draw(1)
    loss = combined("bce + dice+focal", 2)
    assert loss.names == ("bce", "dice", "focal")
    expected = binary_cross_entropy(logits, labels) + dice(logits, labels) + focal(logits, labels)
    assert_agree(loss(logits, labels), expected, logits)


@pytest.mark.parametrize(
    ("text", "classes", "names", "channels"),
    [
        ("auto", 2, ("bce",), 1),
        ("auto", 3, ("ce",), 3),
        ("dice", 2, ("dice",), 1),
        ("ce+dice", 2, ("ce", "dice"), 2),
        ("focal", 3, ("focal",), 3),
    ],
)
def test_two_classes_have_one_logit_unless_two_are_asked_for(text, classes, names, channels):
    assert combined(text, classes) == (names, channels)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bce+dise", "^loss: unknown 'dise', did you mean 'dice'"),
        ("", "^loss: unknown ''"),
        ("dice+", "^loss: unknown ''"),
        ("auto+dice", "^loss: unknown 'auto'"),
        ("dice+dice", "twice"),
        ("bce+ce", r"one of bce and ce"),
    ],
)
def test_sums_that_cannot_be_are_refused_in_one_line(text, message):
    with pytest.raises(UserError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


def test_bce_is_refused_for_three_classes():
    with pytest.raises(UserError, match=r"^loss: bce tells two classes apart, here are 3"):
        combined("bce+dice", 3)
