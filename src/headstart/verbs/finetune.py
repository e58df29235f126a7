"""The verb ``finetune``: from a backbone and some labels to a task, and its scores on test images."""

from pathlib import Path
from typing import Any

from headstart import runs
from headstart.backbones.given import initialise, run_settings
from headstart.config import SCORE_NAMES, SCORES, Finetune
from headstart.data import facts
from headstart.data.index import DataSet
from headstart.data.splits import label_subset, parse_budget, split, strata
from headstart.settings import signature
from headstart.training.machine import (
    build_fabric,
    device_name,
    is_first_process,
    resolve_devices,
    resolve_precision,
)
from headstart.verbs import parameters, resolve, start
from headstart.verbs.finetuning import dispatch as tasks
from headstart.verbs.result import Result
from headstart.views import preset

SHOWN = {
    "classify": ("accuracy", "balanced_accuracy", "macro_f1"),
    "segment": ("iou", "dice", "pixel_accuracy"),
    "detect": ("map50_95", "map50", "ap_small"),
}


def finetune(
    *,
    out: str | Path,
    config: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> Result:
    """Train a classifier, a segmenter or a detector on a label budget, and score it once on the test images.

    The weights that are kept are the best of ``evaluations`` looks at the validation images.

    Args:
        out: the run folder.
        config: a YAML file of settings; those given win.
        resume: go on with an interrupted run; a finished one is returned as it is.
        overwrite: replace the run that is in the folder.
        quiet: show no progress.
        **given: the settings of `headstart.config.Finetune`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    folder = Path(out)
    settings = start.settings(Finetune, given, check, config=config, out=folder, resume=resume)
    start.check_outside(folder, settings.data)
    if is_first_process():
        runs.check_out(folder, "finetune", resume=resume, overwrite=overwrite)
    if resume and runs.read_result(folder) is not None:
        return result(folder)
    data = start.opened(settings, settings.init)
    return run_finetune(settings, data, folder, resume=resume, overwrite=overwrite, quiet=quiet)


finetune.__signature__ = signature(Finetune, before=parameters.RUN)  # type: ignore[attr-defined]


def check(settings: Finetune) -> Finetune:
    """Return the settings with all that can be known before anything is loaded checked and resolved."""
    parse_budget(settings.labels)
    if settings.views != "auto":
        preset(settings.views)
    run_settings(settings.init)
    return settings.updated(
        precision=resolve_precision(settings.precision),
        devices=resolve_devices(settings.devices),
        data=start.absolute(settings.data),
        init=start.absolute(settings.init),
    )


def run_finetune(
    settings: Finetune,
    data: DataSet,
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    quiet: bool,
    lean: bool = False,
) -> Result:
    """Train on an opened data set with checked settings; a lean run leaves neither plots nor checkpoints behind."""
    tasks.require(settings.task, data)
    splits = split(data)
    classes = data.classes if settings.task == "classify" else ()
    rows = label_subset(strata(data), splits.train, settings.labels, settings.seed, classes=classes)
    size = tasks.image_size(settings.task, settings.init, settings.image_size, data)
    begun = initialise(
        settings.init,
        model=settings.model,
        model_args=settings.model_args,
        stem=tasks.stem(settings.task, settings.stem),
        image_size=size,
        channels=data.pixels.channels,
        seed=settings.seed,
    )
    settings = start.recorded(settings, data).updated(model=begun.model, model_args=begun.model_args, stem=begun.stem)
    settings = resolve.finetune(settings, len(rows), size)
    fabric = build_fabric(settings.precision, int(settings.devices), idle=settings.task != "classify")
    learned = tasks.Learned(settings, data, splits, rows, begun, fabric)
    run = None
    if fabric.is_global_zero:
        parts = {"labelled": rows, **{name: getattr(splits, name) for name in start.PARTS}}
        known = {"verb": "finetune", "device": device_name(), "data": facts.describe(data, parts)}
        run = runs.create(folder, settings, known, resume=resume, overwrite=overwrite)
    try:
        tasks.train(learned, run, resume=resume, quiet=quiet, lean=lean)
    finally:
        if run is not None:
            run.release()
    fabric.barrier()
    return result(folder)


def result(folder: Path) -> Result:
    """Return what a finished run in a folder left behind."""
    found = runs.read_result(folder)
    assert found is not None
    scores, task = found["scores"], found["config"]["task"]
    shown = ", ".join(
        f"{SCORE_NAMES[name]} {100 * scores[name]:.1f} %" for name in SHOWN[task] if scores[name] is not None
    )
    looked = f"val_{SCORES[task][0]}"
    text = (
        f"test {shown} with {found['images']} labelled images (weights of epoch {found['best_epoch']:g}, "
        f"val {SCORE_NAMES[SCORES[task][0]]} {100 * scores[looked]:.1f} %); run in {folder}"
    )
    return Result(folder, found["config"], scores, text)
