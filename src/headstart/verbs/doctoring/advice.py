"""What to do with the data: a method and what else to think of, by rules that stand in two tables."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from headstart.config import Doctor, Pretrain
from headstart.data.index import DataSet
from headstart.data.splits import split
from headstart.verbs.resolve import SMALL_DATA

TOO_FEW = 500  # images; below, published weights are hard to beat
BACKGROUND = "background"


class Known(NamedTuple):
    """What the rules look at.

    Attributes:
        images: to pretrain on.
        labelled: how many of them have labels.
        classes: how many classes the images have.
        background: whether one of these is the background.
        places: whether there are boxes or masks.
    """

    images: int
    labelled: int
    classes: int
    background: bool
    places: bool


class Rule(NamedTuple):
    """When a method is to be tried first, and why."""

    method: str
    applies: Callable[[Known], bool]
    reason: str


class Note(NamedTuple):
    """What else to think of, and when."""

    applies: Callable[[Known], bool]
    text: str


METHOD_RULES = (  # the first one that applies counts
    Rule(
        "supcon-anchor",
        lambda known: known.background and known.classes > 1,
        "crops with a class of background: an object and its view attract, backgrounds repel",
    ),
    Rule(
        "densecl",
        lambda known: known.places,
        "boxes or masks ask where things are: it also trains the places of the last feature map",
    ),
    Rule(
        "simclr",
        lambda known: True,
        "no teacher and no queue, one loss, little to go wrong; compare two or three methods in a study if it matters",
    ),
)
NOTES = (
    Note(
        lambda known: known.images < TOO_FEW,
        f"fewer than {TOO_FEW} images: pretraining may not pay. A published backbone is the better beginning: "
        "headstart finetune --init timm/resnet18.a1_in1k",
    ),
    Note(
        lambda known: TOO_FEW <= known.images < SMALL_DATA,
        f"fewer than {SMALL_DATA:,} images: the recipe makes more epochs of smaller batches",
    ),
    Note(
        lambda known: known.classes > 1 and known.labelled > 0 and not known.background,
        "there are labels: compare with --method supcon, at the label budget that you will have",
    ),
    Note(
        lambda known: 0 < known.labelled < known.images and known.classes > 1,
        "images without labels are used, too: that is what pretraining is for",
    ),
)


@dataclass(frozen=True)
class Advice:
    """What to do with the data.

    Attributes:
        method: to pretrain with.
        reason: why this one.
        epochs: passes over the images.
        batch_size: images per step.
        notes: what else to think of.
        command: what to type.
    """

    method: str
    reason: str
    epochs: int
    batch_size: int
    notes: tuple[str, ...]
    command: str


def known(data: DataSet) -> Known:
    """Return what the rules look at."""
    splits = split(data, needs_labels=False)
    labelled = int((data.labels[splits.train] >= 0).sum())
    return Known(
        images=len(splits.train) + len(splits.unlabelled),
        labelled=labelled,
        classes=len(data.classes) if labelled else 0,
        background=BACKGROUND in data.classes and labelled > 0,
        places=data.objects is not None or "mask" in data.index.column_names,
    )


def choose(facts: Known) -> Rule:
    """Return the rule that says which method to begin with."""
    return next(rule for rule in METHOD_RULES if rule.applies(facts))


def advise(settings: Doctor, resolved: Pretrain, facts: Known) -> Advice:
    """Return what to do.

    Args:
        settings: as the user gave them.
        resolved: the settings of the pretraining that they lead to.
        facts: what is known of the data.
    """
    rule = choose(facts)
    reason = rule.reason if settings.method in ("auto", rule.method) else f"as asked; by the rules: {rule.method}"
    notes = tuple(note.text for note in NOTES if note.applies(facts))
    return Advice(
        resolved.method,
        reason,
        int(resolved.epochs),
        int(resolved.batch_size),
        notes,
        command(settings, resolved),
    )


def command(settings: Doctor, resolved: Pretrain) -> str:
    """Return what to type to begin the pretraining."""
    words = ["headstart", "pretrain", "--data", settings.data, "--out", "RUN", "--method", resolved.method]
    words += ["--epochs", str(resolved.epochs), "--batch-size", str(resolved.batch_size)]
    for name in ("model", "image_size", "limit", "channels", "max_bad"):
        value = getattr(settings, name)
        if value != type(settings).model_fields[name].default:
            words += [f"--{name.replace('_', '-')}", str(value)]
    if settings.classes is not None:
        merged = [f"{name}={','.join(parts)}" for name, parts in settings.classes.items()]
        words += ["--classes", ",".join(merged)]
    for name in ("method_args", "model_args"):
        for key, value in getattr(settings, name).items():
            words += [f"--{name.replace('_', '-')}.{key}", str(value)]
    return shlex.join(words)
