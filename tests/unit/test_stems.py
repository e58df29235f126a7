import pytest
import torch
import torchvision
from torch import nn

from headstart.backbones import build
from headstart.backbones.stems import resolve, shrink
from headstart.errors import UserError


def early_convolutions(model, count, **kwargs):
    net = build(model, **kwargs).net
    return [layer for layer in net.modules() if isinstance(layer, nn.Conv2d)][:count]


@pytest.mark.parametrize(
    ("stem", "image_size", "resolved"),
    [("auto", 64, "small"), ("auto", 65, "standard"), ("small", 224, "small"), ("standard", 8, "standard")],
)
def test_auto_is_small_up_to_64_pixels(stem, image_size, resolved):
    assert resolve(stem, image_size) == resolved


@pytest.mark.parametrize(("stem", "image_size", "field"), [("tiny", 32, "stem"), ("auto", 0, "image_size")])
def test_wrong_settings_are_refused(stem, image_size, field):
    with pytest.raises(UserError, match=f"^{field}: .*allowed"):
        resolve(stem, image_size)


def test_resnet_gets_the_cifar_stem_of_simclr():
    torch.manual_seed(0)
    net = build("torchvision/resnet18", image_size=32).net
    assert (net.conv1.kernel_size, net.conv1.stride, net.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert net.conv1.bias is None
    assert isinstance(net.maxpool, nn.Identity)
    expected = (2 / (64 * 3 * 3)) ** 0.5  # He's normal distribution, fan out, as torchvision
    assert net.conv1.weight.std().item() == pytest.approx(expected, rel=0.05)


def test_convnext_gets_a_convolution_for_its_patches():
    torch.manual_seed(0)
    (first,) = early_convolutions("torchvision/convnext_tiny", 1, image_size=32)
    assert (first.kernel_size, first.stride, first.padding) == ((3, 3), (1, 1), (1, 1))
    assert first.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert torch.equal(first.bias, torch.zeros(96))


@pytest.mark.parametrize("model", ["torchvision/mobilenet_v2", "torchvision/efficientnet_b0", "timm/test_efficientnet"])
def test_other_networks_lose_their_first_two_strides_and_no_weight(model):
    small, standard = build(model, image_size=32).net, build(model, image_size=96).net
    assert {name: tensor.shape for name, tensor in small.state_dict().items()} == {
        name: tensor.shape for name, tensor in standard.state_dict().items()
    }
    pairs = [
        (new.stride[0], old.stride[0])
        for new, old in zip(small.modules(), standard.modules(), strict=True)
        if isinstance(old, nn.Conv2d) and old.stride[0] > 1
    ]
    assert pairs == [(1, 2), (1, 2), (2, 2), (2, 2), (2, 2)]


@pytest.mark.parametrize(("image_size", "patch"), [(32, 4), (224, 16)])
def test_transformers_get_a_quarter_of_the_patch(image_size, patch):
    (first,) = early_convolutions("timm/test_vit", 1, image_size=image_size)
    assert first.stride == (patch, patch)


def test_transformers_keep_patches_of_two_pixels():
    (first,) = early_convolutions("timm/test_vit", 1, image_size=32, model_args={"patch_size": 4})
    assert first.stride == (4, 4)  # what the user asks for holds
    swin = build(
        "timm/swin_tiny_patch4_window7_224", image_size=32, model_args={"embed_dim": 24, "depths": (1, 1, 1, 1)}
    )
    assert swin.strides == (2, 4, 8, 16)
    assert [level.shape[2] for level in swin.features(torch.zeros(1, 3, 32, 32)).maps] == [16, 8, 4, 2]


def test_shrink_leaves_the_later_kernels_and_strides_alone():
    net = torchvision.models.mobilenet_v3_small(weights=None)
    shrink(net, [f"features.0.{name}" for name, _ in net.features[0].named_modules() if name])
    strides = [layer.stride[0] for layer in net.modules() if isinstance(layer, nn.Conv2d)]
    assert strides[0] == 1
    assert strides.count(2) == 4


@pytest.mark.parametrize("model", ["timm/convmixer_768_32", "timm/fasternet_t0"])
def test_models_without_small_stem_say_so(model):
    with pytest.raises(UserError, match=f"^stem: {model} .*allowed: standard"):
        build(model, image_size=32)
