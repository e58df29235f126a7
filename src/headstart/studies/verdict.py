"""The verdict of a study in words, true to what its comparisons say.

The headline answers one question: does pretraining save labels, how many, how sure. It puts the best use of a
pretrained backbone against training from scratch. To choose that use after looking is covered: Holm's correction runs
over all comparisons of the study.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from headstart.studies.phrases import (
    Curve,
    Row,
    called,
    capital,
    ends_of,
    excludes_zero,
    join,
    places,
    points,
    single,
    size,
    use_of,
    where,
    whole,
)

TRANSFERS = ("probe", "head", "finetune")
UNDER = {"probe": "Under a linear probe", "head": "Under a trained head", "finetune": "When finetuned"}
DECIDED = ("better", "worse", "no difference")
NARROW = 0.01  # an interval within one point on either side of zero leaves no room for a large difference

Pair = tuple[Curve, Curve]
Pairs = Mapping[Pair, Sequence[Row]]


def verdict(comparisons: Sequence[Row], saved: Sequence[Row], baseline: str, confidence: float) -> dict[str, Any]:
    """Return what a study says in words: a headline, details, and the ``best`` use, which the headline is about.

    Args:
        comparisons: those of ``summary.json``, from few labels to many within each pair.
        saved: the rows of ``labels_saved``.
        baseline: the arm whose backbone starts from nothing.
        confidence: of the intervals.
    """
    pairs: dict[Pair, list[Row]] = {}
    for row in comparisons:
        pairs.setdefault(_pair(row), []).append(row)
    references = [right for left, right in pairs if right.arm == baseline != left.arm]
    if not references:
        nothing = f"Nothing can be compared yet: no arm shares a label budget and a seed with {baseline}."
        return {"headline": nothing, "details": [], "best": None}
    right = max(references, key=lambda curve: TRANSFERS.index(curve.transfer))
    rivals = {left: rows for (left, other), rows in pairs.items() if other == right and left.arm != baseline}
    ordered = sorted(
        rivals, key=lambda left: (not called(rivals[left], "better"), -float(whole(rivals[left])["difference"]))
    )
    best, rows = ordered[0], rivals[ordered[0]]
    reached = {row["labels"]: row for row in saved if _pair(row) == (best, right)}
    told = [left for left in ordered[not _leaves_details(right, rows) :] if called(rivals[left], *DECIDED)]
    details = [_sentence((left, right), rivals[left], baseline, confidence) for left in told]
    details += _random_features(pairs, right) + _between_arms(pairs, baseline, confidence)
    telling = _telling(rows, reached)
    gain = next((row for row in rows if row["labels"] == telling and row["verdict"] == "better"), whole(rows))
    return {
        "headline": _headline((best, right), rows, reached, baseline, confidence, len(comparisons)),
        "details": details,
        "best": {**best._asdict(), **_baseline(right), "labels": telling, "gain": gain["labels"]},
    }


def _pair(row: Row) -> Pair:
    return Curve(row["arm"], row["transfer"]), Curve(row["baseline"], row["baseline_transfer"])


def _baseline(right: Curve) -> dict[str, str]:
    return {"baseline": right.arm, "baseline_transfer": right.transfer}


def _leaves_details(right: Curve, rows: Sequence[Row]) -> bool:
    """Return whether the headline leaves out budgets of the best use."""
    return right.transfer == "finetune" and bool(called(single(rows), "better")) and len(rows) > 1


def _telling(rows: Sequence[Row], reached: Mapping[str, Row]) -> str:
    """Return the budget to speak of: the middle one of those that are better, not the one that looks best.

    If none is better it is the middle one of all. Budgets at which labels saved say nothing are the last choice.
    """
    budgets = [row["labels"] for row in called(single(rows), "better") or single(rows)]
    chosen = [labels for labels in budgets if labels in reached and _says(reached[labels])] or budgets
    return str(chosen[(len(chosen) - 1) // 2])


def _says(saved: Row) -> bool:
    """Return whether labels saved hold more than that the largest budget was reached, or not the smallest."""
    return bool(saved["bound"] == "inside" or (saved["bound"] == "above" and saved["saved_text"] != "> 0"))


def _headline(
    pair: Pair, rows: Sequence[Row], reached: Mapping[str, Row], baseline: str, confidence: float, family: int
) -> str:
    left, right = (use_of(curve, baseline) for curve in pair)
    sentence = _sentence(pair, rows, baseline, confidence)
    if pair[1].transfer != "finetune":
        return f"Labels saved are unknown without training from scratch (transfer finetune). {sentence}"
    if called(single(rows), "better"):
        return _better_somewhere(left, right, rows, reached, confidence)
    if called(rows, "better"):
        return _better_overall(left, right, rows, reached, confidence)
    if called(rows, "worse"):
        return f"Pretraining did not save labels: {sentence[0].lower()}{sentence[1:]}"
    row = whole(called(rows, *DECIDED) or rows)
    scored = f"{left} scored {points(row['difference'], '+')} points against {right} {where(row['labels'])}"
    if row["verdict"] == "unknown":
        return f"One seed cannot tell whether pretraining saves labels: {scored}; more seeds would give an interval."
    before = f", before correction for {family} comparisons" if excludes_zero(row) and family > 1 else ""
    narrow = max(abs(row["low"]), abs(row["high"])) <= NARROW
    rest = "a difference of more than 1 point is unlikely" if narrow else "this is no proof that they are equal"
    return f"Pretraining was not shown to save labels: {scored} ({ends_of(row, confidence)}{before}); {rest}."


def _better_somewhere(left: str, right: str, rows: Sequence[Row], reached: Mapping[str, Row], confidence: float) -> str:
    """Return the headline of a pretrained backbone that is better at some budgets."""
    better, worse = (called(single(rows), verdict) for verdict in ("better", "worse"))
    telling = _telling(rows, reached)
    row = next(row for row in better if row["labels"] == telling)
    saves = all(reached[row["labels"]]["saves"] for row in better if row["labels"] in reached) and telling in reached
    example = f", {where(telling)}" if len(better) > 1 else ""
    text = f"Pretraining {'saves labels' if saves else 'helps'} {places(better, rows)}: {left} beats {right}{example} "
    text += f"by {points(row['difference'])} points ({ends_of(row, confidence)})"
    if telling in reached and _says(reached[telling]):
        text += f" and reaches {_reached(right, reached[telling], confidence)}"
    text += f"; it is worse {places(worse, rows)}" if worse else ""
    if saves and not _says(reached[telling]):
        text += "; how many labels that saves, only larger budgets can tell"
    return f"{text}."


def _better_overall(left: str, right: str, rows: Sequence[Row], reached: Mapping[str, Row], confidence: float) -> str:
    """Return the headline of a pretrained backbone that is better over all budgets together, but at none of them."""
    row, worse, telling = whole(rows), called(single(rows), "worse"), _telling(rows, reached)
    text = f"{left} beats {right} by {points(row['difference'])} points on average ({ends_of(row, confidence)}) "
    text += f"but is worse {places(worse, rows)}" if worse else "but at no single budget"
    if telling in reached and _says(reached[telling]):
        text += f"; {where(telling)} it reaches {_reached(right, reached[telling], confidence)}"
    return f"Pretraining helps, which shows only over all budgets together: {text}."


def _reached(right: str, saved: Row, confidence: float) -> str:
    """Return labels saved in words: ``what training from scratch reaches with 9.5 (95 % interval 6.4 to 17)``."""
    text, interval = (
        saved[key].replace("> ", "more than ").replace("< ", "fewer than ") for key in ("text", "interval")
    )
    per_class = saved["unit"] == "labels per class"
    unit = "" if per_class else f" labelled images instead of {saved['images']}"
    sure = "" if interval == text or saved["n"] < 2 else f" ({100 * confidence:g} % interval {interval})"
    return f"what {right} reaches with {text}{unit}{sure}"


def _sentence(pair: Pair, rows: Sequence[Row], baseline: str, confidence: float) -> str:
    """Return what was found for one pair, budget by budget and then overall."""
    left, right = (use_of(curve, baseline) for curve in pair)
    clauses: list[str] = []
    for verdict, first, later in (
        ("better", f"{left} beats {right}", "it is better"),
        ("worse", f"{left} is worse than {right}", "it is worse"),
        ("no difference", f"no difference between {left} and {right} was shown", "no difference was shown"),
        ("unknown", f"one seed cannot compare {left} with {right}", "one seed cannot tell"),
    ):
        chosen = called(single(rows), verdict)
        if not chosen:
            continue
        undecided = verdict in ("no difference", "unknown")
        elsewhere = len(chosen) > 1 and chosen == called(single(rows), "no difference", "unknown") and bool(clauses)
        place = "elsewhere" if elsewhere else places(chosen, rows, "any" if undecided else "every")
        clause = f"{later if clauses else first} {place}"
        if not undecided or (verdict == "no difference" and len(rows) == 1):
            largest = max(chosen, key=lambda row: abs(float(row["difference"])))
            most = f"most {where(largest['labels'])}: " if len(chosen) > 1 else ""
            clause += f" ({most}{size(largest, confidence)})"
        clauses.append(clause)
    for row in called(rows, *DECIDED):
        if row["labels"] == "overall":
            says = "no difference was shown" if row["verdict"] == "no difference" else f"it is {row['verdict']}"
            clauses.append(f"over all budgets together {says} ({size(row, confidence)})")
    return capital("; ".join(clauses)) + "."


def _random_features(pairs: Pairs, right: Curve) -> list[str]:
    """Return a sentence per frozen transfer: did pretraining beat random features? Equal findings stand together."""
    sentences = []
    for transfer in TRANSFERS[:-1]:
        other = Curve(right.arm, transfer)
        found = {left.arm: _fared(rows) for (left, against), rows in pairs.items() if against == other != right}
        told = sorted((phrase, arm) for arm, phrase in found.items() if phrase)
        groups = groupby(told, key=lambda entry: entry[0])
        clauses = [f"frozen {join([arm for _, arm in arms])} features {phrase}" for phrase, arms in groups]
        if clauses:
            sentences.append(f"{UNDER[transfer]}, {'; '.join(clauses)}.")
    return sentences


def _fared(rows: Sequence[Row]) -> str:
    """Return how features did against random ones; nothing if no budget has two seeds."""
    verbs = {"better": "beat random features", "worse": "are worse than random features"}
    chosen = {verdict: called(single(rows), verdict) for verdict in verbs}
    parts = [f"{verbs[verdict]} {places(some, rows)}" for verdict, some in chosen.items() if some]
    if not parts:
        parts = [f"{verbs[row['verdict']]} over all budgets together" for row in called(rows, *verbs)]
    if not parts and called(rows, "no difference"):
        parts = ["were not shown to differ from random features"]
    return " and ".join(parts)


def _between_arms(pairs: Pairs, baseline: str, confidence: float) -> list[str]:
    """Return a sentence per transfer: is one pretrained arm better than another?"""
    sentences = []
    for transfer in reversed(TRANSFERS):
        between = {
            (left, right): rows
            for (left, right), rows in pairs.items()
            if baseline not in (left.arm, right.arm) and left.transfer == transfer and called(rows, *DECIDED)
        }
        if len(between) == 1:
            sentences += [_sentence(pair, rows, baseline, confidence) for pair, rows in between.items()]
        elif between:
            sentences.append(f"{UNDER[transfer]}, {_ranking(between)}.")
    return sentences


def _ranking(between: Pairs) -> str:
    """Return which of several arms beat which, in one comparison or more."""
    beaten: dict[str, list[str]] = {}
    undecided = 0
    for (left, right), rows in between.items():
        if called(rows, "better"):
            beaten.setdefault(left.arm, []).append(right.arm)
        if called(rows, "worse"):
            beaten.setdefault(right.arm, []).append(left.arm)
        undecided += not called(rows, "better", "worse")
    if not beaten:
        arms = dict.fromkeys(curve.arm for pair in between for curve in pair)
        return f"no difference between {join(list(arms))} was shown"
    clauses = [f"{arm} beats {join(others)}" for arm, others in sorted(beaten.items(), key=lambda item: -len(item[1]))]
    rest = "; between the other arms no difference was shown" if undecided else ""
    return f"in one comparison or more {'; '.join(clauses)}{rest}"
