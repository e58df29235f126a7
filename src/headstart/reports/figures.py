"""Label-efficiency curves: score over labels, one panel per transfer, with the interval over seeds as a band."""

from collections.abc import Mapping
from html import escape
from math import inf, log
from pathlib import Path
from typing import Any, NamedTuple

import plotly.graph_objects as go

from headstart.reports.table import TRANSFERS, Summary, budget_name, budget_unit, budgets, score_name

# Okabe and Ito's colours for every kind of colour vision, shifted a little so that they carry on white and on black.
BASELINE_COLOUR = "#7d8590"
COLOURS = ("#2a7fc1", "#d9601a", "#0b9d75", "#c5699b", "#d99a00", "#4fa9dc")
DASHES = {"probe": "dot", "head": "dash", "finetune": "solid"}
MARKERS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "cross": "P", "star": "*"}
HEIGHT = 320  # pixels
LINES = {"probe": ":", "head": "--", "finetune": "-"}  # DASHES in matplotlib's words


class Style(NamedTuple):
    """How an arm is drawn, in every figure: a colour, and a marker for those who do not see it."""

    colour: str
    marker: str


def styles(summary: Summary) -> dict[str, Style]:
    """Return the style of each arm; the baseline is grey, the others differ in colour and marker."""
    markers = list(MARKERS)
    arms = dict.fromkeys(row["arm"] for row in summary["scores"] if row["arm"] != summary["baseline"])
    drawn = {
        arm: Style(COLOURS[i % len(COLOURS)], markers[(i + 1 + i // len(COLOURS)) % len(markers)])
        for i, arm in enumerate(arms)
    }
    return {summary["baseline"]: Style(BASELINE_COLOUR, markers[0]), **drawn}


def panels(summary: Summary) -> dict[str, list[list[Mapping[str, Any]]]]:
    """Return, by transfer, the curves of its panel: one list of score rows per arm, from few labels to many.

    The supervised baseline (all weights, from scratch) is drawn in the panels of frozen backbones too: it is what they
    have to beat.
    """
    curves: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in sorted(summary["scores"], key=lambda row: row["images"]):
        curves.setdefault((row["transfer"], row["arm"]), []).append(row)
    supervised = ("finetune", summary["baseline"])
    order = list(styles(summary))
    return {
        transfer: [
            curves[key]
            for key in [*((transfer, arm) for arm in order), *([supervised] if transfer != "finetune" else [])]
            if key in curves
        ]
        for transfer in TRANSFERS
        if any(row["transfer"] == transfer for row in summary["scores"])
    }


def curve_figures(summary: Summary) -> dict[str, go.Figure]:
    """Return one plotly figure per transfer; their y axes have one range, so that panels can be compared."""
    ends = [row[end] for row in summary["scores"] for end in ("low", "high", "mean") if row[end] is not None]
    top, bottom = min(100.0, 100 * max(ends) + 2), max(0.0, 100 * min(ends) - 2)
    figures = {}
    for transfer, curves in panels(summary).items():
        figure = go.Figure()
        for rows in curves:
            _add_curve(figure, rows, summary)
        known = budgets(summary)
        figure.update_layout(
            template="none",
            paper_bgcolor="rgba(0,0,0,0)",
            plot_bgcolor="rgba(0,0,0,0)",
            font={"family": "system-ui, sans-serif", "size": 13},
            margin={"l": 52, "r": 12, "t": 8, "b": 56},
            height=HEIGHT,
            showlegend=False,
            hovermode="closest",
            xaxis={
                "type": "log",
                "tickvals": list(known.values()),
                "ticktext": _tick_texts(summary),
                "title": {"text": f"{budget_unit(summary)} (log scale)", "standoff": 16},
                "automargin": True,
                "zeroline": False,
            },
            yaxis={"range": [bottom, top], "title": {"text": f"{escape(score_name(summary))} (%)"}, "zeroline": False},
        )
        figures[transfer] = figure
    return figures


def _tick_texts(summary: Summary) -> list[str]:
    """Return the names of the budgets, but nothing where one would be printed over its neighbour."""
    known = budgets(summary)
    room = log(max(known.values()) / min(known.values())) / 16
    texts, last = [], -inf
    for labels, images in known.items():
        fits = log(images) - last >= room
        texts.append(escape(budget_name(labels, summary)) if fits else "")
        last = log(images) if fits else last
    return texts


def _add_curve(figure: go.Figure, rows: list[Mapping[str, Any]], summary: Summary) -> None:
    """Add one line with markers and, beneath it, the band of its intervals."""
    style, transfer = styles(summary)[rows[0]["arm"]], rows[0]["transfer"]
    banded = [row for row in rows if row["low"] is not None]
    if banded:
        edge = [row["images"] for row in banded]
        figure.add_scatter(
            x=edge + edge[::-1],
            y=[100 * row["high"] for row in banded] + [100 * row["low"] for row in reversed(banded)],
            fill="toself",
            fillcolor=_transparent(style.colour),
            line={"width": 0},
            mode="lines",
            hoverinfo="skip",
        )
    figure.add_scatter(
        x=[row["images"] for row in rows],
        y=[100 * row["mean"] for row in rows],
        mode="lines+markers",
        name=escape(f"{rows[0]['arm']} + {transfer}"),
        line={"color": style.colour, "dash": DASHES[transfer], "width": 2.5},
        marker={"symbol": style.marker, "size": 9},
        customdata=[[escape(budget_name(row["labels"], summary)), _interval(row)] for row in rows],
        hovertemplate="%{fullData.name}<br>%{customdata[0]}: %{y:.1f} %%{customdata[1]}<extra></extra>",
    )


def _interval(row: Mapping[str, Any]) -> str:
    return "" if row["low"] is None else f" ({100 * row['low']:.1f} to {100 * row['high']:.1f})"


def _transparent(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def save_curves_png(summary: Summary, path: Path) -> None:
    """Save the same panels as one picture, for a slide or a paper."""
    from matplotlib.figure import Figure  # only here: the page does not wait for it

    drawn, known = panels(summary), budgets(summary)
    figure = Figure(figsize=(4.6 * len(drawn) + 0.6, 4.4), layout="constrained")
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    entries = {}
    for axis, (transfer, curves) in zip(axes, drawn.items(), strict=True):
        for rows in curves:
            style, kind = styles(summary)[rows[0]["arm"]], rows[0]["transfer"]
            banded = [row for row in rows if row["low"] is not None]
            low, high = ([100 * row[end] for row in banded] for end in ("low", "high"))
            axis.fill_between([row["images"] for row in banded], low, high, color=style.colour, alpha=0.16, linewidth=0)
            (line,) = axis.plot(
                [row["images"] for row in rows],
                [100 * row["mean"] for row in rows],
                color=style.colour,
                linestyle=LINES[kind],
                marker=MARKERS[style.marker],
            )
            entries[f"{rows[0]['arm']} + {kind}"] = line
        axis.set_xscale("log")
        axis.set_xticks(list(known.values()), _tick_texts(summary))
        axis.tick_params(axis="x", labelrotation=0 if summary["unit"] == "labels per class" else 30)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_title(TRANSFERS[transfer], fontsize="medium")
        axis.set_xlabel(f"{budget_unit(summary)} (log scale)")
    axes[0].set_ylabel(f"{score_name(summary)} (%)")
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=200)
