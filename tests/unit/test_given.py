"""Where a backbone's first weights come from: a run, a file, a published name, or nowhere."""

import pytest
import torch
from safetensors.torch import save_file

from headstart import runs
from headstart.backbones import build
from headstart.backbones.given import initialise, run_settings
from headstart.config import Finetune
from headstart.errors import UserError
from headstart.randomness import mix

CHANNELS = {"channels": [8, 16, 24, 32]}
MODEL = {"model": "timm/test_resnet", "model_args": CHANNELS}


def equal(backbone, state):
    return all(torch.equal(tensor, state[name]) for name, tensor in backbone.net.state_dict().items())


@pytest.fixture
def state():
    torch.manual_seed(7)
    return build(image_size=32, **MODEL).net.state_dict()


@pytest.fixture
def run(tmp_path, state):
    """A finished run at 48 pixels, with a stem that ``auto`` would not choose."""
    folder = tmp_path / "run"
    settings = Finetune.create(data="digits", image_size=48, stem="standard", **MODEL)
    runs.create(folder, settings, {"verb": "finetune"}, resume=False, overwrite=False).finish(settings, {})
    save_file(state, folder / runs.BACKBONE)
    return folder


def test_a_run_says_all_about_its_backbone(run, state):
    torch.manual_seed(0)
    found = initialise(str(run))
    assert equal(found.backbone, state)
    assert (found.model, found.model_args, found.stem, found.image_size) == (*MODEL.values(), "standard", 48)
    assert found.matched.matched == found.matched.total == len(state)
    assert found.backbone.strides[0] == build(image_size=32, stem="standard", **MODEL).strides[0]


def test_what_is_asked_for_wins_over_the_run(run, state):
    found = initialise(str(run), image_size=32, stem="small")
    assert equal(found.backbone, state)
    assert (found.stem, found.image_size) == ("small", 32)
    assert found.backbone.strides[0] == build(image_size=32, stem="small", **MODEL).strides[0]
    with pytest.raises(UserError, match=r"init: .*does not fit"):
        initialise(str(run), model_args={"channels": [8, 16, 24, 40]})


def test_a_file_knows_its_weights_only(tmp_path, state):
    save_file(state, tmp_path / "weights.safetensors")
    found = initialise(str(tmp_path / "weights.safetensors"), **MODEL, image_size=32)
    assert equal(found.backbone, state)
    assert (found.stem, found.image_size) == ("small", 32)
    with pytest.raises(UserError, match=r"init: .*does not fit"):
        initialise(str(tmp_path / "weights.safetensors"))


def test_a_published_name_is_its_own_model(monkeypatch, state):
    monkeypatch.setattr("headstart.backbones.given.pretrained_state", lambda name: {"timm/test_resnet": state}[name])
    found = initialise("timm/test_resnet", model_args=CHANNELS)
    assert equal(found.backbone, state)
    assert (found.model, found.stem, found.image_size) == ("timm/test_resnet", "standard", 224)
    assert initialise("timm/test_resnet", model_args=CHANNELS, image_size=32).stem == "standard"


def test_random_weights_depend_on_the_seed():
    first, again, other = (initialise("none", image_size=32, seed=seed, **MODEL) for seed in (3, 3, 4))
    assert first.matched is None
    assert first.stem == "small"
    assert equal(first.backbone, again.backbone.net.state_dict())
    assert not equal(first.backbone, other.backbone.net.state_dict())
    torch.manual_seed(mix(3))
    assert equal(first.backbone, build(image_size=32, **MODEL).net.state_dict())


def test_without_a_seed_the_generator_goes_on(run):
    # a method that draws its own weights after those of its teacher must not get equal ones for every seed
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        initialise(str(run))
        drawn.append(torch.rand(4))
    assert not torch.equal(*drawn)


def test_without_anything_it_is_the_default_model():
    assert initialise("none", image_size=32).model == "torchvision/resnet18"


def test_only_a_run_has_settings(run, tmp_path):
    assert run_settings(str(run))["image_size"] == 48
    assert run_settings("none") is None
    assert run_settings("timm/test_resnet") is None
    (run / runs.BACKBONE).unlink()
    with pytest.raises(UserError, match=r"^init: .*run is not finished \(it has no backbone.safetensors"):
        run_settings(str(run))
    with pytest.raises(UserError, match=r"^init: .* is no run"):
        run_settings(str(tmp_path))
