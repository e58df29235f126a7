"""The verb ``pretrain``: from images without labels to a backbone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from headstart import methods, runs
from headstart.backbones import build
from headstart.config import Pretrain
from headstart.contracts import Method
from headstart.data import facts
from headstart.data.index import DataSet
from headstart.data.loading import ViewLoader, images_at
from headstart.data.sources import open_data
from headstart.data.splits import limited, split
from headstart.progress import Track, say
from headstart.randomness import mix
from headstart.settings import signature
from headstart.training import checkpoint
from headstart.training.fit import fit
from headstart.training.machine import (
    build_fabric,
    device_name,
    is_first_process,
    prepared,
    resolve_devices,
    resolve_precision,
)
from headstart.training.optim import build_optimizer, learning_rate, scale_learning_rate
from headstart.training.record import Recorder
from headstart.verbs import figures, parameters, resolve, start
from headstart.verbs.result import Result


def pretrain(
    *,
    out: str | Path,
    config: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    quiet: bool = False,
    **given: Any,
) -> Result:
    """Pretrain a backbone on images without labels, and leave it in a run folder.

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
    data = limited(open_data(settings.data), settings.limit)
    return run_pretrain(settings, data, folder, resume=resume, overwrite=overwrite, quiet=quiet)


pretrain.__signature__ = signature(Pretrain, before=parameters.RUN)  # type: ignore[attr-defined]


def check(settings: Pretrain) -> Pretrain:
    """Return the settings with all that can be known before anything is loaded checked and resolved."""
    resolve.view_names(settings.views, methods.find(settings.method).views, settings.data, 1)
    return settings.updated(
        method_args=methods.resolve(settings.method, settings.method_args),
        precision=resolve_precision(settings.precision),
        devices=resolve_devices(settings.devices),
        data=start.absolute(settings.data),
    )


def pretraining_rows(data: DataSet, include: tuple[str, ...]) -> Tensor:
    """Return the rows to pretrain on: training and unlabelled images, and the splits that the user includes."""
    splits = split(data, needs_labels=False)
    parts = [splits.train, splits.unlabelled, *(getattr(splits, name) for name in include)]
    return torch.cat(parts).sort().values


def resolve_settings(settings: Pretrain, data: DataSet) -> Pretrain:
    """Return checked settings in which nothing is `auto` any more that decides the result."""
    size = resolve.image_size(settings.image_size, facts.native_size(data))
    count = len(pretraining_rows(data, settings.include))
    return resolve.pretrain(settings, methods.find(settings.method).views, count, size)


def run_pretrain(
    settings: Pretrain, data: DataSet, folder: Path, *, resume: bool, overwrite: bool, quiet: bool, lean: bool = False
) -> Result:
    """Pretrain on an opened data set with checked settings; a lean run leaves neither plots nor checkpoints behind."""
    settings = resolve_settings(settings, data)
    rows = pretraining_rows(data, settings.include)
    torch.manual_seed(mix(settings.seed))
    size = int(settings.image_size)
    backbone = build(settings.model, stem=settings.stem, image_size=size, model_args=settings.model_args)
    method = methods.build(settings.method, backbone, settings.method_args)
    fabric = build_fabric(settings.precision, int(settings.devices))
    run = None
    if fabric.is_global_zero:
        known = {"verb": "pretrain", "device": device_name(), "data": facts.describe(data, {"pretrain": rows})}
        run = runs.create(folder, settings, known, resume=resume, overwrite=overwrite)
        if not quiet:
            _announce(settings, data, len(rows), folder)
        if not lean:
            _draw_views(run, settings, data, rows, method)
    try:
        took = _train(
            settings, data, rows, method, fabric, run, start.last_checkpoint(folder, resume), quiet=quiet, lean=lean
        )
        if run is not None:
            _hand_over(run, settings, method, took, lean=lean)
    finally:
        if run is not None:
            run.release()
    fabric.barrier()
    return result(folder)


