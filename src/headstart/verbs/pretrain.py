"""The verb ``pretrain``: from images without labels to a backbone."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from headstart import methods, runs
from headstart.backbones import build, has_tokens
from headstart.backbones.given import DEFAULT_MODEL
from headstart.config import Pretrain
from headstart.contracts import Method, Planned
from headstart.data import facts
from headstart.data.index import DataSet
from headstart.data.splits import Splits, label_subset, parse_budget, split
from headstart.errors import UserError
from headstart.progress import say
from headstart.randomness import mix
from headstart.settings import signature
from headstart.training.machine import (
    build_fabric,
    device_name,
    is_first_process,
    resolve_devices,
    resolve_precision,
)
from headstart.verbs import parameters, resolve, start
from headstart.verbs.pretraining import Pretraining
from headstart.verbs.result import Result

DEFAULT_TRANSFORMER = "timm/vit_tiny_patch16_224"


def pretrain(
    *,
    out: str | Path,
    config: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> Result:
    """Pretrain a backbone on images, and leave it in a run folder.

    Args:
        out: the run folder.
        config: a YAML file of settings; those given win.
        resume: go on with an interrupted run; a finished one is returned as it is.
        overwrite: replace the run that is in the folder.
        quiet: show no progress.
        **given: the settings of `headstart.config.Pretrain`.

    Raises:
        UserError: one line that names the setting and what is allowed.
    """
    folder = Path(out)
    settings = start.settings(Pretrain, given, check, config=config, out=folder, resume=resume)
    start.check_outside(folder, settings.data)
    if is_first_process():
        runs.check_out(folder, "pretrain", resume=resume, overwrite=overwrite)
    if resume and runs.read_result(folder) is not None:
        return result(folder)
    data = start.opened(settings)
    return run_pretrain(settings, data, folder, resume=resume, overwrite=overwrite, quiet=quiet)


pretrain.__signature__ = signature(Pretrain, before=parameters.RUN)  # type: ignore[attr-defined]


def check(settings: Pretrain) -> Pretrain:
    """Return the settings with all that can be known before anything is loaded checked and resolved."""
    method = methods.find(settings.method)
    resolve.view_names(settings.views, method, method.recipes.natural, settings.data)
    parse_budget(settings.labels)
    model = settings.model
    if model == "auto":
        model = DEFAULT_TRANSFORMER if "vit" in method.needs else DEFAULT_MODEL
    if "vit" in method.needs and not has_tokens(model, settings.model_args):
        raise UserError(
            f"model: {settings.method} needs a vision transformer, {model} is none"
            f" (allowed: timm/vit_..., such as {DEFAULT_TRANSFORMER}, or auto)"
        )
    if (settings.sampling == "anchored") != (method.sampling == "anchored") and settings.sampling != "auto":
        raise UserError(f"sampling: {settings.sampling} does not go with {settings.method} (allowed: auto)")
    if len(set(settings.include)) < len(settings.include):
        raise UserError(f"include: {settings.include[0]} is given twice (allowed: val, test, each once)")
    return settings.updated(
        model=model,
        method_args=methods.checked(settings.method, settings.method_args),
        precision=resolve_precision(settings.precision),
        devices=resolve_devices(settings.devices),
        data=start.absolute(settings.data),
    )


def pretraining_rows(splits: Splits, include: tuple[str, ...]) -> Tensor:
    """Return the rows to pretrain on: training and unlabelled images, and the splits that the user includes."""
    parts = [splits.train, splits.unlabelled, *(getattr(splits, name) for name in include)]
    return torch.cat(parts).sort().values


def learns_from_labels(settings: Pretrain) -> bool:
    """Say whether labels enter a pretraining: through its loss, or through the choice of images."""
    return "labels" in methods.find(settings.method).needs or settings.sampling == "balanced"


def visible_labels(settings: Pretrain, data: DataSet, splits: Splits) -> Tensor:
    """Return the labels that the method may see, int64 ``[data.count]``, -1 for those that are hidden.

    Only training images show theirs, and only as many as the label budget allows: what a method learns from the labels
    of val or test images would make every later score of them worthless.

    Raises:
        UserError: labels of two classes or more are needed and there are none, or there is a budget and nothing that
            learns from labels.
    """
    hidden = torch.full_like(data.labels, -1)
    if not learns_from_labels(settings):
        if settings.labels != "all":
            raise UserError(f"labels: {settings.method} learns from no labels (allowed: all, or a method that does)")
        return hidden
    in_loss = "labels" in methods.find(settings.method).needs
    reason = f"method: {settings.method} learns from labels" if in_loss else "sampling: balanced needs labels"
    try:
        data.require_labels("data")
    except UserError as error:
        raise UserError(f"{error} ({reason})") from None
    shown = label_subset(data.labels, splits.train, settings.labels, settings.seed, classes=data.classes)
    seen = sorted(set(data.labels[shown].tolist()))
    if len(seen) < 2:
        only = data.classes[seen[0]]
        raise UserError(
            f"data: all labelled training images are of class '{only}' (allowed: two classes or more; {reason})"
        )
    hidden[shown] = data.labels[shown]
    return hidden


def plan(settings: Pretrain, data: DataSet, rows: Tensor, labels: Tensor) -> Pretrain:
    """Return checked settings in which nothing is `auto` any more that decides the result."""
    size = resolve.image_size(settings.image_size, facts.native_size(data))
    settings = start.recorded(settings, data)
    return resolve.pretrain(settings, Planned(len(rows), size, 0, labels[rows], data.classes))


def resolve_settings(settings: Pretrain, data: DataSet) -> Pretrain:
    """Return checked settings as `run_pretrain` will use them.

    Raises:
        UserError: they cannot work with the data.
    """
    splits = split(data, needs_labels=False)
    return plan(settings, data, pretraining_rows(splits, settings.include), visible_labels(settings, data, splits))


def run_pretrain(
    settings: Pretrain, data: DataSet, folder: Path, *, resume: bool, overwrite: bool, quiet: bool, lean: bool = False
) -> Result:
    """Pretrain on an opened data set with checked settings; a lean run leaves neither plots nor checkpoints behind."""
    splits = split(data, needs_labels=False)
    rows, labels = pretraining_rows(splits, settings.include), visible_labels(settings, data, splits)
    settings = plan(settings, data, rows, labels)
    method = build_method(settings)
    fabric = build_fabric(settings.precision, int(settings.devices))
    training = Pretraining(settings, data, rows, labels, method, fabric)
    run = None
    if fabric.is_global_zero:
        known = {"verb": "pretrain", "device": device_name(), "data": facts.describe(data, {"pretrain": rows})}
        run = runs.create(folder, settings, known, resume=resume, overwrite=overwrite)
        if not quiet:
            _announce(training, folder)
        if not lean:
            training.draw_views(run)
    try:
        took = training.train(run, start.last_checkpoint(folder, resume), quiet=quiet, lean=lean)
        if run is not None:
            training.hand_over(run, took, lean=lean)
    finally:
        if run is not None:
            run.release()
    fabric.barrier()
    return result(folder)


def build_method(settings: Pretrain) -> Method:
    """Return the method of resolved settings around its backbone, with the first weights that the seed gives."""
    torch.manual_seed(mix(settings.seed))
    backbone = build(
        settings.model,
        stem=settings.stem,
        image_size=int(settings.image_size),
        model_args=settings.model_args,
        channels=int(settings.channels),
    )
    return methods.build(settings.method, backbone, settings.method_args)


def _announce(training: Pretraining, folder: Path) -> None:
    settings, data = training.settings, training.data
    say(f"{data.name}: {len(training.rows)} of {data.count} images, {data.layout}")
    for bad in data.bad:
        say(f"left out {bad.path}: {bad.reason}")
    if line := start.pixels_line(data):
        say(line)
    shown = int((training.labels[training.rows] >= 0).sum())
    if shown:
        say(f"{settings.method} learns from the labels of {shown} images, {settings.sampling} batches")
    say(
        f"{settings.method} on {settings.model} ({settings.stem} stem) at {settings.image_size} px, "
        f"views {settings.views}, {settings.epochs} epochs of batch {settings.batch_size}, "
        f"{settings.optimizer} at {settings.learning_rate} "
        f"({settings.learning_rate_scaling} in batch / 256), {settings.precision}; "
        f"all settings in {folder / runs.CONFIG}"
    )


def result(folder: Path) -> Result:
    """Return what a finished run in a folder left behind."""
    found = runs.read_result(folder)
    assert found is not None
    rate = f"{found['images_per_second']:,.0f} images/s, " if found["images_per_second"] else ""
    text = f"loss {found['scores']['loss']:.4f} at the last step, {rate}backbone in {folder / runs.BACKBONE}"
    return Result(folder, found["config"], found["scores"], text)
