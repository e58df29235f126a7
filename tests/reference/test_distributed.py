"""Two gloo processes give the value and the gradient of one process on the whole batch."""

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from headstart.distributed import gather
from headstart.losses.contrastive import nt_xent

WORLD = 2


def data():
    generator = torch.Generator().manual_seed(0)
    views = torch.randn(2, 8, 6, dtype=torch.float64, generator=generator)
    torch.manual_seed(1)
    return views, nn.Linear(6, 4, dtype=torch.float64)


def work(rank: int, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", GLOO_SOCKET_IFNAME="lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD)
    views, net = data()
    wrapped = nn.parallel.DistributedDataParallel(net)
    mine = views[:, rank * 4 : (rank + 1) * 4]
    first, second = (gather(wrapped(view)) for view in mine)
    loss = nt_xent(first, second, temperature=0.2)
    loss.backward()
    torch.save((loss.detach(), net.weight.grad), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.distributed
def test_gathered_loss_has_the_value_and_gradient_of_the_whole_batch(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=WORLD)
    views, net = data()
    loss = nt_xent(net(views[0]), net(views[1]), temperature=0.2)
    loss.backward()
    for rank in range(WORLD):
        value, gradient = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
        torch.testing.assert_close(gradient, net.weight.grad, rtol=1e-9, atol=1e-15)


def test_one_process_gathers_nothing():
    tensor = torch.randn(3, 2, requires_grad=True)
    assert gather(tensor) is tensor
