"""What the user may set of the verbs that hand over what was learned."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from headstart.config.data import Data, SmallShare
from headstart.settings import Auto, Location, Pixels, Positive, Precision, Settings, Share, Stem, listed

Format = Literal["torchvision", "timm", "ultralytics", "smp", "safetensors", "onnx"]


class Embed(Data):
    """Settings of ``headstart embed``."""

    init: Location
    """Where the backbone's weights come from: a RUN, a weights file, a published library name, or none."""
    splits: Annotated[tuple[Literal["train", "val", "test", "unlabelled"], ...], BeforeValidator(listed)] | None = None
    """Splits of the data to embed, as in train,val (none: all images)."""
    model: str | Auto = "auto"
    """MODEL: torchvision/NAME, timm/NAME or ultralytics/NAME (auto: the RUN's)."""
    model_args: dict[str, Any] = {}
    """Arguments for the library's constructor of the model."""
    stem: Stem = "auto"
    """First layers: small keeps small images large (auto: the RUN's, else small at 64 px and below)."""
    image_size: Pixels | Auto = "auto"
    """Height and width in pixels (auto: the RUN's, else as in pretrain)."""
    batch_size: Positive = 256
    """Images per forward pass; decides nothing but speed."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Seed of the initialisation when init is none."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass (auto: bf16 on a GPU that has it, else fp32)."""
    workers: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Processes that decode images; decides nothing but speed."""


class Export(Settings):
    """Settings of ``headstart export``."""

    run: Location
    """RUN of a pretrain or a finetune."""
    format: Format
    """Whose file it becomes: that of the model's own library, an encoder of smp, safetensors or ONNX."""
    card: bool = False
    """Write FILE.md, too: a model card with data, recipe, scores, normalisation and how to load the file."""


class Predict(Data):
    """Settings of ``headstart predict``."""

    run: Location
    """RUN of a finetune."""
    max_bad: SmallShare = 1.0
    """Share of broken files, such as 1%, up to which they are left out and listed; above it the verb stops."""
    confidence: Share | Auto = "auto"
    """detect: objects that are less sure to be some are left out (auto: 0.25)."""
    draw: bool = True
    """segment, detect: show what was found in pictures, too (--draw=false: masks, boxes and table alone)."""
    batch_size: Positive | Auto = "auto"
    """Images per forward pass; decides nothing but speed (auto: 256, for masks and boxes 16)."""
    precision: Precision = "auto"
    """Arithmetic of the forward pass (auto: bf16 on a GPU that has it, else fp32)."""
    workers: Annotated[int, Field(ge=0)] | Auto = "auto"
    """Processes that decode images; decides nothing but speed."""
