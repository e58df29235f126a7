"""The one way in which the losses keep their numbers exact under mixed precision."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")


def exact(loss: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Compute a loss in at least float32, whatever autocast and the precision of its arguments are.

    A bf16 similarity divided by a small temperature, or a bf16 mean over a batch, loses the differences that the loss
    is about. The device is that of the first tensor; tensors of integers and of booleans stay as they are.
    """

    @functools.wraps(loss)
    def computed(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        device = next(value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        promoted = [_at_least_float32(value) for value in args]
        named = {name: _at_least_float32(value) for name, value in kwargs.items()}
        with torch.autocast(device.type, enabled=False):
            return loss(*promoted, **named)  # type: ignore[arg-type]

    return computed


def _at_least_float32(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.promote_types(value.dtype, torch.float32))
    return value
