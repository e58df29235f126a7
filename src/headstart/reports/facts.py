"""What the page shows first, and its comparisons by question."""

from collections.abc import Mapping
from typing import Any

from headstart.reports.table import TRANSFERS, Summary, budget_name, score_name, signed

Row = Mapping[str, Any]
Tables = dict[str, dict[str, dict[str, Row]]]  # title -> name of a line -> labels -> row


def key_facts(summary: Summary) -> list[dict[str, str]]:
    """Return the few figures that a reader takes away, each with a title, a value with its unit, and a note."""
    top = max(summary["scores"], key=lambda row: row["mean"])
    cells, failed = summary["cells"], len(summary["cells"]["failed"])
    return [
        _saved_fact(summary),
        _gain_fact(summary),
        {
            "title": f"Highest {score_name(summary)}",
            "value": f"{100 * top['mean']:.1f} %",
            "note": f"{top['arm']} + {top['transfer']}, {at_budget(top['labels'], summary)}",
        },
        {
            "title": "Evidence",
            "value": f"{summary['seeds']} seed{'' if summary['seeds'] == 1 else 's'}",
            "note": f"{cells['finished']} of {cells['planned']} cells finished"
            + (f", {failed} failed" if failed else ""),
        },
    ]


def _of_best(summary: Summary, rows: str, labels: str) -> Row | None:
    """Return the row about the best use, which the headline is about, at the budget that the headline names there."""
    best = summary["verdict"]["best"]
    sides = ("arm", "transfer", "baseline", "baseline_transfer")
    return best and next(
        (row for row in summary[rows] if row["labels"] == best[labels] and all(row[key] == best[key] for key in sides)),
        None,
    )


def _saved_fact(summary: Summary) -> dict[str, str]:
    """Return the labels saved at the budget of the headline, if the whole interval says that some are."""
    gain, row = _of_best(summary, "comparisons", "gain"), _of_best(summary, "labels_saved", "labels")
    title = "Labels saved"
    if row is None or gain is None or gain["verdict"] != "better":
        return {"title": title, "value": "none shown", "note": "no use of a pretrained backbone was shown to be better"}
    interval = "" if row["interval"] == row["text"] else f" ({_interval(summary)} {row['interval']})"
    note = (
        f"{row['arm']} + {row['transfer']} {at_budget(row['labels'], summary)}; for its score "
        f"{row['baseline']} + {row['baseline_transfer']} needs {row['text']}{interval}"
    )
    return {
        "title": title,
        "value": f"{row['saved_text']} {row['unit']}" if row["saves"] else "not certain",
        "note": note,
    }


def _gain_fact(summary: Summary) -> dict[str, str]:
    row = _of_best(summary, "comparisons", "gain")
    if row is None or row["verdict"] != "better":
        return {"title": "Gain", "value": "none shown", "note": "no comparison with a corrected p below 0.05"}
    interval = f"{_interval(summary)} {signed(row['low'])} to {signed(row['high'])}"
    note = f"{row['arm']} + {row['transfer']} over {row['baseline']} + {row['baseline_transfer']}"
    note += f", {at_budget(row['labels'], summary)} ({interval})"
    return {"title": "Gain", "value": f"{signed(row['difference'])} points", "note": note}


def _interval(summary: Summary) -> str:
    return f"{100 * summary['confidence']:g} % interval"


def at_budget(labels: str, summary: Summary) -> str:
    """Return a budget in words, as in ``at 5 labels per class``."""
    if labels == "overall":
        return "over all budgets together"
    if labels.isdigit():
        return f"at {labels} label{'' if labels == '1' else 's'} per class"
    return "with all labels" if labels == "all" else f"at {budget_name(labels, summary)} of the labels"


def questions(summary: Summary) -> Tables:
    """Return the comparisons by the question they answer, then by pair and budget; what matters most comes first."""
    found: Tables = {
        "Pretrained against training from scratch": {},
        "Frozen pretrained features against random features": {},
        "One pretrained arm against another": {},
        "Random features against training from scratch": {},
    }
    scratch, random, between, footnote = found
    for row in summary["comparisons"]:
        name = f"{row['arm']} + {row['transfer']}"
        if row["arm"] == summary["baseline"]:
            title = footnote
        elif row["baseline"] != summary["baseline"]:
            title, name = between, f"{name} against {row['baseline']}"
        else:
            title = scratch if row["baseline_transfer"] == "finetune" else random
        found[title].setdefault(name, {})[row["labels"]] = row
    return {title: lines for title, lines in found.items() if lines}


def saved_tables(summary: Summary) -> Tables:
    """Return labels saved by baseline, then by curve and budget; the most trained baseline comes first."""
    trained = list(TRANSFERS)
    found: Tables = {}
    for row in sorted(summary["labels_saved"], key=lambda row: -trained.index(row["baseline_transfer"])):
        title = f"{row['baseline']} + {row['baseline_transfer']}"
        found.setdefault(title, {}).setdefault(f"{row['arm']} + {row['transfer']}", {})[row["labels"]] = row
    return found
