"""The verb ``doctor``: what is in the data, what is broken, how fast this machine is with them, and what to do."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from headstart import runs
from headstart.config import Doctor, Pretrain
from headstart.data.duplicates import MOST_NEAR
from headstart.data.examination import Examined, equal_files, examine, rows_to_decode
from headstart.data.index import SPLITS, DataSet
from headstart.data.splits import split
from headstart.errors import UserError
from headstart.progress import Track, say
from headstart.reports.doctor import report as write_report
from headstart.runs import Run
from headstart.settings import signature
from headstart.training.machine import build_fabric
from headstart.verbs import parameters, pretrain, start
from headstart.verbs.doctoring import images, labels
from headstart.verbs.doctoring.advice import advise, choose, known
from headstart.verbs.doctoring.diagnosis import Diagnosis, gigabytes
from headstart.verbs.doctoring.finding import SEVERITIES, Finding
from headstart.verbs.doctoring.pictures import contact_sheet
from headstart.verbs.doctoring.speed import Speed, measure, sample
from headstart.verbs.doctoring.twins import divided_groups, twins
from headstart.verbs.prepared import check_apart
from headstart.verbs.pretraining import Pretraining

_DAYS, _FULL = 3, 0.9  # of a pretraining, and the share of the memory, above which one should look


def doctor(
    data: str | Path,
    *,
    out: str | Path | None = None,
    config: str | Path | None = None,
    report: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> Diagnosis:
    """Examine data: what is broken or odd, how long a pretraining takes here, and how to begin it.

    Args:
        data: DATA.
        out: the folder to keep doctor.json and the pictures in.
        config: a YAML file of settings; those given win.
        report: write report.html into that folder, too.
        overwrite: replace the examination that is in the folder.
        quiet: show no progress.
        **given: the settings of `headstart.config.Doctor`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    settings = start.settings(Doctor, {**given, "data": str(data)}, check, config=config, out=None, resume=False)
    folder = Path(out) if out is not None else None
    if report and folder is None:
        raise UserError("report: needs a folder (allowed: with --out DIR)")
    if folder is not None:
        start.check_outside(folder, settings.data)
        runs.check_out(folder, "doctor", resume=False, overwrite=overwrite)
    opened = start.opened(settings.updated(max_bad=1.0))  # what is broken is found, not refused
    if folder is not None:
        check_apart(folder, opened)
    facts = {"verb": "doctor", "data": opened.fingerprint}
    run = runs.create(folder, settings, facts, resume=False, overwrite=overwrite) if folder else None
    try:
        return _diagnose(settings, opened, run, report=report, quiet=quiet)
    finally:
        if run is not None:
            run.release()


doctor.__signature__ = signature(Doctor, before=parameters.DOCTOR)  # type: ignore[attr-defined]


def check(settings: Doctor) -> Doctor:
    """Return the settings with all that can be known before anything is loaded checked.

    Raises:
        UserError: too many bits, or no such method or model.
    """
    if settings.near > MOST_NEAR:
        raise UserError(f"near: {settings.near} bits (allowed: 0 to {MOST_NEAR}; unrelated images differ in about 32)")
    if settings.method != "auto":
        pretrain.check(_pretraining_settings(settings, settings.method))
    return settings.updated(data=start.absolute(settings.data))


