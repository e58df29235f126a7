"""The loop, the optimisers, the learning rate and the checkpoints."""

import math

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from headstart.contracts import Batch, Objective
from headstart.errors import UserError
from headstart.methods.simsiam import SimSiam
from headstart.training import checkpoint
from headstart.training.fit import NonFiniteLossError, fit
from headstart.training.machine import prepared
from headstart.training.optim import build_optimizer, learning_rate, set_learning_rate


class Quadratic(Objective):
    """Distance of a linear map from its target, on the batch's first view."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.progress = []

    def losses(self, batch):
        return {"loss": self.net(batch.views[0]).square().mean(), "seen": batch.views[0].sum()}

    def after_step(self, progress):
        self.progress.append(progress)


def batches(count, size=8):
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield Batch((torch.randn(size, 4, generator=generator),), torch.zeros(size), torch.arange(size))


def run(objective, steps, parts=1, start=0, source=None, rate=0.1, clip=None):
    fabric = Fabric(accelerator="cpu", devices=1)
    optimizer = build_optimizer(objective, "sgd", weight_decay=0.0)
    trained, set_up = fabric.setup(objective, optimizer)
    return list(
        fit(
            trained,
            source or batches(steps * parts),
            set_up,
            fabric=fabric,
            learning_rates=lambda step: rate,
            start=start,
            steps=steps,
            parts=parts,
            seed=0,
            clip_gradient=clip,
        )
    )


def test_yields_every_step_with_what_happened():
    torch.manual_seed(0)
    objective = Quadratic()
    steps = run(objective, 5, parts=2)
    assert [step.step for step in steps] == [1, 2, 3, 4, 5]
    assert all(step.images == 16 and step.seconds >= step.waited >= 0 for step in steps)
    assert objective.progress == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_accumulated_gradients_are_those_of_the_whole_batch():
    def trained(parts):
        torch.manual_seed(0)
        net = nn.Linear(4, 3)
        objective = Quadratic()
        objective.net = net  # without batch statistics, which are of a part
        whole = list(batches(3, size=8))
        cut = [
            Batch((part,), torch.zeros(len(part)), torch.arange(len(part)))
            for batch in whole
            for part in batch.views[0].chunk(parts)
        ]
        run(objective, 3, parts=parts, source=iter(cut))
        return net.weight

    torch.testing.assert_close(trained(1), trained(4), rtol=1e-5, atol=1e-7)


def test_a_loss_that_is_no_number_stops_before_the_weights_change():
    torch.manual_seed(0)
    objective = Quadratic()
    before = objective.net[0].weight.clone()
    bad = Batch((torch.full((8, 4), math.nan),), torch.zeros(8), torch.arange(8))
    with pytest.raises(NonFiniteLossError, match="loss is nan, seen is nan, gradient_norm is nan at step 1") as caught:
        run(objective, 2, source=iter([bad, bad]))
    assert isinstance(caught.value, UserError)
    assert torch.equal(objective.net[0].weight, before)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_stops_at_its_step_with_the_weights_before_it(broken):
    class Breaks(Quadratic):
        def losses(self, batch):
            losses = super().losses(batch)
            if len(self.progress) < 2:
                return losses
            # the root of zero is finite, its slope is not
            return {**losses, "loss": losses["loss"] * math.inf if broken == "loss" else (0 * losses["loss"]).sqrt()}

    torch.manual_seed(0)
    whole, objective = Quadratic(), Breaks()
    objective.load_state_dict(whole.state_dict())
    run(whole, 2)
    name = {"loss": "loss is inf, gradient_norm is nan", "gradient": "gradient_norm is nan"}[broken]
    with pytest.raises(NonFiniteLossError, match=f"learning_rate: {name} at step 3") as caught:
        run(objective, 5)
    assert "\n" not in str(caught.value)
    for mine, theirs in zip(objective.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("clip", [None, 1e9, 0.01])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_longer_gradient_is_cut_to_the_limit(clip, parts):
    torch.manual_seed(0)
    objective = Quadratic()
    objective.net = nn.Linear(4, 3)
    before = torch.cat([value.detach().clone().flatten() for value in objective.parameters()])
    batch = list(batches(parts))
    gradients = [torch.autograd.grad(objective.losses(part)["loss"], list(objective.parameters())) for part in batch]
    whole = sum(torch.cat([value.flatten() for value in part]) for part in gradients) / parts
    (step,) = run(objective, 1, parts=parts, source=iter(batch), clip=clip)
    moved = (before - torch.cat([value.detach().flatten() for value in objective.parameters()])) / 0.1
    assert step.gradient_norm == pytest.approx(float(whole.norm()), rel=1e-5)  # before it is cut
    share = 1.0 if clip is None else min(1.0, clip / float(whole.norm()))
    torch.testing.assert_close(moved, whole * share, rtol=1e-4, atol=1e-6)
    assert float(moved.norm()) <= (clip or math.inf) * (1 + 1e-4)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_the_rate_of_constant_parts_stays_at_its_peak(name):
    class TwoParts(Quadratic):
        constant = ("predictor",)

        def __init__(self):
            super().__init__()
            self.predictor = nn.Linear(3, 3)

    objective = TwoParts()
    optimizer = build_optimizer(objective, name, weight_decay=0.1, peak=0.5)
    set_learning_rate(optimizer, 0.125)
    rates = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    assert {rates[id(value)] for value in objective.predictor.parameters()} == {0.5}
    assert {rates[id(value)] for value in objective.net.parameters()} == {0.125}
    assert len(rates) == len(list(objective.parameters()))


def test_the_predictor_of_simsiam_is_such_a_part():
    assert SimSiam.constant == ("predictor",)


@pytest.mark.parametrize("name", ["sgd", "lars", "adamw"])
def test_biases_and_normalisations_are_not_decayed(name):
    objective = Quadratic()
    weights = {id(parameter) for parameter in objective.parameters() if parameter.ndim > 1}
    for group in build_optimizer(objective, name, weight_decay=0.1).param_groups:
        of_weights = {id(parameter) in weights for parameter in group["params"]}
        assert of_weights == {group["weight_decay"] == 0.1}


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_lars_is_the_paper_s_update(weight_decay):
    # You et al. 2017, arXiv:1708.03888: local rate = trust * |w| / (|g| + decay * |w|), momentum on the scaled gradient
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
    bias = nn.Parameter(torch.randn(3, dtype=torch.float64))
    module = Quadratic()
    module.net = nn.ParameterDict({"weight": weight, "bias": bias})
    optimizer = build_optimizer(module, "lars", weight_decay=weight_decay)
    w, b = weight.detach().clone(), bias.detach().clone()
    momentum_w, momentum_b = torch.zeros_like(w), torch.zeros_like(b)
    for step in range(3):
        rate = 0.5 / (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = rate
        weight.grad, bias.grad = torch.randn_like(weight), torch.randn_like(bias)
        trust = 0.001 * w.norm() / (weight.grad.norm() + weight_decay * w.norm() + 1e-8)
        momentum_w = 0.9 * momentum_w + trust * (weight.grad + weight_decay * w)
        momentum_b = 0.9 * momentum_b + bias.grad
        w, b = w - rate * momentum_w, b - rate * momentum_b
        optimizer.step()
    torch.testing.assert_close(weight.detach(), w, rtol=1e-6, atol=0)
    torch.testing.assert_close(bias.detach(), b, rtol=1e-9, atol=0)


def test_learning_rate_rises_linearly_and_falls_as_half_a_cosine():
    rates = [learning_rate(step, steps=100, warmup=0.1, peak=2.0) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:] == pytest.approx([1 + math.cos(math.pi * step / 90) for step in range(90)])
    assert learning_rate(0, steps=1, warmup=0.1, peak=1.0) == 1.0


def test_checkpoint_round_trip(tmp_path):
    torch.manual_seed(0)
    objective = Quadratic()
    optimizer = build_optimizer(objective, "adamw", weight_decay=0.1)
    objective.losses(next(batches(1)))["loss"].backward()
    optimizer.step()
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, step=7, objective=objective.state_dict(), optimizer=optimizer.state_dict())
    torch.manual_seed(1)
    other = Quadratic()
    others_optimizer = build_optimizer(other, "adamw", weight_decay=0.1)
    state = checkpoint.read(path, "resume")
    assert checkpoint.restore(state, objective=other, optimizer=others_optimizer) == 7
    for mine, theirs in zip(objective.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    moments = optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(others_optimizer.state_dict()["state"][0]["exp_avg"], moments)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path):
    for name, write in {
        "text.ckpt": lambda path: path.write_text("not a checkpoint"),
        "empty.ckpt": lambda path: path.write_bytes(b""),
        "weights.ckpt": lambda path: torch.save({"weight": torch.ones(2)}, path),
        "evil.ckpt": lambda path: torch.save({"format": checkpoint.FORMAT, "run": print}, path),
    }.items():
        write(tmp_path / name)
        with pytest.raises(UserError, match=f"init: .*{name} is no Headstart checkpoint") as caught:
            checkpoint.read(tmp_path / name, "init")
        assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="init: no file"):
        checkpoint.read(tmp_path / "missing.ckpt", "init")


@pytest.mark.parametrize(("channels", "stride", "last"), [(8, 2, False), (15, 2, False), (16, 2, True), (8, 1, True)])
def test_channels_stay_first_where_onednn_would_overrun_its_memory(channels, stride, last):
    """A strided 1x1 convolution of less than 16 channels, with channels last, ended in a double free."""
    net = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1), nn.Conv2d(channels, 8, 1, stride=stride))
    net = prepared(net, Fabric(accelerator="cpu", devices=1))
    assert net[0].weight.is_contiguous(memory_format=torch.channels_last) == last
    for _ in range(3):
        net(torch.rand(8, 3, 64, 64)).square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
