"""Backbones of Ultralytics keep the promises of ``contracts.Backbone``, and are the first part of its own networks."""

import copy
from functools import cache

import pytest
import torch
from torch import nn

from headstart.backbones import load_weights, yolo
from headstart.contracts import Backbone
from headstart.errors import UserError

THIN = {"width": 0.125, "depth": 0.33}
# the name, and from Ultralytics' description the number of layers and the channels of the last
NETWORKS = [
    ("yolov8n", 10, 256),
    ("yolov8n-cls", 9, 256),
    ("yolov5n", 10, 256),
    ("yolov9t", 10, 128),
    ("yolo26n", 11, 256),
]
NAMES = [name for name, *_ in NETWORKS]


@cache
def built(name: str, stem: str = "standard") -> Backbone:
    torch.manual_seed(0)
    return yolo.build(name, stem=stem, image_size=96, model_args={}).eval()


@cache
def images(size: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(size))


@cache
def complete(name: str) -> nn.Module:
    """Ultralytics' own network, head and all."""
    tasks = yolo.library("nn.tasks")
    torch.manual_seed(3)
    kind = tasks.ClassificationModel if name.endswith("-cls") else tasks.DetectionModel
    return kind(f"{name}.yaml", verbose=False).eval()


@pytest.mark.parametrize(("name", "layers", "dim"), NETWORKS)
@torch.no_grad()
def test_features_are_those_of_ultralytics_own_network(name, layers, dim):
    own = complete(name)
    backbone = copy.deepcopy(built(name))
    report = load_weights(backbone, own.state_dict(), "Ultralytics")
    assert report.matched == report.total
    maps = []
    image = images(64)
    for layer in own.model[:layers]:
        image = layer(image)
        maps.append(image)
    pooled, found = backbone.features(images(64))
    last_of_size = {level.shape[2]: level for level in maps}
    assert len(found) == len(last_of_size) == 5
    for level, expected in zip(found, last_of_size.values(), strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(pooled, maps[-1].mean((2, 3)), rtol=1e-6, atol=1e-6)
    assert len(backbone.net.model) == layers
    assert backbone.dim == dim


@pytest.mark.parametrize("name", NAMES)
def test_names_and_normalisations_are_ultralytics_own(name):
    backbone, own = built(name), complete(name)
    layers = len(backbone.net.model)
    expected = {key: tensor.shape for key, tensor in own.state_dict().items() if int(key.split(".")[1]) < layers}
    assert {key: tensor.shape for key, tensor in backbone.net.state_dict().items()} == expected
    norms = [layer for layer in backbone.modules() if isinstance(layer, nn.BatchNorm2d)]
    theirs = [layer for layer in own.model[:layers].modules() if isinstance(layer, nn.BatchNorm2d)]
    assert [(norm.eps, norm.momentum) for norm in norms] == [(norm.eps, norm.momentum) for norm in theirs]
    assert norms[0].eps == (1e-5 if name.endswith("-cls") else 1e-3)


@torch.no_grad()
def check_declarations(backbone: Backbone, size: int) -> None:
    pooled, maps = backbone.features(images(size))
    assert pooled.shape == (2, backbone.dim)
    assert torch.isfinite(pooled).all()
    assert [level.shape[:2] for level in maps] == [(2, dim) for dim in backbone.dims]
    for level, stride in zip(maps, backbone.strides, strict=True):
        assert level.shape[2] in {max(1, size // stride), -(-size // stride)}


@pytest.mark.parametrize("name", NAMES)
def test_declared_shapes_are_the_real_ones(name):
    assert built(name).strides == (2, 4, 8, 16, 32)
    assert built(name, "small").strides == (1, 1, 2, 4, 8)
    assert built(name).dims == built(name, "small").dims
    for size in (64, 75):
        check_declarations(built(name), size)
    for size in (32, 45):
        check_declarations(built(name, "small"), size)


@pytest.mark.parametrize("name", ["yolov8n", "yolo26n"])
@pytest.mark.parametrize("stem", ["standard", "small"])
def test_pooled_features_send_a_gradient_to_every_parameter(name, stem):
    backbone = copy.deepcopy(built(name, stem)).train()
    backbone(images(32)).square().sum().backward()
    assert [key for key, weight in backbone.named_parameters() if weight.grad is None] == []


def test_the_small_stem_only_differs_where_it_must():
    standard, small = built("yolov8n").net.state_dict(), built("yolov8n", "small").net.state_dict()
    assert {key: tensor.shape for key, tensor in standard.items()} == {
        key: tensor.shape for key, tensor in small.items()
    }
    assert built("yolov5n", "small").net.model[0].conv.kernel_size == (3, 3)  # of 6 × 6


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(0)
    again = yolo.build("yolov8n", stem="standard", image_size=96, model_args={})
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), built("yolov8n").parameters(), strict=True))


def test_scales_and_channels_can_be_chosen():
    backbone = yolo.build("yolov8x", stem="standard", image_size=96, model_args=THIN, channels=5)
    assert backbone.dims == (8, 16, 32, 64, 64)  # at most 512 channels at scale x, times 0.125
    assert backbone(images(64, 5)).shape == (2, 64)


def test_the_list_is_of_networks_that_ultralytics_has():
    assert len(yolo.list_models()) == len(set(yolo.list_models())) == 45
    for name in yolo.list_models():
        description = yolo.describe(name, {})
        assert all(source == -1 for source, *_ in description["backbone"])
        assert yolo.has_tokens(name, {}) is False


def test_a_file_of_that_name_in_the_working_folder_is_not_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "yolov8.yaml").write_text("activation: __import__('os').mkdir('executed')\nbackbone: []\nhead: []\n")
    (tmp_path / "yolov8n.yaml").write_text((tmp_path / "yolov8.yaml").read_text())
    yolo.build("yolov8n", stem="standard", image_size=96, model_args=THIN)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("name", "model_args", "message"),
    [
        ("yolov8q", {}, r"^model: unknown 'ultralytics/yolov8q', did you mean 'ultralytics/yolov8"),
        ("yolov8n", {"widht": 1}, r"^model_args: ultralytics/yolov8n does not take widht \(allowed: depth, width, max"),
        ("yolov8n", {"width": "0.5"}, r"^model_args: width is '0.5' \(allowed: a number above 0\)"),
        ("yolov8n", {"width": 0}, r"^model_args: width is 0 \(allowed: a number above 0\)"),
        ("yolov9t", {"width": 0.5}, r"^model_args: ultralytics/yolov9t does not take width \(allowed: none\)"),
    ],
)
def test_unusable_models_are_refused_in_one_line(name, model_args, message):
    for use in (lambda: yolo.describe(name, model_args), lambda: yolo.has_tokens(name, model_args)):
        with pytest.raises(UserError, match=message):
            use()


def test_checkpoints_of_ultralytics_are_read_without_executing_them(tmp_path):
    own = copy.deepcopy(complete("yolov8n")).half()
    torch.save({"model": None, "ema": own}, tmp_path / "best.pt")
    network = yolo.read_network(tmp_path / "best.pt", "init")
    backbone = copy.deepcopy(built("yolov8n"))
    load_weights(backbone, network.state_dict(), "best.pt")
    assert torch.equal(backbone.net.state_dict()["model.0.conv.weight"], own.model[0].conv.weight.float())
