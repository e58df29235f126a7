"""What a view is: a frozen description of an augmentation, named presets, and the key that its draws depend on."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from headstart.errors import unknown
from headstart.randomness import uniforms

Probability = Annotated[float, Field(ge=0, le=1)]
Strength = Annotated[float, Field(ge=0)]
Range = tuple[float, float]

_SMALLEST_VIEW = 8  # pixels; backbones shrink views, and smaller ones would leave them nothing
_LARGEST_SMALL_IMAGE = 64  # pixels; above it backbones shrink views by 16 or more


class _Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Jitter(_Description):
    """Random changes of colour, the four of them in an order drawn per image, as in torchvision's ``ColorJitter``.

    Attributes:
        probability: share of the images that are changed.
        brightness: factors are drawn from [max(0, 1 - x), 1 + x]; 0 leaves the operation out.
        contrast: likewise.
        saturation: likewise; RGB images only.
        hue: shifts are drawn from ±hue, as a share of the colour circle; RGB images only.
    """

    probability: Probability = 1.0
    brightness: Strength = 0.0
    contrast: Strength = 0.0
    saturation: Strength = 0.0
    hue: Annotated[float, Field(ge=0, le=0.5)] = 0.0


class Blur(_Description):
    """Gaussian blur whose kernel is a tenth of the image's side, made odd (SimCLR, arXiv:2002.05709, appendix A).

    Attributes:
        probability: share of the images that are blurred.
        sigma: range of the standard deviation, in pixels of the view.
    """

    probability: Probability = 0.5
    sigma: Range = (0.1, 2.0)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        _check_rising("sigma", self.sigma)
        return self


class Augment(_Description):
    """How a view is made from an image; operations are applied in the order of the attributes.

    Attributes:
        crop: range of the crop's share of the image's area; None takes the largest square in the centre.
        ratio: range of the crop's width divided by its height.
        flip: probability of a left-right flip.
        flip_vertical: probability of an upside-down flip.
        rotate: angles are drawn from ±rotate, in degrees.
        jitter: random changes of colour.
        gray: probability of dropping the colour; RGB images only.
        blur: Gaussian blur.
        solarize: probability of inverting the pixels of at least half brightness.
        side: the side of the view as a share of the run's image size; below 1 for the local views of multi-crop.
    """

    crop: Range | None = None
    ratio: Range = (3 / 4, 4 / 3)
    flip: Probability = 0.0
    flip_vertical: Probability = 0.0
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    jitter: Jitter | None = None
    gray: Probability = 0.0
    blur: Blur | None = None
    solarize: Probability = 0.0
    side: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _check_ranges(self) -> Self:
        if self.crop is not None:
            _check_rising("crop", self.crop, highest=1.0)
        _check_rising("ratio", self.ratio)
        return self

    def pixels(self, image_size: int) -> int:
        """Return the side of the view in pixels, given that of a whole one.

        A smaller side is rounded to what the strides of backbones divide: to an even number for images of at most 64
        px, else to a multiple of 16, so that patches of 8 or 16 px fit.

        >>> local = Augment(side=3 / 7)
        >>> local.pixels(224), local.pixels(64), local.pixels(32), Augment().pixels(225)
        (96, 28, 14, 225)
        """
        if self.side == 1:
            return image_size
        step = 2 if image_size <= _LARGEST_SMALL_IMAGE else 16
        return min(image_size, max(_SMALLEST_VIEW, step, step * round(self.side * image_size / step)))


class Stream(IntEnum):
    """What a draw is for: each operation has draws of its own, so switching one on never changes another's."""

    CROP = 0
    FLIP = 1
    FLIP_VERTICAL = 2
    ROTATE = 3
    JITTER = 4
    GRAY = 5
    BLUR = 6
    SOLARIZE = 7


_STREAMS_PER_VIEW = 64  # room for operations to come, so that they leave the draws of these unchanged


@dataclass(frozen=True, eq=False)
class Key:
    """Which images and which of their views: all that the draws of an augmentation depend on.

    Attributes:
        seed: the seed of the run.
        step: the optimiser step.
        rows: the images' row numbers in their data set, int64 ``[b]``, on the device of the images.
        view: the number of the view, from 0.
    """

    seed: int
    step: int
    rows: Tensor
    view: int = 0

    def draws(self, stream: Stream, count: int) -> Tensor:
        """Return uniform draws for one operation, float32 ``[b, count]`` in [0, 1)."""
        return uniforms(self.seed, self.step, self.rows, self.view * _STREAMS_PER_VIEW + stream, count)


