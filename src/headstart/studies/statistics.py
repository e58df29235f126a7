"""What the scores of a study allow one to say: intervals, paired comparisons, labels saved.

Pure functions of the finished evaluations, whatever their order. A *curve* is an arm with a transfer: one line of the
label-efficiency figure. Every comparison of a study belongs to one family, over which Holm's correction is made.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtr, stdtrit

from headstart.studies.phrases import Curve, Row
from headstart.studies.verdict import TRANSFERS, Pair, verdict

LEVEL = 0.05  # a corrected p below this is called a difference
TINY = 1e-9  # scores closer than this are equal: rounding, not images

Floats = NDArray[np.float64]
Scores = dict[Curve, dict[str, dict[int, float]]]  # curve -> labels -> seed -> score


def summarise(
    rows: Iterable[Row],
    *,
    baseline: str,
    score: str,
    confidence: float = 0.95,
    bootstrap: int = 2000,
    seed: int = 0,
    classes: int | None = None,
) -> dict[str, Any]:
    """Return the statistical part of ``summary.json``.

    Scores and differences are shares in 0..1; ``images``, ``needed``, ``saved``, ``low`` and ``high`` of labels saved
    count labelled images, their texts count ``unit``. ``None`` stands for what one seed cannot tell, and for the end of
    an interval that lies outside the measured budgets (its text says on which side).

    Args:
        rows: one mapping per finished evaluation, with ``arm``, ``transfer``, ``labels`` (``5``, ``20%`` or ``all``),
            ``images`` (how many labelled images were used), ``seed`` and ``score`` in 0..1.
        baseline: the arm whose backbone starts from nothing.
        score: the name of the score, for the reader.
        confidence: of every interval.
        bootstrap: how many times the seeds are resampled for the interval of labels saved.
        seed: of that resampling.
        classes: the number of classes; with it, and if every budget is per class, texts count labels per class.
    """
    scores, images = _collect(rows, baseline)
    unit = classes if classes and all(labels.isdigit() for labels in images) else 1
    main, rest = _pairs(list(scores), baseline)
    comparisons = _comparisons(scores, images, main + rest, confidence)
    saved = [row for pair in main for row in _labels_saved(scores, images, pair, confidence, bootstrap, seed, unit)]
    return {
        "score": score,
        "baseline": baseline,
        "confidence": confidence,
        "seeds": len({seed for curve in scores.values() for cells in curve.values() for seed in cells}),
        "unit": _unit(unit),
        "scores": [
            {**curve._asdict(), "labels": labels, "images": images[labels], **_mean(list(cells.values()), confidence)}
            for curve, budgets in scores.items()
            for labels, cells in budgets.items()
        ],
        "comparisons": comparisons,
        "labels_saved": saved,
        "verdict": verdict(comparisons, saved, baseline, confidence),
    }


def _collect(rows: Iterable[Row], baseline: str) -> tuple[Scores, dict[str, int]]:
    """Return scores by curve, budget and seed, and images by budget, in an order of their own: baseline first."""
    rows = sorted(rows, key=lambda row: (row["arm"] != baseline, row["arm"], row["images"], row["labels"], row["seed"]))
    rows.sort(key=lambda row: TRANSFERS.index(row["transfer"]))
    scores: Scores = {}
    for row in rows:
        cells = scores.setdefault(Curve(row["arm"], row["transfer"]), {}).setdefault(row["labels"], {})
        assert row["seed"] not in cells, f"two scores for one evaluation: {row}"
        assert 0 <= row["score"] <= 1, f"a score outside 0..1: {row}"
        cells[row["seed"]] = row["score"]
    images = {row["labels"]: int(row["images"]) for row in sorted(rows, key=lambda row: row["images"])}
    return scores, images


def _pairs(curves: Sequence[Curve], baseline: str) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs of curves to compare: what labels saved are read from, then the rest.

    The first ones put pretrained curves against the supervised baseline, and frozen ones against random features. The
    rest are pretrained arms against each other, and random features against the supervised baseline.
    """
    supervised = Curve(baseline, "finetune")
    pretrained = [curve for curve in curves if curve.arm != baseline]
    main = [(curve, supervised) for curve in pretrained]
    main += [(curve, Curve(baseline, curve.transfer)) for curve in pretrained if curve.transfer != "finetune"]
    rest = [(a, b) for a, b in combinations(pretrained, 2) if a.transfer == b.transfer]
    rest += [(curve, supervised) for curve in curves if curve.arm == baseline and curve != supervised]
    return [pair for pair in main if pair[1] in curves], [pair for pair in rest if pair[1] in curves]


