"""Randomness as a function of what it is for, never of what was drawn before.

Every draw is computed from a key (seed, step, image, purpose) by hashing. So a run that was stopped and resumed, or fed
by another number of workers, draws the same numbers, and no generator state has to be saved.

The hash is SplitMix64 (Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014). Its only
operations are wrap-around addition and multiplication, shifts and exclusive or: whole-number arithmetic, which gives
the same bits on every device.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, the increment of SplitMix64
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def mix(*parts: int) -> int:
    """Return a 63-bit seed that depends on every part and on their order, to seed a generator with.

    >>> mix(0, 1) != mix(1, 0)
    True
    """
    return _mix(*parts) >> 1


def uniforms(seed: int, step: int, rows: Tensor, stream: int, count: int) -> Tensor:
    """Return ``count`` uniform draws for each row, which depend on nothing but the arguments that name them.

    Args:
        seed: the seed of the run.
        step: the optimiser step, or any other count of occasions.
        rows: the images' row numbers, int64 ``[b]``; a row's draws do not depend on the other rows.
        stream: what the draws are for; different streams are independent.
        count: how many draws each row needs; asking for more leaves the first ones unchanged.

    Returns:
        float32 ``[b, count]`` in [0, 1), multiples of 2^-24 and thus exact, on the device of ``rows``.
    """
    state = _scramble(rows + _signed(_mix(seed, step, stream) + _GOLDEN))
    increments = [_signed(_GOLDEN * (draw + 1)) for draw in range(count)]
    words = _scramble(state[:, None] + torch.tensor(increments, dtype=torch.int64, device=rows.device))
    return _shift_right(words, 40).to(torch.float32) * 2.0**-24


def permutation(count: int, *key: int) -> Tensor:
    """Return the numbers 0 … count - 1 in the random order that the key names, int64 ``[count]``."""
    generator = torch.Generator().manual_seed(mix(*key))
    return torch.randperm(count, generator=generator)


def directions(dim: int, count: int, *key: int) -> Tensor:
    """Return the unit vectors that the key names, spread evenly over the sphere: float64 ``[dim count]``."""
    generator = torch.Generator().manual_seed(mix(dim, count, *key))
    return F.normalize(torch.randn(dim, count, generator=generator, dtype=torch.float64), dim=0)


def _mix(*parts: int) -> int:
    """Return the 64-bit hash of the parts, taken one after the other."""
    word = 0
    for part in parts:
        word = (word + _GOLDEN + part) & _WORD
        word = ((word ^ (word >> 30)) * _FIRST) & _WORD
        word = ((word ^ (word >> 27)) * _SECOND) & _WORD
        word ^= word >> 31
    return word


def _scramble(words: Tensor) -> Tensor:
    """Return the words through the finaliser of SplitMix64, in int64 arithmetic that wraps around."""
    words = (words ^ _shift_right(words, 30)) * _signed(_FIRST)
    words = (words ^ _shift_right(words, 27)) * _signed(_SECOND)
    return words ^ _shift_right(words, 31)


def _shift_right(words: Tensor, bits: int) -> Tensor:
    # torch has no unsigned shift on every device: the mask drops the copies of the sign bit.
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """Return the int64 with the same 64 bits."""
    word &= _WORD
    return word - (1 << 64) if word >> 63 else word
