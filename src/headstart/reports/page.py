"""One self-contained HTML page of a study: no network, no torch, only the files in the study's folder."""

import csv
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from headstart.errors import UserError
from headstart.reports.figures import curve_figures, panels, styles
from headstart.reports.table import (
    NOTHING,
    TRANSFERS,
    Summary,
    budget_name,
    budget_unit,
    budgets,
    needed_text,
    score_text,
)

VERDICTS = {"better": "▲", "worse": "▼", "no difference": "=", "unknown": "?"}
MARKS = {"circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "cross": "✚", "star": "★"}


def report(folder: Path) -> Path:
    """Write ``report.html`` from ``summary.json`` and its neighbours, atomically, and return its path.

    Raises:
        UserError: the folder is not that of a study, or one of its files cannot be read.
    """
    summary = _json(folder / "summary.json")
    if summary is None:
        raise UserError(f"study: no summary.json in '{folder}' (allowed: a folder that `headstart study` wrote)")
    if not {"scores", "comparisons", "labels_saved", "verdict", "cells"} <= summary.keys():
        raise UserError(f"study: '{folder / 'summary.json'}' is not the summary of a study (allowed: that of a study)")
    if not summary["scores"]:
        raise UserError(f"study: no evaluation in '{folder}' is finished yet (allowed: a study with one or more)")
    page = render(summary, _results(folder), _text(folder / "study.yaml"), _json(folder / "environment.json") or {})
    temporary = folder / ".report.html.part"
    temporary.write_text(page, encoding="utf-8")
    return temporary.replace(folder / "report.html")


def render(summary: Summary, results: list[dict[str, str]], study: str, environment: Mapping[str, Any]) -> str:
    """Return the page as HTML; every string from the study is escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {
        "percent": partial(_hundredfold, sign=""),
        "points": partial(_hundredfold, sign="+"),
        "probability": _probability,
        "duration": _duration,
        "short": _short,
        "score": score_text,
        "needed": needed_text,
    }
    figures = {transfer: figure.to_plotly_json() for transfer, figure in curve_figures(summary).items()}
    return pages.get_template("page.html.jinja").render(
        summary=summary,
        interval=_confidence(summary),
        budgets=budgets(summary),
        budget_name=partial(budget_name, summary=summary),
        budget_unit=budget_unit(summary),
        transfers=TRANSFERS,
        nothing=NOTHING,
        facts=key_facts(summary),
        tables=_score_tables(summary),
        panels=panels(summary),
        styles=styles(summary),
        marks=MARKS,
        verdicts=VERDICTS,
        results=results,
        study=study,
        environment=_flat(environment),
        figures=_script_json(figures),
        plotly=Markup(get_plotlyjs()),
    )


def key_facts(summary: Summary) -> list[dict[str, str]]:
    """Return the few figures that a reader takes away, each with a title, a value with its unit, and a note."""
    best = max(summary["scores"], key=lambda row: row["mean"])
    where = f"{best['arm']} + {best['transfer']}, {_at(best['labels'], summary)}"
    cells = summary["cells"]
    return [
        _labels_saved_fact(summary),
        _gain_fact(summary),
        {"title": f"Best {summary['score']}", "value": f"{100 * best['mean']:.1f} %", "note": where},
        {
            "title": "Evidence",
            "value": f"{summary['seeds']} seed{'' if summary['seeds'] == 1 else 's'}",
            "note": f"{cells['finished']} of {cells['planned']} cells finished, {len(cells['failed'])} failed",
        },
    ]


def _gains(summary: Summary) -> dict[tuple[str, ...], Mapping[str, Any]]:
    """Return the comparisons at one budget in which a pretrained arm is better than the strongest baseline there is."""
    rows = [row for row in summary["comparisons"] if row["baseline"] == summary["baseline"]]
    strongest = max((list(TRANSFERS).index(row["baseline_transfer"]) for row in rows), default=0)
    return {
        _key(row): row
        for row in rows
        if row["verdict"] == "better"
        and row["arm"] != summary["baseline"]
        and row["baseline_transfer"] == list(TRANSFERS)[strongest]
        and row["labels"] != "overall"
    }


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("arm", "transfer", "baseline", "baseline_transfer", "labels"))


def _labels_saved_fact(summary: Summary) -> dict[str, str]:
    """Return the labels saved where the baseline needs the largest multiple, among the differences that are real."""
    gains = _gains(summary)
    rows = [row for row in summary["labels_saved"] if _key(row) in gains and row["bound"] != "below"]
    if not rows:
        return {"title": "Labels saved", "value": "none shown", "note": "no pretrained arm beat the baseline"}
    most = max(budgets(summary).values())
    row = max(rows, key=lambda row: (row["needed"] or most) / row["images"])
    note = (
        f"{_at(row['labels'], summary)}, {row['arm']} + {row['transfer']} reaches what {row['baseline']} + "
        f"{row['baseline_transfer']} needs {row['text']} {summary['unit']} for "
        f"({_confidence(summary)} {row['interval']})"
    )
    return {"title": "Labels saved", "value": f"{row['saved_text']} {summary['unit']}", "note": note}


def _gain_fact(summary: Summary) -> dict[str, str]:
    gains = _gains(summary).values()
    if not gains:
        return {"title": "Largest gain", "value": "none shown", "note": "no budget with a corrected p below 0.05"}
    row = max(gains, key=lambda row: float(row["difference"]))
    interval = f"{_confidence(summary)} {_hundredfold(row['low'], '+')} to {_hundredfold(row['high'], '+')}"
    return {
        "title": "Largest gain",
        "value": f"{_hundredfold(row['difference'], '+')} points",
        "note": f"{row['arm']} + {row['transfer']}, {_at(row['labels'], summary)} ({interval})",
    }


def _confidence(summary: Summary) -> str:
    return f"{100 * summary['confidence']:g} % interval"


def _at(labels: str, summary: Summary) -> str:
    if labels.isdigit():
        return f"at {labels} label{'' if labels == '1' else 's'} per class"
    return "with all labels" if labels == "all" else f"at {budget_name(labels, summary)} of the labels"


def _score_tables(summary: Summary) -> dict[str, dict[str, dict[str, Mapping[str, Any]]]]:
    """Return score rows by transfer, arm and budget."""
    tables: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in summary["scores"]:
        tables.setdefault(row["transfer"], {}).setdefault(row["arm"], {})[row["labels"]] = row
    return tables


def _hundredfold(share: float | None, sign: str) -> str:
    return NOTHING if share is None else f"{100 * share:{sign}.1f}".replace("-", "−")


def _probability(value: float | None) -> str:
    if value is None:
        return NOTHING
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _short(value: str) -> str:
    """Return a number from a CSV file with at most four significant digits, and any other text as it is."""
    try:
        number = float(value)
    except ValueError:
        return value
    return value if number.is_integer() else f"{number:.4g}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as one level with dotted names."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": str(value)}
    return flat


def _script_json(value: Any) -> Markup:
    """Return JSON that cannot end the script element it stands in."""
    text = json.dumps(value, allow_nan=False, default=list)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def _results(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(_text(folder / "results.csv").splitlines()))


def _json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"study: cannot read '{path}': {error} (allowed: a JSON object)") from None
    if not isinstance(found, dict):
        raise UserError(f"study: '{path}' holds no JSON object (allowed: a JSON object)")
    return found
