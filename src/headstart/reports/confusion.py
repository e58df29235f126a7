"""What a pretrained arm and the baseline get right and wrong, class by class: their confusion matrices side by side."""

from collections.abc import Iterable, Mapping, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from headstart import runs
from headstart.reports.facts import at_budget
from headstart.reports.table import NOTHING, Summary, budgets

CELLS = "cells"
LARGEST_MATRIX = 20  # classes; a larger one cannot be read
LONGEST_TABLE = 200  # classes; of more the ones that gain and lose most
DEEPEST = 45  # percent of the colour in a cell of 100 %, so that its number keeps a contrast of 4.5 in both modes
SHARES = {"f1": "F1", "precision": "Precision", "recall": "Recall"}  # in the order of the columns

Use = tuple[str, str, str]  # arm, transfer, labels


class Answers(NamedTuple):
    """What one trained network answered on the test images.

    Attributes:
        classes: their names.
        support: images, or pixels, of each class.
        confusion: counts, a row per true class; empty if there are too many classes to show.
        shares: F1, precision and recall of each class, in 0..1.
    """

    classes: tuple[str, ...]
    support: list[int]
    confusion: list[list[int]]
    shares: Mapping[str, Sequence[float]]


class Entry(NamedTuple):
    """A number of a matrix: ``counted`` of the ``total`` of its row, as text in percent, and how deep its colour is."""

    counted: int
    total: int
    text: str
    shade: int


class Matrix(NamedTuple):
    """The confusion matrix of an arm with a transfer, summed over seeds; a row per true class."""

    name: str
    rows: list[list[Entry]]


class ClassScores(NamedTuple):
    """The scores of one class, means over seeds: by name of the share those of the baseline and of the arm."""

    name: str
    support: float
    shares: Mapping[str, tuple[float, float]]

    def gain(self, share: str) -> float:
        """Return by how much the arm is above the baseline."""
        baseline, arm = self.shares[share]
        return arm - baseline


class SideBySide(NamedTuple):
    """A pretrained arm beside the baseline, at one label budget.

    Attributes:
        title: what is compared, where, over how many seeds.
        classes: their names, in the order of the matrices.
        matrices: of the baseline and of the arm; none if there are more than 20 classes.
        scores: of the classes, the largest gain in F1 first.
        left_out: classes in the middle of that order that are too many to show.
    """

    title: str
    classes: tuple[str, ...]
    matrices: list[Matrix]
    scores: list[ClassScores]
    left_out: int


def read_answers(folder: Path, results: Iterable[Mapping[str, str]]) -> dict[Use, dict[str, Answers]]:
    """Return what the networks of a study answered, by their use and seed.

    Args:
        folder: of the study.
        results: the rows of results.csv; of a grid only the chosen point counts. Evaluations that left no confusion
            matrix (a linear probe, a detector) or whose files are gone are left out.
    """
    found: dict[Use, dict[str, Answers]] = {}
    for row in results:
        if row.get("chosen") == "True" and row.get("transfer") != "probe":
            answers = _answers(folder / CELLS / row["cell"])
            if answers is not None:
                found.setdefault((row["arm"], row["transfer"], row["labels"]), {})[row["seed"]] = answers
    return found


def _answers(cell: Path) -> Answers | None:
    try:
        result = runs.read_result(cell) or {}
    except (OSError, ValueError):  # the rest of the page does not need it
        return None
    if not result.keys() >= {"classes", "confusion", "per_class"} or not result["per_class"].keys() >= SHARES.keys():
        return None
    classes, counts = tuple(result["classes"]), result["confusion"]
    # a thousand classes are a million numbers for each cell: they are not kept
    kept = counts if len(classes) <= LARGEST_MATRIX else []
    return Answers(classes, [sum(row) for row in counts], kept, {share: result["per_class"][share] for share in SHARES})


