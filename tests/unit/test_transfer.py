"""The proof that weights arrived tells those that did from those that did not, and changes nothing."""

import pytest
import torch
from torch import nn

from headstart.backbones import build
from headstart.backbones.given import Initialised
from headstart.backbones.weights import Matched
from headstart.errors import UserError
from headstart.verbs.finetuning.transfer import Transfer, check, features_of, line

MODELS = {
    "timm/resnet18": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]},
    "timm/vit_tiny_patch16_224": {"depth": 1, "embed_dim": 48, "num_heads": 3},
}


def made(model="timm/resnet18", seed=0, channels=3):
    torch.manual_seed(seed)
    return build(model, image_size=32, model_args=MODELS[model], channels=channels)


def begun(backbone):
    return Initialised(backbone, Matched(3, 3, (), (), ()), "timm/resnet18", {}, "small", 32)


@pytest.mark.parametrize(("model", "channels"), [("timm/resnet18", 3), ("timm/resnet18", 1), (list(MODELS)[1], 3)])
def test_features_are_those_in_evaluation_and_nothing_is_touched(model, channels):
    backbone = made(model, channels=channels).train()
    state = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    generator = torch.get_rng_state()
    found = features_of(backbone, 32)
    assert torch.equal(torch.get_rng_state(), generator)
    assert backbone.training
    assert all(torch.equal(tensor, state[name]) for name, tensor in backbone.state_dict().items())
    expected = torch.randn(2, channels, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pooled, maps = backbone.eval().features(expected)
    for again in (found, features_of(backbone.to(torch.float64), 32)):
        assert all(torch.equal(*pair) for pair in zip(again, [pooled, *maps], strict=True))


def test_a_backbone_with_other_weights_stops():
    transfer = Transfer.of(begun(made()))
    head = nn.Linear(8, 2)
    transfer.check(made(), head)
    assert transfer.line == "backbone 3/3 tensors, head 0/2 (new); features equal to 0"
    transfer.check(made())
    assert transfer.line == "backbone 3/3 tensors; features equal to 0"
    with pytest.raises(UserError, match=r"init: the weights did not arrive: .* \(allowed: 1e-05\)"):
        transfer.check(made(seed=1))
    slightly = made()
    with torch.no_grad():
        slightly.net.conv1.weight[0] *= 1.001
    with pytest.raises(UserError):
        transfer.check(slightly)


def test_the_difference_is_a_share_of_the_largest_feature():
    before, other = torch.tensor([[1.0, -200.0]]), torch.tensor([[1e-6]])
    found = check([other, before], [other, before + torch.tensor([[0.0, 0.001]])])
    assert found == pytest.approx(5e-6, rel=0.05)
    for after in (before + 0.01, before * torch.nan, torch.zeros(1, 3)):
        with pytest.raises(UserError):
            check([before, other], [after, other])
    with pytest.raises(UserError):
        check([before, other], [before, other * 1.1])
    assert line(Matched(5, 6, (), (), ()), 0, 2.6e-7) == "backbone 5/6 tensors; features equal to 3e-07"
