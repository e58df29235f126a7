"""One self-contained HTML page of a study: no network, no torch, only the files in the study's folder."""

import csv
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from headstart.errors import UserError
from headstart.reports.confusion import SHARES, SideBySide, read_answers, side_by_side
from headstart.reports.facts import key_facts, questions, saved_tables
from headstart.reports.figures import curve_figures, panels, save_curves_png, styles
from headstart.reports.table import (
    NOTHING,
    TRANSFERS,
    Summary,
    budget_name,
    budget_unit,
    budgets,
    score_name,
    score_text,
    signed,
    unbroken,
)

VERDICTS = {"better": "▲", "worse": "▼", "no difference": "○", "unknown": "?"}
MARKS = {"circle": "●", "square": "■", "diamond": "◆", "triangle-up": "▲", "cross": "✚", "star": "★"}


def report(folder: Path) -> Path:
    """Write ``report.html`` from ``summary.json`` and its neighbours, atomically, and return its path.

    The curves are beside it as ``curves.png``, for a slide or a paper.

    Raises:
        UserError: the folder is not that of a study, or one of its files cannot be read.
    """
    summary, results = _summary(folder), _results(folder)
    pairs = side_by_side(summary, read_answers(folder, results))
    page = render(summary, results, pairs, _text(folder / "study.yaml"), _json(folder / "environment.json") or {})
    save_curves_png(summary, folder / "curves.png")
    temporary = folder / ".report.html.part"
    temporary.write_text(page, encoding="utf-8")
    return temporary.replace(folder / "report.html")


def _summary(folder: Path) -> Summary:
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"folder: '{folder}' {found} (allowed: a folder that `headstart study` wrote)")
    summary = _json(folder / "summary.json")
    if summary is None:
        raise UserError(f"folder: no summary.json in '{folder}' (allowed: a folder that `headstart study` wrote)")
    known = {"scores", "comparisons", "labels_saved", "verdict", "cells"} <= summary.keys()
    if not known or "best" not in summary["verdict"]:
        raise UserError(
            f"folder: '{folder / 'summary.json'}' is not the summary of a study, or an older version wrote it "
            "(allowed: a folder that `headstart study` wrote; run it there again to renew the summary)"
        )
    if not summary["scores"]:
        raise UserError(f"folder: no evaluation in '{folder}' is finished yet (allowed: a study with one or more)")
    return summary


def render(
    summary: Summary,
    results: Sequence[Mapping[str, str]],
    pairs: Sequence[SideBySide],
    study: str,
    environment: Mapping[str, Any],
) -> str:
    """Return the page as HTML; every string from the study is escaped."""
    loader = FileSystemLoader(Path(__file__).parent)
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    pages.filters |= {
        "points": signed,
        "unbroken": unbroken,
        "probability": _probability,
        "duration": _duration,
        "short": _short,
        "score": score_text,
    }
    figures = {transfer: figure.to_plotly_json() for transfer, figure in curve_figures(summary).items()}
    return pages.get_template("page.html.jinja").render(
        summary=summary,
        score_name=score_name(summary),
        interval=f"{100 * summary['confidence']:g} % interval",
        budgets=budgets(summary),
        budget_name=partial(budget_name, summary=summary),
        budget_unit=budget_unit(summary),
        transfers=TRANSFERS,
        nothing=NOTHING,
        facts=key_facts(summary),
        score_tables=_score_tables(summary),
        saved_tables=saved_tables(summary),
        questions=questions(summary),
        panels=panels(summary),
        styles=styles(summary),
        marks=MARKS,
        verdicts=VERDICTS,
        pairs=pairs,
        shares=SHARES,
        tested="pixels" if summary["task"] == "segment" else "images",
        results=results,
        study=study,
        environment=yaml.safe_dump(dict(environment), sort_keys=False, allow_unicode=True) if environment else "",
        figures=_script_json(figures),
        plotly=Markup(get_plotlyjs()),
    )


def _score_tables(summary: Summary) -> dict[str, dict[str, dict[str, Mapping[str, Any]]]]:
    """Return score rows by transfer, arm and budget."""
    tables: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {}
    for row in summary["scores"]:
        tables.setdefault(row["transfer"], {}).setdefault(row["arm"], {})[row["labels"]] = row
    return tables


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
        raise UserError(f"folder: cannot read '{path}': {error} (allowed: a JSON object)") from None
    if not isinstance(found, dict):
        raise UserError(f"folder: '{path}' holds no JSON object (allowed: a JSON object)")
    return found
