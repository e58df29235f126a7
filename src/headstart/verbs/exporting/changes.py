"""In which layers a backbone differs from what its library's own constructor gives, and the code that changes them."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import nn

from headstart.backbones.stems import is_pooling


class Change(NamedTuple):
    """A layer that a network has to be given in place of its own, or a new stride of its own.

    Attributes:
        name: of the layer in the network.
        layer: the new one, with random weights; None where only the stride changes.
        stride: of the layer.
    """

    name: str
    layer: nn.Module | None
    stride: tuple[int, ...]


def changes(theirs: nn.Module, ours: nn.Module, prefix: str = "") -> list[Change]:
    """Return what makes the first layers of a network those of another one, which has the same layers else.

    Args:
        theirs: the network as its library's constructor gives it.
        ours: the network with a small stem, or for another number of channels.
        prefix: what names in ``theirs`` begin with; points in them may be underscores.
    """
    own = {flat(name): module for name, module in ours.named_modules()}
    found = []
    for name, module in theirs.named_modules():
        wanted = own.get(flat(name.removeprefix(prefix)))
        if isinstance(wanted, nn.Identity) and is_pooling(module):
            found.append(Change(name, nn.Identity(), ()))
        elif isinstance(wanted, nn.Conv2d) and isinstance(module, nn.Conv2d) and repr(wanted) != repr(module):
            same = type(wanted) is type(module) and wanted.weight.shape == module.weight.shape
            same = same and wanted.padding == module.padding
            found.append(Change(name, None if same else like(wanted), wanted.stride))
    return found


def apply(net: nn.Module, changed: Iterable[Change]) -> None:
    """Change the layers of a network, in place."""
    for change in changed:
        if change.layer is not None:
            net.set_submodule(change.name, change.layer)
        else:
            net.get_submodule(change.name).stride = change.stride  # type: ignore[assignment]


def code(changed: Iterable[Change], net: str = "net") -> list[str]:
    """Return the lines of Python that do what ``apply`` does; they need ``from torch import nn``."""
    return [
        f'{net}.set_submodule("{change.name}", nn.{change.layer!r})'
        if change.layer is not None
        else f'{net}.get_submodule("{change.name}").stride = {change.stride}'
        for change in changed
    ]


def flat(name: str) -> str:
    """Return a name with underscores for points, as timm names the layers of a network for feature maps.

    >>> flat("stages.0.blocks")
    'stages_0_blocks'
    """
    return name.replace(".", "_")


def like(conv: nn.Conv2d) -> nn.Conv2d:
    """Return a convolution of the same shape with random weights."""
    return nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        kernel_size=conv.kernel_size,  # type: ignore[arg-type]
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
    )
