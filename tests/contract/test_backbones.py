"""Every backbone keeps the promises of ``headstart.contracts.Backbone``, whichever library it is from."""

from functools import cache

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from headstart.backbones import build, has_tokens, list_models
from headstart.contracts import Backbone, TokenBackbone
from headstart.errors import UserError

CONVOLUTIONAL = [
    "torchvision/resnet18",
    "torchvision/resnet50",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/efficientnet_b0",
    "torchvision/convnext_tiny",
    "timm/resnet10t",
    "timm/test_resnet",
    "timm/test_convnext",
    "timm/test_efficientnet",
    "timm/mobilenetv3_small_050",
]
TRANSFORMERS = ["timm/test_vit", "timm/vit_tiny_patch16_224"]
MODELS = CONVOLUTIONAL + TRANSFORMERS
CLASSIFIERS = ("fc.", "classifier.", "head.")


@cache
def built(model: str, image_size: int) -> Backbone:
    torch.manual_seed(0)
    return build(model, image_size=image_size).eval()


@cache
def images(size: int, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(size))


def complete_model(model: str) -> nn.Module:
    """The library's own model with its classifier, without memory for weights."""
    library, name = model.split("/")
    with torch.device("meta"):
        return torchvision.models.get_model(name) if library == "torchvision" else timm.create_model(name)


@torch.no_grad()
def check_declarations(backbone: Backbone, size: int) -> None:
    pooled, maps = backbone.features(images(size))
    assert pooled.shape == (2, backbone.dim)
    assert pooled.dtype == torch.float32
    assert torch.isfinite(pooled).all()
    assert all(torch.isfinite(level).all() for level in maps)
    assert [level.shape[:2] for level in maps] == [(2, dim) for dim in backbone.dims]
    assert list(backbone.strides) == sorted(backbone.strides)
    for level, stride in zip(maps, backbone.strides, strict=True):
        assert level.shape[2] == level.shape[3]
        assert level.shape[2] in {max(1, size // stride), -(-size // stride)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("size", [32, 96])
def test_declared_shapes_are_the_real_ones(model, size):
    check_declarations(built(model, size), size)


@pytest.mark.parametrize("model", CONVOLUTIONAL)
@pytest.mark.parametrize("size", [8, 45])
def test_small_stem_takes_tiny_and_odd_sizes(model, size):
    check_declarations(built(model, 32), size)


@pytest.mark.parametrize("model", CONVOLUTIONAL)
def test_standard_stem_takes_odd_sizes(model):
    check_declarations(built(model, 96), 75)


@pytest.mark.parametrize("model", TRANSFORMERS)
@pytest.mark.parametrize("size", [16, 45])
def test_transformers_take_other_sizes_than_their_own(model, size):
    check_declarations(built(model, 32), size)


@pytest.mark.parametrize("model", MODELS)
def test_small_stem_divides_the_strides_by_four(model):
    small, standard = built(model, 32), built(model, 96)
    assert small.strides == tuple(max(1, stride // 4) for stride in standard.strides)
    assert small.dims == standard.dims
    assert small.dim == standard.dim


@pytest.mark.parametrize("model", MODELS)
def test_pooled_features_are_the_library_own(model):
    backbone = built(model, 32)
    with torch.no_grad():
        pooled = backbone(images(32))
        torch.testing.assert_close(pooled, backbone.net(images(32)))
        assert torch.equal(pooled, backbone(images(32)))


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        ("torchvision/resnet18", ["relu", "layer1", "layer2", "layer3", "layer4"]),
        ("torchvision/mobilenet_v2", [f"features.{index}" for index in (1, 3, 6, 13, 18)]),
        ("torchvision/convnext_tiny", [f"features.{index}" for index in (1, 3, 5, 7)]),
    ],
)
def test_torchvision_maps_are_those_of_its_feature_extractor(model, layers):
    backbone = built(model, 96)
    with torch.no_grad():
        expected = create_feature_extractor(backbone.net, layers)(images(96))
        maps = backbone.features(images(96)).maps
    for level, layer in zip(maps, layers, strict=True):
        torch.testing.assert_close(level, expected[layer])


@pytest.mark.parametrize("model", MODELS)
def test_pooled_features_send_a_gradient_to_every_parameter(model):
    backbone = built(model, 32)
    backbone.zero_grad()
    backbone(images(32)).sum().backward()
    unreached = [name for name, weight in backbone.named_parameters() if weight.grad is None]
    assert unreached == []


@pytest.mark.parametrize("model", MODELS)
def test_coarsest_map_sends_a_gradient_to_the_first_convolution(model):
    backbone = built(model, 32)
    backbone.zero_grad()
    backbone.features(images(32)).maps[-1].square().sum().backward()
    first = next(layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d))
    assert first.weight.grad is not None
    assert first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("model", MODELS)
def test_weights_go_back_into_the_library_own_model(model):
    net = built(model, 96).net
    complete = complete_model(model)
    if "vit" in model:
        complete = timm.create_model(model.removeprefix("timm/"), img_size=96)
    missing, unexpected = complete.load_state_dict(net.state_dict(), strict=False, assign=True)
    assert unexpected == []
    assert missing
    assert all(name.startswith(CLASSIFIERS) for name in missing)


@pytest.mark.parametrize("model", MODELS)
def test_small_stem_keeps_the_library_own_names(model):
    assert set(built(model, 32).net.state_dict()) <= set(complete_model(model).state_dict())


@pytest.mark.parametrize("model", ["torchvision/resnet18", "timm/test_resnet", "timm/test_vit"])
def test_saved_and_loaded_weights_give_equal_features(model, tmp_path):
    torch.save(built(model, 32).state_dict(), tmp_path / "backbone.pt")
    torch.manual_seed(1)
    other = build(model, image_size=32).eval()
    with torch.no_grad():
        assert not torch.equal(other(images(32)), built(model, 32)(images(32)))
        other.load_state_dict(torch.load(tmp_path / "backbone.pt", weights_only=True))
        assert torch.equal(other(images(32)), built(model, 32)(images(32)))


@pytest.mark.parametrize("model", ["torchvision/resnet18", "timm/test_resnet", "timm/test_vit"])
def test_weights_depend_on_the_seed_alone(model):
    torch.manual_seed(0)
    again = build(model, image_size=32).eval()
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), built(model, 32).parameters(), strict=True))


