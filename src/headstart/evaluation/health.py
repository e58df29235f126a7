"""Figures that need no labels and say whether a pretraining works or collapses.

All of them are computed in double precision on the CPU, whatever the arithmetic of the training: the singular values
that a collapse leaves are small beside the first one. What cannot be computed (embeddings that are no numbers, pairs in
a batch of one image) is NaN, so that a look at a training never ends it.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_NOTHING = 1e-24  # share of the squared embeddings below which what is left after centring is rounding


def health(embeddings: Sequence[Tensor], target: Tensor | None, features: Tensor) -> dict[str, float]:
    """Return the figures under the names that they have in the metrics.

    Positive pairs are the two views of an image; all that is said of different images is said of the first views.

    Args:
        embeddings: of one or two views of the same images, each ``[n d]``; any scale and precision.
        target: a teacher's embeddings of the first view, ``[n d]``, if there is a teacher.
        features: the backbone's, of the first view, ``[n f]``.

    Returns:
        ``health_std``, ``health_rank``, ``health_rank_limit`` (the most that ``health_rank`` can be, min(n, d)),
        ``health_features_rank``, ``health_top_singular``, ``health_top5_singular``, ``health_uniformity``,
        ``health_negatives`` and ``health_negatives_std``; with two views ``health_alignment`` and
        ``health_positives``; with a teacher ``health_target_distance``.
    """
    views = [_wide(view) for view in embeddings]
    first = views[0]
    negatives, negatives_std = negative_similarities(first)
    figures = {
        "health_std": spread(first),
        "health_rank": effective_rank(first),
        "health_rank_limit": float(min(first.shape)),
        "health_features_rank": effective_rank(_wide(features)),
        "health_top_singular": top_singular(first, 1),
        "health_top5_singular": top_singular(first, 5),
        "health_uniformity": uniformity(first),
        "health_negatives": negatives,
        "health_negatives_std": negatives_std,
    }
    if len(views) > 1:
        figures["health_alignment"] = alignment(first, views[1])
        figures["health_positives"] = similarity(first, views[1])
    if target is not None:
        figures["health_target_distance"] = 1 - similarity(first, _wide(target))
    return figures


def spread(embeddings: Tensor) -> float:
    """Return the standard deviation of the normalised embeddings ``[n d]``: 0 is collapsed, 1 evenly over the sphere.

    The mean over the dimensions, in units of 1 / sqrt(d), which it has on a sphere (SimSiam, arXiv:2011.10566,
    sec. 4.1). The deviation is that of the images at hand, so that it is never above 1.
    """
    if len(embeddings) < 2:
        return math.nan
    return float(F.normalize(_wide(embeddings), dim=1).std(dim=0, correction=0).mean() * embeddings.shape[1] ** 0.5)


def effective_rank(embeddings: Tensor) -> float:
    """Return RankMe of embeddings ``[n d]``: the exponential of the entropy of their singular values, 1 to min(n, d).

    Eq. 1 of RankMe (ICML 2023, arXiv:2210.02885), without its epsilon, which only keeps logarithms finite. The
    embeddings are not centred, as in the paper: those of a complete collapse are one large common part and noise, of
    which centring would leave the noise, whose rank is high.
    """
    values = _singular_values(_wide(embeddings))
    shares = values / values.sum().clamp_min(torch.finfo(values.dtype).tiny)
    return float(torch.special.entr(shares).sum().exp())


def top_singular(embeddings: Tensor, count: int) -> float:
    """Return the share of the variance of embeddings ``[n d]`` along its ``count`` largest principal directions.

    That is the share of the squared singular values of the centred embeddings; 1 means that they lie in a flat of that
    many dimensions (dimensional collapse, arXiv:2110.09348, sec. 4). NaN where nothing varies.
    """
    wide = _wide(embeddings)
    centred = wide - wide.mean(dim=0)
    products = centred @ centred.T if centred.shape[0] < centred.shape[1] else centred.T @ centred
    total = products.trace()
    if not bool(total > _NOTHING * wide.square().sum()) or not math.isfinite(total):
        return math.nan
    return float(torch.linalg.eigvalsh(products)[-count:].sum() / total)


def alignment(first: Tensor, second: Tensor) -> float:
    """Return the mean squared distance of normalised positive pairs, each ``[n d]``: 0 is best, 2 unrelated.

    Wang & Isola, arXiv:2005.10242, sec. 4.1, with alpha = 2.
    """
    return float((F.normalize(_wide(first), dim=1) - F.normalize(_wide(second), dim=1)).square().sum(dim=1).mean())


def uniformity(embeddings: Tensor) -> float:
    """Return the log of the mean Gaussian potential of pairs of normalised embeddings ``[n d]``; 0 is collapsed.

    Wang & Isola, arXiv:2005.10242, sec. 4.1, with t = 2, over pairs of different images. Near -4 for many dimensions.
    """
    return float(torch.pdist(F.normalize(_wide(embeddings), dim=1)).square().mul(-2).exp().mean().log())


def similarity(first: Tensor, second: Tensor) -> float:
    """Return the mean cosine similarity of pairs, each ``[n d]``."""
    return float(F.cosine_similarity(_wide(first), _wide(second), dim=1).mean())


def negative_similarities(embeddings: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of the cosine similarities of different images' embeddings ``[n d]``."""
    count = len(embeddings)
    if count < 2:
        return math.nan, math.nan
    normalised = F.normalize(_wide(embeddings), dim=1)
    above = torch.triu_indices(count, count, offset=1)
    similarities = (normalised @ normalised.T)[above[0], above[1]]
    return float(similarities.mean()), float(similarities.std(correction=0))


def _wide(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _singular_values(wide: Tensor) -> Tensor:
    if not bool(wide.isfinite().all()):
        return torch.full((1,), math.nan, dtype=wide.dtype)
    tall = wide if wide.shape[0] > wide.shape[1] else wide.T
    # the triangle has the same singular values, and for many dimensions they are found five times as fast
    triangle = torch.linalg.qr(tall, mode="r").R
    values: Tensor = torch.linalg.svdvals(triangle)
    return values
