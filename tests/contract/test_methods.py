"""What every method keeps to, whatever its paper."""

import inspect
import math

import pytest
import torch
from torch import nn

from headstart.backbones import build
from headstart.contracts import Batch, Method
from headstart.errors import UserError
from headstart.methods import METHODS, find, hyper_parameters, resolve
from headstart.methods import build as build_method
from headstart.views import PRESETS

NAMES = sorted(METHODS)


def make(name: str) -> Method:
    torch.manual_seed(0)
    model_args = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1], "zero_init_last": False}
    return build_method(name, build("timm/resnet18", image_size=16, model_args=model_args), {})


def batch(method: Method, count: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    views = tuple(torch.randn(count, 3, 16, 16, generator=generator) for _ in method.views)
    return Batch(views, torch.arange(count) % 3, torch.arange(count))


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is(name):
    method = METHODS[name]
    assert "arXiv" in method.paper
    assert set(method.views) <= set(PRESETS)
    assert inspect.getmodule(method).__doc__.strip()
    parameters = list(inspect.signature(method).parameters.values())[1:]
    assert all(
        p.kind is p.KEYWORD_ONLY and p.default is not p.empty and p.annotation is not p.empty for p in parameters
    )


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_finite_scalars_and_reach_every_trained_parameter(name):
    method = make(name)
    losses = method.losses(batch(method))
    assert all(value.ndim == 0 and math.isfinite(value.item()) for value in losses.values())
    losses["loss"].backward()
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
        if parameter.requires_grad and parameter.ndim > 1:
            assert float(parameter.grad.abs().sum()) > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_losses_leave_no_lasting_side_effect(name):
    method = make(name).train()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    torch.manual_seed(3)
    first = method.losses(batch(method))["loss"]
    torch.manual_seed(3)
    second = method.losses(batch(method))["loss"]
    assert torch.equal(first, second)
    for key, value in method.state_dict().items():
        # batch normalisation keeps its running statistics in the forward pass of every library
        if "running_" not in key and "num_batches_tracked" not in key:
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_every_module_is_registered_once(name):
    method = make(name)
    addresses = [value.data_ptr() for value in method.state_dict().values() if value.numel()]
    assert len(addresses) == len(set(addresses))
    assert isinstance(method.projector, nn.Module)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_checked_against_the_signature(name):
    with pytest.raises(UserError, match="method_args: unknown 'no_such_argument'"):
        resolve(name, {"no_such_argument": 1})
    assert resolve(name, {}).keys() == hyper_parameters(METHODS[name]).keys()


def test_simclr_takes_text_from_the_command_line_but_no_nonsense():
    assert resolve("simclr", {"temperature": "0.5"})["temperature"] == 0.5
    with pytest.raises(UserError, match=r"method_args\.temperature"):
        resolve("simclr", {"temperature": "warm"})


def test_the_nearest_method_is_offered():
    with pytest.raises(UserError, match="did you mean 'simclr'"):
        find("simclear")