def _train(
    settings: Pretrain,
    data: DataSet,
    rows: Tensor,
    method: Method,
    fabric: Fabric,
    run: runs.Run | None,
    last: Path | None,
    *,
    quiet: bool,
    lean: bool,
) -> dict[str, Any]:
    """Train to the end from the last checkpoint, if there is one, and return what it took."""
    batch_size, size = int(settings.batch_size), int(settings.image_size)
    epoch_steps = len(rows) // batch_size
    steps = settings.epochs * epoch_steps
    optimizer = build_optimizer(method, settings.optimizer, weight_decay=settings.weight_decay)
    trained, set_up = fabric.setup(prepared(method, fabric), optimizer)
    first = 0
    if last is not None:
        first = checkpoint.restore(checkpoint.read(last, "resume"), objective=method, optimizer=optimizer)
    loader = ViewLoader(
        dataset=data,
        rows=rows,
        augments=resolve.augments(settings, method.views),
        image_size=size,
        batch_size=batch_size,
        parts=settings.accumulate,
        rank=fabric.global_rank,
        world=fabric.world_size,
        seed=settings.seed,
        start=first,
        stop=steps,
        workers=resolve.workers(settings.workers),
        device=fabric.device,
    )
    peak = scale_learning_rate(float(settings.learning_rate), batch_size, settings.learning_rate_scaling)
    show = Track("pretrain", steps * batch_size, unit="images", start=first * batch_size, quiet=quiet or run is None)
    with show as track:
        recorder = Recorder(
            run,
            track,
            fabric,
            first=first,
            steps=steps,
            epoch_steps=epoch_steps,
            minutes=settings.checkpoint_every,
            save_last=not lean,
        )
        for step in fit(
            trained,
            iter(loader),
            set_up,
            fabric=fabric,
            learning_rates=lambda step: learning_rate(step, steps=steps, warmup=settings.warmup, peak=peak),
            start=first,
            steps=steps,
            parts=settings.accumulate,
            seed=settings.seed,
        ):
            recorder.record(step)
            if recorder.checkpoint_due(step):
                recorder.save(step, method, optimizer)
    return {**recorder.facts(), "unreadable_images": dict(loader.bad)}


def _draw_views(run: runs.Run, settings: Pretrain, data: DataSet, rows: Tensor, method: Method) -> None:
    """Draw eight images beside their views of the first step, so that one sees what the method will see."""
    size, count = int(settings.image_size), min(8, int(settings.batch_size))
    augments = resolve.augments(settings, method.views)
    loader = ViewLoader(
        dataset=data,
        rows=rows,
        augments=augments,
        image_size=size,
        batch_size=int(settings.batch_size),
        seed=settings.seed,
        stop=1,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    batch = next(iter(loader))
    plain = next(iter(images_at(data, batch.rows[:count], size, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))))
    columns = [plain.views[0], *(view[:count] for view in batch.views)]
    pictures = [[column[image].permute(1, 2, 0).numpy() for column in columns] for image in range(len(plain.rows))]
    titles = ["image", *(f"view {number}" for number in range(1, len(columns)))]
    figures.view_sheet(run.folder / "plots" / "views.png", pictures, titles)


def _hand_over(run: runs.Run, settings: Pretrain, method: Method, took: Mapping[str, Any], *, lean: bool) -> None:
    """Write what the run leaves behind: weights under their library's names, plots, and last of all the result."""
    start.check_weights(method)
    start.save_weights(run.folder / runs.BACKBONE, method.backbone.net)
    start.save_weights(run.folder / runs.HEAD, method.projector)
    metrics = runs.read_metrics(run.folder)
    if not lean:
        panels = {"loss": ["loss"], "learning rate": ["learning_rate"]}
        figures.curves(run.folder / "plots" / "curves.png", metrics, panels)
    run.finish(settings, {"loss": metrics[-1]["loss"]}, **took)
    if lean:
        run.drop_checkpoints()


def _announce(settings: Pretrain, data: DataSet, count: int, folder: Path) -> None:
    say(f"{data.name}: {count} of {data.count} images, {data.layout}")
    for bad in data.bad:
        say(f"left out {bad.path}: {bad.reason}")
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
