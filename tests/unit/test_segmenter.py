"""Decoders on the feature maps of every kind of backbone."""

from functools import cache

import pytest
import safetensors.torch
import segmentation_models_pytorch as smp
import torch
from torch import nn

from headstart.backbones import build
from headstart.contracts import Backbone, Batch, Features
from headstart.errors import UserError
from headstart.tasks import TASKS
from headstart.tasks.segmentation import DECODERS, Segmenter, pyramid_of

TINY = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}
BACKBONES = {
    "resnet": {"model": "torchvision/resnet18", "image_size": 96},
    "resnet, small stem": {"model": "torchvision/resnet18", "image_size": 32},
    "mobilenet": {"model": "torchvision/mobilenet_v2", "image_size": 96},
    "convnext": {"model": "timm/convnext_atto", "image_size": 96},
    "vit": {"model": "timm/test_vit", "image_size": 96},
    "vit, small stem": {"model": "timm/test_vit", "image_size": 32},
    "vit of two blocks": {"model": "timm/vit_tiny_patch16_224", "image_size": 64, "stem": "standard",
                          "model_args": {"depth": 2, "embed_dim": 48, "num_heads": 3}},
    "patches of 14": {"model": "timm/vit_tiny_patch16_224", "image_size": 56, "stem": "standard",
                      "model_args": {"depth": 4, "embed_dim": 48, "num_heads": 3, "patch_size": 14}},
    "yolo": {"model": "ultralytics/yolov8n", "image_size": 96},
}  # fmt: skip


@cache
def backbone_of(name):
    if name == "yolo":
        pytest.importorskip("ultralytics")
    torch.manual_seed(0)
    return build(**BACKBONES[name])


