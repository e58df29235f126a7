"""Losses that ask for what was masked."""

from torch import Tensor

from headstart.losses.precision import exact

_VARIANCE_FLOOR = 1e-6  # of MAE's authors: a patch of one colour has no variance


@exact
def masked_patches(predictions: Tensor, patches: Tensor, masked: Tensor, *, normalise: bool) -> Tensor:
    """Mean squared error of the masked patches, section 3 "reconstruction target" of MAE (arXiv:2111.06377).

    Unchanged by the order of the patches and images and by whatever is predicted for visible patches; with `normalise`
    also by the brightness and, up to an epsilon of 1e-6, the contrast of a target patch.

    Args:
        predictions: ``[b n p]``.
        patches: the pixels of the patches, ``[b n p]``.
        masked: which patches were hidden and so count, bool ``[b n]``, at least one of them.
        normalise: whether each target patch is standardised by its own mean and unbiased variance.

    Returns:
        The mean over the pixels of all masked patches, a scalar.
    """
    if normalise:
        deviation = (patches.var(dim=-1, keepdim=True) + _VARIANCE_FLOOR).sqrt()
        patches = (patches - patches.mean(dim=-1, keepdim=True)) / deviation
    errors = (predictions - patches).square().mean(dim=-1)  # [b n]
    return errors.masked_fill(~masked, 0).sum() / masked.sum()
