"""The scores of a study as plain text, for the terminal."""

from collections.abc import Mapping, Sequence
from textwrap import fill
from typing import Any

from headstart.config import SCORE_NAMES

TRANSFERS = {
    "probe": "Probe: linear model on the frozen backbone",
    "head": "Head: trained head on the frozen backbone",
    "finetune": "Finetune: all weights trained",
}
NOTHING = "–"
LONGEST_NAME = 44
MOST_DETAILS = 6  # in the terminal; the page has all

Summary = Mapping[str, Any]
Lines = Sequence[tuple[str, Sequence[str]]]  # a name and one cell per column


def text_table(summary: Summary, width: int = 100) -> str:
    """Return the scores by transfer, the verdict and the labels saved as text of at most ``width`` columns."""
    names = [budget_name(labels, summary) for labels in budgets(summary)]
    interval = f"{100 * summary['confidence']:g} % interval"
    blocks = [
        _wrapped(
            f"{title}; {score_name(summary)} in %, mean ± half of the {interval}, by {budget_unit(summary)}", width
        )
        + "\n"
        + _grid("arm", names, _score_lines(summary, transfer), width)
        for transfer, title in TRANSFERS.items()
        if any(row["transfer"] == transfer for row in summary["scores"])
    ]
    curves, saved = _saved_lines(summary)
    if curves:
        about = f"Labels saved: {summary['unit']} that {_reference(summary)} needs for the same score ({interval})"
        blocks.append(_wrapped(about, width) + "\n" + _grid(budget_unit(summary), curves, saved, width))
    told = summary["verdict"]["details"]
    details = [_wrapped(f"- {detail}", width, indent="  ") for detail in told[:MOST_DETAILS]]
    if len(told) > MOST_DETAILS:
        details.append(f"- {len(told) - MOST_DETAILS} more in the report")
    blocks.append("Verdict\n" + "\n".join([_wrapped(summary["verdict"]["headline"], width), *details]))
    return "\n\n".join(blocks)


def unbroken(text: str) -> str:
    """Return text whose numbers stay on one line with their percent sign."""
    return text.replace(" %", "\u00a0%")


def _wrapped(text: str, width: int, indent: str = "") -> str:
    return fill(unbroken(text), width, subsequent_indent=indent).replace("\u00a0", " ")


def budgets(summary: Summary) -> dict[str, int]:
    """Return the label budgets and how many labelled images each is, from few to many."""
    ordered = sorted(summary["scores"], key=lambda row: (row["images"], row["labels"]))
    return {row["labels"]: row["images"] for row in ordered}


def budget_unit(summary: Summary) -> str:
    """Return what the names of the budgets count."""
    return "labels per class" if summary["unit"] == "labels per class" else "label budget"


def budget_name(labels: str, summary: Summary) -> str:
    """Return the short name of a budget: ``5`` if all are per class, else ``5/class``, ``20 %`` or ``all``."""
    if labels.isdigit() and summary["unit"] != "labels per class":
        return f"{labels}/class"
    return labels.replace("%", " %")


def score_name(summary: Summary) -> str:
    """Return what people call the score that is compared.

    >>> score_name({"score": "map50_95"}), score_name({"score": "a score of one's own"})
    ('mAP50-95', "a score of one's own")
    """
    return SCORE_NAMES.get(str(summary["score"]), str(summary["score"]))


def score_text(row: Mapping[str, Any]) -> str:
    """Return a mean score in percent with half its interval, as in ``84.1 ± 2.3``; without the latter for one seed."""
    mean = f"{100 * row['mean']:.1f}"
    return mean if row["low"] is None else f"{mean} ± {50 * (row['high'] - row['low']):.1f}"


def signed(share: float | None) -> str:
    """Return a difference of shares in percentage points with its sign."""
    return NOTHING if share is None else f"{round(100 * share, 1) + 0.0:+.1f}".replace("-", "−")


def needed_text(row: Mapping[str, Any]) -> str:
    """Return how many labels the baseline needs with the interval, as in ``62 (40 to > 500)``."""
    certain = row["n"] < 2 or row["interval"] == row["text"]
    return str(row["text"]) if certain else f"{row['text']} ({row['interval']})"


def _score_lines(summary: Summary, transfer: str) -> Lines:
    rows = [row for row in summary["scores"] if row["transfer"] == transfer]
    found = {(row["arm"], row["labels"]): score_text(row) for row in rows}
    arms = dict.fromkeys(row["arm"] for row in rows)
    return [(arm, [found.get((arm, labels), NOTHING) for labels in budgets(summary)]) for arm in arms]


def _reference(summary: Summary) -> str:
    """Return the strongest baseline there is: training from scratch, if it is in the study."""
    known = {row["baseline_transfer"] for row in summary["labels_saved"]}
    strongest = max(known, key=list(TRANSFERS).index, default="finetune")
    return f"{summary['baseline']} + {strongest}"


def _saved_lines(summary: Summary) -> tuple[Sequence[str], Lines]:
    """Return the curves held against the strongest baseline, and per budget what it needs to reach each of them."""
    found: dict[str, dict[str, str]] = {}
    for row in summary["labels_saved"]:
        if f"{row['baseline']} + {row['baseline_transfer']}" == _reference(summary):
            found.setdefault(f"{row['arm']} + {row['transfer']}", {})[row["labels"]] = needed_text(row)
    lines = [
        (budget_name(labels, summary), [cells.get(labels, NOTHING) for cells in found.values()])
        for labels in budgets(summary)
    ]
    return list(found), lines


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


def _grid(corner: str, columns: Sequence[str], lines: Lines, width: int) -> str:
    """Return aligned text; columns that do not fit go on in a further table below."""
    names, heads = [_short(name) for name, _ in lines], [_short(head) for head in columns]
    first = max(map(len, [corner, *names]))
    widths = [max(len(head), *(len(cells[i]) for _, cells in lines)) + 2 for i, head in enumerate(heads)]
    parts: list[list[int]] = [[]]
    for i, column in enumerate(widths):
        if parts[-1] and first + sum(widths[j] for j in parts[-1]) + column > width:
            parts.append([])
        parts[-1].append(i)
    tables = []
    for part in parts:
        head = corner.ljust(first) + "".join(heads[i].rjust(widths[i]) for i in part)
        body = [
            name.ljust(first) + "".join(cells[i].rjust(widths[i]) for i in part)
            for name, (_, cells) in zip(names, lines, strict=True)
        ]
        tables.append("\n".join([head, "─" * len(head), *body]))
    return "\n\n".join(tables)
