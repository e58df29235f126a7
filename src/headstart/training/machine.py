"""The device, the arithmetic and the processes of a training."""

import os
from inspect import signature
from typing import Any, TypeVar

import torch
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy
from torch import nn

from headstart.errors import UserError
from headstart.settings import Auto

ModuleT = TypeVar("ModuleT", bound=nn.Module)
# Queues and centres are equal in all processes already: to send them before every step would only take time.
_BUFFER_OPTIONS = ("forward_sync_buffers", "broadcast_buffers")  # of torch, the newer name first
_DDP: dict[str, Any] = {
    next(name for name in _BUFFER_OPTIONS if name in signature(nn.parallel.DistributedDataParallel).parameters): False
}
_PRECISIONS: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def resolve_precision(precision: str) -> str:
    """Return the arithmetic for `auto`: bf16 on a GPU that has it, else fp32.

    Raises:
        UserError: fp16 without a GPU.
    """
    if precision == "auto":
        return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("precision: fp16 needs a GPU (allowed here: auto, fp32, bf16)")
    return precision


def resolve_devices(devices: int | Auto) -> int:
    """Return the number of processes for `auto`: one per GPU, else one.

    Raises:
        UserError: more than there are GPUs, or without any than there are cores.
    """
    gpus = torch.cuda.device_count()
    if devices == "auto":
        return max(gpus, 1)
    found = gpus or os.cpu_count() or 1
    if devices > found:
        raise UserError(f"devices: {devices} asked, this machine has {found} (allowed: 1 to {found}, auto)")
    return devices


def build_fabric(precision: str, devices: int, *, idle: bool = False) -> Fabric:
    """Return Fabric with its processes launched; on more than one device this process is started once for each.

    ``idle`` says that some weights may get no gradient, such as a last normalisation that feature maps do not pass.
    """
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        strategy=DDPStrategy(**_DDP, find_unused_parameters=idle) if devices > 1 else "auto",
        precision=_PRECISIONS[precision],
    )
    fabric.launch()
    return fabric


def is_first_process() -> bool:
    """Say whether this process is the one that the user started, rather than one of those it launched itself."""
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("RANK", "0")) == 0


def prepared(module: ModuleT, fabric: Fabric) -> ModuleT:
    """Return the module as this machine trains it fastest, and as the papers do on several GPUs.

    Convolutions keep their channels last in memory, which made small ResNets 1.25 to 1.4 times as fast on a CPU and is
    what GPUs with bf16 want. Batch statistics are taken over all GPUs; CPU processes keep their own.
    """
    if fabric.device.type == "cuda" or not _overruns_memory(module):
        module = module.to(memory_format=torch.channels_last)
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-any-return, no-untyped-call]
    return module


def _overruns_memory(module: nn.Module) -> bool:
    """Say whether a convolution of the module crashes the process in its backward pass with channels last on a CPU.

    oneDNN writes past its workspace for strided 1x1 convolutions of less than 16 channels (its issue 6035, v3.12 and
    v3.13): such as the shortcuts of a ResNet with 8 channels.
    """
    return any(
        isinstance(part, nn.Conv2d)
        and part.kernel_size == (1, 1)
        and part.stride != (1, 1)
        and part.in_channels // part.groups < 16
        for part in module.modules()
    )


def default_workers(image_size: int) -> int:
    """Return how many trainings to run at the same time: one per GPU, else one per core while images are small.

    Small images keep only one core busy: two trainings on two cores were twice as fast as one after the other.
    """
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return os.cpu_count() or 1 if image_size <= 64 else 1


def device_name() -> str:
    """Return what trainings run on, for the record."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    return f"no GPU, {torch.get_num_threads()} threads"
