"""Losses that pull views of one image together and push other images away."""

import torch
import torch.nn.functional as F
from torch import Tensor


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
    # bf16 similarities divided by a small temperature lose the differences that the loss is about
    with torch.autocast(first.device.type, enabled=False):
        dtype = torch.promote_types(first.dtype, torch.float32)
        embeddings = F.normalize(torch.cat([first, second]).to(dtype), dim=1)  # [2n d]
        similarities = embeddings @ embeddings.T / temperature  # [2n 2n]
        itself = torch.eye(2 * count, dtype=torch.bool, device=first.device)
        similarities = similarities.masked_fill(itself, -torch.inf)
        positives = torch.arange(2 * count, device=first.device).roll(count)
        return F.cross_entropy(similarities, positives)
