"""What the user may set: frozen, checked, strict, written to YAML and read back, with an identity."""

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from headstart.errors import UserError, unknown

Auto = Literal["auto"]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[float, Field(ge=0)]
Stem = Literal["auto", "small", "standard"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Transfer = Literal["probe", "head", "finetune"]


def _listed(value: object) -> object:
    """Read `1,5,all` as a list, so that the command line and YAML may both write budgets in one line."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",")]
    if isinstance(value, list | tuple):
        return [part for item in value for part in (item.split(",") if isinstance(item, str) else [item])]
    return [value]


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _written(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


Location = Annotated[str, BeforeValidator(_written)]
Budget = Annotated[str, BeforeValidator(_text)]
Penalties = Annotated[tuple[Annotated[float, Field(gt=0)], ...], BeforeValidator(_listed), Field(min_length=1)]
Budgets = Annotated[tuple[Budget, ...], BeforeValidator(_listed), Field(min_length=1)]


class Settings(BaseModel):
    """Frozen settings that know their fields: an unknown key, a wrong type or a value out of range is an error."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", protected_namespaces=(), use_attribute_docstrings=True, allow_inf_nan=False
    )

    @classmethod
    def create(cls, **values: Any) -> Self:
        """Return checked settings.

        Raises:
            UserError: one line that names the field and what is allowed.
        """
        for name in values:
            if name not in cls.model_fields:
                raise unknown("option", name, cls.model_fields)
        try:
            return cls(**values)
        except ValidationError as error:
            raise UserError(_one_line(error)) from None

    @classmethod
    def read(cls, path: Path, **given: Any) -> Self:
        """Return the settings in a YAML file, in which ``given`` ones win."""
        return cls.create(**{**read_yaml(path), **given})

    def updated(self, **values: Any) -> Self:
        """Return a checked copy with other values."""
        return self.create(**{**self.model_dump(), **values})

    def to_yaml(self) -> str:
        """Return the settings as YAML that `read` reads back to equal settings."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class Training(Settings):
    """What every training shares."""

    data: Location
    """DATA: a folder, or the name of a known data set."""
    limit: Annotated[int, Field(ge=2)] | None = None
    """Use at most this many images, of every class and split its share (none: all)."""
    model: str = "torchvision/resnet18"
    """MODEL: torchvision/NAME or timm/NAME."""
    model_args: dict[str, Any] = {}
    """Arguments for the library's constructor of the model."""
    stem: Stem = "auto"
    """First layers: small keeps small images large (auto: small at 64 px and below)."""
    image_size: Positive | Auto = "auto"
    """Height and width in pixels of what the backbone sees (auto: the images' own up to 64, else at most 224)."""
    epochs: Positive
    """Passes over the training images."""
    batch_size: Positive | Auto = "auto"
    """Images per optimiser step, over all devices."""
    accumulate: Positive = 1
    """Parts into which a step's images are cut to save memory; a contrastive loss then sees one part at a time."""
    optimizer: Literal["sgd", "lars", "adamw"] = "sgd"
    """Optimiser; bias and normalisation weights are never decayed, nor scaled by LARS."""
    learning_rate: Annotated[float, Field(gt=0)] | Auto = "auto"
    """Peak learning rate for a batch of 256."""
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = "linear"
    """How the learning rate grows with the batch: times (batch / 256), its square root, or not at all."""
    weight_decay: NotNegative = 5e-4
    """Weight decay."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the steps over which the learning rate rises to its peak, before the cosine takes it to 0."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of initialisation, order and views."""
    precision: Precision = "auto"
    """Arithmetic (auto: bf16 on a GPU that has it, else fp32)."""
    devices: Positive | Auto = "auto"
    """Number of GPUs, or of CPU processes (auto: every GPU, else one process)."""
    workers: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Processes that decode images too large to be kept in memory; decides nothing but speed."""
    checkpoint_every: Annotated[float, Field(gt=0)] = 5.0
    """Minutes between checkpoints; decides nothing but what a killed run loses."""

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.batch_size != "auto" and self.batch_size % self.accumulate:
            raise ValueError(f"batch_size: {self.batch_size} cannot be cut into accumulate = {self.accumulate} parts")
        return self


class Pretrain(Training):
    """Settings of ``headstart pretrain``."""

    method: str = "simclr"
    """How to pretrain; `headstart list methods` names them."""
    method_args: dict[str, Any] = {}
    """Arguments of the method."""
    views: str = "auto"
    """Augmentation preset, one for all views or one for each (auto: the method's, in the form that fits the images)."""
    include: Annotated[tuple[Literal["val", "test"], ...], BeforeValidator(_listed)] = ()
    """Splits to pretrain on beside the training and unlabelled images; test images enter only when asked for."""
    epochs: Positive = 200
    """Passes over the training images."""


class Finetune(Training):
    """Settings of ``headstart finetune``."""

    init: Location = "none"
    """Where the backbone's weights come from: a RUN, a weights file, a published library name, or none."""
    task: Literal["classify"] = "classify"
    """What is learned from the labels."""
    batch_size: Positive | Auto = "auto"
    """Images per optimiser step, over all devices (auto: 64); never more than there are labelled images."""
    model: str | Auto = "auto"
    """MODEL: torchvision/NAME or timm/NAME (auto: the RUN's, else torchvision/resnet18)."""
    transfer: Literal["head", "finetune"] = "finetune"
    """head trains a classifier on the frozen backbone, finetune trains all weights."""
    labels: Budget = "all"
    """Label budget: a number per class, a share such as 20%, or all."""
    views: str = "auto"
    """Augmentation preset of the training images (auto: standard, for digits digits)."""
    optimizer: Literal["sgd", "lars", "adamw"] = "adamw"
    """Optimiser; bias and normalisation weights are never decayed, nor scaled by LARS."""
    learning_rate_scaling: Literal["linear", "sqrt", "none"] = "none"
    """How the learning rate grows with the batch: times (batch / 256), its square root, or not at all."""
    weight_decay: NotNegative = 0.05
    """Weight decay."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target spread evenly over all classes."""
    epochs: Positive = 50
    """Passes over the labelled images."""
    min_steps: Positive = 400
    """Optimiser steps that are made at least, however few the labels."""
    evaluations: Positive = 20
    """Evenly spaced looks at the validation images; the best of them gives the weights that are kept."""
    patience: Positive | None = None
    """Looks without improvement after which training stops early (none: it never does)."""


class Probe(Settings):
    """Settings of ``headstart probe``."""

    init: Location
    """Where the backbone's weights come from: a RUN, a weights file, a published library name, or none."""
    data: Location
    """DATA with labels: class folders, or the name of a known data set."""
    limit: Annotated[int, Field(ge=2)] | None = None
    """Use at most this many images, of every class and split its share (none: all)."""
    model: str | Auto = "auto"
    """MODEL: torchvision/NAME or timm/NAME (auto: the RUN's)."""
    model_args: dict[str, Any] = {}
    """Arguments for the library's constructor of the model."""
    stem: Stem = "auto"
    """First layers: small keeps small images large (auto: the RUN's, else small at 64 px and below)."""
    image_size: Positive | Auto = "auto"
    """Height and width in pixels (auto: the RUN's, else as in pretrain)."""
    labels: Budgets = ("1", "5", "10", "all")
    """Label budgets, each a number per class, a share such as 20%, or all."""
    seeds: Positive | tuple[int, ...] = 5
    """Number of label subsets, or the seeds themselves."""
    neighbours: Annotated[tuple[Positive, ...], BeforeValidator(_listed), Field(min_length=1)] = (200, 20)
    """The k of the weighted kNN classifiers, temperature 0.1."""
    penalties: Penalties = tuple(10.0**power for power in range(-4, 5))
    """Values of C = 1 / penalty to choose from on the validation images."""
    batch_size: Positive = 256
    """Images per forward pass; decides nothing but speed."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initialisation when init is none."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass (auto: bf16 on a GPU that has it, else fp32)."""
    workers: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Processes that decode images; decides nothing but speed."""


class Study(Settings):
    """Settings of ``headstart study``: arms × transfers × labels × seeds × grid."""

    name: str = "study"
    """What the report is called."""
    data: Location
    """DATA with labels."""
    limit: Annotated[int, Field(ge=2)] | None = None
    """Use at most this many images, of every class and split its share (none: all)."""
    task: Literal["classify"] = "classify"
    """What is learned from the labels."""
    model: str = "torchvision/resnet18"
    """MODEL: torchvision/NAME or timm/NAME."""
    model_args: dict[str, Any] = {}
    """Arguments for the library's constructor of the model."""
    stem: Stem = "auto"
    """First layers: small keeps small images large (auto: small at 64 px and below)."""
    image_size: Positive | Auto = "auto"
    """Height and width in pixels of what the backbone sees."""
    transfers: Annotated[tuple[Transfer, ...], BeforeValidator(_listed), Field(min_length=1)] = ("probe", "finetune")
    """How the backbone meets the labels: probe, head, finetune."""
    arms: dict[str, dict[str, Any] | str | None]
    """Named initialisations: none, settings of a pretraining, or given weights."""
    labels: Budgets = ("1", "5", "10", "all")
    """Label budgets, each a number per class, a share such as 20%, or all."""
    seeds: Positive = 5
    """Number of seeds; seed s gives every arm the same label subset."""
    pretrain: dict[str, Any] = {}
    """Settings of every pretraining, which an arm's own override."""
    finetune: dict[str, Any] = {}
    """Settings of every head and finetune training."""
    probe: dict[str, Any] = {}
    """Settings of every probe."""
    grid: dict[str, list[Any]] = {}
    """Dotted settings, such as finetune.learning_rate, with the values to choose from on the validation images."""
    score: Literal["accuracy", "balanced_accuracy", "macro_f1"] = "accuracy"
    """The score that is compared."""

    @field_validator("arms")
    @classmethod
    def _one_baseline(cls, arms: dict[str, dict[str, Any] | str | None]) -> dict[str, dict[str, Any] | str | None]:
        arms = {name: "none" if arm is None else arm for name, arm in arms.items()}
        untrained = [name for name, arm in arms.items() if arm == "none"]
        if len(untrained) != 1:
            raise ValueError(f"exactly one arm must be none, the baseline; here: {', '.join(untrained) or 'no arm'}")
        return arms

    @field_validator("grid")
    @classmethod
    def _known_grid(cls, grid: dict[str, list[Any]]) -> dict[str, list[Any]]:
        parts: dict[str, type[Settings]] = {"pretrain": Pretrain, "finetune": Finetune}
        for key, values in grid.items():
            part, _, field = key.partition(".")
            if part not in parts or field.split(".")[0] not in parts[part].model_fields:
                names = [f"{part}.{field}" for part, settings in parts.items() for field in settings.model_fields]
                raise ValueError(str(unknown("grid", key, names)))
            if not values:
                raise ValueError(f"{key}: no values")
        return grid

    @property
    def baseline(self) -> str:
        """The arm that nothing initialised."""
        return next(name for name, arm in self.arms.items() if arm == "none")


UNDECIDING = frozenset({"data", "workers", "checkpoint_every", "name"})
"""Fields that do not decide a result; the data do, and enter an identity by their fingerprint instead."""


def identity(settings: Mapping[str, Any], *facts: str) -> str:
    """Return 16 hex digits that are equal for equal settings and facts, whatever the order of the keys.

    >>> identity({"epochs": 2, "seed": 0}) == identity({"seed": 0, "epochs": 2, "workers": 4})
    True
    """
    deciding = {key: value for key, value in settings.items() if key not in UNDECIDING}
    text = json.dumps([deciding, *facts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        UserError: there is no such file, or it holds no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(f"config: no file {path}") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"config: {path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"config: {path} must hold `name: value` lines")
    return {str(key): value for key, value in values.items()}


def signature(settings: type[Settings], *, before: tuple[inspect.Parameter, ...] = ()) -> inspect.Signature:
    """Return the signature of a verb: its own parameters, then every setting by keyword with its default."""
    fields = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.is_required() else field.default,
            annotation=field.annotation,
        )
        for name, field in settings.model_fields.items()
        if name not in {parameter.name for parameter in before}
    ]
    return inspect.Signature([*before, *fields])


_BRANCHES = ("constrained", "literal", "int", "float", "function", "tuple", "dict[", "str")


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    # pydantic appends the branch of a union to the location; only the names that the user wrote help
    field = ".".join(str(part) for part in first["loc"] if not str(part).startswith(_BRANCHES))
    allowed = sorted({str(e["ctx"]["expected"]) for e in error.errors() if "expected" in e.get("ctx", {})})
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{field}: is needed"
    if first["type"] == "value_error" and (not field or message.startswith(f"{field}:")):
        return message
    others = f" (or {', '.join(allowed)})" if allowed and "expected" not in first.get("ctx", {}) else ""
    shown = "" if first["type"] == "value_error" else f", not {first['input']!r}"
    return f"{field}: {message[0].lower()}{message[1:]}{others}{shown}"
