"""Segmentation: a decoder of segmentation-models-pytorch on the feature maps of any backbone."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import lcm
from types import MappingProxyType
from typing import final

import torch
import torch.nn.functional as F
from segmentation_models_pytorch.base import SegmentationHead
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from torch import Tensor, nn

from headstart.backbones.torchvision import last_of_each
from headstart.contracts import Backbone, Batch, Task
from headstart.errors import UserError, unknown
from headstart.losses.segmentation import VOID, combined

LEVELS = 4  # maps that FPN and DeepLabV3+ look at, and that a network of one size is resampled to
WIDEST, NARROWEST = 256, 16  # channels of a U-Net's decoder, halved from level to level, as in the library


@dataclass(frozen=True)
class Pyramid:
    """Maps of which each is coarser than the one before, made of the maps of a backbone.

    Attributes:
        sources: the number of the backbone's map that each level is made of.
        dims: the channels of each level, from fine to coarse.
        strides: how many pixels of the image one pixel of each level covers; fractions where patches are cut up.
        multiple: what the sides of an image must be multiples of, in pixels.
    """

    sources: tuple[int, ...]
    dims: tuple[int, ...]
    strides: tuple[float, ...]
    multiple: int

    def __call__(self, maps: Sequence[Tensor], images: Tensor) -> list[Tensor]:
        """Return the levels, from fine to coarse, of images whose sides are multiples of ``multiple``."""
        return [
            _resized(maps[source], _size(images, stride))
            for source, stride in zip(self.sources, self.strides, strict=True)
        ]


def pyramid_of(backbone: Backbone) -> Pyramid:
    """Return the pyramid of a backbone's maps.

    Of several maps of one size the last one is taken. Where all maps are of one size, as in a plain vision transformer,
    four of them are resampled to a quarter, half, once and twice their stride, the strides of ViTDet's simple pyramid
    (arXiv:2203.16527), the earlier the finer as in BEiT (arXiv:2106.08254), but without weights.
    """
    dims, strides = backbone.dims, backbone.strides
    if len(set(strides)) == 1:
        finest = max(strides[0] / 4, 1.0)
        sources = tuple(len(strides) * level // LEVELS for level in range(LEVELS))
        stretched = tuple(finest * 2**level for level in range(LEVELS))
        return Pyramid(sources, tuple(dims[source] for source in sources), stretched, lcm(int(8 * finest), strides[0]))
    levels = tuple(last_of_each(strides))
    return Pyramid(
        levels, tuple(dims[level] for level in levels), tuple(strides[level] for level in levels), strides[-1]
    )


class Head(nn.Module, ABC):
    """A decoder and the convolution that gives logits, with the names and the first weights of the library's models.

    Attributes:
        pyramid: what the decoder looks at.
        decoder: the library's.
        segmentation_head: the library's.
    """

    def __init__(
        self, pyramid: Pyramid, decoder: nn.Module, width: int, channels: int, *, kernel_size: int, upsampling: float
    ) -> None:
        super().__init__()
        self.pyramid = pyramid
        self.decoder = decoder
        self.segmentation_head = SegmentationHead(width, channels, kernel_size=kernel_size, upsampling=upsampling)
        initialize_decoder(self.decoder)
        initialize_head(self.segmentation_head)

    @abstractmethod
    def arranged(self, levels: list[Tensor], images: Tensor) -> list[Tensor]:
        """Return the levels as the library's decoder takes them."""

    def forward(self, maps: Sequence[Tensor], images: Tensor) -> Tensor:
        """Return logits ``[b channels h w]`` of the backbone's maps of images ``[b c h w]``."""
        logits: Tensor = self.segmentation_head(self.decoder(self.arranged(self.pyramid(maps, images), images)))
        return logits


@final
class UnetHead(Head):
    """U-Net (arXiv:1505.04597), up to the size of the image; where there is no map of a size, none is joined on."""

    def __init__(self, pyramid: Pyramid, channels: int) -> None:
        between = _halves(pyramid.strides[0])
        dims = (0, *(0 for _ in between), *pyramid.dims)  # that of the image is not looked at
        widths = [max(WIDEST >> level, NARROWEST) for level in range(len(dims) - 1)]
        decoder = UnetDecoder(encoder_channels=dims, decoder_channels=widths, n_blocks=len(widths))
        super().__init__(pyramid, decoder, widths[-1], channels, kernel_size=3, upsampling=1)
        self.between = between

    def arranged(self, levels: list[Tensor], images: Tensor) -> list[Tensor]:
        """Return the image, whose size alone counts, levels without channels where there is no map, and the levels."""
        empty = [levels[0].new_empty(len(images), 0, *_size(images, stride)) for stride in self.between]
        return [images, *empty, *levels]


@final
class FPNHead(Head):
    """Feature pyramid network (arXiv:1901.02446) on the four coarsest levels."""

    def __init__(self, pyramid: Pyramid, channels: int) -> None:
        strides = pyramid.strides[-LEVELS:]
        if strides != tuple(strides[0] * 2**level for level in range(LEVELS)):
            shown = ", ".join(f"{stride:g}" for stride in pyramid.strides)
            raise UserError(
                f"decoder: fpn needs four maps, each half the size of the one before, and the strides are {shown}"
                " (allowed: unet, deeplabv3plus)"
            )
        decoder = FPNDecoder(encoder_channels=pyramid.dims[-LEVELS:], encoder_depth=LEVELS - 1)
        super().__init__(pyramid, decoder, decoder.out_channels, channels, kernel_size=1, upsampling=strides[0])

    def arranged(self, levels: list[Tensor], images: Tensor) -> list[Tensor]:
        """Return the levels; the library takes the last four."""
        return levels


