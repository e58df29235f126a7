"""Losses that compare places of images instead of whole images."""

import torch
import torch.nn.functional as F
from torch import Tensor

from headstart.losses.contrastive import info_nce
from headstart.losses.precision import exact


@torch.no_grad()
@exact
def correspondence(first_maps: Tensor, second_maps: Tensor) -> Tensor:
    """Find the most similar place of the second view for each place of the first, eq. 3 of DenseCL (arXiv:2011.09157).

    Not symmetric; unchanged by the scale of the features of any place.

    Args:
        first_maps: features of the places of one view, ``[b d s]``.
        second_maps: features of the places of another view of the same images, ``[b d s]``.

    Returns:
        Places of the second view, int64 ``[b s]``.
    """
    first_maps, second_maps = F.normalize(first_maps, dim=1), F.normalize(second_maps, dim=1)
    return (first_maps.transpose(1, 2) @ second_maps).argmax(dim=2)  # [b s s] -> [b s]


@exact
def dense_info_nce(queries: Tensor, positives: Tensor, negatives: Tensor, *, temperature: float) -> Tensor:
    """Cross entropy of each place's own positive against given negatives, eq. 2 of DenseCL (arXiv:2011.09157).

    Not symmetric; unchanged by the scale of any vector, by the order of the images, by the order of the places (the
    same in queries and positives) and by the order of the negatives. Identical embeddings give log(1 + m).

    Args:
        queries: embeddings of the places of one view, ``[b d s]``.
        positives: the place of the other view that belongs to each of them, ``[b d s]``, as `correspondence` finds it.
        negatives: embeddings of other images, pooled over their places, ``[m d]``.
        temperature: divides the cosine similarities; above 0.

    Returns:
        The mean over images and places, a scalar.
    """
    queries, positives = (maps.transpose(1, 2).flatten(0, 1) for maps in (queries, positives))  # [bs d]
    return info_nce(queries, positives, negatives, temperature=temperature)
