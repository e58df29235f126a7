"""Detection: torchvision's RetinaNet or FCOS on the feature maps of any backbone."""

from collections import OrderedDict
from functools import partial
from typing import Any, Literal, NamedTuple, final

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from headstart.contracts import Backbone, Batch, Objects, Task
from headstart.errors import UserError

FINEST = 8  # pixels of the image to one of the finest map; torchvision's detectors begin there too
CHANNELS = 256  # of every map of the pyramid
ANCHOR = 4  # strides to the side of the smallest anchor: 32, 64, 128 … px, as in RetinaNet (arXiv:1708.02002)
SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
RATIOS = (0.5, 1.0, 2.0)
# torchvision's is 0.05 and more; a detector that has seen few labels is hardly ever that sure, and ranks well below
LEAST_SCORE = 0.01
OVERLAP = 0.5  # IoU from which of two boxes of one class the less confident is dropped
MOST = 300  # boxes of an image


class Found(NamedTuple):
    """What was found in an image, the most confident first.

    Attributes:
        boxes: left, top, right and bottom in pixels of what the detector saw, float32 ``[n 4]``.
        labels: class numbers, int64 ``[n]``.
        scores: confidence in 0..1, float32 ``[n]``.
    """

    boxes: Tensor
    labels: Tensor
    scores: Tensor


class Answers(NamedTuple):
    """What a head says of images.

    Attributes:
        outputs: of every anchor, by name, each float32 ``[b anchors c]``.
        anchors: of each image, float32 ``[anchors 4]`` in pixels.
        counts: how many anchors there are in each map of the pyramid.
        size: height and width of the images.
    """

    outputs: dict[str, Tensor]
    anchors: list[Tensor]
    counts: list[int]
    size: tuple[int, int]