@pytest.mark.parametrize("model", MODELS)
def test_what_has_tokens_is_known_without_building_it(model):
    assert has_tokens(model) is isinstance(built(model, 32), TokenBackbone) is (model in TRANSFORMERS)


@pytest.mark.parametrize("model", TRANSFORMERS)
@pytest.mark.parametrize("size", [32, 45, 96])
@torch.no_grad()
def test_declared_grids_are_the_real_ones(model, size):
    backbone = build(model, image_size=size).eval()
    rows, columns = backbone.grid
    finest = backbone.features(images(size)).maps[0]
    assert finest.shape[2:] == (rows, columns)
    assert backbone.patch_size == backbone.strides[0]
    keep = torch.arange(rows * columns).expand(2, -1)
    assert backbone.tokens(images(size), keep).shape == (2, rows * columns, backbone.dim)


def test_model_args_reach_the_library():
    backbone = build("timm/test_resnet", image_size=32, model_args={"channels": (8, 16, 24, 32), "in_chans": 1})
    assert backbone.features(torch.zeros(1, 1, 32, 32)).maps[1].shape[1] == backbone.dims[1]
    dilated = build(
        "torchvision/resnet50",
        image_size=96,
        model_args={"replace_stride_with_dilation": [False, True, True]},
    )
    assert dilated.strides == (2, 4, 8, 8, 8)


def test_published_tags_are_names_of_models():
    assert build("timm/test_vit.r160_in1k", image_size=32).dim == built("timm/test_vit", 32).dim


def test_list_models_holds_both_libraries():
    models = list_models()
    assert set(MODELS) <= set(models)
    assert len(models) == len(set(models))
    assert "torchvision/vgg16" not in models


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("torchvision/resnet81", "did you mean 'torchvision/resnet18'"),
        ("timm/resnet_10t", "did you mean 'timm/resnet10t'"),
        ("timm/resnet18.a1_in2k", "did you mean 'timm/resnet18.a1_in1k'"),
        ("resnet18", "^model: unknown 'resnet18'"),
        ("torchvision/vgg16", r"gives no feature maps here \(allowed of torchvision: resnet\*"),
    ],
)
def test_unusable_models_are_refused_in_one_line(model, message):
    with pytest.raises(UserError, match=message) as caught:
        build(model, image_size=32)
    assert str(caught.value).startswith("model: ")
    assert "\n" not in str(caught.value)


def test_a_timm_model_without_intermediates_is_refused(monkeypatch):
    monkeypatch.setattr("headstart.backbones.timm.create", lambda name, arguments: nn.Linear(1, 1))
    with pytest.raises(UserError, match=r"^model: timm/test_resnet gives no feature maps"):
        build("timm/test_resnet", image_size=32)


@pytest.mark.parametrize("model", ["torchvision/resnet18", "timm/test_resnet", "timm/test_vit"])
@pytest.mark.parametrize("argument", ["widht", "weights"])
def test_wrong_model_args_are_refused(model, argument):
    with pytest.raises(UserError, match=f"^model_args: {model} .*{argument}"):
        build(model, image_size=32, model_args={argument: 3})


def test_residual_branches_of_timm_start_alive():
    net = build("timm/resnet18", image_size=32, model_args={"channels": [8, 8, 8, 8]}).net
    assert float(net.layer1[0].bn2.weight.detach().min()) == 1.0
    zero = build("timm/resnet18", image_size=32, model_args={"channels": [8, 8, 8, 8], "zero_init_last": True}).net
    assert float(zero.layer1[0].bn2.weight.detach().max()) == 0.0
