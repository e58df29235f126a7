"""Losses that spread the embeddings like a standard Gaussian in all directions, and those that go with them.

Embeddings may have further axes in front, such as views: each batch along the last but one axis is then a sample of
its own, and the loss is the mean over them. Random directions are arguments: columns of length 1.
"""

import math

import torch
from torch import Tensor

from headstart.losses.precision import exact

_DEVIATION_FLOOR = 1e-4  # of VISReg's authors: what a collapsed dimension is divided by


@exact
def prediction(views: Tensor, centres: Tensor) -> Tensor:
    """Mean squared distance of all views to their centre, the prediction loss of LeJEPA (arXiv:2511.08544, alg. 2).

    Unchanged by a shift and by a rotation of everything, and by the order of views and images.

    Args:
        views: embeddings of all views, ``[v n d]``.
        centres: mean of the embeddings of the global views of each image, ``[n d]``.

    Returns:
        The mean over views, images and dimensions, a scalar.
    """
    return (views - centres).square().mean()


@exact
def visreg_centre(embeddings: Tensor) -> Tensor:
    """Squared mean of each dimension, eq. 6 of VISReg (arXiv:2606.02572).

    Unchanged by the order of the embeddings and by a rotation of the space.

    Args:
        embeddings: ``[... n d]``.

    Returns:
        The mean over dimensions (and batches), a scalar.
    """
    return embeddings.mean(dim=-2).square().mean()


@exact
def visreg_scale(embeddings: Tensor) -> Tensor:
    """Squared distance of each dimension's biased standard deviation from 1, eq. 1 of VISReg (arXiv:2606.02572).

    Unchanged by the order of the embeddings and by a shift. Constant embeddings give 1.

    Args:
        embeddings: ``[... n d]``.

    Returns:
        The mean over dimensions (and batches), a scalar.
    """
    return (1 - embeddings.std(dim=-2, correction=0)).square().mean()


@exact
def visreg_shape(embeddings: Tensor, directions: Tensor) -> Tensor:
    """Sliced Wasserstein distance of the standardised embeddings to a Gaussian, eq. 5 of VISReg (arXiv:2606.02572).

    Unchanged by the order of the embeddings and of the directions, by a shift, and up to an epsilon of 1e-4 by the
    scale of a dimension. No gradient flows through the scale (eq. 2), which is `visreg_scale`'s.

    Args:
        embeddings: ``[... n d]``.
        directions: ``[d m]``, columns of length 1.

    Returns:
        The mean over quantiles and directions (and batches), a scalar.
    """
    count = embeddings.shape[-2]
    deviation = embeddings.detach().std(dim=-2, correction=0, keepdim=True)
    standardised = (embeddings - embeddings.mean(dim=-2, keepdim=True)) / (deviation + _DEVIATION_FLOOR)
    projections = (standardised @ directions).sort(dim=-2).values  # [... n m]
    positions = torch.arange(1, count + 1, dtype=projections.dtype, device=projections.device) / (count + 1)
    quantiles = math.sqrt(2) * torch.erfinv(2 * positions - 1)  # [n]
    return (projections - quantiles[:, None]).square().mean()
