"""What `auto` means: pure functions from settings and facts of the data to values, which are printed and recorded."""

import os
import re
from collections.abc import Sequence
from itertools import groupby

from headstart import methods
from headstart.backbones import stems
from headstart.backbones.stems import LARGEST_SMALL_IMAGE
from headstart.config import Finetune, Pretrain, Training
from headstart.contracts import Method, Planned, Recipe
from headstart.errors import UserError
from headstart.settings import Auto
from headstart.verbs.health import looks
from headstart.views import Augment, preset

SMALL_DATA = 10_000  # images; below, a recipe makes more epochs of smaller batches
LARGEST_BATCH = {"classify": 64, "segment": 32, "detect": 16}  # of auto
PRESET = {"classify": "standard", "segment": "segment", "detect": "detect"}
OPTIMIZER = {"classify": "adamw", "segment": "adam", "detect": "adam"}
WARMUP, BETAS = 0.1, (0.9, 0.999)  # of a task
LEAST = 3  # images that are pretrained on together: of two, a normalised feature is 1 and -1 whatever the weights


def image_size(asked: int | Auto, native: int) -> int:
    """Return the side of the images: as asked, else their own up to 64 px, else at most 224 in steps of 32.

    >>> image_size("auto", 32), image_size("auto", 150), image_size("auto", 1000), image_size(96, 1000)
    (32, 128, 224, 96)
    """
    if asked != "auto":
        return asked
    return native if native <= LARGEST_SMALL_IMAGE else min(224, native // 32 * 32)


def views(asked: str, wanted: str, data: str) -> str:
    """Return the name of a preset: as asked, else the wanted one, for drawn digits the one that does not mirror them.

    >>> views("auto", "simclr", "pets"), views("auto", "simclr", "digits"), views("auto", "none", "digits")
    ('simclr', 'digits', 'none')
    """
    if asked != "auto":
        preset(asked)
        return asked
    return "digits" if data == "digits" and wanted != "none" else wanted


def workers(asked: int | Auto) -> int:
    """Return the number of decoding processes: as asked, else one per core beside this process, at most 8."""
    return max(0, min(8, (os.cpu_count() or 1) - 1)) if asked == "auto" else asked


def batch_size(settings: Training, count: int, most: int) -> int:
    """Return the batch: as asked, else the largest that the data fill and that can be cut, at most ``most``.

    Raises:
        UserError: it is larger than the data.
    """
    if settings.batch_size != "auto":
        if settings.batch_size > count:
            raise UserError(
                f"batch_size: {settings.batch_size} is larger than the {count} images (allowed: up to {count}, auto)"
            )
        return settings.batch_size
    return max(min(most, count) // pieces(settings), 1) * pieces(settings)


def pieces(settings: Training) -> int:
    """Return into how many pieces a batch is cut: one for each part and device."""
    return settings.accumulate * (1 if settings.devices == "auto" else settings.devices)


def view_names(asked: str, method: type[Method], recipe: Recipe, data: str) -> tuple[str, ...]:
    """Return the preset of each view: one that was asked for all or one for each, else what the recipe wants.

    Raises:
        UserError: there is no such preset, not as many as views, all views of an image would be the same, or some are
            too small for a method that knows the place of every patch.
    """
    wanted = recipe.views or method.views
    names = [name for part in asked.split(",") for name in _repeated(part.strip())]
    small = [name for name in names if name != "auto" and preset(name).side < 1]
    if small and "vit" in method.needs:
        raise UserError(f"views: {small[0]} is of a smaller size (allowed: views of the whole size, such as mae)")
    if len(names) == 1 and "*" not in asked:
        names *= len(wanted)
    least = len(method.views) if not method.more_views else 2
    if len(names) != least and not (method.more_views and len(names) > least):
        allowed = f"{least} or more, such as 2*swav,6*swav-local" if method.more_views else "one, or one for each view"
        raise UserError(f"views: {len(names)} presets for {least} views (allowed: {allowed})")
    if set(names) == {"auto"}:
        return tuple(views("auto", want, data) for want in wanted)
    if len(names) > 1 and set(names) == {"none"}:
        raise UserError("views: none makes the views of an image equal (for images as they are: --method supcon-pairs)")
    return tuple(views(name, want, data) for name, want in zip(names, [*wanted, *names][: len(names)], strict=True))


def _repeated(part: str) -> list[str]:
    """Return the presets that `6*dino-local` stands for."""
    count, star, name = part.rpartition("*")
    if not star:
        return [part]
    if not re.fullmatch("[1-9][0-9]?", count.strip()):
        raise UserError(
            f"views: '{part}' is no preset (allowed: a name, or a number from 1 to 99 and a name as in 6*dino-local)"
        )
    return [name.strip()] * int(count)


def written_views(names: Sequence[str]) -> str:
    """Return presets in one line, which `view_names` reads back.

    >>> written_views(["swav", "swav", "swav-local"]), written_views(["none"])
    ('2*swav,swav-local', 'none')
    """
    runs = [(name, len(list(group))) for name, group in groupby(names)]
    return ",".join(f"{count}*{name}" if count > 1 else name for name, count in runs)


def recipe(method: type[Method], count: int, size: int) -> Recipe:
    """Return the recipe of a method for so many images of a size in pixels."""
    base = method.recipes.small_images if size <= LARGEST_SMALL_IMAGE else method.recipes.natural
    if count >= SMALL_DATA:
        return base
    changes = dict(method.recipes.small_data)
    return base.but(**{**changes, "method_args": {**base.method_args, **changes.get("method_args", {})}})


def pretrain(settings: Pretrain, plan: Planned) -> Pretrain:
    """Return settings in which nothing about the training is `auto` any more.

    Args:
        settings: as the user gave them.
        plan: what is known of the data; its batch size is not yet.

    Raises:
        UserError: what is asked cannot work with the data or the method.
    """
    method = methods.find(settings.method)
    suits = recipe(method, plan.images, plan.image_size)
    names = view_names(settings.views, method, suits, settings.data)
    if plan.images < LEAST:
        raise UserError(f"data: {plan.images} images to pretrain on (allowed: {LEAST} or more)")
    batch = batch_size(settings, plan.images, suits.batch_size)
    _check_pieces(batch, pieces(settings), LEAST)
    own_rates = {"sgd": 0.12, "lars": 0.3, "adamw": 1e-3}
    values = {
        field: getattr(suits, field)
        for field in ("epochs", "optimizer", "learning_rate_scaling", "weight_decay", "warmup", "betas")
        if getattr(settings, field) == "auto"
    }
    if settings.learning_rate == "auto":
        same = settings.optimizer in ("auto", suits.optimizer)
        values["learning_rate"] = suits.learning_rate if same else own_rates[settings.optimizer]
    arguments = methods.resolve(settings.method, {**suits.method_args, **settings.method_args})
    plan = plan._replace(batch_size=batch // settings.accumulate, devices=int(settings.devices))
    steps = int(values.get("epochs", settings.epochs)) * (plan.images // batch)
    return settings.updated(
        **values,
        image_size=plan.image_size,
        stem=stems.resolve(settings.stem, plan.image_size),
        views=written_views(names),
        batch_size=batch,
        sampling=method.sampling if settings.sampling == "auto" else settings.sampling,
        health_every=looks(steps, settings.health_every),
        method_args=method.planned(arguments, plan),
    )


def _check_pieces(batch: int, count: int, least: int) -> None:
    if batch < least * count:
        raise UserError(
            f"batch_size: {batch} is too small (allowed: {least * count} or more, {least} for each part and device, "
            "because images are compared and normalised with each other)"
        )
    if batch % count:
        raise UserError(
            f"batch_size: {batch} cannot be cut into {count} pieces, one for each part and device"
            f" (allowed: multiples of {count})"
        )


def finetune(settings: Finetune, count: int, size: int) -> Finetune:
    """Return settings in which nothing about the training is `auto` any more, but what Ultralytics' trainer chooses."""
    # one batch size serves all label budgets of a study: the smallest of them may not fill it
    most = LARGEST_BATCH[settings.task] if settings.batch_size == "auto" else settings.batch_size
    batch = batch_size(settings.updated(batch_size="auto"), count, most=most)
    if settings.transfer == "finetune" or settings.task != "classify":
        _check_pieces(batch, settings.accumulate, 2)
    settings = settings.updated(image_size=size, batch_size=batch, detector=detector(settings))
    if settings.task == "detect" and settings.detector == "yolo":
        return settings
    wanted = views(settings.views, PRESET[settings.task], settings.data)
    optimizer = settings.optimizer if settings.optimizer != "auto" else OPTIMIZER[settings.task]
    rates = {"sgd": 0.1, "lars": 1.0, "adamw": 1e-3, "adam": 1e-4}
    return settings.updated(
        views=wanted,
        optimizer=optimizer,
        warmup=WARMUP if settings.warmup == "auto" else settings.warmup,
        betas=BETAS if settings.betas == "auto" else settings.betas,
        learning_rate=rates[optimizer] if settings.learning_rate == "auto" else settings.learning_rate,
        weight_decay=(0.05 if optimizer == "adamw" else 0.0)
        if settings.weight_decay == "auto"
        else settings.weight_decay,
    )


def detector(settings: Finetune) -> str:
    """Return the detector: as asked, else Ultralytics' own for its models, and RetinaNet for all others.

    Raises:
        UserError: yolo is asked for a model that is not one of Ultralytics' networks with boxes.
    """
    of_ultralytics = settings.model.startswith("ultralytics/") and not settings.model.endswith("-cls")
    if settings.task != "detect":
        return settings.detector
    if settings.detector == "auto":
        return "yolo" if of_ultralytics else "retinanet"
    if settings.detector == "yolo" and not of_ultralytics:
        raise UserError(
            f"detector: {settings.model} is no YOLO network (allowed: retinanet, fcos, or --model ultralytics/yolov8n)"
        )
    return settings.detector


def augments(settings: Pretrain) -> tuple[Augment, ...]:
    """Return the augmentation of each view, given resolved settings."""
    return tuple(preset(name) for part in settings.views.split(",") for name in _repeated(part))