class Pyramid(nn.Module):
    """A feature pyramid on maps of a backbone, with two coarser maps on top.

    Args:
        dims: the channels of the maps, from fine to coarse.
        coarser: the channels of the map that the two are made of: the backbone's coarsest, or the pyramid's.
    """

    def __init__(self, dims: list[int], coarser: int) -> None:
        super().__init__()
        self.out_channels = CHANNELS
        self.fpn = FeaturePyramidNetwork(dims, CHANNELS, LastLevelP6P7(coarser, CHANNELS))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Return the maps of the pyramid, each ``[b 256 h w]``, from fine to coarse."""
        return list(self.fpn(OrderedDict((str(place), one) for place, one in enumerate(maps))).values())


@final
class Detector(Task):
    """A one-stage detector on a backbone, frozen or not.

    Heads, losses and the choice of boxes are torchvision's: those of ``retinanet_resnet50_fpn_v2`` (Lin et al. 2017,
    arXiv:1708.02002, with group normalisation and the generalised IoU as the loss of boxes) and of
    ``fcos_resnet50_fpn`` (Tian et al. 2019, arXiv:1904.01355). The weights of ``head`` have their key names.
    The pyramid stands on the last map of each stride from 8 px on, so that of a plain vision transformer on one.

    Args:
        backbone: gives the feature maps.
        classes: number of classes.
        detector: ``retinanet`` or ``fcos``.
        freeze: train the head alone. The backbone then keeps the statistics of its normalisation too.
        image_size: the side of the images in pixels.

    Raises:
        UserError: the backbone has no map of stride 8 or more, or the images are smaller than its stride.
    """

    head: Any  # torchvision's, whose parts mypy does not know

    def __init__(
        self,
        backbone: Backbone,
        *,
        classes: int,
        detector: Literal["retinanet", "fcos"] = "retinanet",
        freeze: bool = False,
        image_size: int,
    ) -> None:
        super().__init__(backbone, freeze=freeze)
        places = {stride: place for place, stride in enumerate(backbone.strides) if stride >= FINEST}
        strides = list(places)
        if not strides:
            shown = ", ".join(map(str, dict.fromkeys(backbone.strides)))
            raise UserError(
                f"model: its feature maps have strides {shown} (allowed: one of {FINEST} or more to detect)"
            )
        if image_size < strides[-1]:
            raise UserError(f"image_size: {image_size} (allowed with this model: {strides[-1]} or more)")
        self.places = list(places.values())
        dims = [backbone.dims[place] for place in self.places]
        build = {"retinanet": _retinanet, "fcos": _fcos}[detector]
        self.head = build(dims, [*strides, 2 * strides[-1], 4 * strides[-1]], classes)

    def answers(self, images: Tensor) -> Answers:
        """Return what the head says of images, float ``[b c h w]``, normalised."""
        maps = self.features(images).maps
        levels = self.head.backbone([maps[place] for place in self.places])
        # boxes need more digits than half precision has
        outputs = {name: value.float() for name, value in self.head.head(levels).items()}
        height, width = images.shape[-2:]
        levels = [level.float() for level in levels]  # anchors are of their type
        anchors = self.head.anchor_generator(ImageList(images, [(height, width)] * len(images)), levels)
        of_each = outputs["cls_logits"].shape[1] // sum(level[0, 0].numel() for level in levels)
        return Answers(outputs, anchors, [of_each * level[0, 0].numel() for level in levels], (height, width))

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the sum of the losses of classes, boxes and, of FCOS, centres, and each of them."""
        return self.losses_of(self.answers(batch.views[0]), batch.objects)

    def losses_of(self, answers: Answers, objects: tuple[Objects, ...]) -> dict[str, Tensor]:
        """Return the losses of answers, given the objects of each image, of which there may be none."""
        targets = [{"boxes": boxes, "labels": labels} for boxes, labels in objects]
        counts = [answers.counts] if isinstance(self.head, FCOS) else []
        found = self.head.compute_loss(targets, answers.outputs, answers.anchors, *counts)
        names = {"classification": "classification", "bbox_regression": "box", "bbox_ctrness": "centre"}
        parts = {names[name]: value for name, value in found.items()}
        return {"loss": torch.stack([*parts.values()]).sum(), **{name: part.detach() for name, part in parts.items()}}

    def detect(self, images: Tensor) -> list[Found]:
        """Return what is found in each of the images, float ``[b c h w]``, normalised: at most 300 boxes."""
        return self.found_in(self.answers(images))

    def found_in(self, answers: Answers) -> list[Found]:
        """Return the boxes that answers amount to, for each image."""
        outputs = {name: list(torch.split(value, answers.counts, dim=1)) for name, value in answers.outputs.items()}
        anchors = [list(torch.split(one, answers.counts)) for one in answers.anchors]
        found = self.head.postprocess_detections(outputs, anchors, [answers.size] * len(anchors))
        return [Found(one["boxes"], one["labels"], one["scores"]) for one in found]


def _retinanet(dims: list[int], strides: list[int], classes: int) -> Any:
    sizes = tuple(tuple(int(ANCHOR * stride * scale) for scale in SCALES) for stride in strides)
    anchors = AnchorGenerator(sizes, (RATIOS,) * len(sizes))
    of_each = anchors.num_anchors_per_location()[0]
    head = RetinaNetHead(CHANNELS, of_each, classes, norm_layer=partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"  # as torchvision itself sets it
    return RetinaNet(Pyramid(dims, dims[-1]), classes, anchor_generator=anchors, head=head, **_CHOICE)


def _fcos(dims: list[int], strides: list[int], classes: int) -> Any:
    anchors = AnchorGenerator(tuple((stride,) for stride in strides), ((1.0,),) * len(strides))
    return FCOS(Pyramid(dims, CHANNELS), classes, anchor_generator=anchors, **_CHOICE)


_CHOICE: dict[str, Any] = {"score_thresh": LEAST_SCORE, "nms_thresh": OVERLAP, "detections_per_img": MOST}
