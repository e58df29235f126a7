"""Losses that pull views of one image together and push other images away."""

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.losses.precision import exact


@exact
def nt_xent(first: Tensor, second: Tensor, *, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy, eq. 1 of SimCLR (arXiv:2002.05709).

    Symmetric in its arguments, and unchanged by the scale of any row or by the order of the pairs. In the worst case
    of identical embeddings everywhere it is log(2n - 1).

    Args:
        first: embeddings of one view of each image, ``[n d]``.
        second: embeddings of another view of the same images, ``[n d]``.
        temperature: divides the cosine similarities; above 0.

    Returns:
        The mean over all 2n embeddings, a scalar.
    """
    count = len(first)
    similarities = _among_others(torch.cat([first, second]), temperature)  # [2n 2n]
    positives = torch.arange(2 * count, device=first.device).roll(count)
    return F.cross_entropy(similarities, positives)


@exact
def info_nce(
    queries: Tensor, positives: Tensor, negatives: Tensor, *, temperature: float, allowed: Tensor | None = None
) -> Tensor:
    """Cross entropy of the own positive against given negatives, eq. 1 of MoCo (arXiv:1911.05722).

    Not symmetric; unchanged by the scale of any row, by the order of the queries with their positives and by the order
    of the negatives. Identical embeddings everywhere give log(1 + m); a query without negatives counts as 0.

    Args:
        queries: ``[n d]``.
        positives: the key that belongs to each query, ``[n d]``.
        negatives: keys of other images, ``[m d]``.
        temperature: divides the cosine similarities; above 0.
        allowed: which negatives each query has, bool ``[n m]``; None stands for all of them.

    Returns:
        The mean over the queries, a scalar.
    """
    queries, positives, negatives = (F.normalize(rows, dim=1) for rows in (queries, positives, negatives))
    own = (queries * positives).sum(1, keepdim=True)  # [n 1]
    others = queries @ negatives.T  # [n m]
    if allowed is not None:
        others = others.masked_fill(~allowed, -torch.inf)
    similarities = torch.cat([own, others], dim=1) / temperature  # [n 1+m]
    return F.cross_entropy(similarities, similarities.new_zeros(len(queries), dtype=torch.long))


@exact
def cross_nce(queries: Tensor, keys: Tensor, *, temperature: float) -> Tensor:
    """Cross entropy of each query's own key against the other keys of the batch, eq. 2 of NNCLR (arXiv:2104.14548).

    Half of CLIP's loss (arXiv:2103.00020). Not symmetric: keys are compared with no other keys, and every query has
    one positive among n. Unchanged by the scale of any row and by the order of the pairs. Identical embeddings give
    log(n).

    Args:
        queries: ``[n d]``.
        keys: ``[n d]``; key i is the positive of query i and a negative of all others.
        temperature: divides the cosine similarities; above 0.

    Returns:
        The mean over the queries, a scalar.
    """
    similarities = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T / temperature  # [n n]
    return F.cross_entropy(similarities, torch.arange(len(queries), device=queries.device))


@exact
def supcon(embeddings: Tensor, labels: Tensor, images: Tensor, *, temperature: float) -> Tensor:
    """Supervised contrastive loss, eq. 2 (L_out) of Khosla et al. (arXiv:2004.11362), with unlabelled images.

    Unchanged by the scale of any row, by the order of the embeddings and by the names of labels and images. Without
    any label and with two views of each image it is NT-Xent. The authors' code multiplies it by temperature over base
    temperature, the equation and this function do not.

    Args:
        embeddings: of all views, ``[n d]``.
        labels: int64 ``[n]``, -1 for unlabelled. Embeddings of one label are each other's positives; an unlabelled
            embedding is a negative of all but the views of its own image.
        images: the number of the image that each embedding is a view of, int64 ``[n]``. Views of one image are always
            each other's positives.
        temperature: divides the cosine similarities; above 0.

    Returns:
        The mean over the embeddings that have a positive, a scalar; 0 where none has one.
    """
    log_shares = _among_others(embeddings, temperature).log_softmax(dim=1)  # [n n]
    same_label = (labels[:, None] == labels) & (labels[:, None] >= 0)
    positives = (same_label | (images[:, None] == images)).fill_diagonal_(False)
    counts = positives.sum(1)  # [n]
    each = -log_shares.masked_fill(~positives, 0).sum(1) / counts.clamp(min=1)
    return each.sum() / (counts > 0).sum().clamp(min=1)


def _among_others(embeddings: Tensor, temperature: float) -> Tensor:
    """Return the scaled cosine similarities ``[n n]`` of embeddings ``[n d]``, minus infinity with themselves."""
    embeddings = F.normalize(embeddings, dim=1)
    itself = torch.eye(len(embeddings), dtype=torch.bool, device=embeddings.device)
    return (embeddings @ embeddings.T / temperature).masked_fill(itself, -torch.inf)
