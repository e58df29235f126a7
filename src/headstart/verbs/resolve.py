"""What `auto` means: pure functions from settings and facts of the data to values, which are printed and recorded."""

import os
from collections.abc import Sequence

from headstart.backbones import stems
from headstart.backbones.stems import LARGEST_SMALL_IMAGE
from headstart.config import Finetune, Pretrain, Training
from headstart.errors import UserError
from headstart.settings import Auto
from headstart.views import Augment, preset


def image_size(asked: int | Auto, native: int) -> int:
    """Return the side of the images: as asked, else their own up to 64 px, else at most 224 in steps of 32.

    >>> image_size("auto", 32), image_size("auto", 150), image_size("auto", 1000), image_size(96, 1000)
    (32, 128, 224, 96)
    """
    if asked != "auto":
        return asked
    return native if native <= LARGEST_SMALL_IMAGE else min(224, native // 32 * 32)


def views(asked: str, wanted: str, data: str, size: int) -> str:
    """Return the name of a preset: as asked, else the form of the wanted one that fits the images.

    >>> views("auto", "simclr", "pets", 32), views("auto", "simclr", "pets", 224), views("auto", "simclr", "digits", 8)
    ('simclr-small', 'simclr', 'digits')
    """
    if asked != "auto":
        preset(asked)
        return asked
    if data == "digits":
        return "digits"
    return "simclr-small" if wanted == "simclr" and size <= LARGEST_SMALL_IMAGE else wanted


def workers(asked: int | Auto) -> int:
    """Return the number of decoding processes: as asked, else one per core beside this process, at most 8."""
    return max(0, min(8, (os.cpu_count() or 1) - 1)) if asked == "auto" else asked


def batch_size(settings: Training, count: int, most: int) -> int:
    """Return the batch: as asked, else the largest that the data fill and the parts divide, at most ``most``.

    Raises:
        UserError: it is larger than the data.
    """
    if settings.batch_size != "auto":
        if settings.batch_size > count:
            raise UserError(
                f"batch_size: {settings.batch_size} is larger than the {count} images (allowed: 2 to {count}, auto)"
            )
        return settings.batch_size
    return max(min(most, count) // settings.accumulate, 1) * settings.accumulate


def view_names(asked: str, wanted: Sequence[str], data: str, size: int) -> tuple[str, ...]:
    """Return the preset of each view: one that was asked for all or one for each, else what the method wants.

    >>> view_names("auto", ["simclr", "simclr"], "pets", 32)
    ('simclr-small', 'simclr-small')
    >>> view_names("none,simclr", ["simclr", "simclr"], "pets", 32)
    ('none', 'simclr')

    Raises:
        UserError: there is no such preset, or not as many as views.
    """
    names = [name.strip() for name in asked.split(",")]
    if len(names) not in (1, len(wanted)):
        raise UserError(f"views: {len(names)} presets for {len(wanted)} views (allowed: one, or one for each view)")
    pairs = zip(names * len(wanted) if len(names) == 1 else names, wanted, strict=True)
    return tuple(views(name, want, data, size) for name, want in pairs)


def pretrain(settings: Pretrain, wanted: Sequence[str], count: int, size: int) -> Pretrain:
    """Return settings in which nothing about the training is `auto` any more.

    Args:
        settings: as the user gave them.
        wanted: the presets that the method wants, one per view.
        count: images to pretrain on.
        size: side of the images in pixels.

    Raises:
        UserError: the batch is larger than the data, or the views do not exist.
    """
    names = view_names(settings.views, wanted, settings.data, size)
    batch = batch_size(settings, count, 256)
    _check_part(batch, settings.accumulate)
    rates = {"sgd": 0.12, "lars": 0.3, "adamw": 1e-3}
    return settings.updated(
        image_size=size,
        stem=stems.resolve(settings.stem, size),
        views=names[0] if len(set(names)) == 1 else ",".join(names),
        batch_size=batch,
        learning_rate=rates[settings.optimizer] if settings.learning_rate == "auto" else settings.learning_rate,
    )


def _check_part(batch: int, parts: int) -> None:
    if batch < 2 * parts:
        raise UserError(
            f"batch_size: {batch} images in {parts} parts (allowed: 2 or more in a part, "
            "because images are compared and normalised with each other)"
        )


def _most(settings: Finetune) -> int:
    return 64 if settings.batch_size == "auto" else settings.batch_size


def finetune(settings: Finetune, count: int, size: int) -> Finetune:
    """Return settings in which nothing about the training is `auto` any more."""
    # one batch size serves all label budgets of a study: the smallest of them may not fill it
    batch = batch_size(settings.updated(batch_size="auto"), count, most=_most(settings))
    if settings.transfer == "finetune":
        _check_part(batch, settings.accumulate)
    rates = {"sgd": 0.1, "lars": 1.0, "adamw": 1e-3}
    return settings.updated(
        image_size=size,
        views=views(settings.views, "standard", settings.data, size),
        batch_size=batch,
        learning_rate=rates[settings.optimizer] if settings.learning_rate == "auto" else settings.learning_rate,
    )


def augments(settings: Pretrain, wanted: Sequence[str]) -> tuple[Augment, ...]:
    """Return the augmentation of each view that a method wants, given resolved settings."""
    return tuple(preset(name) for name in view_names(settings.views, wanted, settings.data, int(settings.image_size)))
