"""The phrases that the sentences of a verdict are made of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Curve(NamedTuple):
    """An arm with a transfer."""

    arm: str
    transfer: str


def called(rows: Sequence[Row], *verdicts: str) -> list[Row]:
    """Return the comparisons with one of these verdicts."""
    return [row for row in rows if row["verdict"] in verdicts]


def single(rows: Sequence[Row]) -> list[Row]:
    """Return the comparisons at one budget, without that over all budgets."""
    return [row for row in rows if row["labels"] != "overall"]


def whole(rows: Sequence[Row]) -> Row:
    """Return the comparison over all budgets, or the first one if no seed has all budgets."""
    return next((row for row in rows if row["labels"] == "overall"), rows[0])


def use_of(curve: Curve, baseline: str) -> str:
    """Return what is done with a backbone: ``finetuning from simclr``, ``a linear probe on random features``."""
    if curve.transfer == "finetune":
        return "training from scratch" if curve.arm == baseline else f"finetuning from {curve.arm}"
    features = "random features" if curve.arm == baseline else f"frozen {curve.arm} features"
    return f"a linear probe on {features}" if curve.transfer == "probe" else f"a trained head on {features}"


def capital(text: str) -> str:
    """Return a sentence with its first letter in capitals."""
    return text[0].upper() + text[1:]


def excludes_zero(row: Row) -> bool:
    """Return whether the interval of a difference, which is not corrected, lies on one side of zero."""
    return row["low"] is not None and bool(row["low"] * row["high"] > 0)


def ends_of(row: Row, confidence: float) -> str:
    """Return the interval of a difference in percentage points: ``95 % interval 1.9 to 3.8``."""
    return f"{100 * confidence:g} % interval {points(row['low'])} to {points(row['high'])}"


def size(row: Row, confidence: float) -> str:
    """Return a difference in percentage points with its interval, which is not corrected."""
    before = " before correction" if row["verdict"] == "no difference" and excludes_zero(row) else ""
    return f"{points(row['difference'], '+')} points, {ends_of(row, confidence)}{before}"


def points(share: float, plus: str = "") -> str:
    """Return a share in percentage points; ``plus="+"`` shows every sign. There is no negative zero."""
    return f"{round(100 * share, 1) + 0.0:{plus}.1f}".replace("-", "−")


def places(chosen: Sequence[Row], rows: Sequence[Row], every: str = "every") -> str:
    """Return where the chosen comparisons of a pair were made: by name, or ``at every label budget``."""
    everywhere = len(chosen) == len(single(rows)) > 1
    return f"at {every} label budget" if everywhere else where(*(row["labels"] for row in chosen))


def where(*budgets: str) -> str:
    """Return budgets in words: ``at 1, 2 and 5 labels per class and 20 % of the labels``."""
    if budgets == ("overall",):
        return "over all budgets together"
    counts = [labels for labels in budgets if labels.isdigit()]
    shares = [labels.replace("%", " %") for labels in budgets if labels.endswith("%")]
    parts = [f"{join(counts)} label{'' if counts == ['1'] else 's'} per class"] if counts else []
    parts += [f"{join(shares)} of the labels"] if shares else []
    parts += ["all labels"] if "all" in budgets else []
    return "with all labels" if budgets == ("all",) else f"at {join(parts)}"


def join(words: Sequence[str]) -> str:
    """Return words as a list in a sentence: ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
