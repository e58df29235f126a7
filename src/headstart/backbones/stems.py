"""The first layers of a network: as the library has them, or with a quarter of the downsampling for small images.

SimCLR (arXiv:2002.05709, appendix B.9) changes ResNet for CIFAR-10: a 3 × 3 convolution of stride 1 instead of the
7 × 7 one of stride 2, and no max pooling. ``shrink`` does the same to any convolutional network.
"""

from collections.abc import Iterable
from typing import Literal, get_args

from torch import nn

from headstart.errors import UserError, unknown

Stem = Literal["auto", "small", "standard"]
ResolvedStem = Literal["small", "standard"]

LARGEST_SMALL_IMAGE = 64  # pixels
REDUCTION = 4  # the downsampling that a small stem leaves out


def resolve(stem: Stem, image_size: int) -> ResolvedStem:
    """Return the stem that ``auto`` stands for at this image size (pixels).

    >>> resolve("auto", 32), resolve("auto", 96), resolve("small", 96)
    ('small', 'standard', 'small')
    """
    if stem not in get_args(Stem):
        raise unknown("stem", stem, get_args(Stem))
    if image_size < 1:
        raise UserError(f"image_size: {image_size} is not a number of pixels (allowed: 1 and more)")
    if stem == "auto":
        return "small" if image_size <= LARGEST_SMALL_IMAGE else "standard"
    return stem


def reduced(strides: Iterable[int]) -> tuple[int, ...]:
    """Return the strides of a network's maps after ``shrink``.

    >>> reduced((2, 4, 8, 16, 32))
    (1, 1, 2, 4, 8)
    """
    return tuple(max(1, stride // REDUCTION) for stride in strides)


def shrink(net: nn.Module, names: Iterable[str]) -> None:
    """Take the downsampling out of the named modules of a network, in place.

    Convolutions get stride 1, pooling layers disappear. The network's first convolution becomes a 3 × 3 one of the
    same width where it is larger or cuts the image into patches.

    Args:
        net: the network.
        names: the modules' names in ``net``, in the order of execution; those without a stride are left alone.
    """
    first = True
    for name in names:
        module = net.get_submodule(name)
        if isinstance(module, nn.Conv2d):
            if first and needs_new_kernel(module):
                net.set_submodule(name, three_by_three(module))
            else:
                module.stride = (1, 1)
            first = False
        elif is_pooling(module):
            net.set_submodule(name, nn.Identity())


def take_channels(net: nn.Module, channels: int) -> None:
    """Give a network's first convolution that many input channels, in place, with weights drawn as its old ones were.

    Libraries draw them by the fan out, which the input channels have no part in, or with a fixed deviation, so that the
    deviation of the old weights is that of the new ones.
    """
    name, conv = next((name, module) for name, module in net.named_modules() if isinstance(module, nn.Conv2d))
    if conv.in_channels == channels:
        return
    new = nn.Conv2d(
        channels,
        conv.out_channels,
        kernel_size=conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    nn.init.normal_(new.weight, std=float(conv.weight.detach().std()))
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    net.set_submodule(name, new)


def stride_of(module: nn.Module) -> int:
    """Return by how much a layer downsamples, from its own ``stride``; 1 for a layer that has none."""
    stride = getattr(module, "stride", 1)
    return int(stride[0] if isinstance(stride, tuple | list) else stride)


def is_pooling(module: nn.Module) -> bool:
    """Say whether a layer does nothing but downsample: it has a stride, and neither weights nor parts."""
    return (
        stride_of(module) > 1
        and not any(True for _ in module.children())
        and not any(True for _ in module.parameters())
    )


def is_patchify(conv: nn.Conv2d) -> bool:
    """Say whether a convolution cuts the image into patches that do not overlap, as ConvNeXt's first one."""
    return stride_of(conv) > 1 and conv.kernel_size == conv.stride


def needs_new_kernel(conv: nn.Conv2d) -> bool:
    """Say whether a first convolution is too wide for small images, or only made for its stride."""
    return conv.kernel_size[0] >= 5 or conv.kernel_size[0] % 2 == 0


def three_by_three(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a 3 × 3 convolution of stride 1 in the place of another, initialised as the libraries initialise theirs.

    torchvision and timm draw the first convolution of residual networks from He's normal distribution (fan out) and
    that of ConvNeXt from a truncated normal one of deviation 0.02.
    """
    new = nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size=3, padding=1, bias=conv.bias is not None)
    if is_patchify(conv):
        nn.init.trunc_normal_(new.weight, std=0.02)
    else:
        nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    if new.bias is not None:
        nn.init.zeros_(new.bias)
    return new
