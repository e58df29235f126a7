"""The verdict of a study in words, true to what its comparisons say.

The headline answers one question: does pretraining save labels, how many, how sure. It puts the best use of a pretrained
backbone against training from scratch. Choosing that use after looking is covered: Holm's correction runs over all
comparisons of the study.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

NARROW = 0.01  # an interval within one point on either side of zero makes a large difference unlikely
UNDER = {"probe": "Under a linear probe", "head": "Under a trained head", "finetune": "When finetuned"}

Pair = tuple[Curve, Curve]
Pairs = Mapping[Pair, Sequence[Row]]


def verdict(comparisons: Sequence[Row], saved: Sequence[Row], baseline: str, confidence: float) -> dict[str, Any]:
    """Return what a study says in words: a headline, details, and the ``best`` use that the headline is about.

    Args:
        comparisons: those of ``summary.json``, from few labels to many within each pair.
        saved: the rows of ``labels_saved``.
        baseline: the arm whose backbone starts from nothing.
        confidence: of the intervals.
    """
    pairs: dict[Pair, list[Row]] = {}
    for row in comparisons:
        pair = Curve(row["arm"], row["transfer"]), Curve(row["baseline"], row["baseline_transfer"])
        pairs.setdefault(pair, []).append(row)
    references = [right for left, right in pairs if right.arm == baseline != left.arm]
    if not references:
        nothing = f"Nothing can be compared yet: no arm shares a label budget and a seed with {baseline}."
        return {"headline": nothing, "details": [], "best": None}
    right = max(references, key=lambda curve: TRANSFERS.index(curve.transfer))
    rivals = {left: rows for (left, other), rows in pairs.items() if other == right and left.arm != baseline}
    ordered = sorted(rivals, key=lambda left: (not called(rivals[left], "better"), -_mean_gain(rivals[left])))
    best = ordered[0]
    reached = {
        row["labels"]: row for row in saved if (Curve(row["arm"], row["transfer"]), _right(row)) == (best, right)
    }
    telling = _telling(rivals[best], reached)
    details = [_sentence((left, right), rivals[left], baseline, confidence) for left in ordered]
    return {
        "headline": _headline(
            (best, right), rivals[best], reached.get(telling), baseline, confidence, len(comparisons)
        ),
        # With one budget the headline has said all of the best use.
        "details": details[len(rivals[best]) == 1 :]
        + _random_features(pairs, right)
        + _arms(pairs, baseline, confidence),
        "best": {**_sides((best, right)), "labels": telling, "gain": _gain(rivals[best], telling)["labels"]},
    }


def _right(row: Row) -> Curve:
    return Curve(row["baseline"], row["baseline_transfer"])


def _sides(pair: Pair) -> dict[str, str]:
    left, right = pair
    return {**left._asdict(), "baseline": right.arm, "baseline_transfer": right.transfer}


def _whole(rows: Sequence[Row]) -> Row:
    """Return the comparison over all budgets, or the first one if no seed has all budgets."""
    return next((row for row in rows if row["labels"] == "overall"), rows[0])


def _mean_gain(rows: Sequence[Row]) -> float:
    return float(_whole(rows)["difference"])


def _telling(rows: Sequence[Row], reached: Mapping[str, Row]) -> str:
    """Return the budget to speak of: the middle one of those that are better, not the one that looks best.

    If none is better it is the middle one of all. Budgets at which labels saved says nothing come last.
    """
    single = [row["labels"] for row in called(single(rows), "better") or single(rows)]
    known = [labels for labels in single if labels in reached and _says(reached[labels])]
    chosen = known or single
    return str(chosen[(len(chosen) - 1) // 2])


def _says(reached: Row) -> bool:
    return reached["bound"] == "inside" or (reached["bound"] == "above" and reached["saved_text"] != "> 0")


def _gain(rows: Sequence[Row], telling: str) -> Row:
    """Return the comparison whose difference the headline gives."""
    at = next(row for row in rows if row["labels"] == telling)
    return at if at["verdict"] == "better" else _whole(rows)


def _headline(
    pair: Pair, rows: Sequence[Row], reached: Row | None, baseline: str, confidence: float, family: int
) -> str:
    left, right = (name(curve, baseline) for curve in pair)
    if pair[1].transfer != "finetune":
        found = _sentence(pair, rows, baseline, confidence, capital=False)
        return f"Without training from scratch (transfer finetune) labels saved are unknown: {found}"
    if not called(rows, "better", "worse", "no difference"):
        row = _whole(rows)
        size = f"{points(row['difference'], '+')} points against {right} {where(row['labels'])}"
        return f"One seed cannot tell whether pretraining saves labels: {left} scored {size}; more seeds would tell."
    if called(rows, "better"):
        return _gain_in_words(left, right, rows, reached, confidence)
    if called(rows, "worse"):
        return f"Pretraining did not save labels: {_sentence(pair, rows, baseline, confidence, capital=False)}"
    row = _whole(called(rows, "no difference"))
    scored = f"{left} scored {points(row['difference'], '+')} points against {right} {where(row['labels'])}"
    before = f", before correction for {family} comparisons" if excludes_zero(row) and family > 1 else ""
    if max(abs(row["low"]), abs(row["high"])) <= NARROW:
        rest = "a difference of more than 1 point is unlikely"
    else:
        rest = "this is no proof that they are equal"
    return f"Pretraining was not shown to save labels: {scored} ({interval(row, confidence)}{before}); {rest}."


def _gain_in_words(left: str, right: str, rows: Sequence[Row], reached: Row | None, confidence: float) -> str:
    """Return the headline of a pretrained backbone that is better at some budget, or over all of them."""
    better, worse = called(single(rows), "better"), called(single(rows), "worse")
    but = f"; it is worse {at(worse, rows)}" if worse else ""
    if not better:
        row = _whole(rows)
        size = f"by {points(row['difference'])} points on average ({interval(row, confidence)})"
        more = f"; {where(reached['labels'])} it {_reaches(right, reached, confidence)}" if _tells(reached) else ""
        return (
            "Pretraining helps, which shows only over all budgets together: "
            f"{left} beats {right} {size} but at no single budget{but or more}."
        )
    saves = reached is not None and reached["saves"]
    telling = reached["labels"] if reached is not None else better[(len(better) - 1) // 2]["labels"]
    row = next(row for row in better if row["labels"] == telling)
    example = f", {where(telling)}" if len(better) > 1 else ""
    text = f"Pretraining {'saves labels' if saves else 'helps'} {at(better, rows)}: {left} beats {right}{example} "
    text += f"by {points(row['difference'])} points ({interval(row, confidence)})"
    if _tells(reached):
        text += f" and {_reaches(right, reached, confidence)}"
    elif reached is not None and reached["bound"] == "above":
        but += "; how many labels that saves, only larger budgets can tell"
    return f"{text}{but}."


def _tells(reached: Row | None) -> bool:
    return reached is not None and _says(reached)


def _reaches(right: str, reached: Row | None, confidence: float) -> str:
    """Return labels saved in words: ``reaches what training from scratch reaches with 9.5 (95 % interval 6.4 to 17)``."""
    assert reached is not None
    text, interval = (bounds(reached[name]) for name in ("text", "interval"))
    per_class = reached["unit"] == "labels per class"
    unit = "" if per_class else f" labelled images instead of {reached['images']}"
    sure = "" if interval == text else f" ({100 * confidence:g} % interval {interval})"
    return f"reaches what {right} reaches with {text}{unit}{sure}"


def _sentence(pair: Pair, rows: Sequence[Row], baseline: str, confidence: float, *, capital: bool = True) -> str:
    """Return what was found for one pair, budget by budget and then overall."""
    left, right = (name(curve, baseline) for curve in pair)
    overall = [row for row in rows if row["labels"] == "overall" and row["verdict"] != "unknown"]
    clauses: list[str] = []
    for called, first, later in (
        ("better", f"{left} beats {right}", "it is better"),
        ("worse", f"{left} is worse than {right}", "it is worse"),
        ("no difference", f"{left} shows no difference from {right}", "no difference was shown"),
        ("unknown", f"one seed cannot tell {left} from {right}", "one seed cannot tell"),
    ):
        chosen = called(single(rows), called)
        if not chosen:
            continue
        clause = f"{later if clauses else first} {at(chosen, rows, 'any' if called == 'no difference' else 'every')}"
        if called in ("better", "worse") or len(rows) == 1 and called == "no difference":
            largest = max(chosen, key=lambda row: abs(float(row["difference"])))
            at = f"most {where(largest['labels'])}: " if len(chosen) > 1 else ""
            clause += f" ({at}{size(largest, confidence)})"
        clauses.append(clause)
    for row in overall:
        called = row["verdict"]
        says = "no difference was shown" if called == "no difference" else f"it is {called}"
        clauses.append(f"over all budgets together {says} ({size(row, confidence)})")
    text = "; ".join(clauses) + "."
    return capital(text) if capital else text


def _random_features(pairs: Pairs, right: Curve) -> list[str]:
    """Return a sentence per frozen transfer: did pretraining beat random features? Arms that fared alike stand together."""
    sentences = []
    for transfer in TRANSFERS[:-1]:
        other = Curve(right.arm, transfer)
        found = {left.arm: _fared(rows) for (left, against), rows in pairs.items() if against == other != right}
        told = sorted((phrase, arm) for arm, phrase in found.items() if phrase)
        groups = {phrase: [arm for _, arm in arms] for phrase, arms in groupby(told, key=lambda entry: entry[0])}
        if groups:
            clauses = [f"frozen {join(arms)} features {phrase}" for phrase, arms in groups.items()]
            sentences.append(f"{UNDER[transfer]}, {'; '.join(clauses)}.")
    return sentences


def _fared(rows: Sequence[Row]) -> str:
    """Return how features did against random ones, budget by budget; nothing if no budget has two seeds."""
    verbs = {"better": "beat random features", "worse": "are worse than random features"}
    parts = [
        f"{verb} {at(called(single(rows), said), rows)}"
        for said, verb in verbs.items()
        if called(single(rows), said)
    ]
    if not parts:
        parts = [f"{verbs[row['verdict']]} over all budgets together" for row in rows if row["verdict"] in verbs]
    if not parts and called(rows, "no difference"):
        parts = ["show no difference from random features"]
    return " and ".join(parts)


def _arms(pairs: Pairs, baseline: str, confidence: float) -> list[str]:
    """Return a sentence per transfer: is one pretrained arm better than another?"""
    sentences = []
    for transfer in reversed(TRANSFERS):
        between = {
            pair: rows
            for pair, rows in pairs.items()
            if baseline not in (pair[0].arm, pair[1].arm) and pair[0].transfer == transfer
            if called(rows, "better", "worse", "no difference")
        }
        if len(between) == 1:
            sentences += [_sentence(pair, rows, baseline, confidence) for pair, rows in between.items()]
        elif between:
            sentences.append(f"{UNDER[transfer]}, {_ranking(between)}.")
    return sentences


def _ranking(between: Pairs) -> str:
    """Return which of several arms beat which, at one budget or more."""
    beaten: dict[str, list[str]] = {}
    open_pairs = 0
    for (left, right), rows in between.items():
        wins = [a.arm for a, said in ((left, "better"), (right, "worse")) if called(rows, said)]
        open_pairs += not wins
        for arm in wins:
            beaten.setdefault(arm, []).append(right.arm if arm == left.arm else left.arm)
    if not beaten:
        arms = sorted({curve.arm for pair in between for curve in pair})
        return f"no difference between {join(arms)} was shown"
    clauses = [f"{arm} beats {join(others)}" for arm, others in sorted(beaten.items(), key=lambda item: -len(item[1]))]
    rest = "; between the other arms no difference was shown" if open_pairs else ""
    return f"{join(clauses)} in one comparison or more{rest}"
