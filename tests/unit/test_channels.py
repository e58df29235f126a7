"""Backbones and verbs on images that are not three channels of eight bits."""

import json

import numpy as np
import pytest
import tifffile
import torch
import yaml
from sklearn.datasets import load_digits
from torchvision.transforms.functional import resize

import headstart
from headstart.backbones import build
from headstart.backbones.given import initialise
from headstart.backbones.weights import load_weights
from headstart.data.options import Options
from headstart.data.sources import open_data
from headstart.errors import UserError

TINY = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
SETTINGS = {"model": "timm/resnet18", "model_args": TINY, "epochs": 1, "batch_size": 16, "quiet": True}


@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("stem", ["small", "standard"])
@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        ("torchvision/resnet18", {}),
        ("torchvision/mobilenet_v2", {}),
        ("timm/resnet18", TINY),
        ("timm/vit_tiny_patch16_224", {"depth": 1, "embed_dim": 24, "num_heads": 2}),
    ],
)
def test_backbones_take_any_number_of_channels(model, arguments, stem, channels):
    torch.manual_seed(0)
    backbone = build(model, stem=stem, image_size=32, model_args=arguments, channels=channels).eval()
    images = torch.randn(2, channels, 32, 32)
    features = backbone.features(images)
    assert features.pooled.shape == (2, backbone.dim)
    changed = images.clone()
    changed[:, -1] += 1
    assert not torch.equal(backbone.features(changed).pooled, features.pooled)


@pytest.mark.parametrize("channels", [1, 6])
def test_weights_for_three_channels_are_spread_over_others(channels):
    torch.manual_seed(0)
    three = build("torchvision/resnet18", stem="small", image_size=32).eval()
    other = build("torchvision/resnet18", stem="small", image_size=32, channels=channels).eval()
    matched = load_weights(other, three.net.state_dict(), "a test")
    assert matched.spread == ("conv1.weight",)
    assert "spread over the channels: conv1.weight" in matched.describe()
    grey = torch.randn(2, 1, 32, 32)
    expected = three.features(grey.expand(-1, 3, -1, -1)).pooled
    found = other.features(grey.expand(-1, channels, -1, -1)).pooled
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def write_bands(folder, count=48, seed=0):
    """Two classes that differ only in the fourth of five bands, deep and far away from zero."""
    generator = np.random.default_rng(seed)
    for number in range(count):
        bands = generator.integers(1000, 1400, (16, 16, 5)).astype(np.uint16)
        bands[..., 3] += 900 * (number % 2)
        path = folder / f"class{number % 2}" / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, bands, photometric="minisblack", planarconfig="contig")


def test_verbs_on_deep_images_of_five_bands(tmp_path, capsys):
    write_bands(tmp_path / "bands")
    run = tmp_path / "run"
    headstart.pretrain(data=tmp_path / "bands", out=run, **{**SETTINGS, "quiet": False})
    said = capsys.readouterr().err
    assert "pixels of more than 8 bits: 10" in said
    assert "5 channels, so that views change no hue, saturation or colours to grey" in said
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["channels"] == 5
    assert len(config["pixel_range"]) == 5
    assert (run / "plots" / "views.png").exists()
    again = headstart.pretrain(config=run / "config.yaml", out=tmp_path / "again", quiet=True)
    assert again.scores == json.loads((run / "result.json").read_text())["scores"]
    write_bands(tmp_path / "others", seed=1)
    probed = headstart.probe(run, data=tmp_path / "others", labels="5", seeds=2, quiet=True)
    assert probed.config["pixel_range"] == config["pixel_range"]
    assert np.mean([row["accuracy"] for row in probed.scores["rows"]]) > 0.8
    tuned = headstart.finetune(
        data=tmp_path / "bands", init=run, out=tmp_path / "tuned", labels="5", epochs=1, min_steps=2, quiet=True
    )
    assert tuned.config["channels"] == 5


def test_twelve_bits_keep_their_information(tmp_path):
    """The same digits in 8 bits, and in 12 bits of a 16-bit TIFF: a linear probe must not see the difference."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).unsqueeze(1)
    large = resize(images, [16, 16]).squeeze(1).numpy() / 16
    for number, (image, label) in enumerate(zip(large[:600], digits.target, strict=False)):
        for kind, pixels in (
            ("eight", (image * 255).round().astype(np.uint8)),
            ("twelve", (image * 4095).round().astype(np.uint16)),
        ):
            path = tmp_path / kind / str(label) / f"{number:04d}.tif"
            path.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(path, pixels)
    accuracy = {}
    for kind in ("eight", "twelve"):
        found = headstart.probe(
            "none", data=tmp_path / kind, model="timm/resnet18", model_args=TINY, labels="10,all", seeds=3, quiet=True
        )
        accuracy[kind] = np.mean([row["accuracy"] for row in found.scores["rows"]])
    assert accuracy["eight"] > 0.6
    assert abs(accuracy["eight"] - accuracy["twelve"]) < 0.02


def test_a_run_on_grey_images_is_taken_up_in_its_own_channels(tmp_path):
    run = tmp_path / "run"
    headstart.pretrain(data=_grey(tmp_path / "grey"), out=run, channels=1, **SETTINGS)
    begun = initialise(str(run), channels=1)
    assert begun.backbone.net.conv1.in_channels == 1
    probed = headstart.probe(run, data=tmp_path / "grey", labels="all", seeds=1, quiet=True)
    assert probed.config["channels"] == 1


def _grey(folder):
    generator = np.random.default_rng(0)
    for number in range(32):
        path = folder / f"class{number % 2}" / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(path, generator.integers(0, 256, (16, 16)).astype(np.uint8))
    return folder


def test_known_arrays_in_one_channel():
    grey, colour = open_data("digits", Options(channels=1)), open_data("digits")
    assert grey.pixels.channels == 1
    assert torch.equal(grey.images, colour.images[:, :1])  # three equal channels
    with pytest.raises(UserError, match=r"channels: 4, but the images of digits have 3 \(allowed: 1, 3, auto\)"):
        open_data("digits", Options(channels=4))
