"""What the user may set of trainings."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from headstart.config.data import Data
from headstart.settings import (
    Auto,
    Budget,
    Location,
    NotNegative,
    Pixels,
    Positive,
    PositiveFloat,
    Precision,
    Stem,
    listed,
)

Optimizer = Literal["sgd", "lars", "adamw", "adam"]
Task = Literal["classify", "segment", "detect"]
Scaling = Literal["linear", "sqrt", "none"]
Warmup = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Betas = Annotated[tuple[Decay, Decay], BeforeValidator(listed)]


class Training(Data):
    """What every training shares."""

    model: str | Auto
    """MODEL: torchvision/NAME, timm/NAME or ultralytics/NAME."""
    model_args: dict[str, Any] = {}
    """Arguments for the library's constructor of the model."""
    stem: Stem = "auto"
    """First layers: small keeps small images large (auto: small at 64 px and below)."""
    image_size: Pixels | Auto = "auto"
    """Height and width in pixels of what the backbone sees (auto: the images' own up to 64, else at most 224)."""
    epochs: Positive | Auto
    """Passes over the training images."""
    batch_size: Positive | Auto = "auto"
    """Images per optimiser step, over all devices."""
    accumulate: Positive = 1
    """Parts into which a step's images are cut to save memory; a contrastive loss then sees one part at a time."""
    optimizer: Optimizer | Auto
    """Optimiser; bias and normalisation weights are never decayed, nor scaled by LARS."""
    learning_rate: PositiveFloat | Auto = "auto"
    """Peak learning rate for a batch of 256."""
    learning_rate_scaling: Scaling | Auto
    """How the learning rate grows with the batch: times (batch / 256), its square root, or not at all."""
    weight_decay: NotNegative | Auto
    """Weight decay."""
    warmup: Warmup | Auto = 0.1
    """Share of the steps over which the learning rate rises to its peak, before the cosine takes it to 0."""
    betas: Betas | Auto = (0.9, 0.999)
    """Decay of the two moments of Adam and AdamW."""
    clip_gradient: PositiveFloat | None = None
    """Largest length of the gradient, to which a longer one is cut (none: any)."""
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
    model: str | Auto = "auto"
    """MODEL: torchvision/, timm/ or ultralytics/NAME (auto: resnet18, or a tiny ViT if the method needs one)."""
    views: str = "auto"
    """Augmentation preset, one for all views or one for each, as in 2*swav,6*swav-local (auto: the recipe's)."""
    include: Annotated[tuple[Literal["val", "test"], ...], BeforeValidator(listed)] = ()
    """Splits to pretrain on beside the training and unlabelled images; test images enter only when asked for."""
    labels: Budget = "all"
    """Label budget for a method that learns from labels; those of val and test images are never shown."""
    sampling: Literal["shuffled", "balanced", "anchored"] | Auto = "auto"
    """How batches are drawn: every image once per epoch, or every class equally often (auto: as the method wants)."""
    epochs: Positive | Auto = "auto"
    """Passes over the training images (auto: the recipe's)."""
    batch_size: Positive | Auto = "auto"
    """Images per optimiser step, over all devices (auto: the recipe's, at most what the data fill)."""
    optimizer: Optimizer | Auto = "auto"
    """Optimiser; bias and normalisation weights are never decayed, nor scaled by LARS (auto: the recipe's)."""
    learning_rate: PositiveFloat | Auto = "auto"
    """Peak learning rate for a batch of 256 (auto: the recipe's)."""
    learning_rate_scaling: Scaling | Auto = "auto"
    """How the learning rate grows with the batch: times (batch / 256), its square root, or not at all."""
    weight_decay: NotNegative | Auto = "auto"
    """Weight decay (auto: the recipe's)."""
    warmup: Warmup | Auto = "auto"
    """Share of the steps over which the learning rate rises to its peak, before the cosine takes it to 0."""
    betas: Betas | Auto = "auto"
    """Decay of AdamW's two moments (auto: the recipe's)."""
    health_every: Positive | Auto = "auto"
    """Steps between looks at the health of the embeddings (auto: so many that they take under 2 % of the time)."""
    on_collapse: Literal["warn", "stop"] = "warn"
    """What to do when the embeddings collapse."""


