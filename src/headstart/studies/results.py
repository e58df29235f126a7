"""What the cells of a study left behind, as rows: one per arm, transfer, label budget, seed and point of the grid."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart import runs
from headstart.studies.plan import Cell

KEYS = ("arm", "transfer", "labels", "seed")


def collect(cells: Sequence[Cell], folder: Path, looked: str) -> list[dict[str, Any]]:
    """Return a row for every finished evaluation; ``chosen`` marks the point of the grid that is best on validation.

    Args:
        cells: of the study.
        folder: of their runs.
        looked: the score that is looked at on validation images.
    """
    rows = [row for cell in cells if cell.kind != "pretrain" for row in _rows(cell, folder)]
    chosen = choose(rows, looked)
    return [{**row, "chosen": row in chosen} for row in rows]


def choose(rows: Iterable[Mapping[str, Any]], looked: str) -> list[Mapping[str, Any]]:
    """Return for each arm, transfer, budget and seed the row with the best validation score; of equals the first."""
    best: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for row in rows:
        key = tuple(row[name] for name in KEYS)
        if key not in best or row[f"val_{looked}"] > best[key][f"val_{looked}"]:
            best[key] = row
    return list(best.values())


def to_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return rows as CSV with every column that any of them has."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=names, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _rows(cell: Cell, folder: Path) -> list[dict[str, Any]]:
    result = runs.read_result(folder / cell.id)
    if result is None:
        return []
    head = {"arm": cell.arm, "transfer": cell.kind}
    tail = {**cell.choice, "cell": cell.id, "pretraining": cell.needs or ""}
    if cell.kind == "probe":
        return [{**head, **scores, **tail} for scores in _pooled(result["scores"]["rows"])]
    first = {"labels": cell.settings["labels"], "images": result["images"], "seed": cell.seed}
    took = {"best_epoch": result["best_epoch"], "seconds": result["seconds"]}
    return [{**head, **first, **result["scores"], **took, **tail}]


def _pooled(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a probe's scores of the pooled features: arms are compared by the same features of each."""
    kept = [row for row in rows if row.get("stage", "pooled") == "pooled"]
    return [{name: value for name, value in row.items() if name != "stage"} for row in kept]