def side_by_side(summary: Summary, answers: Mapping[Use, Mapping[str, Answers]]) -> list[SideBySide]:
    """Return every pretrained arm beside the baseline, over the seeds that both have; the verdict's is the first.

    Where the verdict speaks of networks that left no confusion matrix, the first one is of the same arm, then of the
    same budget, then of the largest.
    """
    found = []
    for row in summary["comparisons"]:
        if row["baseline"] != summary["baseline"] or row["arm"] == summary["baseline"]:
            continue
        left = answers.get((row["baseline"], row["baseline_transfer"], row["labels"]), {})
        right = answers.get((row["arm"], row["transfer"], row["labels"]), {})
        pairs = [(left[seed], right[seed]) for seed in left if seed in right]
        if len({each.classes for pair in pairs for each in pair}) == 1:
            found.append((_nearness(row, summary), _side_by_side(row, pairs, summary)))
    found.sort(key=lambda entry: entry[0], reverse=True)
    return [pair for _, pair in found]


def _nearness(row: Mapping[str, Any], summary: Summary) -> tuple[bool, bool, bool, int]:
    """Return how near a comparison is to what the verdict speaks of; more is nearer."""
    best = summary["verdict"]["best"] or {}
    same = {name: row[name] == best.get(name) for name in ("arm", "transfer", "baseline", "baseline_transfer")}
    return all(same.values()), same["arm"], row["labels"] == best.get("labels"), budgets(summary)[row["labels"]]


def _side_by_side(row: Mapping[str, Any], pairs: Sequence[tuple[Answers, Answers]], summary: Summary) -> SideBySide:
    names = (f"{row['baseline']} + {row['baseline_transfer']}", f"{row['arm']} + {row['transfer']}")
    seeds = f"{len(pairs)} seed{'' if len(pairs) == 1 else 's'}"
    sides = tuple(zip(*pairs, strict=True))
    classes = pairs[0][0].classes
    drawn = zip(names, sides, strict=True) if len(classes) <= LARGEST_MATRIX else ()
    scores = sorted(_class_scores(pairs), key=lambda scores: scores.gain("f1"), reverse=True)
    ends = scores if len(scores) <= LONGEST_TABLE else scores[: LONGEST_TABLE // 2] + scores[-LONGEST_TABLE // 2 :]
    return SideBySide(
        title=f"{names[1]} against {names[0]}, {at_budget(row['labels'], summary)} ({seeds})",
        classes=classes,
        matrices=[Matrix(name, _normalised(_summed(side))) for name, side in drawn],
        scores=ends,
        left_out=len(scores) - len(ends),
    )


def _class_scores(pairs: Sequence[tuple[Answers, Answers]]) -> list[ClassScores]:
    return [
        ClassScores(
            name,
            fmean(baseline.support[i] for baseline, _ in pairs),
            {
                share: (
                    fmean(baseline.shares[share][i] for baseline, _ in pairs),
                    fmean(arm.shares[share][i] for _, arm in pairs),
                )
                for share in SHARES
            },
        )
        for i, name in enumerate(pairs[0][0].classes)
    ]


def _summed(side: Iterable[Answers]) -> list[list[int]]:
    """Return the sum of confusion matrices."""
    matrices = [answers.confusion for answers in side]
    return [[sum(counts) for counts in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]


def _normalised(counts: Iterable[Sequence[int]]) -> list[list[Entry]]:
    """Return counts with the share that each is of its row."""
    return [[_entry(count, sum(row)) for count in row] for row in counts]


def _entry(count: int, total: int) -> Entry:
    # the root shows a confusion of a few percent, which would be white beside the diagonal
    depth = sqrt(count / total) if total else 0.0
    return Entry(count, total, percent(count, total), round(DEEPEST * depth))


def percent(count: int, total: int) -> str:
    """Return a share in whole percent, such that only none is ``0`` and only all is ``100``.

    >>> [percent(count, 1000) for count in (0, 1, 375, 999, 1000)]
    ['0', '<1', '38', '>99', '100']
    """
    if not total:
        return NOTHING
    rounded = round(100 * count / total)
    if rounded == 0 < count:
        return "<1"
    return ">99" if rounded == 100 and count < total else str(rounded)
