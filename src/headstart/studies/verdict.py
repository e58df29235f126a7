"""The verdict of a study in words, true to what its comparisons say."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

TRANSFERS = ("probe", "head", "finetune")

Row = Mapping[str, Any]


class Curve(NamedTuple):
    """An arm with a transfer."""

    arm: str
    transfer: str


Pair = tuple[Curve, Curve]


def verdict(comparisons: Sequence[Row], baseline: str, confidence: float) -> dict[str, Any]:
    """Return what the comparisons say in words: a headline on the most trained transfer, a sentence per pair."""
    pairs: dict[Pair, list[Row]] = {}
    for row in comparisons:
        pair = Curve(row["arm"], row["transfer"]), Curve(row["baseline"], row["baseline_transfer"])
        pairs.setdefault(pair, []).append(row)
    trained = {pair: [-TRANSFERS.index(curve.transfer) for curve in reversed(pair)] for pair in pairs}
    ordered = sorted(pairs, key=lambda pair: (pair[1].arm != baseline, trained[pair]))
    details = [_sentence(pair, pairs[pair], baseline, confidence) for pair in ordered]
    return {"headline": _headline(pairs, baseline, confidence), "details": details}


def _headline(pairs: Mapping[Pair, Sequence[Row]], baseline: str, confidence: float) -> str:
    references = [right for left, right in pairs if right.arm == baseline and left.arm != baseline]
    if not references:
        return f"Nothing can be compared yet: no arm shares a label budget and a seed with {baseline}."
    right = max(references, key=lambda curve: TRANSFERS.index(curve.transfer))
    rivals = {left: rows for (left, other), rows in pairs.items() if other == right and left.arm != baseline}
    main = [left for left in rivals if left.transfer == right.transfer] or list(rivals)
    called = {left: {row["verdict"] for row in rows} for left, rows in rivals.items()}
    overall = [row for row in rivals[main[0]] if row["labels"] == "overall"]
    if len(main) == 1 and called[main[0]] & {"better", "worse"}:
        single = [row for row in rivals[main[0]] if row["labels"] != "overall"]
        decided = {row["verdict"] for row in single} & {"better", "worse"}
        return _sentence((main[0], right), single if decided else rivals[main[0]], baseline, confidence)
    names = {curve: _name(curve, baseline) for curve in (right, *rivals)}
    if all(called[left] == {"unknown"} for left in main):
        return f"One seed cannot tell {_join([names[left] for left in main])} from {names[right]}."
    winners = [left for left in main if "better" in called[left]]
    if winners:
        best = max((row for left in winners for row in rivals[left] if row["verdict"] == "better"), key=_gap)
        others = [names[left] for left in main if left not in winners]
        subject = _capital(_join([names[left] for left in winners]))
        rest = f", while {_join(others)} did not" if others else ""
        beat = "beats" if len(winners) == 1 else "beat"
        by = f"the largest gain is that of {best['arm']} {_where(best['labels'])}, {_size(best, confidence)}"
        return f"{subject} {beat} {names[right]} in at least one comparison{rest}; {by}."
    surprises = [names[left] for left in rivals if left not in main and "better" in called[left]]
    budgets = {row["labels"] for left in main for row in rivals[left]} - {"overall"}
    where = _where(*budgets) if len(budgets) == 1 else "at any label budget"
    but = f", but {_join(surprises)} did" if surprises else ""
    size = f" ({_overall(overall[0], confidence)})" if overall and len(main) == 1 and not but else ""
    subject = _capital(_join([names[left] for left in main]))
    return f"{subject} did not beat {names[right]} {where}{but}{size}."


def _sentence(pair: Pair, rows: Sequence[Row], baseline: str, confidence: float) -> str:
    """Return what was found for one pair, budget by budget and then overall."""
    left, right = (_name(curve, baseline) for curve in pair)
    single = [row for row in rows if row["labels"] != "overall"]
    clauses: list[str] = []
    for called, first, later in (
        ("better", f"{left} beats {right}", "it is better"),
        ("worse", f"{left} is worse than {right}", "it is worse"),
        ("no difference", f"{left} shows no difference from {right}", "no difference was found"),
        ("unknown", f"one seed cannot tell {left} from {right}", "one seed cannot tell"),
    ):
        chosen = [row for row in single if row["verdict"] == called]
        if not chosen:
            continue
        everywhere = len(chosen) == len(single) > 1
        where = "at every label budget" if everywhere else _where(*(row["labels"] for row in chosen))
        clause = f"{later if clauses else first} {where}"
        if called in ("better", "worse"):
            largest = max(chosen, key=_gap)
            at = f"most {_where(largest['labels'])}: " if len(chosen) > 1 else ""
            clause += f" ({at}{_size(largest, confidence)})"
        clauses.append(clause)
    together = [row for row in rows if row["labels"] == "overall" and row["verdict"] != "unknown"]
    clauses += [f"{_overall(row, confidence)}: {row['verdict']} after correction" for row in together]
    return _capital("; ".join(clauses)) + "."


def _overall(row: Row, confidence: float) -> str:
    return f"over all budgets together {_size(row, confidence)}"


def _name(curve: Curve, baseline: str) -> str:
    features = "random features" if curve.arm == baseline else f"frozen {curve.arm} features"
    if curve.transfer == "finetune":
        return "training from scratch" if curve.arm == baseline else f"{curve.arm} + finetune"
    return f"a linear probe on {features}" if curve.transfer == "probe" else f"a trained head on {features}"


def _capital(text: str) -> str:
    """Return a sentence with its first letter in capitals, unless it begins with an arm's own name."""
    return (
        text[0].upper() + text[1:]
        if text.startswith(("a linear probe", "a trained head", "training from", "one seed"))
        else text
    )


def _gap(row: Row) -> float:
    return abs(float(row["difference"]))


def _size(row: Row, confidence: float) -> str:
    """Return a difference in percentage points with its interval."""
    points = _points(row["difference"], "+")
    if row["low"] is None:
        return f"{points} points"
    return f"{points} points, {100 * confidence:g} % interval {_points(row['low'])} to {_points(row['high'])}"


def _points(share: float, plus: str = "") -> str:
    return f"{100 * share:{plus}.1f}".replace("-", "−")


def _where(*budgets: str) -> str:
    """Return budgets in words: ``at 1, 2 and 5 labels per class and 20 % of the labels``."""
    if budgets == ("overall",):
        return "over all budgets together"
    counts = [labels for labels in budgets if labels.isdigit()]
    shares = [labels.replace("%", " %") for labels in budgets if labels.endswith("%")]
    parts = [f"{_join(counts)} label{'' if counts == ['1'] else 's'} per class"] if counts else []
    parts += [f"{_join(shares)} of the labels"] if shares else []
    parts += ["all labels"] if "all" in budgets else []
    return "with all labels" if budgets == ("all",) else f"at {_join(parts)}"


def _join(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
