"""Detectors of torchvision and of Ultralytics with given weights, behind one contract."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import ceil, inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.detection._utils import overwrite_eps

from headstart.backbones import yolo
from headstart.backbones.weights import COUNTER, read_weights
from headstart.errors import UserError, unknown
from headstart.settings import Auto

MOST = 1000  # objects in an image; the libraries' own 100 and 300 are too few for aerial pictures
OVERLAP = 0.7  # IoU above which the weaker of two boxes of a class goes, as Ultralytics predicts
YOLO_SIZE = 640  # pixels, where a checkpoint does not tell its own
WITHOUT_BACKGROUND = ("fcos", "retinanet")  # their first class is an object's; that of all others is the background
NO_EPSILON = ("fasterrcnn_resnet50_fpn", "maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn")
NO_OBJECT = "N/A"  # torchvision's name for the categories that COCO has left out


class Found(NamedTuple):
    """The objects that a detector finds in an image.

    Attributes:
        boxes: left, top, right, bottom in pixels of the image, float32 ``[n 4]``.
        scores: the detector's confidence in 0..1, float32 ``[n]``.
        labels: keys of the detector's ``names``, int64 ``[n]``.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor


class Detector(ABC):
    """What finds objects in images.

    Attributes:
        names: the class names by label.
    """

    names: Mapping[int, str]

    def detect(self, images: Sequence[Tensor]) -> list[Found]:
        """Return the objects in images, each uint8 ``[3 h w]`` of any size.

        What is found in an image does not depend on the others: only images of one size are seen together.
        """
        found: dict[int, Found] = {}
        for size in dict.fromkeys(image.shape for image in images):
            places = [place for place, image in enumerate(images) if image.shape == size]
            seen = self.detect_equal(torch.stack([images[place] for place in places]))
            found |= dict(zip(places, seen, strict=True))
        return [found[place] for place in range(len(images))]

    @abstractmethod
    def detect_equal(self, images: Tensor) -> list[Found]:
        """Return the objects in images of one size, uint8 ``[b 3 h w]``."""


class TorchvisionDetector(Detector):
    """A detector of torchvision, which scales the images and normalises them itself."""

    def __init__(self, net: nn.Module, names: Mapping[int, str], device: torch.device) -> None:
        self.net = net.eval().to(device)
        self.names = names
        self.device = device

    @torch.inference_mode()
    def detect_equal(self, images: Tensor) -> list[Found]:
        """Return the objects in images of one size, uint8 ``[b 3 h w]``."""
        seen = self.net(list(images.to(self.device) / 255))
        found = []
        for objects in seen:
            boxes, scores, labels = (objects[key].cpu() for key in ("boxes", "scores", "labels"))
            named = torch.isin(labels, torch.tensor([*self.names]))
            found.append(Found(boxes[named], scores[named], labels[named]))
        return found


class UltralyticsDetector(Detector):
    """A YOLO network of Ultralytics, with the scaling and the selection of boxes that its own predictor has."""

    def __init__(self, net: Any, confidence: float, image_size: int | Auto, device: torch.device) -> None:
        self.net = net.to(device)
        names = net.names
        self.names = dict(enumerate(names)) if isinstance(names, list) else {int(key): names[key] for key in names}
        self.confidence = confidence
        self.device = device
        self.stride = int(max(net.stride))
        asked = int(net.args.get("imgsz") or YOLO_SIZE) if image_size == "auto" else image_size
        self.side = max(ceil(asked / self.stride), 1) * self.stride

    @torch.inference_mode()
    def detect_equal(self, images: Tensor) -> list[Found]:
        """Return the objects in images of one size, uint8 ``[b 3 h w]``."""
        letterbox = yolo.library("data.augment").LetterBox((self.side, self.side), auto=True, stride=self.stride)
        boxed = np.stack([letterbox(image=image) for image in images.permute(0, 2, 3, 1).contiguous().numpy()])
        batch = torch.from_numpy(boxed).permute(0, 3, 1, 2).to(self.device) / 255
        rows = yolo.library("utils.nms").non_max_suppression(
            first_tensor(self.net(batch)),
            self.confidence,
            OVERLAP,
            max_det=MOST,
            nc=len(self.names),
            max_time_img=inf,  # a slow machine must not find less
            end2end=bool(getattr(self.net, "end2end", False)),
        )
        scale = yolo.library("utils.ops").scale_boxes
        found = []
        for seen in rows:
            seen = seen.cpu()
            boxes = scale(batch.shape[2:], seen[:, :4].clone(), tuple(images.shape[2:]))
            found.append(Found(boxes, seen[:, 4], seen[:, 5].long()))
        return found


