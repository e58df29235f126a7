import urllib.error
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file

from headstart.backbones import Matched, build, load_weights, pretrained_state, read_weights
from headstart.errors import UserError


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return build("timm/test_resnet", image_size=96).eval()


@pytest.fixture
def state():
    """The weights of the library's complete model, classifier included, other than the backbone's."""
    torch.manual_seed(1)
    return timm.create_model("test_resnet").state_dict()


def same(backbone, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in backbone.net.state_dict().items())


def test_all_tensors_of_the_library_model_fit(backbone, state):
    assert not same(backbone, state)
    matched = load_weights(backbone, state, "a file")
    count = len(backbone.net.state_dict())
    assert same(backbone, state)
    assert matched == Matched(count, count, unused=("fc.weight", "fc.bias"), missing=(), mismatched=())
    assert matched.describe() == f"backbone {count}/{count} tensors; left over: fc.weight, fc.bias"


def test_loaded_features_are_those_of_the_library_model(backbone):
    torch.manual_seed(1)
    library = timm.create_model("test_resnet").eval()
    load_weights(backbone, library.state_dict(), "a file")
    images = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(library.fc(backbone(images)), library(images))


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "module.encoder."])
def test_a_prefix_of_all_names_is_taken_off(backbone, state, prefix):
    load_weights(backbone, {f"{prefix}{name}": tensor for name, tensor in state.items()}, "a file")
    assert same(backbone, state)


def test_a_prefix_of_some_names_stays(backbone, state):
    mixed = {f"backbone.{name}": tensor for name, tensor in state.items()} | {"projector.weight": torch.zeros(1)}
    with pytest.raises(UserError, match="backbone 0/"):
        load_weights(backbone, mixed, "a file")


def test_batch_norm_counters_may_be_missing(backbone, state):
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    matched = load_weights(backbone, old, "a file")
    assert matched.matched == matched.total == len(old) - 2  # without the classifier's weight and bias
    assert matched.missing == ()


def test_half_precision_becomes_the_backbone_own(backbone, state):
    load_weights(backbone, {name: t.half() if t.is_floating_point() else t for name, t in state.items()}, "a file")
    weight = backbone.net.conv1[0].weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, state["conv1.0.weight"].half().float())


def test_a_missing_tensor_is_refused_and_nothing_changes(backbone, state):
    before = {name: tensor.clone() for name, tensor in backbone.net.state_dict().items()}
    del state["layer1.0.conv1.weight"]
    total = len(before)
    with pytest.raises(UserError, match=f"^init: old.pt .* {total - 1}/{total} .*missing: layer1.0.conv1.weight"):
        load_weights(backbone, state, "old.pt")
    assert same(backbone, before)


def test_another_shape_is_refused_with_both_shapes(backbone, state):
    state["layer1.0.conv1.weight"] = torch.zeros(1, 2, 3, 3)
    with pytest.raises(UserError, match=r"other shapes: layer1.0.conv1.weight 1×2×3×3 in place of ") as caught:
        load_weights(backbone, state, "old.pt")
    assert "--stem" not in str(caught.value)


def test_the_other_stem_is_named_when_the_first_convolution_differs():
    state = torchvision.models.resnet18(weights=None).state_dict()
    with pytest.raises(UserError, match=r"conv1.weight 64×3×7×7 in place of 64×3×3×3.*--stem"):
        load_weights(build("torchvision/resnet18", image_size=32), state, "old.pt")
    assert load_weights(build("torchvision/resnet18", image_size=32, stem="standard"), state, "old.pt").total == 120


def test_position_embeddings_are_interpolated_as_timm_does():
    state = timm.create_model("test_vit").state_dict()
    backbone = build("timm/test_vit", image_size=96)
    matched = load_weights(backbone, state, "a file")
    expected = timm.create_model("test_vit", img_size=96)
    expected.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(state, expected))
    assert matched.resampled == ("pos_embed",)
    assert backbone.net.pos_embed.shape != state["pos_embed"].shape
    torch.testing.assert_close(backbone.net.pos_embed, expected.pos_embed)


@pytest.mark.parametrize("container", [None, "state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_torch_files_are_read(tmp_path, state, container, suffix):
    path = tmp_path / f"weights{suffix}"
    torch.save(state if container is None else {container: state, "epoch": 3}, path)
    read = read_weights(path)
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_safetensors_are_read(tmp_path, state):
    save_file(state, tmp_path / "weights.safetensors")
    read = read_weights(tmp_path / "weights.safetensors")
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], state[name]) for name in state)


class Attack:
    """An object whose unpickling would create a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_no_pickle_is_executed(tmp_path):
    torch.save({"state_dict": {"weight": torch.zeros(1)}, "extra": Attack(tmp_path / "executed")}, tmp_path / "bad.pt")
    with pytest.raises(UserError, match=r"^init: .*bad.pt is damaged or holds more than tensors"):
        read_weights(tmp_path / "bad.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["damaged.pt", "damaged.safetensors", "damaged.onnx", "empty.pth"])
def test_damaged_and_foreign_files_are_refused_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"these are no weights at all")
    with pytest.raises(UserError, match=f"^init: .*{name}") as caught:
        read_weights(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(1)], {"state_dict": {}}])
def test_files_without_named_tensors_are_refused(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(UserError, match="holds no tensors by name"):
        read_weights(tmp_path / "weights.pt")


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"^init: no file .*weights.pt"):
        read_weights(tmp_path / "weights.pt")


def test_torchvision_weights_are_downloaded_without_pickle(monkeypatch):
    asked = {}

    def download(url, **kwargs):
        asked.update(kwargs, url=url)
        return {"conv1.weight": torch.ones(1)}

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    assert pretrained_state("torchvision/resnet18")["conv1.weight"] == 1
    assert asked["url"] == torchvision.models.ResNet18_Weights.DEFAULT.url
    assert asked["weights_only"] is True


def test_timm_weights_are_those_of_its_pretrained_model(monkeypatch, state, backbone):
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *args, **kwargs: dict(state))
    published = pretrained_state("timm/test_resnet.r160_in1k")
    load_weights(backbone, published, "timm/test_resnet.r160_in1k")
    assert same(backbone, state)


def test_without_a_network_the_error_names_the_weights_and_their_place(monkeypatch, tmp_path):
    def no_network(*args, **kwargs):
        raise urllib.error.URLError("no route\nto host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"resnet18-f37072fd.pth") as caught:
        pretrained_state("torchvision/resnet18")
    assert str(tmp_path / "hub" / "checkpoints" / "resnet18-f37072fd.pth") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_the_hub_the_error_names_the_weights_and_the_cache(monkeypatch):
    def no_network(*args, **kwargs):
        raise LocalEntryNotFoundError("no connection")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", no_network)
    with pytest.raises(UserError, match=r"timm/resnet18.a1_in1k.*no connection.*huggingface"):
        pretrained_state("timm/resnet18.a1_in1k")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("torchvision/resnet81", "did you mean 'torchvision/resnet18'"),
        ("timm/resnet18.a1_in2k", "did you mean 'timm/resnet18.a1_in1k'"),
        ("resnet18", "^init: unknown 'resnet18'"),
        ("timm/resnet10s", "unknown 'timm/resnet10s'"),
        ("timm/vit_tiny_patch16_gap", "publishes no weights|unknown"),
    ],
)
def test_weights_of_unknown_models_are_refused(model, message):
    with pytest.raises(UserError, match=message):
        pretrained_state(model)
