"""Images that are there twice: equal pixels by SHA-256, and similar ones by a perceptual hash."""

from itertools import combinations, pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

SIDE = 32  # of the grey thumbnails that are hashed, in pixels
MOST_NEAR = 12  # bits; of 64 bits, unrelated images differ in 32 on average and seldom in fewer than 16
_LOW, _HIGH = 1, 9  # the frequencies that are hashed, without the mean brightness
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def thumbnail(image: Tensor) -> Tensor:
    """Return the grey thumbnail of an image, for ``perceptual_hashes``.

    Args:
        image: uint8, or float in 0..1, ``[c h w]``; of three channels the luminance counts, else their mean.

    Returns:
        uint8 ``[32 32]``: means over areas, or interpolated where the image is smaller.
    """
    scale = 255.0 if image.is_floating_point() else 1.0
    pixels = image.float() * scale
    weights = torch.tensor(_GREY) if len(image) == 3 else torch.full((len(image),), 1 / len(image))
    grey = torch.einsum("chw,c->hw", pixels, weights)
    large = min(grey.shape) >= SIDE
    resize = F.adaptive_avg_pool2d if large else _stretched
    return resize(grey[None, None], (SIDE, SIDE))[0, 0].round().clamp(0, 255).to(torch.uint8)


def _stretched(grey: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(grey, size, mode="bilinear", align_corners=False, antialias=True)


def perceptual_hashes(thumbnails: Tensor) -> np.ndarray:
    """Return the 64-bit perceptual hash of each thumbnail: which of its low frequencies are above their median.

    The DCT hash of Zauner, Implementation and Benchmarking of Perceptual Image Hash Functions, 2010, section 3.2.1:
    the DCT-II of 32 x 32 grey levels, of which the 8 x 8 coefficients above frequency 0 in both directions count. Of
    similar images few bits differ.

    Args:
        thumbnails: ``[n 32 32]``.

    Returns:
        uint64 ``[n]``.
    """
    basis = torch.from_numpy(_cosines()[_LOW:_HIGH])
    low = (basis @ thumbnails.double() @ basis.T).flatten(1)
    bits = (low > low.quantile(0.5, dim=1, keepdim=True)).numpy()
    return np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)


def _cosines() -> np.ndarray:
    """Return the rows of the DCT-II of 32 values."""
    place, frequency = np.arange(SIDE) + 0.5, np.arange(SIDE)
    return np.cos(np.pi / SIDE * frequency[:, None] * place)


def near_pairs(hashes: np.ndarray, near: int) -> np.ndarray:
    """Return the pairs of hashes that differ in at most ``near`` bits.

    The 64 bits are cut into ``near`` + m blocks: whatever ``near`` bits differ, at least m blocks agree. So hashes are
    sorted by every choice of m blocks, and only neighbours that agree in these are compared (Manku, Jain, Das Sarma,
    Detecting Near-Duplicates for Web Crawling, WWW 2007, section 3). The time is that of a few sorts, the memory grows
    with the number of hashes and of pairs that are found.

    Args:
        hashes: uint64 ``[n]``, all different.
        near: bits, 0 to 12.

    Returns:
        int64 ``[p 2]``: positions, the lower one first, in ascending order, without repetition.
    """
    assert 0 <= near <= MOST_NEAR
    agreeing = 2 + near // 5
    masks = _block_masks(near + agreeing)
    found = [np.zeros((0, 2), np.int64)]
    for chosen in combinations(masks, agreeing):
        keys = hashes & np.bitwise_or.reduce(np.array(chosen, np.uint64))
        found.append(_near_neighbours(hashes, keys, near))
    return np.unique(np.concatenate(found), axis=0)


def _block_masks(blocks: int) -> list[int]:
    edges = [64 * block // blocks for block in range(blocks + 1)]
    return [(1 << high) - (1 << low) for low, high in pairwise(edges)]


def _near_neighbours(hashes: np.ndarray, keys: np.ndarray, near: int) -> np.ndarray:
    """Return the pairs among the hashes of equal key, int64 ``[p 2]``."""
    order = np.argsort(keys, kind="stable")
    sorted_keys, sorted_hashes = keys[order], hashes[order]
    found = [np.zeros((0, 2), np.int64)]
    left, ahead = np.arange(len(keys)), 0
    while len(left):
        ahead += 1
        left = left[left < len(keys) - ahead]
        left = left[sorted_keys[left] == sorted_keys[left + ahead]]
        close = left[np.bitwise_count(sorted_hashes[left] ^ sorted_hashes[left + ahead]) <= near]
        found.append(np.stack([order[close], order[close + ahead]], axis=1))
    return np.sort(np.concatenate(found), axis=1)


def groups(pairs: np.ndarray, count: int) -> np.ndarray:
    """Return the number of the group of each position, where the two of a pair are in one group, int64 ``[count]``.

    Args:
        pairs: positions, int64 ``[p 2]``.
        count: how many positions there are.
    """
    edges = coo_array((np.ones(len(pairs), bool), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    return connected_components(edges, directed=False)[1].astype(np.int64)  # type: ignore[no-any-return]
