"""The phrases that the sentences of a verdict are made of."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Row = Mapping[str, Any]


class Curve(NamedTuple):
    """An arm with a transfer."""

    arm: str
    transfer: str


def called(rows: Sequence[Row], *verdicts: str) -> list[Row]:
    return [row for row in rows if row["verdict"] in verdicts]


def single(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["labels"] != "overall"]


def name(curve: Curve, baseline: str) -> str:
    if curve.transfer == "finetune":
        return "training from scratch" if curve.arm == baseline else f"finetuning from {curve.arm}"
    features = "random features" if curve.arm == baseline else f"frozen {curve.arm} features"
    return f"a linear probe on {features}" if curve.transfer == "probe" else f"a trained head on {features}"


def capital(text: str) -> str:
    return text[0].upper() + text[1:]


def excludes_zero(row: Row) -> bool:
    return bool(row["low"] is not None and row["low"] * row["high"] > 0)


def interval(row: Row, confidence: float) -> str:
    return f"{100 * confidence:g} % interval {points(row['low'])} to {points(row['high'])}"


def size(row: Row, confidence: float) -> str:
    """Return a difference in percentage points with its interval, which is not corrected."""
    before = " before correction" if row["verdict"] == "no difference" and excludes_zero(row) else ""
    return f"{points(row['difference'], '+')} points, {interval(row, confidence)}{before}"


def points(share: float, plus: str = "") -> str:
    return f"{100 * share:{plus}.1f}".replace("-", "−")


def at(chosen: Sequence[Row], rows: Sequence[Row], every: str = "every") -> str:
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
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def bounds(text: str) -> str:
    return text.replace("> ", "more than ").replace("< ", "fewer than ")


