"""The detector: torchvision's own, on any backbone."""

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn_v2

from headstart.backbones import build
from headstart.contracts import Batch, Features, Objects
from headstart.errors import UserError
from headstart.evaluation.detection import Detections, Truth, detection_scores
from headstart.tasks import TASKS, detection
from headstart.tasks.detection import Detector

MODELS = ("torchvision/resnet18", "torchvision/mobilenet_v2", "timm/convnext_atto")
TINY = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
SMALL = {"channels": [16, 32, 64, 128], "layers": [1, 1, 1, 1]}


@pytest.fixture
def narrow(monkeypatch):
    """A pyramid of fewer channels, which learns the same at a tenth of the time."""
    monkeypatch.setattr(detection, "CHANNELS", 64)


def made(model: str, *, size: int = 128, model_args: dict | None = None, **options: object) -> Detector:
    torch.manual_seed(0)
    backbone = build(model, image_size=size, stem="standard", model_args=model_args or {})
    return Detector(backbone, classes=2, image_size=size, **options)


def tiny(**options: object) -> Detector:
    return made("timm/resnet18", model_args=TINY, size=64, **options)


def scene(size: int = 128) -> tuple[Batch, Truth]:
    """Two images with three coloured rectangles each; the colour is the class."""
    images, objects = torch.zeros(2, 3, size, size), []
    generator = torch.Generator().manual_seed(0)
    for image in range(2):
        boxes, labels = [], []
        for number, place in enumerate([(6, 8), (70, 12), (20, 74)]):
            left, top = (edge * size // 128 for edge in place)
            width, height = (torch.randint(20, 48, (2,), generator=generator) * size // 128).tolist()
            labels.append((number + image) % 2)
            boxes.append([left, top, left + width, top + height])
            images[image, labels[-1], top : top + height, left : left + width] = 3
        objects.append(Objects(torch.tensor(boxes).float(), torch.tensor(labels)))
    together = (torch.cat(part) for part in zip(*objects, strict=True))
    truth = Truth(torch.arange(2), torch.full((2, 2), size), torch.arange(2).repeat_interleave(3), *together)
    return Batch((images,), torch.full((2,), -1), torch.arange(2), tuple(objects)), truth


def empty() -> Objects:
    return Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))


def test_it_is_in_the_table():
    assert TASKS["detect"] is Detector


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
@pytest.mark.parametrize("model", MODELS)
def test_gradients_reach_the_whole_network(model, kind, narrow):
    detector = made(model, size=64, detector=kind).train()
    losses = detector.losses(scene(64)[0])
    shown = {name: float(value.detach()) for name, value in losses.items()}
    names = {"retinanet": {"loss", "classification", "box"}, "fcos": {"loss", "classification", "box", "centre"}}
    assert set(losses) == names[kind]
    assert all(value.ndim == 0 and value.isfinite() for value in losses.values())
    assert shown["loss"] == pytest.approx(sum(shown.values()) / 2, rel=1e-5)
    losses["loss"].backward()
    first = next(detector.backbone.parameters())
    assert first.grad is not None
    assert first.grad.abs().max() > 0
    untouched = [name for name, one in detector.head.named_parameters() if one.grad is None]
    assert not untouched


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
@pytest.mark.parametrize("model", ["tiny", *(pytest.param(model, marks=pytest.mark.slow) for model in MODELS)])
def test_two_images_are_learned_by_heart(model, kind, narrow):
    detector = made(model, detector=kind) if model != "tiny" else made("timm/resnet18", detector=kind, model_args=SMALL)
    batch, truth = scene()
    optimizer = torch.optim.Adam(detector.parameters(), lr=1e-3)
    detector.train()
    for _ in range(60):
        optimizer.zero_grad()
        detector.losses(batch)["loss"].backward()
        optimizer.step()
    detector.eval()
    with torch.inference_mode():
        found = detector.detect(batch.views[0])
    images = torch.arange(2).repeat_interleave(torch.tensor([len(one.scores) for one in found]))
    together = Detections(images, *(torch.cat(columns) for columns in zip(*found, strict=True)))
    assert detection_scores(truth, together, ("red", "green"))["map50"] > 0.8


