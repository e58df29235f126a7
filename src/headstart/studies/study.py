"""The verb ``study``: every arm, transfer, label budget and seed, and the verdict."""

import datetime
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headstart import runs
from headstart.config import SCORES, Study
from headstart.errors import UserError
from headstart.progress import say
from headstart.reports.page import report
from headstart.reports.table import text_table
from headstart.settings import signature
from headstart.studies.execute import execute, in_worker, prepare_study
from headstart.studies.plan import Cell, Prepared, plan
from headstart.studies.results import collect, to_csv
from headstart.studies.statistics import summarise
from headstart.verbs import parameters
from headstart.verbs.result import Result

SUMMARY, RESULTS, CELLS = "summary.json", "results.csv", "cells"


def study(
    file: str | Path | None = None,
    *,
    out: str | Path,
    workers: int | None = None,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> Result:
    """Run a study, or go on with it where it stopped, and write its report.

    Its cells run in processes of their own: a script calls it under ``if __name__ == "__main__":``.

    Args:
        file: the YAML file of the study; settings given beside it win.
        out: the folder of the study. Run again with the same settings, it repeats nothing that is finished.
        workers: cells that run at the same time (none: one per GPU, else one per core for images of at most 64 px).
        overwrite: replace the study that is in the folder.
        quiet: show no progress.
        **given: the settings of `headstart.config.Study`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    settings = Study.read(Path(file), **given) if file is not None else Study.create(**given)
    return run_study(settings, Path(out), workers=workers, overwrite=overwrite, quiet=quiet)


study.__signature__ = signature(Study, before=parameters.STUDY)  # type: ignore[attr-defined]


def run_study(settings: Study, folder: Path, *, workers: int | None, overwrite: bool, quiet: bool) -> Result:
    """Run a study with checked settings. This process never loads torch: its workers do, and share that memory."""
    if workers is not None and workers < 1:
        raise UserError(f"workers: {workers} (allowed: 1 or more)")
    runs.check_out(folder, "study", resume=not overwrite, overwrite=overwrite)
    prepared = in_worker(prepare_study, settings)
    settings = prepared.study
    cells = plan(settings, prepared.data["fingerprint"], prepared.labelled)
    run = _open_folder(prepared, folder, overwrite=overwrite)
    if not quiet:
        left = sum(runs.read_result(folder / CELLS / cell.id) is None for cell in cells)
        data = prepared.data
        say(f"{settings.name}: {data['images']} images, {len(data['classes'])} classes, {data['layout']}")
        for path, reason in data["bad_images"].items():
            say(f"left out {path}: {reason}")
        say(f"{len(cells)} cells, {len(cells) - left} of them finished, in {folder}")
    begin = time.monotonic()
    try:
        count = workers if workers is not None else prepared.workers
        failed = execute(cells, folder / CELLS, workers=count, quiet=quiet)
        return conclude(prepared, cells, failed, folder, time.monotonic() - begin)
    finally:
        run.release()


def conclude(
    prepared: Prepared, cells: Sequence[Cell], failed: Mapping[str, str], folder: Path, seconds: float
) -> Result:
    """Write results.csv, summary.json and report.html from the finished cells.

    Raises:
        UserError: no evaluation of the baseline or of another arm was finished.
    """
    settings, data = prepared.study, prepared.data
    rows = collect(cells, folder / CELLS, SCORES[settings.task][0])
    runs.write_text(folder / RESULTS, to_csv(rows))
    chosen = [{**row, "score": row[settings.score]} for row in rows if row["chosen"]]
    if not any(row["arm"] == settings.baseline for row in chosen) or len({row["arm"] for row in chosen}) < 2:
        first = next(iter(failed.values()), "no cell was run")
        raise UserError(f"study: too few cells were finished for a comparison; the first error: {first}")
    environment = json.loads((folder / runs.ENVIRONMENT).read_text())
    summary = {
        **summarise(chosen, baseline=settings.baseline, score=settings.score, classes=_classes(settings, data)),
        "name": settings.name,
        "data": {
            **{key: data[key] for key in ("name", "images", "classes", "fingerprint")},
            **{part: facts["images"] for part, facts in data["parts"].items()},
        },
        "task": settings.task,
        "model": settings.model,
        "date": datetime.date.today().isoformat(),
        "cells": {
            "planned": len(cells),
            "finished": sum(runs.read_result(folder / CELLS / cell.id) is not None for cell in cells),
            "failed": [_failed(cell, failed[cell.id]) for cell in cells if cell.id in failed],
        },
        "unfinished": bool(failed),
        "hardware": f"{environment['cores']} cores of {environment['processor']}, {environment['device']}",
        "seconds": round(seconds, 1),
    }
    runs.write_text(folder / SUMMARY, json.dumps(summary, indent=1))
    page = report(folder)
    lost = f"{len(failed)} of {len(cells)} cells failed; run the study again to try them again\n" if failed else ""
    text = f"{text_table(summary)}\n\n{lost}report: {page}"
    return Result(folder, settings.model_dump(mode="json"), summary, text)


def _classes(settings: Study, data: Mapping[str, Any]) -> int | None:
    """Return the number of classes that a budget counts labels of; masks and boxes are counted by images."""
    return len(data["classes"]) if settings.task == "classify" else None


def _failed(cell: Cell, error: str) -> dict[str, Any]:
    labels = cell.settings.get("labels", "")
    shown = labels if isinstance(labels, str) else ", ".join(labels)
    return {"id": cell.id, "arm": cell.arm, "transfer": cell.kind, "labels": shown, "seed": cell.seed, "error": error}


def _open_folder(prepared: Prepared, folder: Path, *, overwrite: bool) -> runs.Run:
    """Make or reopen the folder of a study.

    Raises:
        UserError: it holds another study, or something else.
    """
    settings, stored = prepared.study, folder / runs.STUDY
    if stored.exists() and not overwrite and Study.read(stored) != settings:
        before, now = Study.read(stored).model_dump(), settings.model_dump()
        name = next(name for name in now if now[name] != before[name])
        raise UserError(
            f"{name}: differs from the study in {folder}, {before[name]!r} there (allowed: another out, or --overwrite)"
        )
    known = {"verb": "study", "device": prepared.device, "data": prepared.data}
    resume = stored.exists() and not overwrite
    return runs.create(folder, settings, known, resume=resume, overwrite=overwrite, name=runs.STUDY)
