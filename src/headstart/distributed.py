"""Several processes that train one model."""

from typing import Any

import torch
import torch.distributed
from torch import Tensor


class _Gather(torch.autograd.Function):
    """All processes' tensors, with the gradient that every process's loss sends back to this one's."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.start = tensor.shape[0] * torch.distributed.get_rank()
        ctx.count = tensor.shape[0]
        gathered = [torch.empty_like(tensor) for _ in range(torch.distributed.get_world_size())]
        torch.distributed.all_gather(gathered, tensor.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        # Summing is what makes it right: data-parallel training divides by the number of processes afterwards.
        gradient = gradients[0].contiguous()
        torch.distributed.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.count]


def gather(tensor: Tensor) -> Tensor:
    """Return the tensors ``[b …]`` of all processes as one, ``[world·b …]`` in the order of their ranks.

    A loss of the result, computed alike by every process and averaged over them by data-parallel training, has the
    value and the gradient of the same loss on the whole batch in one process.
    """
    if world_size() == 1:
        return tensor
    return _Gather.apply(tensor)  # type: ignore[no-any-return]


def own_part(gathered: Tensor) -> Tensor:
    """Return this process's rows ``[b …]`` of what `gather` gave, ``[world·b …]``."""
    if world_size() == 1:
        return gathered
    return gathered.chunk(world_size())[torch.distributed.get_rank()]


def world_size() -> int:
    """Return how many processes train together."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return 1
    return torch.distributed.get_world_size()
