"""YOLO networks, trained by Ultralytics' own trainer: its losses, views, schedule and choice of the best epoch."""

import shutil
import time
from collections.abc import Mapping
from copy import deepcopy
from math import ceil
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from headstart import runs
from headstart.backbones.given import Initialised
from headstart.backbones.yolo_pixels import unfold
from headstart.config import Finetune
from headstart.data.index import DataSet
from headstart.data.loading import normalisation
from headstart.data.splits import Splits
from headstart.errors import UserError
from headstart.progress import Track, say
from headstart.verbs import figures, resolve, start
from headstart.verbs.exporting.ultralytics import checkpoint_of
from headstart.verbs.finetuning.detect import finish_scores
from headstart.verbs.finetuning.yolo_data import write_yolo_data
from headstart.verbs.finetuning.yolo_network import Draft, part
from headstart.verbs.finetuning.yolo_scores import look_at_test
from headstart.verbs.finetuning.yolo_trainer import Held, read_checkpoint, secluded, trainer

FOLDER, DATA = "ultralytics", "data"
LAST, BEST = Path("weights", "last.pt"), Path("weights", "best.pt")
OPTIMIZERS = {"auto": "auto", "sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}
RATES = {"sgd": 0.01, "adam": 1e-3, "adamw": 1e-3}  # as Ultralytics' own settings advise
STRIDE = 32  # pixels, of which Ultralytics wants image sizes to be multiples
FEW_STEPS = (
    "epochs: the best weights have seen at most one step, whose learning rate is 0: Ultralytics takes a step for every"
    " 64 images only, once it is warm (try more epochs)"
)
IGNORED = (
    *("accumulate", "clip_gradient", "views", "schedule", "plateau_patience", "warmup", "betas"),
    *("min_steps", "evaluations", "learning_rate_scaling"),
)
VALIDATED = ("val_map50_95", "val_map50", "val_loss")
PANELS = {"loss": ["loss", "val_loss"], "mAP": ["val_map50", "val_map50_95"]}


def run_yolo(
    settings: Finetune,
    data: DataSet,
    splits: Splits,
    rows: Tensor,
    begun: Initialised,
    run: runs.Run,
    *,
    resume: bool,
    quiet: bool,
    lean: bool,
) -> dict[str, Any]:
    """Train a YOLO network from a backbone, score its best epoch on the test images, and write its weights.

    Of the settings count epochs, batch size, image size, seed, workers, precision, patience, transfer, and where they
    are not ``auto`` optimiser, learning rate and weight decay; the rest is Ultralytics' own. A frozen backbone keeps
    the statistics of its batch normalisations, too.

    The run gets ``ultralytics/`` (the data as they were trained on, ``results.csv``, ``weights/``), the weights of the
    best epoch as ``detector.pt``, which ``YOLO(…)`` opens, and as ``backbone.safetensors`` (for normalised images, as
    all of ours) and ``head.safetensors`` (all behind it).

    Args:
        settings: resolved.
        data: with boxes.
        splits: its splits.
        rows: the labelled training images, int64 ``[n]``.
        begun: the backbone with its first weights.
        run: the run folder.
        resume: go on from the last epoch that was finished, if there is one.
        quiet: show no progress.
        lean: leave no plots, checkpoints or data behind.

    Returns:
        What ``result.json`` holds: ``scores`` among it.

    Raises:
        UserError: a setting is not one that Ultralytics' trainer takes, the weights did not arrive, or the training
            diverged.
    """
    check(settings, data, len(rows))
    folder = run.folder / FOLDER
    last = folder / LAST if resume and (folder / LAST).exists() else None
    if last is None:
        shutil.rmtree(folder, ignore_errors=True)
    parts = {"train": rows, "val": splits.val, "test": splits.test}
    description = write_yolo_data(data, parts, folder / DATA)
    draft = Draft(begun, data.classes, data.pixels.channels, settings.seed)
    with secluded():
        took = _train(settings, draft, run, len(rows), last=last, quiet=quiet)
        if not (folder / BEST).exists():
            raise UserError("learning_rate: the training diverged (try a lower one)")
        best = read_checkpoint(folder / BEST)
        if best["updates"] <= 1 and not quiet:
            say(FEW_STEPS)
        hand_over(draft, best, run.folder, frozen=settings.transfer == "head")
        seen = look_at_test(best["ema"], description, arguments(settings, folder))
    if lean:
        shutil.rmtree(folder)
    else:
        figures.curves(run.folder / "plots" / "curves.png", runs.read_metrics(run.folder), PANELS)
    found = finish_scores(data, seen.rows, seen.detections, run.folder, lean=lean)
    val = {name: best["figures"][name] for name in VALIDATED}
    return {**found, "scores": {**found["scores"], **seen.scores, **val}, **took, **facts(best)}


def facts(best: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the checkpoint of the best epoch says for ``result.json`` beside scores."""
    return {
        "best_epoch": best["epoch"] + 1,
        "transfer": best["transfer"],
        "optimizer": best["train_args"]["optimizer"],
        "learning_rate": best["train_args"]["lr0"],
        "optimizer_steps": best["updates"],
    }


def check(settings: Finetune, data: DataSet, count: int) -> None:
    """Raise a UserError for what Ultralytics' trainer would not take, or would ignore."""
    size, rate = int(settings.image_size), settings.learning_rate
    if data.pixels.channels not in (1, 3):
        raise UserError(f"channels: {data.name} has {data.pixels.channels} (allowed for YOLO networks: 1, 3)")
    if int(settings.devices) > 1:
        raise UserError(f"devices: {settings.devices} (allowed for YOLO networks: 1)")
    if settings.precision == "fp16":
        raise UserError("precision: fp16 (allowed for YOLO networks: bf16, fp32)")
    for name in IGNORED:
        if getattr(settings, name) != Finetune.model_fields[name].default:
            raise UserError(f"{name}: YOLO networks are trained with Ultralytics' own (allowed: leave it out)")
    if settings.optimizer not in OPTIMIZERS:
        raise UserError(f"optimizer: {settings.optimizer} (allowed for YOLO networks: {', '.join(OPTIMIZERS)})")
    if settings.optimizer == "auto" and rate != "auto":
        raise UserError(f"learning_rate: {rate}, but optimizer auto of YOLO networks chooses its own (allowed: auto)")
    if size % STRIDE:
        raise UserError(f"image_size: {size} (allowed for YOLO networks: multiples of {STRIDE})")
    if size < 2 * STRIDE and count % int(settings.batch_size) == 1:
        raise UserError(
            f"batch_size: {settings.batch_size} leaves a batch of one image, too few for images of {size} px"
            f" (allowed: another one, or an image_size of {2 * STRIDE})"
        )


def arguments(settings: Finetune, folder: Path) -> dict[str, Any]:
    """Return what Ultralytics is to be told, whether it trains or looks."""
    device = "0" if torch.cuda.is_available() else "cpu"
    return {
        "task": "detect",
        "imgsz": int(settings.image_size),
        "batch": int(settings.batch_size),
        "device": device,
        "workers": resolve.workers(settings.workers),
        "project": str(folder.parent.resolve()),
        "name": folder.name,
        "exist_ok": True,
        "plots": False,
        "verbose": False,
    }


def training_arguments(settings: Finetune, folder: Path, layers: int) -> dict[str, Any]:
    """Return what Ultralytics' trainer is told."""
    optimizer, rate, decay = settings.optimizer, settings.learning_rate, settings.weight_decay
    told: dict[str, Any] = {
        **arguments(settings, folder),
        "model": "network.yaml",  # never read: the trainer is given its network
        "data": DATA,
        "epochs": int(settings.epochs),
        "patience": settings.patience or 0,
        "seed": settings.seed,
        "deterministic": True,
        "optimizer": OPTIMIZERS[optimizer],
        "amp": "bf16" if settings.precision == "bf16" and torch.cuda.is_available() else False,
    }
    if optimizer != "auto":
        told["lr0"] = float(rate) if rate != "auto" else RATES[optimizer]
    if decay != "auto":
        told["weight_decay"] = decay
    if settings.transfer == "head":
        told["freeze"] = layers
    return told


def hand_over(draft: Draft, best: dict[str, Any], folder: Path, *, frozen: bool) -> None:
    """Write the weights of the best epoch into a run folder: the backbone, all behind it, and both for Ultralytics."""
    net, layers = best["ema"].float(), draft.layers
    start.check_weights(net)
    trained = deepcopy(draft.begun.backbone.net).cpu()
    state = part(net, range(layers))
    if frozen:
        assert all(torch.equal(state[name], tensor) for name, tensor in draft.state().items())
    if not frozen or draft.begun.matched is None:
        trained.load_state_dict(state)
        unfold(trained, *normalisation(draft.channels))
    start.save_weights(folder / runs.BACKBONE, trained)
    head = {name: tensor.contiguous().clone() for name, tensor in part(net, range(layers, len(net.model))).items()}
    runs.replace(folder / runs.HEAD, lambda place: safetensors.torch.save_file(head, place))
    told = {"task": "detect", "imgsz": best["train_args"]["imgsz"]}
    runs.replace(folder / runs.DETECTOR, lambda place: torch.save(checkpoint_of(deepcopy(net), told), place))


def _train(
    settings: Finetune, draft: Draft, run: runs.Run, count: int, *, last: Path | None, quiet: bool
) -> dict[str, Any]:
    """Train, or go on with it, and return what it took."""
    folder, batches = run.folder / FOLDER, ceil(count / int(settings.batch_size))
    done = read_checkpoint(last) if last is not None else None
    first = done["epoch"] + 1 if done is not None else 0
    run.rewind(first * batches)
    if done is not None and done["finished"]:
        return {"seconds": None}  # of a process that is no more
    told = training_arguments(settings, folder, draft.layers)
    if last is not None:
        told["resume"] = str(last)
    began, total = time.monotonic(), int(settings.epochs) * batches
    with Track("finetune", total, unit="batches", start=first * batches, quiet=quiet) as track:
        training = trainer(Held(draft, folder / DATA, run, track, quiet), told)
        try:
            training.train()
        except FileNotFoundError as error:
            raise UserError(f"data: {' '.join(str(error).split())}") from error
        except RuntimeError as error:
            if "NaN" not in str(error):
                raise
            raise UserError("learning_rate: the training diverged (try a lower one)") from error
    return {"seconds": round(time.monotonic() - began, 2)}