@final
class DeepLabHead(Head):
    """DeepLabV3+ (arXiv:1802.02611) on the coarsest level and the fourth from it, or the finest.

    The backbone is not dilated, because its features would then be others than those that it was pretrained for: the
    coarsest map is at a stride of 32, not 16, and the rates of its convolutions are half of the paper's 6, 12 and 18,
    to look as far. ``model_args`` dilate a backbone from the start: ``replace_stride_with_dilation`` of torchvision.
    """

    def __init__(self, pyramid: Pyramid, channels: int) -> None:
        level = max(len(pyramid.dims) - LEVELS, 0)
        fine, coarse = pyramid.strides[level], pyramid.strides[-1]
        decoder = DeepLabV3PlusDecoder(
            encoder_channels=(0, 0, pyramid.dims[level], pyramid.dims[-1]),
            encoder_depth=5,
            out_channels=WIDEST,
            atrous_rates=(3, 6, 9),
            output_stride=16,
            aspp_separable=True,
            aspp_dropout=0.5,
        )
        decoder.up = nn.Upsample(scale_factor=coarse / fine, mode="bilinear", align_corners=True)  # not always 4
        super().__init__(pyramid, decoder, WIDEST, channels, kernel_size=1, upsampling=fine)
        self.fine = level

    def arranged(self, levels: list[Tensor], images: Tensor) -> list[Tensor]:
        """Return the fine and the coarse level at the places, third and last, where the library looks for them."""
        return [images, images, levels[self.fine], levels[-1]]


DECODERS: Mapping[str, Callable[[Pyramid, int], Head]] = MappingProxyType(
    {"unet": UnetHead, "fpn": FPNHead, "deeplabv3plus": DeepLabHead}
)


@final
class Segmenter(Task):
    """A decoder on the feature maps of a backbone, frozen or not, which says the class of every pixel.

    Args:
        backbone: gives the maps.
        classes: number of classes.
        decoder: ``unet``, ``fpn`` or ``deeplabv3plus``.
        loss: a loss or a sum, as ``headstart.losses.segmentation.combined`` takes it.
        freeze: train the decoder alone. The backbone then keeps the statistics of its normalisation too.
        class_weights: of each class in the loss, ``[classes]``; None for equal ones.

    Raises:
        UserError: the decoder or the loss is unknown, or does not suit the backbone or the classes.
    """

    class_weights: Tensor | None
    head: Head

    def __init__(
        self,
        backbone: Backbone,
        *,
        classes: int,
        decoder: str = "unet",
        loss: str = "auto",
        freeze: bool = False,
        class_weights: Tensor | None = None,
    ) -> None:
        super().__init__(backbone, freeze=freeze)
        if decoder not in DECODERS:
            raise unknown("decoder", decoder, DECODERS)
        self.loss = combined(loss, classes)
        self.head = DECODERS[decoder](pyramid_of(backbone), self.loss.channels)
        self.register_buffer("class_weights", class_weights, persistent=False)

    def logits(self, images: Tensor) -> Tensor:
        """Return logits ``[b k h w]`` of images ``[b c h w]`` of any size: k is 1, for the second of two, or all.

        Images are continued on the right and below with zeros, the mean colour, as far as the coarsest map wants it.
        """
        height, width = images.shape[2:]
        multiple = self.head.pyramid.multiple
        padded = F.pad(images, (0, -width % multiple, 0, -height % multiple))
        logits: Tensor = self.head(self.features(padded).maps, padded)
        return logits[:, :, :height, :width]

    def probabilities(self, images: Tensor) -> Tensor:
        """Return the probability of each class at each pixel, float32 ``[b classes h w]``."""
        logits = self.logits(images).float()
        if self.loss.channels > 1:
            return logits.softmax(dim=1)
        second = logits.sigmoid()
        return torch.cat([1 - second, second], dim=1)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the loss, and the share of right pixels among those that have a class."""
        logits, labels = self.logits(batch.views[0]), batch.labels
        predicted = logits.detach().argmax(1) if self.loss.channels > 1 else (logits.detach()[:, 0] > 0).long()
        known = labels != VOID
        right = ((predicted == labels) & known).sum() / known.sum().clamp_min(1)
        return {"loss": self.loss(logits, labels, self.class_weights), "train_pixel_accuracy": right}


def _resized(level: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a map at another size, bilinear between the middles of its pixels: at half the size the mean of 2 × 2."""
    if level.shape[2:] == size:
        return level
    return F.interpolate(level, size, mode="bilinear", align_corners=False)


def _size(images: Tensor, stride: float) -> tuple[int, int]:
    return round(images.shape[2] / stride), round(images.shape[3] / stride)


def _halves(stride: float) -> tuple[float, ...]:
    """Return the strides between 1 and a stride, from fine to coarse.

    >>> _halves(8), _halves(2), _halves(3.5)
    ((2.0, 4.0), (), (1.75,))
    """
    found: tuple[float, ...] = ()
    while (stride := stride / 2) > 1:
        found = (stride, *found)
    return found
