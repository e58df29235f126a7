"""From a study to its cells: a pure function."""

import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from headstart.config import Data, Finetune, Pretrain, Probe, Study
from headstart.errors import UserError
from headstart.settings import identity

Kind = Literal["pretrain", "probe", "head", "finetune"]


# What the study sets itself, so that no part of it may.
_RESERVED = {
    "pretrain": ("labels", "seed"),
    "probe": ("labels", "seeds", "seed", "init", *Data.model_fields),
    "finetune": ("task", "labels", "transfer", "seed", "init", *Data.model_fields),
}


class Prepared(NamedTuple):
    """What a study must know of its data and its machine: facts without tensors, for a process that has no torch.

    Attributes:
        study: with an absolute path of the data and the image size resolved.
        data: as `headstart.data.facts.describe` gives it, with the splits.
        device: what trainings run on.
        workers: how many trainings to run at the same time.
        labelled: the arms whose pretraining learns from labels.
    """

    study: Study
    data: dict[str, Any]
    device: str
    workers: int
    labelled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        id: equal for equal settings and data, so that equal cells are run once and finished ones never again.
        kind: a pretraining, or the transfer that it is.
        arm: how the backbone was initialised.
        seed: of the label subset and of everything random.
        settings: of the verb, without ``init`` where ``needs`` names a cell.
        needs: the pretraining cell whose backbone this one takes.
        choice: the point of the grid that it stands for.
    """

    id: str
    kind: Kind
    arm: str
    seed: int
    settings: Mapping[str, Any]
    needs: str | None = None
    choice: Mapping[str, Any] = field(default_factory=dict)


def plan(study: Study, fingerprint: str, labelled: Collection[str] = ()) -> list[Cell]:
    """Return the cells of a study, pretrainings first; equal pretrainings are one cell.

    A pretraining without labels serves every label budget. One that learns from labels is run for each budget, and sees
    the same labels as the transfers that follow it: with more it would be no comparison at that budget.

    Args:
        study: with the image size resolved.
        fingerprint: of the data, which enters every identity.
        labelled: the arms whose pretraining learns from labels.

    Raises:
        UserError: a part of the study is not a setting of its verb.
    """
    cells: dict[str, Cell] = {}
    for verb, reserved in _RESERVED.items():
        _refuse("grid", {name.split(".")[1]: None for name in study.grid if name.startswith(f"{verb}.")}, *reserved)
    for seed, (arm, start) in itertools.product(range(study.seeds), study.arms.items()):
        groups = [(budget,) for budget in study.labels] if arm in labelled else [study.labels]
        for budgets in groups:
            own = {"labels": budgets[0]} if arm in labelled else {}
            for choice, pretraining in _pretrainings(study, arm, start, {**own, "seed": seed}, fingerprint):
                if pretraining is not None:
                    cells.setdefault(pretraining.id, pretraining)
                init = pretraining.id if pretraining else str(start)
                part, needs = study.updated(labels=budgets), pretraining is not None
                for cell in _transfers(part, arm, seed, init, choice, fingerprint, needs=needs):
                    cells[cell.id] = cell
    return sorted(cells.values(), key=lambda cell: cell.kind != "pretrain")


def shared(study: Study) -> dict[str, Any]:
    """Return the settings that every run of a study has in common."""
    return {
        "data": study.data,
        "limit": study.limit,
        "channels": study.channels,
        "max_bad": study.max_bad,
        "classes": study.classes,
        "pixel_range": study.pixel_range,
        "model": study.model,
        "model_args": study.model_args,
        "stem": study.stem,
        "image_size": study.image_size,
    }


def arm_settings(study: Study, arm: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an arm's pretraining; classes and pixels of the study are not those of other data."""
    given = {**shared(study), **study.pretrain, **arm}
    if given["data"] == study.data:
        return given
    own = {**study.pretrain, **arm}
    return {name: value for name, value in given.items() if name in own or name not in ("classes", "pixel_range")}


def _pretrainings(
    study: Study, arm: str, start: Mapping[str, Any] | str | None, own: Mapping[str, Any], fingerprint: str
) -> Iterator[tuple[dict[str, Any], Cell | None]]:
    """Yield the pretraining of an arm at every point of its grid, None for an arm that needs none.

    ``own`` are the settings that the plan sets: the seed, and the label budget where the method learns from labels.
    """
    if not isinstance(start, Mapping):
        yield {}, None
        return
    for choice in choices(study, "pretrain"):
        _refuse(f"arms.{arm}", {**study.pretrain, **start}, *own)
        given = {**arm_settings(study, start), **own}
        settings = _settings(Pretrain, f"arms.{arm}", chosen(given, choice))
        elsewhere = settings["data"] if settings["data"] != study.data else ""
        cell_id = identity({"verb": "pretrain", **settings}, elsewhere, fingerprint)
        yield choice, Cell(cell_id, "pretrain", arm, own["seed"], settings, choice=choice)


def _transfers(
    study: Study, arm: str, seed: int, init: str, choice: Mapping[str, Any], fingerprint: str, *, needs: bool
) -> Iterator[Cell]:
    """Yield the cells in which a backbone meets labels: one probe for all budgets, one training for each."""
    _refuse("probe", study.probe, *_RESERVED["probe"])
    _refuse("finetune", study.finetune, *_RESERVED["finetune"])
    for transfer in study.transfers:
        if transfer == "probe":
            given = {**shared(study), "labels": study.labels, **study.probe, "seeds": [seed], "seed": seed}
            settings = _settings(Probe, "probe", {**given, "init": init})
            yield _cell("probe", arm, seed, settings, init, choice, fingerprint, needs=needs)
            continue
        for labels, more in itertools.product(study.labels, choices(study, "finetune")):
            own = {"task": study.task, "transfer": transfer, "labels": labels, "seed": seed}
            given = {**shared(study), **study.finetune, **own}
            settings = _settings(Finetune, "finetune", chosen({**given, "init": init}, more))
            yield _cell(transfer, arm, seed, settings, init, {**choice, **more}, fingerprint, needs=needs)


def _cell(
    kind: Kind,
    arm: str,
    seed: int,
    settings: dict[str, Any],
    init: str,
    choice: Mapping[str, Any],
    fingerprint: str,
    *,
    needs: bool,
) -> Cell:
    # The arm's name is part of it: two arms with equal settings are two rows of the report.
    cell_id = identity({"verb": kind, "arm": arm, **settings}, fingerprint)
    return Cell(cell_id, kind, arm, seed, settings, needs=init if needs else None, choice=choice)


def choices(study: Study, part: str) -> Iterator[dict[str, Any]]:
    """Yield every point of the grid over one verb's settings; one empty point when there is no grid."""
    names = [name for name in study.grid if name.startswith(f"{part}.")]
    for values in itertools.product(*(study.grid[name] for name in names)):
        yield dict(zip(names, values, strict=True))


def chosen(settings: Mapping[str, Any], choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings with dotted choices put in: ``pretrain.method_args.temperature`` goes one level down."""
    changed = dict(settings)
    for name, value in choice.items():
        _, first, *rest = name.split(".")
        changed[first] = {**changed.get(first, {}), rest[0]: value} if rest else value
    return changed


def _refuse(where: str, given: Mapping[str, Any], *reserved: str) -> None:
    for name in reserved:
        if name in given:
            raise UserError(f"{where}: {name} is for the study to set (allowed: the study's own {name})")


def _settings(kind: type[Pretrain | Finetune | Probe], where: str, values: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return kind.create(**values).model_dump(mode="json")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
