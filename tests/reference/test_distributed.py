"""Two gloo processes train every method as one process does on the whole batch."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from headstart import methods
from headstart.backbones import build
from headstart.contracts import Batch, Method
from headstart.distributed import gather, own_part
from headstart.methods import METHODS
from headstart.training.machine import build_fabric

WORLD, COUNT, SIZE = 2, 8, 8
STEPS = 3  # a queue of 12 is full after the second one, and begins anew in it
SIZES = {"queue": 12, "prototypes": 12, "splits": 2, "slices": 16, "symmetric": True}
# supcon-anchor compares the images of a process with each other only: every part of its batches has anchors of its own.
# mae draws other masks in every process.
NAMES = sorted(METHODS.keys() - {"supcon-anchor", "mae"})


class Training(NamedTuple):
    """What every step gave, and the method's state after the last."""

    losses: list[float]
    gradients: list[dict[str, Tensor]]
    state: dict[str, Tensor]


def build_method(name: str, teacher: str) -> Method:
    """Return a narrow method in float64, whose batch normalisations use statistics that do not depend on the batch.

    So nothing couples the images of a batch but the loss.
    """
    schema = methods.hyper_parameters(METHODS[name])
    known: dict[str, Any] = {
        **SIZES,
        **{key: 16 for key in schema if key.endswith("_dim")},
        "teacher": teacher,
        "teacher_size": SIZE,
    }
    arguments = {key: value for key, value in known.items() if key in schema}
    torch.manual_seed(0)
    narrow = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1], "zero_init_last": False}
    method = methods.build(name, build("timm/resnet18", image_size=SIZE, model_args=narrow), arguments).double().eval()
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return method


def part_of(method: Method, step: int, rank: int, world: int) -> Batch:
    """Return the images of a step that one of the processes sees."""
    generator = torch.Generator().manual_seed(step)
    count = 3 if method.more_views else len(method.views)
    views = torch.randn(count, COUNT, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)
    labels, rows = torch.tensor([0, 1, 2, 0, 1, 2, 0, -1]), torch.arange(COUNT)
    mine = slice(rank * COUNT // world, (rank + 1) * COUNT // world)
    return Batch(tuple(view[mine] for view in views), labels[mine], rows[mine])


def train(method: Method, batch_of: Callable[[int], Batch], wrap: Callable[[Method], nn.Module]) -> Training:
    model = wrap(method)
    trained = {key: parameter for key, parameter in method.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD(trained.values(), lr=0.01)
    losses, gradients = [], []
    for step in range(STEPS):
        loss = model(batch_of(step))["loss"]
        loss.backward()
        losses.append(loss.item())
        gradients.append({key: parameter.grad.clone() for key, parameter in trained.items()})
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        method.after_step((step + 1) / STEPS)
    return Training(losses, gradients, method.state_dict())


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def work(rank: int, port: int, folder: str, teacher: str) -> None:
    known = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ.update(known)
    torch.set_num_threads(1)
    fabric = build_fabric("fp32", WORLD)  # which leaves float64 as it is
    whole = gather(torch.arange(6).view(3, 2) + 10 * rank)
    found: dict[str, Any] = {"gather": (whole, own_part(whole))}
    for name in NAMES:
        method = build_method(name, teacher)
        found[name] = tuple(
            train(method, lambda step, own=method: part_of(own, step, rank, WORLD), fabric.setup_module)
        )
    torch.save(found, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory, teacher):
    """Return what each of the processes found."""
    folder = str(tmp_path_factory.mktemp("distributed"))
    # the fork server imports everything once for both of them
    multiprocessing.set_forkserver_preload(["headstart.methods", "headstart.backbones", "headstart.training.machine"])
    mp.start_processes(work, args=(free_port(), folder, teacher), nprocs=WORLD, start_method="forkserver")
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(WORLD)]


def assert_near(one: Tensor, other: Tensor, *, key: str, floor: float = 0.0) -> None:
    """Compare the lengths of a difference and of the tensor itself; ``floor`` is a length that does not count."""
    one, other = one.double(), other.double()
    assert float((one - other).norm()) <= 1e-9 * float(other.norm()) + floor, key


@pytest.mark.distributed
@pytest.mark.parametrize("name", NAMES)
def test_two_processes_train_as_one_does_on_the_whole_batch(name, found, teacher):
    ranks = [Training(*each[name]) for each in found]
    method = build_method(name, teacher)
    alone = train(method, lambda step: part_of(method, step, 0, 1), lambda method: method)
    for step in range(STEPS):
        # methods that gather have the whole loss in every process; data-parallel training averages in either case
        mean = sum(rank.losses[step] for rank in ranks) / WORLD
        assert mean == pytest.approx(alone.losses[step], rel=1e-9)
        length = sum(float(gradient.square().sum()) for gradient in alone.gradients[step].values()) ** 0.5
        assert length > 0
        for rank in ranks:
            assert rank.gradients[step].keys() == alone.gradients[step].keys()
            for key, gradient in alone.gradients[step].items():
                assert_near(rank.gradients[step][key], gradient, key=f"{key}, step {step}", floor=1e-12 * length)
    for key, value in alone.state.items():
        assert torch.equal(ranks[0].state[key], ranks[1].state[key]), key
        assert_near(ranks[0].state[key], value, key=key, floor=1e-12)


@pytest.mark.distributed
def test_gathering_follows_the_ranks(found):
    whole = torch.cat([torch.arange(6).view(3, 2), torch.arange(6).view(3, 2) + 10])
    for rank in range(WORLD):
        assert torch.equal(found[rank]["gather"][0], whole)
        assert torch.equal(found[rank]["gather"][1], whole[3 * rank : 3 * rank + 3])


def test_one_process_gathers_nothing():
    tensor = torch.randn(3, 2, requires_grad=True)
    assert gather(tensor) is tensor
    assert own_part(tensor) is tensor
