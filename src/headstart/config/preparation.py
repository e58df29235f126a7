"""What the user may set of the verbs that look at data and prepare them."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from headstart.config.data import Classes, Data, SmallShare
from headstart.settings import (
    Auto,
    Location,
    NotNegative,
    NotNegativeInt,
    Pixels,
    Positive,
    PositiveFloat,
    Settings,
    Share,
    listed,
)


def _parts(value: object) -> object:
    """Read `train=75,val=15,test=10` as a mapping."""
    if isinstance(value, str):
        pairs = [part.partition("=") for part in value.split(",")]
        if len({name for name, _, _ in pairs}) < len(pairs):
            raise ValueError("a part is given twice")
        return {name.strip(): size.strip() for name, _, size in pairs}
    return value


class Count(Data):
    """Settings of ``headstart count``."""


class Split(Data):
    """Settings of ``headstart split``."""

    parts: Annotated[dict[str, PositiveFloat], BeforeValidator(_parts), Field(min_length=2)]
    """Names and sizes in percent that add up to 100, as in train=75,val=15,test=10 or ssl=80,supervised=20."""
    group: str | None = None
    """What stays in one part: a COLUMN of the table, or a regular expression on paths whose first group names it."""
    by: Literal["manifest", "links", "copies"] = "manifest"
    """How the parts are written: as lists of images, or as folders of links or copies."""
    seed: NotNegativeInt = 0
    """Seed of the choice."""


class Crop(Data):
    """Settings of ``headstart crop``."""

    context: NotNegative = 0.2
    """Padding around an object on each side, as a share of its longer side."""
    min_size: Positive = 32
    """Smallest side of a crop in pixels; around a smaller object the crop takes in more of the picture."""
    background: NotNegativeInt | Literal["equal"] = 0
    """Random crops that touch no labelled object, of the same sizes: a number, or equal for as many as objects."""
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    """JPEG quality of the crops; pixels that are not 8-bit grey or colour are written as TIFF."""
    seed: NotNegativeInt = 0
    """Seed of the background crops."""


class PseudoLabel(Settings):
    """Settings of ``headstart pseudo-label``."""

    images: Location
    """IMAGES: DATA whose labels are not looked at."""
    weights: Location
    """FILE of the detector: an Ultralytics .pt, or the state of a torchvision detector."""
    model: str | Auto = "auto"
    """Detector that the weights are of, as torchvision/fasterrcnn_resnet50_fpn (auto: Ultralytics for a .pt)."""
    confidence: Share = 0.5
    """Smallest score of a box that is kept."""
    classes: Classes = None
    """Classes to keep, as in car,truck; as in vehicle=car,truck they become one (none: all of the detector)."""
    image_size: Pixels | Auto = "auto"
    """Longer side in pixels at which the detector sees the images (auto: as the detector wants)."""
    batch_size: Positive = 8
    """Images at once; decides nothing but speed."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Use at most this many images (none: all)."""
    max_bad: SmallShare = 0.01
    """Share of broken files, such as 1%, up to which they are left out and listed; above it the verb stops."""


class Doctor(Data):
    """Settings of ``headstart doctor``."""

    method: str | Auto = "auto"
    """Method whose views are drawn and timed, and whose training is estimated (auto: the recommended one)."""
    method_args: dict[str, Any] = {}
    """Arguments of the method."""
    model: str = "torchvision/resnet18"
    """MODEL whose training is estimated."""
    model_args: dict[str, Any] = {}
    """Arguments for the library's constructor of the model."""
    image_size: Pixels | Auto = "auto"
    """Height and width in pixels of what the backbone sees (auto: the images' own up to 64, else at most 224)."""
    epochs: Positive | Auto = "auto"
    """Passes over the images, for the estimate (auto: the method's recipe)."""
    batch_size: Positive | Auto = "auto"
    """Images per step, for the estimate (auto: the method's recipe)."""
    near: NotNegativeInt = 4
    """Bits of the 64-bit perceptual hash in which near duplicates differ at most."""
    skip: Annotated[tuple[Literal["duplicates", "speed"], ...], BeforeValidator(listed)] = ()
    """Parts of the examination to leave out: duplicates, speed."""
    seed: NotNegativeInt = 0
    """Seed of the samples that are drawn and timed."""
