"""Every export is opened again by its own library, and gives the features of the RUN."""

import json
import shutil
import sys
from functools import cache

import pytest
import safetensors
import timm
import torch
import torchvision
from torch import nn

import headstart
from headstart import runs
from headstart.backbones import build, yolo
from headstart.backbones.given import initialise
from headstart.config import Pretrain
from headstart.data.loading import IMAGENET_MEAN, IMAGENET_STD
from headstart.errors import UserError
from headstart.verbs import export as verb
from headstart.verbs import start
from headstart.verbs.export import FORMATS, export

TINY = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
MODELS = {
    "torchvision": {"model": "torchvision/mobilenet_v2", "model_args": {"width_mult": 0.25}},
    "torchvision-standard": {"model": "torchvision/resnet18", "stem": "standard"},
    "timm": {"model": "timm/resnet18", "model_args": TINY},
    "timm-standard": {"model": "timm/resnet18", "model_args": TINY, "stem": "standard"},
    "timm-grey": {"model": "timm/resnet18", "model_args": TINY, "channels": 1},
    "vit": {"model": "timm/vit_tiny_patch16_224", "model_args": {"depth": 1, "embed_dim": 48, "num_heads": 3}},
    "yolo": {"model": "ultralytics/yolov8n", "model_args": {"width": 0.125}},
    "yolo-standard": {"model": "ultralytics/yolov8n", "model_args": {"width": 0.125}, "stem": "standard"},
}
DATA = {"data": "digits", "limit": 60, "image_size": 32, "quiet": True}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Return the RUN of a pretraining."""
    out = tmp_path_factory.mktemp("export") / "timm"
    headstart.pretrain(out=out, epochs=1, batch_size=20, **DATA, **MODELS["timm"])
    return out


@pytest.fixture(scope="module")
def make_run(pretrained, tmp_path_factory):
    """Return a function that gives a RUN of one of the models: the pretrained one, or its folder with other weights."""

    @cache
    def make(name):
        if name == "timm":
            return pretrained
        out = tmp_path_factory.mktemp("export") / name
        shutil.copytree(pretrained, out)
        settings = Pretrain.read(out / runs.CONFIG).updated(**{"model_args": {}, "stem": "small", **MODELS[name]})
        (out / runs.CONFIG).write_text(settings.to_yaml())
        network = {field: getattr(settings, field) for field in ("stem", "image_size", "model_args", "channels")}
        new = build(settings.model, **network).train()
        with torch.no_grad():
            new(images(8, settings.channels, 64 if settings.stem == "standard" else 32))  # moves the running statistics
        start.save_weights(out / runs.BACKBONE, new.net)
        return out

    return make


@pytest.fixture(scope="module")
def finetuned(pretrained, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "finetuned"
    headstart.finetune(init=pretrained, out=out, epochs=1, min_steps=3, evaluations=1, **DATA)
    return out


def images(count=4, channels=3, size=32):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(9))


def backbone(run, channels=3):
    return initialise(str(run), channels=channels).backbone.eval()


def load(exported):
    """Return what the lines of Python give that a user is told to load the file with."""
    scope = {}
    exec("\n".join(exported.code), scope)
    return scope["net"]


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
def test_torchvision_takes_its_own_names_and_lacks_the_classifier_only(make_run, tmp_path):
    run = make_run("torchvision-standard")
    exported = export(run, format="torchvision", out=tmp_path / "a.pth", quiet=True)
    net = torchvision.models.resnet18()
    keys = net.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True), strict=False)
    assert (keys.missing_keys, keys.unexpected_keys) == (["fc.weight", "fc.bias"], [])
    net.fc = nn.Identity()
    close(net.eval()(images()), backbone(run)(images()))
    close(load(exported).eval()(images()), backbone(run)(images()))
    assert (exported.tensors, exported.difference) == (120, 0.0)
    assert str(exported).startswith(f"torchvision/resnet18 of {run} in {tmp_path / 'a.pth'} (torchvision, 120 tensors)")


@torch.no_grad()
def test_a_small_stem_is_told_in_code(make_run, tmp_path):
    run = make_run("torchvision")
    exported = export(run, format="torchvision", out=tmp_path / "a.pt", quiet=True)
    changed = [line for line in exported.code if line.startswith(("net.set", "net.get"))]
    strides = [line for line in changed if line.endswith(".stride = (1, 1)")]
    assert len(strides) == len(changed) == 2  # those from 2 to 4 pixels
    close(load(exported).eval()(images()), backbone(run)(images()))


@torch.no_grad()
def test_timm_reads_its_own_file(make_run, tmp_path):
    run = make_run("timm-standard")
    export(run, format="timm", out=tmp_path / "a.safetensors", quiet=True)
    net = timm.create_model("resnet18", checkpoint_path=str(tmp_path / "a.safetensors"), num_classes=0, **TINY)
    close(net.eval()(images()), backbone(run)(images()))


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm", "timm-standard", "timm-grey", "vit"])
def test_timm_is_given_the_arguments_and_the_stem_of_the_run(make_run, tmp_path, name):
    channels = MODELS[name].get("channels", 3)
    exported = export(make_run(name), format="timm", out=tmp_path / "a.pth", quiet=True)
    if name == "timm":
        conv = "nn.Conv2d(3, 64, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), bias=False)"
        changed = [f'net.set_submodule("conv1", {conv})', 'net.set_submodule("maxpool", nn.Identity())']
        assert [line for line in exported.code if line.startswith("net.set")] == changed
    found = load(exported).eval()(images(channels=channels))
    close(found, backbone(make_run(name), channels)(images(channels=channels)))


@torch.no_grad()
@pytest.mark.parametrize("name", ["torchvision-standard", "timm"])
def test_an_encoder_of_smp_gives_the_feature_maps(make_run, tmp_path, name):
    smp = pytest.importorskip("segmentation_models_pytorch")
    run = make_run(name)
    exported = export(run, format="smp", out=tmp_path / "a.pth", quiet=True)
    maps = backbone(run).features(images(size=64)).maps
    net = load(exported).eval()
    found = net.encoder(images(size=64))[1:]
    assert len(found) == len(maps) == 5
    for level, expected in zip(found, maps, strict=True):
        close(level, expected)
    assert net(images(size=64)).shape[2] == 64 or "standard" not in name
    if name == "torchvision-standard":
        net = smp.Unet("resnet18", encoder_weights=None)
        net.encoder.load_state_dict(torch.load(tmp_path / "a.pth", weights_only=True))
        close(net.eval().encoder(images(size=64))[-1], maps[-1])


@torch.no_grad()
@pytest.mark.parametrize(("name", "strides"), [("yolo", [2, 4, 8]), ("yolo-standard", [8, 16, 32])])
def test_ultralytics_sees_in_pixels_what_the_run_sees_in_normalised_images(make_run, tmp_path, name, strides):
    engine = yolo.library("engine.model")
    run, file = make_run(name), tmp_path / "a.pt"
    export(run, format="ultralytics", out=file, quiet=True)
    own, net = backbone(run), engine.Model(str(file)).model.eval()
    pixels = images(size=64).sigmoid()
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    first, theirs = own.net.model[0]((pixels - mean) / std), net.model[0](pixels)
    close(theirs[..., 1:-1, 1:-1], first[..., 1:-1, 1:-1])  # around the image the one sees black, the other grey
    state = net.state_dict()
    folded = {"model.0.conv.weight", "model.0.bn.running_mean"}
    for key, tensor in own.net.state_dict().items():
        assert torch.equal(state[key], tensor) or key in folded, key
    close(state["model.0.conv.weight"] * std, own.net.state_dict()["model.0.conv.weight"])
    assert len(own.net.model) == 10
    # what `yolo train` does: the network is built anew for the classes of the data, then gets the weights
    again = yolo.library("nn.tasks").DetectionModel(net.yaml, nc=2, ch=3, verbose=False)
    again.load(net, verbose=False)
    assert again.stride.tolist() == strides
    seen = [pixels, pixels]
    for mine, rebuilt in zip(net.model[:10], again.eval().model[:10], strict=True):
        seen = [mine(seen[0]), rebuilt(seen[1])]
    close(seen[1], seen[0])


@torch.no_grad()
@pytest.mark.parametrize("name", ["timm-grey", "yolo"])
def test_safetensors_say_how_they_are_to_be_used(make_run, tmp_path, name):
    run, file = make_run(name), tmp_path / "a.safetensors"
    channels = MODELS[name].get("channels", 3)
    exported = export(run, format="safetensors", out=file, quiet=True)
    close(load(exported).eval()(images(channels=channels)), backbone(run, channels)(images(channels=channels)))
    with safetensors.safe_open(file, "pt") as opened:
        known = opened.metadata()
    assert known["model"] == MODELS[name]["model"]
    assert json.loads(known["model_args"]) == MODELS[name].get("model_args", {})
    assert (known["stem"], known["image_size"], known["channels"]) == ("small", "32", str(channels))
    assert json.loads(known["mean"]) == ([0.485, 0.456, 0.406] if channels == 3 else [0.449])
    assert json.loads(known["pixel_range"]) is None


@torch.no_grad()
def test_onnx_gives_features_and_probabilities_for_any_batch(finetuned, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    exported = export(finetuned, format="onnx", out=tmp_path / "a.onnx", quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]
    session = onnxruntime.InferenceSession(str(tmp_path / "a.onnx"))
    head = safetensors.torch.load_file(finetuned / runs.HEAD)
    for count in (1, 5):
        scope = {"images": images(count).numpy()}
        exec("\n".join(exported.code), scope)
        features = backbone(finetuned)(images(count))
        close(torch.from_numpy(scope["features"]) / 10, features / 10)
        probabilities = (features @ head["weight"].T + head["bias"]).softmax(1)
        assert probabilities.std() > 0
        torch.testing.assert_close(torch.from_numpy(scope["probabilities"]), probabilities, rtol=0, atol=1e-4)
    known = session.get_modelmeta().custom_metadata_map
    assert json.loads(known["std"]) == [0.229, 0.224, 0.225]
    assert json.loads(known["classes"]) == list("0123456789")


def test_what_does_not_go_together_ends_with_one_line(make_run, tmp_path):
    def message(run, **given):
        with pytest.raises(UserError) as error:
            export(run, **{"out": tmp_path / "a.pth", "quiet": True, **given})
        assert "\n" not in str(error.value)
        return str(error.value)

    run = make_run("torchvision-standard")
    assert message(run, format="timm") == (
        "format: torchvision/resnet18 cannot become timm (allowed: torchvision, smp, safetensors, onnx)"
    )
    assert "cannot become torchvision (allowed: ultralytics" in message(make_run("yolo"), format="torchvision")
    assert "Unsupported model downsampling" in message(make_run("vit"), format="smp")
    assert message(run, format="keras").startswith("format: ")
    assert message(run, format="torchvision", out=tmp_path / "a.onnx").startswith("out: unknown 'a.onnx'")
    assert "lies inside of the run" in message(run, format="torchvision", out=run / "a.pth")
    assert message(tmp_path / "gone", format="torchvision").startswith("run: no folder")
    (tmp_path / "empty").mkdir()
    assert "is no run" in message(tmp_path / "empty", format="timm", out=tmp_path / "a.safetensors")
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / runs.RESULT).unlink()
    assert "is not finished" in message(tmp_path / "run", format="torchvision")
    (tmp_path / "run" / runs.ENVIRONMENT).write_text('{"verb": "probe"}')
    assert "holds a probe (allowed: a pretrain or a finetune)" in message(tmp_path / "run", format="torchvision")
    (tmp_path / "a.pth").write_text("mine")
    assert "is there already (allowed: another file, or --overwrite)" in message(run, format="torchvision")
    assert {path.name for path in tmp_path.iterdir()} == {"run", "a.pth", "empty"}
    assert (tmp_path / "a.pth").read_text() == "mine"
    export(run, format="torchvision", out=tmp_path / "a.pth", overwrite=True, quiet=True)
    assert (tmp_path / "a.pth").stat().st_size > 1_000_000


def test_a_missing_library_is_named(make_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"format: onnxscript is not installed: pip install 'headstart\[onnx\]'"):
        export(make_run("timm"), format="onnx", out=tmp_path / "a.onnx", quiet=True)
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_features_is_not_handed_over(make_run, tmp_path, monkeypatch):
    def write_other(source, file):
        state = {name: tensor + 0.01 for name, tensor in source.state.items() if tensor.is_floating_point()}
        safetensors.torch.save_file({**source.state, **state}, file)

    monkeypatch.setitem(verb.FORMATS, "timm", FORMATS["timm"]._replace(write=write_other))
    (tmp_path / "a.safetensors").write_text("mine")
    with pytest.raises(
        UserError, match=r"format: as timm opens the file, its features differ by .* nothing was written"
    ):
        export(make_run("timm"), format="timm", out=tmp_path / "a.safetensors", overwrite=True, quiet=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    assert (tmp_path / "a.safetensors").read_text() == "mine"


@torch.no_grad()
def test_the_card_says_what_the_weights_are(make_run, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(make_run("timm"), run)
    headstart.probe(run, data="digits", limit=100, labels="1,all", seeds=2, quiet=True)
    known = json.loads((run / runs.ENVIRONMENT).read_text())
    known["data"]["classes"][0] = "a|b\n<script>"
    (run / runs.ENVIRONMENT).write_text(json.dumps(known))
    exported = export(run, format="timm", out=tmp_path / "a.safetensors", card=True, quiet=True)
    assert exported.card == tmp_path / "a.safetensors.md"
    text = exported.card.read_text()
    assert text.startswith("# timm/resnet18, simclr, digits\n")
    assert f"| fingerprint | {known['data']['fingerprint']} |" in text
    assert "0.485, 0.456, 0.406 of each channel is subtracted, then divided by 0.229, 0.224, 0.225" in text
    assert "<script>" not in text
    assert "a\\|b" in text
    assert "temperature: 0.2" in text
    assert "| pooled | 1 | 2 |" in text
    assert "## Licence\n\nNot stated yet" in text
    assert str(tmp_path) not in text
    monkeypatch.chdir(tmp_path)
    scope = {}
    exec(text.partition("```python\n")[2].partition("```")[0], scope)
    close(scope["net"].eval()(images()), backbone(run)(images()))


def test_the_weights_that_were_read_are_told(make_run, tmp_path, capsys):
    export(make_run("timm"), format="timm", out=tmp_path / "a.pth")
    assert "backbone 78/78 tensors" in capsys.readouterr().err
