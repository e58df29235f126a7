"""Small networks that methods are built from."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def mlp(widths: Sequence[int], *, last_norm: bool = False) -> nn.Sequential:
    """Return linear layers between the widths, with batch normalisation and ReLU after each but the last.

    A linear layer before a normalisation has no bias, which the normalisation would take away again.
    ``last_norm`` puts a normalisation without ReLU after the last layer too.
    """
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(pairwise(widths), 1):
        last = number == len(widths) - 1
        layers.append(nn.Linear(before, after, bias=last and not last_norm))
        if not last or last_norm:
            layers.append(nn.BatchNorm1d(after))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
