"""What a study must know of its data and its machine before it is planned. Runs where torch is: in a worker process."""

from collections.abc import Mapping
from typing import Any

from headstart.backbones import build
from headstart.backbones.given import initialise
from headstart.config import Finetune, Pretrain, Study
from headstart.data import facts
from headstart.data.index import DataSet
from headstart.data.splits import label_subset, parse_budget, split, strata
from headstart.errors import UserError
from headstart.studies.plan import Prepared, arm_settings, choices, chosen, shared
from headstart.training.machine import default_workers, device_name
from headstart.verbs import finetune, pretrain, start
from headstart.verbs.finetuning import dispatch


def prepare(study: Study) -> Prepared:
    """Open the data of a study, and raise the errors that its cells would end with before any of them runs.

    Raises:
        UserError: labels, budgets, a method, the model or weights are not as they must be.
    """
    study = study.updated(data=start.absolute(study.data))
    for labels in study.labels:
        parse_budget(labels)
    data = start.opened(study)
    dispatch.require(study.task, data)
    splits = split(data)
    classes = data.classes if study.task == "classify" else ()
    for labels in study.labels:
        label_subset(strata(data), splits.train, labels, 0, classes=classes)
    study = start.recorded(study, data)
    study = study.updated(
        image_size=dispatch.image_size(study.task, "none", study.image_size, data),
        stem=dispatch.stem(study.task, study.stem),
    )
    labelled: list[str] = []
    for arm, init in study.arms.items():
        if isinstance(init, Mapping):
            labelled += [arm] if _check_pretraining(study, arm, init, data) else []
    finetune.check(Finetune.create(**{**shared(study), **study.finetune, "task": study.task}))
    _check_backbones(study)
    described = facts.describe(data, {name: getattr(splits, name) for name in start.PARTS})
    return Prepared(study, described, device_name(), default_workers(int(study.image_size)), tuple(labelled))


def _check_pretraining(study: Study, arm: str, init: Mapping[str, Any], data: DataSet) -> bool:
    """Raise the errors of an arm's pretrainings, and say whether they learn from the labels of the study's data."""
    labelled = set()
    try:
        for choice in choices(study, "pretrain"):
            given = chosen(arm_settings(study, init), choice)
            settings = pretrain.check(Pretrain.create(**given))
            own = data if settings.data == study.data else start.opened(settings)
            if own is data and settings.limit != study.limit:  # other images would be cut into other splits
                raise UserError(f"limit: {settings.limit} is for the study to set (allowed: {study.limit})")
            # labels of other data are not those that the arms are compared at
            learns = own is data and pretrain.learns_from_labels(settings)
            for labels in study.labels if learns else [settings.labels]:
                pretrain.resolve_settings(settings.updated(labels=labels), own)
            labelled.add(learns)
    except UserError as error:
        raise UserError(f"arms.{arm}: {error}") from None
    if len(labelled) > 1:
        raise UserError(f"arms.{arm}: some points of the grid learn from labels (allowed: all or none; or two arms)")
    return True in labelled


def _check_backbones(study: Study) -> None:
    size = int(study.image_size)
    channels = int(study.channels)
    build(study.model, stem=study.stem, image_size=size, model_args=study.model_args, channels=channels)
    for arm, init in study.arms.items():
        if isinstance(init, str) and init != "none":
            settings = {key: getattr(study, key) for key in ("model", "model_args", "stem")}
            try:
                initialise(init, **settings, image_size=size, channels=channels, seed=0)
            except UserError as error:
                raise UserError(f"arms.{arm}: {error}") from None
