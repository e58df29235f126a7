"""How data are to be opened."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Range = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Options:
    """What the user wants of the data, beside where they are.

    Attributes:
        max_bad: the share of broken files above which data are refused; below it they are left out and listed.
        classes: the classes to keep, in their new order, each with the names that become one class; None keeps all.
        channels: of the decoded images; ``auto`` for three of grey and colour images, else as many as there are.
        pixel_range: for each channel, or for all, the values of deep pixels that become 0 and 1; ``auto`` for
            percentiles of the images themselves. None for 8-bit pixels, which need no range.
    """

    max_bad: float = 0.01
    classes: Mapping[str, tuple[str, ...]] | None = None
    channels: int | Literal["auto"] = "auto"
    pixel_range: Range | Literal["auto"] | None = "auto"


DEFAULT = Options()