def t_interval(values: Sequence[float], confidence: float) -> tuple[float | None, float | None]:
    """Return the ends of Student's interval of the mean, with n - 1 degrees of freedom; ``None`` for one value."""
    if len(values) < 2:
        return None, None
    half = stdtrit(len(values) - 1, (1 + confidence) / 2) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - half), float(np.mean(values) + half)


def paired_p(differences: Sequence[float]) -> float | None:
    """Return the two-sided p of the paired t test; ``None`` for fewer than two differences.

    Equal differences have no variance and hence no t: p is 1 if they are zero, else that of the exact sign-flip test,
    2^(1 - n). So two seeds that agree by chance on a small test set prove nothing.
    """
    count = len(differences)
    if count < 2:
        return None
    mean, deviation = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if deviation < TINY:
        return 1.0 if abs(mean) < TINY else 2.0 ** (1 - count)
    return float(2 * stdtr(count - 1, -abs(mean) / (deviation / np.sqrt(count))))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected by Holm's step-down method (Holm 1979); ``None`` stays out of the family."""
    known = np.array([value for value in values if value is not None])
    order = np.argsort(known, kind="stable")
    corrected = np.empty_like(known)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate((len(known) - np.arange(len(known))) * known[order]))
    remaining = iter(corrected.tolist())
    return [None if value is None else next(remaining) for value in values]


def _mean(values: Sequence[float], confidence: float) -> dict[str, Any]:
    low, high = t_interval(values, confidence)
    return {"n": len(values), "mean": float(np.mean(values)), "low": low, "high": high}


def _comparisons(
    scores: Scores, images: Mapping[str, int], pairs: Sequence[Pair], confidence: float
) -> list[dict[str, Any]]:
    """Return one comparison per pair and budget, and one over all budgets of each pair, corrected together."""
    found = [
        (pair, labels, differences)
        for pair in pairs
        for labels, differences in _differences(scores, images, pair).items()
    ]
    values = [paired_p(differences) for _, _, differences in found]
    rows = []
    for (pair, labels, differences), p, p_holm in zip(found, values, holm(values), strict=True):
        summary = _mean(differences, confidence)
        difference = summary.pop("mean")
        called = "unknown" if p_holm is None else "no difference"
        if p_holm is not None and p_holm < LEVEL:
            called = "better" if difference > 0 else "worse"
        tested = {"difference": difference, **summary, "p": p, "p_holm": p_holm, "verdict": called}
        rows.append({**_sides(pair), "labels": labels, **tested})
    return rows


def _sides(pair: Pair) -> dict[str, str]:
    left, right = pair
    return {**left._asdict(), "baseline": right.arm, "baseline_transfer": right.transfer}


def _differences(scores: Scores, images: Mapping[str, int], pair: Pair) -> dict[str, list[float]]:
    """Return the differences of a pair by budget, one per seed that both have, and overall (two budgets or more)."""
    left, right = (scores[curve] for curve in pair)
    found: dict[str, dict[int, float]] = {}
    for labels in images:
        seeds = left.get(labels, {}).keys() & right.get(labels, {}).keys()
        if seeds:
            found[labels] = {seed: left[labels][seed] - right[labels][seed] for seed in sorted(seeds)}
    if len(found) > 1:
        complete = sorted(set.intersection(*(set(cells) for cells in found.values())))
        if complete:
            means = {seed: float(np.mean([cells[seed] for cells in found.values()])) for seed in complete}
            found["overall"] = means
    return {labels: list(cells.values()) for labels, cells in found.items()}