def _diagnose(settings: Doctor, data: DataSet, run: Run | None, *, report: bool, quiet: bool) -> Diagnosis:
    rows = rows_to_decode(data, settings.seed)
    with Track("doctor", len(rows), unit="images", quiet=quiet) as track:
        examined = examine(data, rows, done=track.update)
    findings = find(settings, data, examined)
    facts = {**_describe(data), "decoded": len(rows)}
    advice, speed = None, None
    try:
        training = _pretraining(settings, data)
    except UserError as error:
        remedy = "see what is allowed in the line above"
        findings.append(Finding("pretraining", "must fix", data.count, f"not possible: {error}", remedy))
    else:
        advice = advise(settings, training.settings, known(data))
        part = sample(training)
        if run is not None:
            part.draw_views(run)
        if "speed" not in settings.skip:
            say("doctor: measuring the speed") if not quiet else None
            speed = measure(training, part)
            findings += _cost(speed)
    order = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    config = settings.model_dump(mode="json")
    diagnosis = Diagnosis(facts, tuple(order), speed, advice, config, run.folder if run else None)
    if run is not None:
        contact_sheet(run.folder / "plots" / "images.png", data, settings.seed)
        runs.write_text(run.folder / runs.DOCTOR, diagnosis.to_json())
        if report:
            write_report(run.folder)
    return diagnosis


def find(settings: Doctor, data: DataSet, examined: Examined) -> list[Finding]:
    """Return all that is found in data of which images were decoded."""
    grey = images.colours(data, examined)
    findings = [
        images.files(data, examined.failures, settings.max_bad),
        *images.sizes(data),
        images.modes(data),
        *([grey] if grey else []),
        images.constants(data, examined),
        *labels.classes(data),
        *labels.boxes(data),
        *labels.masks(data, examined.rows),
        *divided_groups(data),
    ]
    if "duplicates" not in settings.skip:
        every = len(examined.rows) + len(examined.failures) == data.count
        same = np.zeros((0, 2), np.int64) if every else equal_files(data)
        findings += twins(data, examined, same, settings.near)
    return findings


def _pretraining(settings: Doctor, data: DataSet) -> Pretraining:
    """Return the pretraining that is asked for, or that the rules recommend.

    Raises:
        UserError: it cannot work with the data.
    """
    method = choose(known(data)).method if settings.method == "auto" else settings.method
    wanted = pretrain.check(_pretraining_settings(settings, method))
    splits = split(data, needs_labels=False)
    rows, shown = pretrain.pretraining_rows(splits, ()), pretrain.visible_labels(wanted, data, splits)
    resolved = pretrain.plan(wanted, data, rows, shown)
    fabric = build_fabric(resolved.precision, 1)
    return Pretraining(resolved, data, rows, shown, pretrain.build_method(resolved), fabric)


def _pretraining_settings(settings: Doctor, method: str) -> Pretrain:
    shared = ("data", "limit", "classes", "channels", "pixel_range", "max_bad", "seed")
    training = ("method_args", "model", "model_args", "image_size", "epochs", "batch_size")
    return Pretrain.create(method=method, devices=1, **{name: getattr(settings, name) for name in shared + training})


def _describe(data: DataSet) -> dict[str, Any]:
    counts = {name: int((data.splits == code).sum()) for code, name in enumerate(SPLITS)}
    return {
        "name": data.name,
        "layout": data.layout,
        "fingerprint": data.fingerprint,
        "images": data.count,
        "classes": list(data.classes),
        "splits": {name: count for name, count in counts.items() if count},
        "labelled": int((data.labels >= 0).sum()),
        "objects": data.objects.num_rows if data.objects is not None else None,
        "median_size": data.sizes.median(dim=0).values.tolist(),
        "channels": data.pixels.channels,
        "pixel_range": data.pixels.range,
        "ignored_files": data.ignored,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }


def _cost(speed: Speed) -> list[Finding]:
    """Find a pretraining that takes days, or more memory than there is."""
    findings = []
    if speed.hours > _DAYS * 24:
        text = f"the pretraining takes about {speed.hours / 24:,.0f} days on this machine"
        findings.append(
            Finding("time", "should look", 1, text, "a GPU, or fewer --epochs, a smaller --model or --image-size")
        )
    if speed.memory is not None and speed.memory > _FULL * speed.memory_there:
        text = f"about {gigabytes(speed.memory)} for a batch, of {gigabytes(speed.memory_there)} that are there"
        findings.append(
            Finding("memory", "should look", 1, text, "a smaller --batch-size, --accumulate, or a smaller --model")
        )
    return findings
