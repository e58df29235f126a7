"""Losses that compare the clusters to which the views of an image belong."""

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.losses.precision import exact


@torch.no_grad()
@exact
def sinkhorn(scores: Tensor, *, epsilon: float, iterations: int) -> Tensor:
    """Assign samples to prototypes of about equal size, eq. 3-5 and app. A.1 of SwAV (arXiv:2006.09882).

    Unchanged by a constant added to all scores of a prototype or, after enough iterations, of a sample; follows the
    order of the samples and of the prototypes. Computed with logarithms, so that no score underflows.

    Args:
        scores: similarities of samples and prototypes, ``[n k]``, with those of a queue, if there is one, as further
            rows.
        epsilon: how soft the assignment is, 0.05 in the paper; above 0.
        iterations: how often prototypes and samples are normalised, 3 in the paper; at least 1.

    Returns:
        The assignments ``[n k]``, without gradient. Each row sums to 1, and each column approaches n / k.
    """
    log_shares = scores / epsilon
    for _ in range(iterations):
        log_shares = log_shares.log_softmax(dim=0)  # every prototype gets as much as any other
        log_shares = log_shares.log_softmax(dim=1)  # every sample is given away once
    return log_shares.exp()


@exact
def swapped_prediction(scores: Tensor, codes: Tensor, *, temperature: float) -> Tensor:
    """Cross entropy of one view's scores with the assignment of another view, eq. 2 of SwAV (arXiv:2006.09882).

    Not symmetric. Unchanged by the order of the samples, by the order of the prototypes and by a constant added to all
    scores of a sample. Equal scores everywhere give log(k).

    Args:
        scores: similarities of one view of each image and the prototypes, ``[n k]``.
        codes: assignments of another view of the same images, ``[n k]``, whose rows sum to 1, detached by the caller.
        temperature: divides the scores; above 0.

    Returns:
        The mean over the images, a scalar.
    """
    return F.cross_entropy(scores / temperature, codes)