def preset(name: str) -> Augment:
    """Return the preset of that name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise unknown("views", name, PRESETS)
    return PRESETS[name]


def _check_rising(field: str, limits: Range, highest: float = float("inf")) -> None:
    low, high = limits
    if not 0 < low <= high <= highest:
        raise ValueError(f"{field}: ({low}, {high}) is no range, allowed: 0 < low <= high <= {highest}")


# Colour distortion of strength 1 in SimCLR: arXiv:2002.05709, appendix A.
_SIMCLR_JITTER = Jitter(probability=0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)
# BYOL: arXiv:2006.07733, appendix B, table 6.
_BYOL_JITTER = Jitter(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
_LOCAL_SIDE = 3 / 7  # 96 of 224 px: SwAV, arXiv:2006.09882, and DINO, arXiv:2104.14294

PRESETS: dict[str, Augment] = {
    # SimCLR for ImageNet: arXiv:2002.05709, appendix A, colour distortion of strength 1.
    "simclr": Augment(crop=(0.08, 1.0), flip=0.5, jitter=_SIMCLR_JITTER, gray=0.2, blur=Blur(probability=0.5)),
    # SimCLR for CIFAR-10: appendix B.9 of the same paper, colour distortion of strength 0.5 and no blur.
    "simclr-small": Augment(
        crop=(0.08, 1.0),
        flip=0.5,
        jitter=Jitter(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        gray=0.2,
    ),
    # Ours: for images whose classes differ in colour or fine detail, which strong presets teach a network to ignore.
    # The colour distortion is that of the same paper at strength 0.25, without dropping the colour.
    "simclr-weak": Augment(
        crop=(0.5, 1.0),
        flip=0.5,
        jitter=Jitter(probability=0.8, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05),
    ),
    # Supervised training: the crop and flip of torchvision's classification reference (references/classification/
    # presets.py). Ours is the smallest crop, 0.25 instead of 0.08: with few labels, crops that miss the object mislead.
    "standard": Augment(crop=(0.25, 1.0), flip=0.5),
    # Segmentation: a crop of a quarter of the area is a zoom of 2, the largest of DeepLabv3 (arXiv:1706.05587, section
    # 4), which flips, too. Ours are the colours, those of "simclr-weak": of few masks a network would learn theirs.
    "segment": Augment(
        crop=(0.25, 1.0),
        flip=0.5,
        jitter=Jitter(probability=0.8, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05),
    ),
    # Detection: SSD's crops of at least 0.3 of the image (arXiv:1512.02325, section 2.2; there of each side), without
    # its oblong ones, which a square view would distort, and with the colours of "segment".
    "detect": Augment(
        crop=(0.3, 1.0),
        ratio=(0.75, 4 / 3),
        flip=0.5,
        jitter=Jitter(probability=0.8, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05),
    ),
    # Ours: for drawn characters, which a flip would turn into others; 15 degrees is a usual slant of handwriting.
    "digits": Augment(
        crop=(0.6, 1.0),
        ratio=(0.9, 1.1),
        rotate=15.0,
        jitter=Jitter(probability=0.8, brightness=0.4, contrast=0.4),
    ),
    # BYOL: arXiv:2006.07733, appendix B, table 6; the two views differ. Barlow Twins (arXiv:2103.03230) and VICReg
    # (arXiv:2105.04906) take the same.
    "byol-first": Augment(crop=(0.08, 1.0), flip=0.5, jitter=_BYOL_JITTER, gray=0.2, blur=Blur(probability=1.0)),
    "byol-second": Augment(
        crop=(0.08, 1.0), flip=0.5, jitter=_BYOL_JITTER, gray=0.2, blur=Blur(probability=0.1), solarize=0.2
    ),
    # MoCo v2: arXiv:2003.04297; the numbers are those of its code, main_moco.py with --aug-plus.
    "moco": Augment(
        crop=(0.2, 1.0),
        flip=0.5,
        jitter=Jitter(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        gray=0.2,
        blur=Blur(probability=0.5),
    ),
    # SwAV: arXiv:2006.09882; the numbers are those of its code, src/multicropdataset.py, and its README's
    # 2 x 224 + 6 x 96.
    "swav": Augment(crop=(0.14, 1.0), flip=0.5, jitter=_SIMCLR_JITTER, gray=0.2, blur=Blur(probability=0.5)),
    "swav-local": Augment(
        crop=(0.05, 0.14), flip=0.5, jitter=_SIMCLR_JITTER, gray=0.2, blur=Blur(probability=0.5), side=_LOCAL_SIDE
    ),
    # DINO: arXiv:2104.14294; the numbers are those of its code, DataAugmentationDINO in main_dino.py.
    "dino-first": Augment(crop=(0.4, 1.0), flip=0.5, jitter=_BYOL_JITTER, gray=0.2, blur=Blur(probability=1.0)),
    "dino-second": Augment(
        crop=(0.4, 1.0), flip=0.5, jitter=_BYOL_JITTER, gray=0.2, blur=Blur(probability=0.1), solarize=0.2
    ),
    "dino-local": Augment(
        crop=(0.05, 0.4), flip=0.5, jitter=_BYOL_JITTER, gray=0.2, blur=Blur(probability=0.5), side=_LOCAL_SIDE
    ),
    # MAE: arXiv:2111.06377, table 8 (RandomResizedCrop), with the range and the flip of its code, main_pretrain.py.
    "mae": Augment(crop=(0.2, 1.0), flip=0.5),
    # RotNet: arXiv:1803.07728. Its code (dataloader.py) shows at least 0.77 of a CIFAR image (32 px out of 40, of which
    # 8 are padding) and at least 0.08 of an ImageNet one. Ours is 0.6, between the two and nearer to CIFAR: the smaller
    # the crop, the more often it shows nothing that has an upper side.
    "rotation": Augment(crop=(0.6, 1.0), flip=0.5),
    # The whole image, for evaluation.
    "none": Augment(),
}