def first_tensor(output: Any) -> Tensor:
    """Return the boxes in what a YOLO network gives; for masks and in training there is more behind them."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


def load_detector(
    weights: Path, model: str | Auto, *, confidence: float, image_size: int | Auto, device: torch.device
) -> Detector:
    """Return a detector with the weights in a file, of which no pickle is executed.

    Args:
        weights: an Ultralytics ``.pt``, or the state of a detector of torchvision (``.safetensors``, ``.pth``).
        model: ``torchvision/NAME``, ``ultralytics``, or ``auto`` for Ultralytics if the file is a ``.pt``.
        confidence: of the objects that are returned, at least.
        image_size: the longer side in pixels at which images are seen; ``auto`` for what the detector wants.
        device: where it is computed.

    Raises:
        UserError: the file is none of these, or the model is another one.
    """
    if weights.is_dir():
        raise UserError(f"weights: {weights} is a folder (allowed: the file of a detector's weights)")
    library, _, name = model.partition("/")
    if library == "ultralytics" or (model == "auto" and weights.suffix == ".pt"):
        return UltralyticsDetector(ultralytics_net(weights), confidence, image_size, device)
    if model == "auto":
        raise UserError(
            f"model: is needed to read {weights.name} (allowed: torchvision/NAME, such as torchvision/{NO_EPSILON[0]})"
        )
    if library != "torchvision" or name not in torchvision_names():
        raise unknown("model", model, [f"torchvision/{known}" for known in torchvision_names()] + ["ultralytics"])
    try:
        state = read_weights(weights)
    except UserError as error:
        raise UserError(f"weights: {str(error).removeprefix('init: ')}") from error
    classes = number_of_classes(name, state)
    net = torchvision_net(name, classes, state, weights)
    aim(net, name, confidence, image_size)
    return TorchvisionDetector(net, class_names(name, classes), device)


def ultralytics_net(weights: Path) -> nn.Module:
    """Return the network in an Ultralytics checkpoint, or raise when it is none that finds upright boxes."""
    net = yolo.read_network(weights, "weights")
    tasks = yolo.library("nn.tasks")
    others: tuple[type, ...] = (tasks.OBBModel, tasks.RTDETRDetectionModel)  # turned boxes, and another scaling
    upright: bool = isinstance(net, tasks.DetectionModel) and not isinstance(net, others)
    if not upright:
        raise UserError(
            f"weights: {weights.name} holds a {type(net).__name__} (allowed: YOLO for detection, segmentation or pose)"
        )
    return net


def torchvision_names() -> list[str]:
    """Return the names of torchvision's detectors."""
    return list(torchvision.models.list_models(module=torchvision.models.detection))


def torchvision_net(name: str, classes: int, state: Mapping[str, Tensor], weights: Path) -> nn.Module:
    """Return a detector of torchvision with a state, or raise a UserError when it does not fit."""
    net = create(name, classes)
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"weights: {weights} does not fit torchvision/{name}: {reason[:300]}") from error
    if name in NO_EPSILON and not any(COUNTER in key for key in state):
        overwrite_eps(net, 0.0)  # as torchvision does for what it trained with frozen normalisations
    return net


def create(name: str, classes: int) -> nn.Module:
    """Return a detector of torchvision with random weights."""
    net: nn.Module = torchvision.models.get_model(name, weights=None, weights_backbone=None, num_classes=classes)
    return net


def number_of_classes(name: str, state: Mapping[str, Tensor]) -> int:
    """Return for how many classes a state of a torchvision detector is, the background among them if it has one.

    It is read from a tensor whose length grows with the classes; 1 where the state has no such tensor.
    """
    with torch.device("meta"):
        two, three = (create(name, classes).state_dict() for classes in (2, 3))
    for key, tensor in two.items():
        each = len(three[key]) - len(tensor) if tensor.ndim else 0
        if each and key in state and state[key].ndim:
            return max(1, 2 + (len(state[key]) - len(tensor)) // each)
    return 1


def class_names(name: str, classes: int) -> dict[int, str]:
    """Return the names of a torchvision detector's classes by label: COCO's where there are as many, else numbers."""
    published = torchvision.models.get_model_weights(name).DEFAULT.meta["categories"]
    if len(published) == classes:
        return {label: text for label, text in enumerate(published) if label and text != NO_OBJECT}
    first = 0 if name.startswith(WITHOUT_BACKGROUND) else 1
    return {label: str(label) for label in range(first, classes)}


def aim(net: Any, name: str, confidence: float, image_size: int | Auto) -> None:
    """Set the lowest confidence, the number of objects and the image size of a torchvision detector."""
    selection = net.roi_heads if hasattr(net, "roi_heads") else net
    selection.score_thresh = confidence
    selection.detections_per_img = MOST
    if image_size == "auto":
        return
    if net.transform.fixed_size is not None:
        raise UserError(f"image_size: torchvision/{name} sees images at {net.transform.fixed_size[0]} (allowed: auto)")
    net.transform.min_size, net.transform.max_size = (image_size,), image_size