def images(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch(classes=2, size=32):
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(-1, classes, (2, size, size), generator=generator)
    return Batch((images(2, 3, size, size),), labels, torch.arange(2))


def first_weight(segmenter):
    return next(segmenter.backbone.parameters())


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("name", BACKBONES)
def test_every_decoder_takes_every_backbone_and_any_size(name, decoder):
    segmenter = Segmenter(backbone_of(name), classes=3, decoder=decoder, loss="ce+dice")
    logits = segmenter.logits(images(2, 3, 37, 53))
    assert logits.shape == (2, 3, 37, 53)
    assert torch.isfinite(logits).all()
    segmenter.zero_grad()
    logits.square().mean().backward()
    reached = [parameter.grad is not None and bool(parameter.grad.any()) for parameter in segmenter.head.parameters()]
    assert all(reached)
    first = next(layer for layer in segmenter.backbone.modules() if isinstance(layer, nn.Conv2d))
    assert first.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_frozen_backbone_gets_no_gradient_and_keeps_its_statistics(decoder):
    segmenter = Segmenter(
        build("timm/resnet18", image_size=32, model_args=TINY), classes=2, decoder=decoder, freeze=True
    )
    before = {name: value.clone() for name, value in segmenter.backbone.state_dict().items()}
    segmenter.train()
    segmenter.losses(batch())["loss"].backward()
    assert all(parameter.grad is None for parameter in segmenter.backbone.parameters())
    assert all(torch.equal(value, before[name]) for name, value in segmenter.backbone.state_dict().items())
    assert not segmenter.backbone.training
    assert segmenter.head.training
    assert all(parameter.grad is not None for parameter in segmenter.head.parameters())


def copy_head(segmenter, model):
    state = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    segmenter.head.load_state_dict(state)  # strict: every name and shape is the library's


@pytest.mark.parametrize(("decoder", "peer"), [("unet", smp.Unet), ("fpn", smp.FPN)])
@torch.no_grad()
def test_logits_on_a_resnet_are_those_of_segmentation_models_pytorch(decoder, peer):
    model = peer("resnet18", encoder_weights=None, classes=3).eval()
    segmenter = Segmenter(build("torchvision/resnet18", image_size=96), classes=3, decoder=decoder).eval()
    segmenter.backbone.net.load_state_dict(model.encoder.state_dict())
    copy_head(segmenter, model)
    found, expected = segmenter.logits(images(2, 3, 64, 96)), model(images(2, 3, 64, 96))
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_logits_on_a_network_without_a_map_of_stride_two_are_those_of_segmentation_models_pytorch():
    model = smp.Unet("tu-convnext_atto", encoder_weights=None, classes=2).eval()
    segmenter = Segmenter(build("timm/convnext_atto", image_size=96), classes=2, loss="ce").eval()
    copy_head(segmenter, model)
    maps = segmenter.backbone.features(images(2, 3, 64, 64)).maps
    half = torch.empty(2, 0, 32, 32)
    expected = model.segmentation_head(model.decoder([images(2, 3, 64, 64), half, *maps]))
    torch.testing.assert_close(segmenter.logits(images(2, 3, 64, 64)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("decoder", "peer"), [("unet", smp.Unet), ("fpn", smp.FPN)])
def test_a_new_head_begins_as_that_of_segmentation_models_pytorch(decoder, peer):
    model = peer("resnet18", encoder_weights=None, classes=1)
    head = Segmenter(build("torchvision/resnet18", image_size=96), classes=2, decoder=decoder).head
    theirs = model.state_dict()
    for name, value in head.state_dict().items():
        assert value.float().std(unbiased=False) == pytest.approx(
            float(theirs[name].float().std(unbiased=False)), rel=0.3, abs=1e-6
        ), name
    for name in ("decoder", "segmentation_head"):
        assert sum(value.abs().sum() for value in getattr(head, name).parameters()) > 0


@torch.no_grad()
def test_odd_sizes_are_continued_with_the_mean_colour_and_cut_back():
    segmenter = Segmenter(backbone_of("resnet"), classes=2).eval()
    small = images(1, 3, 37, 53)
    large = torch.zeros(1, 3, 64, 64)
    large[:, :, :37, :53] = small
    assert torch.equal(segmenter.logits(small), segmenter.logits(large)[:, :, :37, :53])


@torch.no_grad()
def test_probabilities_of_one_logit_are_its_sigmoid_and_those_of_several_their_softmax():
    one = Segmenter(backbone_of("resnet"), classes=2).eval()
    seen = images(2, 3, 32, 32)
    assert one.logits(seen).shape == (2, 1, 32, 32)
    torch.testing.assert_close(one.probabilities(seen)[:, 1:], one.logits(seen).sigmoid())
    several = Segmenter(backbone_of("resnet"), classes=3).eval()
    torch.testing.assert_close(several.probabilities(seen), several.logits(seen).softmax(1))
    for segmenter, classes in ((one, 2), (several, 3)):
        found = segmenter.probabilities(seen)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.sum(1), torch.ones(2, 32, 32))
        assert found.shape[1] == classes


@pytest.mark.parametrize(("classes", "loss"), [(2, "auto"), (2, "ce"), (3, "focal+dice")])
def test_losses_are_those_of_the_logits_and_accuracy_leaves_void_out(classes, loss):
    segmenter = Segmenter(backbone_of("resnet"), classes=classes, loss=loss, class_weights=torch.ones(classes)).eval()
    seen = batch(classes)
    found = segmenter.losses(seen)
    expected = segmenter.loss(segmenter.logits(seen.views[0]), seen.labels)
    torch.testing.assert_close(found["loss"], expected)
    predicted = segmenter.probabilities(seen.views[0]).argmax(1)
    right = (predicted == seen.labels)[seen.labels >= 0].float().mean()
    torch.testing.assert_close(found["train_pixel_accuracy"], right)


def test_class_weights_reach_the_loss_and_are_not_saved():
    weights = torch.tensor([0.1, 5.0])
    segmenter = Segmenter(backbone_of("resnet"), classes=2, class_weights=weights).eval()
    seen = batch()
    logits = segmenter.logits(seen.views[0])
    torch.testing.assert_close(segmenter.losses(seen)["loss"], segmenter.loss(logits, seen.labels, weights))
    assert segmenter.losses(seen)["loss"] != segmenter.loss(logits, seen.labels)
    assert "class_weights" not in segmenter.state_dict()


def test_losses_leave_no_trace_and_repeat():
    segmenter = Segmenter(backbone_of("vit"), classes=2, decoder="deeplabv3plus").eval()
    first, second = segmenter.losses(batch()), segmenter.losses(batch())
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("decoder", DECODERS)
def test_half_precision_changes_the_loss_by_little(decoder):
    segmenter = Segmenter(backbone_of("resnet"), classes=2, decoder=decoder, loss="bce+dice").eval()
    with torch.no_grad():
        exact = segmenter.losses(batch())["loss"]
        with torch.autocast("cpu", torch.bfloat16):
            half = segmenter.losses(batch())["loss"]
            chances = segmenter.probabilities(batch().views[0])
    assert half.dtype == chances.dtype == torch.float32
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0)


def test_a_batch_without_any_class_gives_no_gradient():
    segmenter = Segmenter(build("timm/resnet18", image_size=32, model_args=TINY), classes=2, loss="bce+dice+focal")
    seen = batch()
    found = segmenter.losses(seen._replace(labels=torch.full_like(seen.labels, -1)))
    found["loss"].backward()
    assert found["loss"].item() == 0
    assert float(first_weight(segmenter).grad.abs().sum()) == 0