def images_needed(targets: Floats, curves: Floats, images: Floats) -> Floats:
    """Return how many of ``images`` ``[n]`` each mean curve ``[b n]`` needs to reach its target ``[b]``.

    The curve is made non-decreasing by its cumulative maximum and is linear in log(images) between budgets. Below the
    first budget the answer is -inf, above the last it is inf: never a guess.
    """
    curves = np.maximum.accumulate(curves, axis=1)
    reached = curves >= targets[:, None] - TINY  # [b n]
    upper = reached.argmax(axis=1)
    lower = np.maximum(upper - 1, 0)
    low, high = (np.take_along_axis(curves, index[:, None], axis=1)[:, 0] for index in (lower, upper))
    share = np.divide(targets - low, high - low, out=np.ones_like(targets), where=high > low)
    log = np.log(images)
    needed: Floats = np.exp(log[lower] + np.minimum(share, 1.0) * (log[upper] - log[lower]))
    needed[~reached.any(axis=1)] = np.inf
    needed[curves[:, 0] > targets + TINY] = -np.inf
    return needed


def _labels_saved(
    scores: Scores, images: Mapping[str, int], pair: Pair, confidence: float, bootstrap: int, seed: int, unit: int
) -> list[dict[str, Any]]:
    """Return what the right curve needs for each mean score of the left one, over the seeds that both have."""
    left, right = (scores[curve] for curve in pair)
    budgets = [labels for labels in images if labels in right]
    grid = np.array([images[labels] for labels in budgets], dtype=np.float64)
    rows = []
    for labels, cells in left.items():
        seeds = sorted(set(cells).intersection(*(right[budget] for budget in budgets)))
        if not seeds:
            continue
        reached = np.array([cells[seed] for seed in seeds])  # [s]
        curves = np.array([[right[budget][seed] for budget in budgets] for seed in seeds])  # [s n]
        drawn = np.random.default_rng(seed).integers(len(seeds), size=(bootstrap, len(seeds)))
        needed = images_needed(reached.mean(keepdims=True), curves.mean(axis=0, keepdims=True), grid)[0]
        resampled = images_needed(reached[drawn].mean(axis=1), curves[drawn].mean(axis=1), grid)
        ends = _percentiles(resampled, len(seeds), confidence)
        found = {"labels": labels, "images": images[labels], "n": len(seeds), "score": float(reached.mean())}
        rows.append({**_sides(pair), **found, **_in_words(needed, ends, images[labels], grid, unit)})
    return rows


def _percentiles(resampled: Floats, seeds: int, confidence: float) -> tuple[float, float] | None:
    """Return the ends of the expanded percentile interval (Hesterberg 2015, section 5.1); ``None`` for one seed.

    The plain percentiles are too narrow for a handful of seeds; these have the width of Student's interval.
    """
    if seeds < 2:
        return None
    tail = ndtr(stdtrit(seeds - 1, (1 - confidence) / 2) * np.sqrt(seeds / (seeds - 1)))
    last = len(resampled) - 1
    # Order statistics, rounded outwards: infinities cannot be interpolated.
    low, high = np.sort(resampled)[[int(np.floor(tail * last)), int(np.ceil((1 - tail) * last))]]
    return float(low), float(high)


def _in_words(needed: float, ends: tuple[float, float] | None, images: int, grid: Floats, unit: int) -> dict[str, Any]:
    def text(count: float, less: int = 0) -> str:
        sign = {np.inf: "> ", -np.inf: "< "}.get(count, "")
        return sign + _count((float(np.clip(count, grid[0], grid[-1])) - less) / unit)

    low, high = (end if np.isfinite(end) else None for end in ends) if ends else (None, None)
    inside = bool(np.isfinite(needed))
    return {
        "needed": float(needed) if inside else None,
        "low": low,
        "high": high,
        "bound": "inside" if inside else "above" if needed > 0 else "below",
        "saved": float(needed - images) if inside else None,
        "saves": bool(ends and ends[0] > images),  # the whole interval does
        "unit": _unit(unit),
        "text": text(needed),
        "interval": " to ".join(dict.fromkeys(map(text, ends))) if ends else "unknown (one seed)",
        "saved_text": text(needed, less=images),
    }


def _unit(unit: int) -> str:
    return "labels per class" if unit > 1 else "labelled images"


def _count(value: float) -> str:
    shown = f"{abs(value):.0f}" if abs(value) >= 10 else f"{abs(value):.1f}".removesuffix(".0")
    return f"−{shown}" if value < 0 and shown != "0" else shown