class Finetune(Training):
    """Settings of ``headstart finetune``."""

    init: Location = "none"
    """Where the backbone's weights come from: a RUN, a weights file, a published library name, or none."""
    task: Task = "classify"
    """What is learned from the labels: classes of images, masks, or boxes."""
    batch_size: Positive | Auto = "auto"
    """Images per optimiser step, over all devices (auto: 64, for masks 32, for boxes 16); never more than there are."""
    model: str | Auto = "auto"
    """MODEL: torchvision/NAME, timm/NAME or ultralytics/NAME (auto: the RUN's, else torchvision/resnet18)."""
    image_size: Pixels | Auto = "auto"
    """Side in pixels (auto: the RUN's, else as in pretrain; for boxes the images' own long side, at most 640)."""
    transfer: Literal["head", "finetune"] = "finetune"
    """head trains the task's head on the frozen backbone, finetune trains all weights."""
    decoder: Literal["unet", "fpn", "deeplabv3plus"] = "unet"
    """segment: the decoder on the backbone's feature maps."""
    loss: str = "auto"
    """segment: bce, ce, dice, focal or a sum such as bce+dice (auto: bce for two classes, else ce)."""
    detector: Literal["auto", "yolo", "retinanet", "fcos"] = "auto"
    """detect: the head and the trainer (auto: yolo, which is Ultralytics', for its models, else retinanet)."""
    labels: Budget = "all"
    """Label budget: a number per class (of masks or boxes: of images), a share such as 20%, or all."""
    class_weights: Literal["none", "balanced"] = "none"
    """classify, segment: weight each class in the loss by the inverse of how often it occurs, as scikit-learn does."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """classify: share of the target spread evenly over all classes."""
    views: str = "auto"
    """Augmentation preset of the training images (auto: standard, for digits digits; segment and detect by task)."""
    optimizer: Optimizer | Auto = "auto"
    """Optimiser (auto: adamw to classify, else adam; of a YOLO network Ultralytics' own choice)."""
    learning_rate: PositiveFloat | Auto = "auto"
    """Peak learning rate (auto: 1e-3 of adamw, 1e-4 of adam, 0.1 of sgd, 1 of lars; of YOLO Ultralytics' own)."""
    learning_rate_scaling: Scaling = "none"
    """How the learning rate grows with the batch: times (batch / 256), its square root, or not at all."""
    schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    """The learning rate after its warmup; plateau takes a tenth of it when looks find nothing better."""
    plateau_patience: Positive = 3
    """Looks without improvement after which plateau lowers the learning rate."""
    weight_decay: NotNegative | Auto = "auto"
    """Weight decay (auto: 0.05 of adamw, else 0)."""
    epochs: Positive = 50
    """Passes over the labelled images."""
    min_steps: Positive = 400
    """Optimiser steps that are made at least, however few the labels; YOLO networks train for their epochs alone."""
    evaluations: Positive = 20
    """Evenly spaced looks at the validation images; the best of them gives the weights that are kept."""
    patience: Positive | None = None
    """Looks without improvement after which training stops early (none: it never does)."""

    @model_validator(mode="after")
    def _of_the_task(self) -> Self:
        """Refuse what the task would ignore."""
        owners = {
            "decoder": ("segment",),
            "loss": ("segment",),
            "detector": ("detect",),
            "label_smoothing": ("classify",),
            "class_weights": ("classify", "segment"),
        }
        for name, tasks in owners.items():
            if self.task not in tasks and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: task {self.task} has none (allowed with task {' or '.join(tasks)})")
        return self