@torch.no_grad()
def test_a_saved_head_is_loaded_again(tmp_path):
    segmenter = Segmenter(backbone_of("convnext"), classes=4, decoder="fpn").eval()
    safetensors.torch.save_file(segmenter.head.state_dict(), tmp_path / "head.safetensors")
    torch.manual_seed(5)
    again = Segmenter(backbone_of("convnext"), classes=4, decoder="fpn").eval()
    seen = images(1, 3, 64, 64)
    assert not torch.equal(again.logits(seen), segmenter.logits(seen))
    again.head.load_state_dict(safetensors.torch.load_file(tmp_path / "head.safetensors"))
    assert torch.equal(again.logits(seen), segmenter.logits(seen))


def test_the_head_holds_all_that_is_not_the_backbone():
    segmenter = Segmenter(backbone_of("yolo"), classes=2)
    names = {name.split(".")[0] for name, _ in segmenter.named_parameters()}
    assert names == {"backbone", "head"}


@pytest.mark.parametrize(
    ("name", "strides", "multiple"),
    [
        ("resnet", (2, 4, 8, 16, 32), 32),
        ("resnet, small stem", (1, 2, 4, 8), 8),
        ("convnext", (4, 8, 16, 32), 32),
        ("vit", (4, 8, 16, 32), 32),
        ("patches of 14", (3.5, 7, 14, 28), 28),
        ("vit, small stem", (1, 2, 4, 8), 8),
    ],
)
@torch.no_grad()
def test_pyramids_are_as_they_say(name, strides, multiple):
    backbone = backbone_of(name)
    pyramid = pyramid_of(backbone)
    assert (pyramid.strides, pyramid.multiple) == (strides, multiple)
    seen = images(1, 3, 2 * multiple, 3 * multiple)
    levels = pyramid(backbone.features(seen).maps, seen)
    shapes = [
        (dim, 2 * multiple / stride, 3 * multiple / stride) for dim, stride in zip(pyramid.dims, strides, strict=True)
    ]
    assert [level.shape[1:] for level in levels] == shapes


def test_the_levels_of_a_transformer_are_of_its_blocks_in_order():
    backbone = backbone_of("vit")
    seen = images(1, 3, 64, 64)
    maps = backbone.eval().features(seen).maps
    levels = pyramid_of(backbone)(maps, seen)
    torch.testing.assert_close(levels[2], maps[2])
    torch.testing.assert_close(levels[3], nn.functional.avg_pool2d(maps[3], 2))
    torch.testing.assert_close(levels[0].mean(), maps[0].mean(), atol=0.05, rtol=0.1)


class Coarse(Backbone):
    """Three maps of which one is missing."""

    dim, dims, strides = 4, (4, 4, 4), (4, 8, 32)

    def __init__(self):
        super().__init__()
        self.net = nn.Conv2d(3, 4, 1)

    def features(self, images):
        seen = self.net(images)
        maps = [nn.functional.avg_pool2d(seen, stride) for stride in self.strides]
        return Features(maps[-1].mean((2, 3)), maps)


def test_a_pyramid_with_a_gap_is_refused_by_fpn_alone():
    with pytest.raises(UserError, match=r"^decoder: fpn needs four maps.* are 4, 8, 32 \(allowed: unet, deeplab"):
        Segmenter(Coarse(), classes=2, decoder="fpn")
    for decoder in ("unet", "deeplabv3plus"):
        assert Segmenter(Coarse(), classes=2, decoder=decoder).logits(images(2, 3, 40, 70)).shape == (2, 1, 40, 70)


def test_dilated_backbones_are_taken_as_they_are():
    arguments = {"replace_stride_with_dilation": [False, False, True]}
    backbone = build("torchvision/resnet50", image_size=96, model_args=arguments)
    assert pyramid_of(backbone).strides == (2, 4, 8, 16)
    assert pyramid_of(backbone).dims == (64, 256, 512, 2048)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"decoder": "unett"}, "^decoder: unknown 'unett', did you mean 'unet'"),
        ({"loss": "bce+dize"}, "^loss: unknown 'dize'"),
        ({"loss": "bce", "classes": 3}, "^loss: bce tells two classes apart"),
    ],
)
def test_unknown_parts_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        Segmenter(backbone_of("resnet"), **{"classes": 2, **settings})
    assert "\n" not in str(caught.value)


def test_segment_is_a_task():
    assert TASKS["segment"] is Segmenter


def test_a_grey_image_is_segmented_too():
    backbone = build("torchvision/resnet18", image_size=32, channels=1)
    assert Segmenter(backbone, classes=2).logits(images(2, 1, 16, 24)).shape == (2, 1, 16, 24)
