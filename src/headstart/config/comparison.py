"""What the user may set of comparisons: probes and studies."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from headstart.config.data import Data
from headstart.config.training import Finetune, Pretrain, Task
from headstart.errors import unknown
from headstart.settings import (
    Auto,
    Budgets,
    Location,
    Penalties,
    Pixels,
    Positive,
    Precision,
    Seeds,
    Settings,
    Stem,
    Transfer,
    listed,
)

Score = Literal[
    "accuracy", "balanced_accuracy", "macro_f1", "iou", "mean_iou", "dice", "pixel_accuracy", "map50_95", "map50"
]
SCORES: dict[str, tuple[str, ...]] = {
    "classify": ("accuracy", "balanced_accuracy", "macro_f1"),
    "segment": ("iou", "mean_iou", "dice", "pixel_accuracy"),
    "detect": ("map50_95", "map50"),
}
"""What arms can be compared by; the first score of a task is also the one that is looked at on validation images."""
SCORE_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro F1",
    "iou": "IoU",
    "mean_iou": "mean IoU",
    "dice": "Dice",
    "pixel_accuracy": "pixel accuracy",
    "map50": "mAP50",
    "map50_95": "mAP50-95",
    "ap_small": "AP of small objects",
}


class Probe(Data):
    """Settings of ``headstart probe``."""

    init: Location
    """Where the backbone's weights come from: a RUN, a weights file, a published library name, or none."""
    model: str | Auto = "auto"
    """MODEL: torchvision/NAME, timm/NAME or ultralytics/NAME (auto: the RUN's)."""
    model_args: dict[str, Any] = {}
    """Arguments for the library's constructor of the model."""
    stem: Stem = "auto"
    """First layers: small keeps small images large (auto: the RUN's, else small at 64 px and below)."""
    image_size: Pixels | Auto = "auto"
    """Height and width in pixels (auto: the RUN's, else as in pretrain)."""
    labels: Budgets = ("1", "5", "10", "all")
    """Label budgets, each a number per class, a share such as 20%, or all."""
    seeds: Seeds = 5
    """Number of label subsets, or the seeds themselves."""
    neighbours: Annotated[tuple[Positive, ...], BeforeValidator(listed), Field(min_length=1)] = (200, 20)
    """The k of the weighted kNN classifiers, temperature 0.1."""
    stages: bool = False
    """Probe the features of every stage of the backbone too, not only the pooled ones."""
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


class Study(Data):
    """Settings of ``headstart study``: arms × transfers × labels × seeds × grid."""

    name: str = "study"
    """What the report is called."""
    task: Task = "classify"
    """What is learned from the labels: classes of images, masks, or boxes."""
    model: str = "torchvision/resnet18"
    """MODEL: torchvision/NAME, timm/NAME or ultralytics/NAME."""
    model_args: dict[str, Any] = {}
    """Arguments for the library's constructor of the model."""
    stem: Stem = "auto"
    """First layers: small keeps small images large (auto: small at 64 px and below)."""
    image_size: Pixels | Auto = "auto"
    """Height and width in pixels of what the backbone sees."""
    transfers: Annotated[tuple[Transfer, ...], BeforeValidator(listed), Field(min_length=1)] = ("probe", "finetune")
    """How the backbone meets the labels: probe, head, finetune; for masks and boxes finetune by default."""
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
    score: Score | Auto = "auto"
    """The score that is compared (auto: accuracy; of masks iou, of boxes map50_95)."""

    @model_validator(mode="before")
    @classmethod
    def _by_task(cls, values: Any) -> Any:
        """Put what suits the task in the place of auto."""
        task = values.get("task", "classify")
        if task not in SCORES:
            return values
        suits = {"transfers": ("probe", "finetune") if task == "classify" else ("finetune",), "score": SCORES[task][0]}
        return {**values, **{name: value for name, value in suits.items() if values.get(name, "auto") == "auto"}}

    @model_validator(mode="after")
    def _of_the_task(self) -> Self:
        if self.score not in SCORES[self.task]:
            raise ValueError(f"score: task {self.task} has no {self.score} (allowed: {', '.join(SCORES[self.task])})")
        if self.task != "classify" and "probe" in self.transfers:
            raise ValueError(f"transfers: probe classifies images, task is {self.task} (allowed: head, finetune)")
        return self

    @field_validator("arms")
    @classmethod
    def _one_baseline(cls, arms: dict[str, dict[str, Any] | str | None]) -> dict[str, dict[str, Any] | str | None]:
        arms = {name: "none" if arm is None else arm for name, arm in arms.items()}
        untrained = [name for name, arm in arms.items() if arm == "none"]
        if len(untrained) != 1:
            raise ValueError(f"exactly one arm must be none, the baseline; here: {', '.join(untrained) or 'no arm'}")
        if len(arms) == 1:
            raise ValueError("at least one arm beside the baseline is needed, such as simclr: {method: simclr}")
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
