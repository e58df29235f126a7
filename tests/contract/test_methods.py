"""What every method keeps to, whatever its paper."""

import copy
import inspect
import math

import pytest
import torch
from torch import nn

from headstart.contracts import Backbone, Recipe
from headstart.errors import UserError
from headstart.methods import METHODS, checked, find, hyper_parameters, resolve
from headstart.training.optim import build_optimizer
from headstart.views import PRESETS

NAMES = sorted(METHODS)


@pytest.mark.parametrize("name", NAMES)
def test_says_what_it_is(name):
    method = METHODS[name]
    assert "arXiv" in method.paper
    assert method.remedy
    assert set(method.views) <= set(PRESETS)
    assert "arXiv" in inspect.getmodule(method).__doc__
    parameters = list(inspect.signature(method).parameters.values())[1:]
    assert all(
        p.kind is p.KEYWORD_ONLY and p.default is not p.empty and p.annotation is not p.empty for p in parameters
    )


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_whole_and_fit_the_method(name):
    method = METHODS[name]
    least = 2 if method.more_views else len(method.views)
    for recipe in (method.recipes.natural, method.recipes.small_images):
        assert isinstance(recipe.but(**method.recipes.small_data), Recipe)
        assert set(recipe.views) <= set(PRESETS)
        assert len(recipe.views or method.views) >= least
        resolve(name, recipe.method_args)
        assert recipe.epochs > 0
        assert recipe.batch_size > 0
        assert recipe.learning_rate > 0


@pytest.mark.parametrize("name", NAMES)
def test_losses_are_finite_scalars_and_reach_every_trained_parameter(name, make_method, make_batch):
    method = make_method(name)
    losses = method.losses(make_batch(method))
    assert all(value.ndim == 0 and math.isfinite(value.item()) for value in losses.values())
    losses["loss"].backward()
    for key, parameter in method.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key
    # what rests in the beginning is trained later on
    method.after_step(0.5)
    method.zero_grad()
    method.losses(make_batch(method))["loss"].backward()
    for key, parameter in method.named_parameters():
        if parameter.requires_grad and parameter.ndim > 1:
            assert float(parameter.grad.abs().sum()) > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_losses_leave_no_lasting_side_effect(name, make_method, make_batch):
    method = make_method(name).train()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    torch.manual_seed(3)
    first = method.losses(make_batch(method))["loss"]
    torch.manual_seed(3)
    second = method.losses(make_batch(method))["loss"]
    assert torch.equal(first, second)
    for key, value in method.state_dict().items():
        # batch normalisation keeps its running statistics in the forward pass of every library
        if "running_" not in key and "num_batches_tracked" not in key:
            assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_every_module_is_registered_once(name, make_method):
    method = make_method(name)
    addresses = [value.data_ptr() for value in method.state_dict().values() if value.numel()]
    assert len(addresses) == len(set(addresses))
    assert isinstance(method.projector, nn.Module)
    assert set(method.constant) <= {key for key, _ in method.named_children()}


@pytest.mark.parametrize("name", NAMES)
def test_a_state_that_is_saved_and_restored_goes_on_alike(name, make_method, make_batch):
    method, other = make_method(name).train(), make_method(name, seed=9).train()

    def step(one, optimizer, number):
        torch.manual_seed(number)
        loss = one.losses(make_batch(one, seed=number))["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        one.after_step((number + 1) / 4)
        return float(loss.detach())

    optimizer = build_optimizer(method, "sgd", weight_decay=1e-4, peak=0.05)
    for number in range(2):
        step(method, optimizer, number)
    other.load_state_dict(copy.deepcopy(method.state_dict()))
    others = build_optimizer(other, "sgd", weight_decay=1e-4, peak=0.05)
    others.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert [step(method, optimizer, n) for n in (2, 3)] == [step(other, others, n) for n in (2, 3)]
    for key, value in method.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize("name", NAMES)
def test_embeddings_are_one_row_per_image_and_the_teachers_alike(name, make_method, make_batch):
    method = make_method(name).eval()
    images = make_batch(method).views[0]
    embeddings, targets = method.embed(images), method.embed_target(images)
    assert embeddings.ndim == 2
    assert len(embeddings) == len(images)
    assert targets is None or targets.shape == embeddings.shape
    assert isinstance(method.handed_on, Backbone)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "distill"])
def test_a_teacher_follows_only_after_the_step(name, make_method, make_batch):
    method = make_method(name).train()
    teachers = [key for key, value in method.named_parameters() if not value.requires_grad]
    if not teachers:
        pytest.skip("no teacher")
    before = {key: value.clone() for key, value in method.named_parameters()}
    optimizer = build_optimizer(method, "sgd", weight_decay=0.0, peak=0.1)
    method.losses(make_batch(method))["loss"].backward()
    optimizer.step()
    assert all(torch.equal(dict(method.named_parameters())[key], before[key]) for key in teachers)
    method.after_step(0.5)
    moved = [key for key in teachers if not torch.equal(dict(method.named_parameters())[key], before[key])]
    assert len(moved) > len(teachers) / 2


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_checked_against_the_signature(name):
    with pytest.raises(UserError, match="method_args: unknown 'no_such_argument'"):
        resolve(name, {"no_such_argument": 1})
    assert resolve(name, {}).keys() == hyper_parameters(METHODS[name]).keys()


def test_only_what_is_given_is_checked():
    assert checked("moco", {"momentum": "0.9"}) == {"momentum": 0.9}


def test_simclr_takes_text_from_the_command_line_but_no_nonsense():
    assert resolve("simclr", {"temperature": "0.5"})["temperature"] == 0.5
    with pytest.raises(UserError, match=r"method_args\.temperature"):
        resolve("simclr", {"temperature": "warm"})


def test_the_nearest_method_is_offered():
    with pytest.raises(UserError, match="did you mean 'simclr'"):
        find("simclear")
