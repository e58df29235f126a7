"""What a verb returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any


@dataclass(frozen=True)
class Result:
    """A finished run.

    Attributes:
        out: its folder; None for a probe that was not asked to keep anything.
        config: the resolved settings.
        scores: what came out.
        text: the same for a person to read.
    """

    out: Path | None
    config: Mapping[str, Any]
    scores: Mapping[str, Any]
    text: str

    def __str__(self) -> str:
        return self.text


def mean_and_spread(shares: Sequence[float]) -> str:
    """Return mean ± standard deviation of shares, in percent.

    >>> mean_and_spread([0.5, 0.7]), mean_and_spread([0.5])
    ('60.0 ± 14.1', '50.0')
    """
    spread = f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else ""
    return f"{100 * mean(shares):.1f}{spread}"


def table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return lines as a table of text, with columns as wide as they need.

    >>> print(table(["labels", "accuracy"], [["5", "84.0 ± 1.2"]]))
    labels    accuracy
         5  84.0 ± 1.2
    """
    rows = [head, *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