# what torchvision resizes to and subtracts: nothing
AS_IT_IS = {"min_size": 64, "max_size": 64, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
CHOICE = {"score_thresh": detection.LEAST_SCORE, "nms_thresh": detection.OVERLAP, "detections_per_img": detection.MOST}


@pytest.mark.parametrize(
    ("kind", "peer"), [("retinanet", retinanet_resnet50_fpn_v2), ("fcos", fcos_resnet50_fpn)], ids=["retinanet", "fcos"]
)
def test_it_is_torchvisions_own_detector(kind, peer):
    detector = made("torchvision/resnet50", size=64, detector=kind).eval()
    theirs = peer(weights=None, weights_backbone=None, num_classes=2, **AS_IT_IS, **CHOICE).eval()
    body = {f"backbone.body.{key}": value for key, value in detector.backbone.net.state_dict().items()}
    theirs.load_state_dict({**body, **detector.head.state_dict()})
    batch, _ = scene(64)
    images = batch.views[0] + 0.1 * torch.randn_like(batch.views[0])
    with torch.inference_mode():
        wanted = theirs(list(images))
        found = detector.detect(images)
    for ours, other in zip(found, wanted, strict=True):
        assert len(ours.scores) > 10
        for name in ("boxes", "labels", "scores"):
            torch.testing.assert_close(getattr(ours, name), other[name])
    losses = detector.losses(batch._replace(views=(images,)))
    for module in theirs.modules():  # all but the model itself, which gives losses only while it trains
        module.training = module is theirs
    targets = [{"boxes": boxes, "labels": labels} for boxes, labels in batch.objects]
    wanted = sum(value.detach() for value in theirs(list(images), targets).values())
    torch.testing.assert_close(losses["loss"].detach(), wanted)


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_images_without_objects_are_learned_from(kind, narrow):
    detector = tiny(detector=kind)
    images = torch.randn(2, 3, 64, 64)
    some = Objects(torch.tensor([[4.0, 4.0, 40.0, 40.0]]), torch.tensor([1]))
    for objects in ((empty(), empty()), (some, empty())):
        losses = detector.losses(Batch((images,), torch.zeros(2), torch.arange(2), objects))
        assert all(value.isfinite() for value in losses.values())
        losses["loss"].backward()
        assert next(detector.backbone.parameters()).grad.isfinite().all()


@pytest.mark.parametrize("kind", ["retinanet", "fcos"])
def test_what_is_found_is_in_the_image_and_in_order(kind, narrow):
    detector = tiny(detector=kind).eval()
    with torch.inference_mode():
        for found in detector.detect(torch.randn(3, 3, 64, 64)):
            assert 0 < len(found.scores) <= detection.MOST
            assert found.boxes.min() >= 0
            assert found.boxes.max() <= 64
            assert (found.scores.diff() <= 0).all()
            assert set(found.labels.tolist()) <= {0, 1}


def test_a_frozen_backbone_stays_as_it_is(narrow):
    detector = tiny(freeze=True).train()
    before = {key: value.clone() for key, value in detector.backbone.state_dict().items()}
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.1)
    some = Objects(torch.tensor([[4.0, 4.0, 40.0, 40.0]]), torch.tensor([1]))
    loss = detector.losses(Batch((torch.randn(2, 3, 64, 64),), torch.zeros(2), torch.arange(2), (some, some)))["loss"]
    loss.backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in detector.backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in detector.backbone.state_dict().items())
    assert not detector.backbone.training
    assert detector.head.training


def test_anchors_grow_with_the_strides(narrow):
    anchors = tiny().head.anchor_generator
    sides = [level[0] for level in anchors.sizes]
    assert sides == [32, 64, 128, 256, 512]
    assert set(anchors.num_anchors_per_location()) == {9}


def test_a_vision_transformer_has_one_map_to_stand_on(narrow):
    args = {"depth": 4, "embed_dim": 48, "num_heads": 3}
    detector = made("timm/vit_tiny_patch16_224", size=64, model_args=args)
    assert len(detector.places) == 1
    assert detector.places[0] == len(detector.backbone.strides) - 1
    with torch.inference_mode():
        assert len(detector.eval().answers(torch.randn(1, 3, 64, 64)).counts) == 3


def test_half_precision_gives_boxes_in_full(narrow):
    detector = tiny().eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        answers = detector.answers(torch.randn(1, 3, 64, 64))
        found = detector.found_in(answers)[0]
    assert found.boxes.dtype == found.scores.dtype == torch.float32
    assert answers.anchors[0].dtype == torch.float32


class Fine(torch.nn.Module):
    """A backbone whose maps are too fine."""

    dim, dims, strides = 4, (4, 4), (2, 4)

    def features(self, images):
        return Features(images.mean((2, 3)), [images, images])


def test_a_backbone_without_a_coarse_map_is_refused():
    with pytest.raises(UserError, match="strides 2, 4 "):
        Detector(Fine(), classes=2, image_size=64)


def test_images_smaller_than_the_stride_are_refused():
    with pytest.raises(UserError, match="image_size: 16"):
        Detector(build("timm/resnet18", image_size=16, stem="standard", model_args=TINY), classes=2, image_size=16)
