"""Losses that keep the dimensions of an embedding alive and different from each other, without negatives."""

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.losses.precision import exact

_VARIANCE_FLOOR = 1e-4  # epsilon of eq. 2 of VICReg: bounds the gradient of the square root where a dimension dies


@exact
def barlow_twins(first: Tensor, second: Tensor, *, redundancy_weight: float) -> Tensor:
    """Distance of the cross-correlation matrix from the identity, eq. 1 of Barlow Twins (arXiv:2103.03230).

    Symmetric in its arguments, and unchanged by the order of the pairs and, up to the epsilon of batch normalisation,
    by the scale and shift of any dimension. Constant embeddings give d. A sum over dimensions, as in the paper.

    Each dimension is standardised over the batch as the authors' code does, by batch normalisation without affine
    parameters: biased variance, to which 1e-5 is added.

    Args:
        first: embeddings of one view of each image, ``[n d]``, n at least 2.
        second: embeddings of another view of the same images, ``[n d]``.
        redundancy_weight: of the terms off the diagonal, 0.005 in the paper.

    Returns:
        The sum over the d² entries of the matrix, a scalar.
    """
    first, second = (F.batch_norm(view, None, None, training=True) for view in (first, second))
    correlation = first.T @ second / len(first)  # [d d]
    identity = torch.eye(len(correlation), dtype=correlation.dtype, device=correlation.device)
    weights = identity + redundancy_weight * (1 - identity)
    return (weights * (correlation - identity).square()).sum()


@exact
def vicreg(
    first: Tensor, second: Tensor, *, invariance_weight: float, variance_weight: float, covariance_weight: float
) -> Tensor:
    """Variance-invariance-covariance regularisation, eq. 1-6 of VICReg (arXiv:2105.04906).

    Symmetric in its arguments, and unchanged by the order of the pairs, by a shift of both views and by the order of
    the dimensions. Not free of scale.

    Two factors follow the authors' code, for which the weights 25, 25, 1 were found, and not the equations: the
    invariance term is a mean over dimensions, too (eq. 5 sums over them), and the variance term is the mean of the two
    views (eq. 6 has their sum); the covariance term is the sum of the two in both.

    Args:
        first: embeddings of one view of each image, ``[n d]``, n at least 2.
        second: embeddings of another view of the same images, ``[n d]``.
        invariance_weight: lambda, of the squared distance between the views.
        variance_weight: mu, of the hinge that keeps each standard deviation at 1 or above.
        covariance_weight: nu, of the squared covariances between dimensions.

    Returns:
        The weighted sum of the three terms, a scalar.
    """
    invariance = F.mse_loss(first, second)
    variance = (_variance(first) + _variance(second)) / 2
    covariance = _covariance(first) + _covariance(second)
    return invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance


def _variance(embeddings: Tensor) -> Tensor:
    """Return by how much the standard deviations of the dimensions fall short of 1 (eq. 1 of VICReg)."""
    deviations = (embeddings.var(dim=0) + _VARIANCE_FLOOR).sqrt()
    return F.relu(1 - deviations).mean()


def _covariance(embeddings: Tensor) -> Tensor:
    """Return the squared covariances between different dimensions, summed and divided by d (eq. 3 and 4 of VICReg)."""
    count, dim = embeddings.shape
    centred = embeddings - embeddings.mean(dim=0)
    covariances = centred.T @ centred / (count - 1)  # [d d]
    itself = torch.eye(dim, dtype=torch.bool, device=embeddings.device)
    return covariances.masked_fill(itself, 0).square().sum() / dim
