"""What an examination says: findings, each with how bad it is and what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from headstart.data.index import DataSet
from headstart.data.scan import printable

Severity = Literal["must fix", "should look", "fine"]
SEVERITIES: tuple[Severity, ...] = ("must fix", "should look", "fine")
SHOWN = 20  # examples that are kept


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        name: what was looked at.
        severity: how bad it is.
        count: how many images, boxes, masks or classes it is about; 0 where all is fine.
        text: what was found, in one line.
        remedy: what to do about it; empty where all is fine.
        examples: at most 20 of them, such as paths.
    """

    name: str
    severity: Severity
    count: int
    text: str
    remedy: str = ""
    examples: tuple[str, ...] = ()


def fine(name: str, text: str) -> Finding:
    """Return that something was looked at and is as it should be."""
    return Finding(name, "fine", 0, text)


def found(name: str, severity: Severity, count: int, text: str, remedy: str, examples: Sequence[str]) -> Finding:
    """Return a finding with the first of its examples."""
    return Finding(name, severity, count, text, remedy, tuple(examples[:SHOWN]))


def names(data: DataSet, rows: Tensor) -> list[str]:
    """Return the paths of the first of the rows as they may be printed."""
    return [printable(data.paths[row].as_py()) for row in rows[:SHOWN].tolist()]


def counted(count: int, one: str, many: str | None = None) -> str:
    """Return a number with its unit.

    >>> counted(1, "image"), counted(2000, "image"), counted(2, "box", "boxes")
    ('1 image', '2,000 images', '2 boxes')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"
