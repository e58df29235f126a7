"""The verb ``finetune``: from a backbone and some labels to a classifier, and its scores on test images."""

from pathlib import Path
from typing import Any

from headstart import runs
from headstart.backbones.given import initialise, run_settings
from headstart.config import Finetune
from headstart.data import facts
from headstart.data.index import DataSet
from headstart.data.splits import label_subset, parse_budget, split
from headstart.progress import say
from headstart.settings import signature
from headstart.tasks.classification import Classifier
from headstart.training.machine import (
    build_fabric,
    device_name,
    is_first_process,
    resolve_devices,
    resolve_precision,
)
from headstart.verbs import parameters, resolve, start
from headstart.verbs.result import Result
from headstart.verbs.supervised import Supervised
from headstart.views import preset


def finetune(
    *,
    out: str | Path,
    config: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> Result:
    """Train a classifier on a label budget, and score it once on the test images.

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
    data.require_labels("data")
    splits = split(data)
    rows = label_subset(data.labels, splits.train, settings.labels, settings.seed, classes=data.classes)
    size = start.image_size(settings.init, settings.image_size, data)
    begun = initialise(
        settings.init,
        model=settings.model,
        model_args=settings.model_args,
        stem=settings.stem,
        image_size=size,
        channels=data.pixels.channels,
        seed=settings.seed,
    )
    settings = start.recorded(settings, data).updated(model=begun.model, model_args=begun.model_args, stem=begun.stem)
    settings = resolve.finetune(settings, len(rows), size)
    classifier = Classifier(
        begun.backbone,
        classes=len(data.classes),
        freeze=settings.transfer == "head",
        label_smoothing=settings.label_smoothing,
    )
    fabric = build_fabric(settings.precision, int(settings.devices))
    training = Supervised(settings, data, splits, rows, classifier, fabric)
    run = None
    if fabric.is_global_zero:
        parts = {"labelled": rows, **{name: getattr(splits, name) for name in start.PARTS}}
        known = {"verb": "finetune", "device": device_name(), "data": facts.describe(data, parts)}
        run = runs.create(folder, settings, known, resume=resume, overwrite=overwrite)
        if not quiet:
            _announce(training, folder)
            if begun.matched is not None:
                say(begun.matched.describe())
    try:
        best, took = training.train(run, start.last_checkpoint(folder, resume), quiet=quiet, lean=lean)
        if run is not None:
            training.hand_over(run, best, took, lean=lean)
    finally:
        if run is not None:
            run.release()
    fabric.barrier()
    return result(folder)


def _announce(training: Supervised, folder: Path) -> None:
    settings, data = training.settings, training.data
    say(f"{data.name}: {len(training.rows)} labelled images of {len(data.classes)} classes, {data.layout}")
    say(
        f"{settings.transfer} of {settings.model} ({settings.stem} stem) from {settings.init} at "
        f"{settings.image_size} px, views {settings.views}, "
        f"{training.steps} steps of batch {settings.batch_size}, {settings.optimizer} at "
        f"{settings.learning_rate}, {settings.precision}; all settings in {folder / runs.CONFIG}"
    )


def result(folder: Path) -> Result:
    """Return what a finished run in a folder left behind."""
    found = runs.read_result(folder)
    assert found is not None
    scores = found["scores"]
    text = (
        f"test accuracy {100 * scores['accuracy']:.1f} %, balanced {100 * scores['balanced_accuracy']:.1f} %, "
        f"macro F1 {100 * scores['macro_f1']:.1f} % with {found['images']} labelled images "
        f"(weights of epoch {found['best_epoch']:g}, val accuracy {100 * scores['val_accuracy']:.1f} %); "
        f"run in {folder}"
    )
    return Result(folder, found["config"], scores, text)
