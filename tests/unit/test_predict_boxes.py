"""Predicted boxes lie in the pixels of the images, as torchvision and Ultralytics themselves find them."""

import csv
import json

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from scipy.optimize import linear_sum_assignment
from torchvision.transforms.v2 import functional as torchvision_functional

import headstart
from headstart.backbones import build
from headstart.backbones.yolo import describe, library
from headstart.data.loading import IMAGENET_MEAN, IMAGENET_STD
from headstart.tasks.detection import Detector, Found
from headstart.verbs.predicting.detect import confident, yolo_lines

MODEL, MODEL_ARGS = "timm/resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
YOLO, YOLO_ARGS = "ultralytics/yolov8n", {"width": 0.125}
SIDE = 128
CLASSES = ["car", "storage tank"]
SIZES = {"a.png": (90, 200), "deep er/ü,b.png": (170, 61), "images/c.png": (64, 64), "images/d.png": (90, 200)}
FILES = {"a.png": "a", "deep er/ü,b.png": "deep er/ü,b", "images/c.png": "c", "images/d.png": "d"}


def write_run(folder, net, head, detector, model, model_args):
    folder.mkdir(parents=True)
    settings = {
        "task": "detect", "model": model, "model_args": model_args, "stem": "standard", "image_size": SIDE,
        "channels": 3, "pixel_range": None, "decoder": "unet", "loss": "auto", "detector": detector,
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "environment.json").write_text(json.dumps({"verb": "finetune"}))
    safetensors.torch.save_file(net.state_dict(), folder / "backbone.safetensors")
    if head is not None:
        safetensors.torch.save_file(head.state_dict(), folder / "head.safetensors")
    (folder / "result.json").write_text(json.dumps({"classes": CLASSES}))
    return folder


def detector_of(name):
    """A detector that nothing has taught, but which is not sure that there is nothing anywhere."""
    torch.manual_seed(2)
    backbone = build(MODEL, stem="standard", image_size=SIDE, model_args=MODEL_ARGS)
    detector = Detector(backbone, classes=2, detector=name, image_size=SIDE).eval()
    logits = detector.head.head.classification_head.cls_logits
    torch.nn.init.normal_(logits.weight, std=0.1)
    torch.nn.init.constant_(logits.bias, -1.0)
    return detector


@pytest.fixture(scope="module", params=["retinanet", "fcos"])
def torchvision_run(request, tmp_path_factory):
    detector = detector_of(request.param)
    place = tmp_path_factory.mktemp("runs") / request.param
    return detector, write_run(place, detector.backbone.net, detector.head, request.param, MODEL, MODEL_ARGS)


@pytest.fixture(scope="module")
def yolo_run(tmp_path_factory):
    torch.manual_seed(1)
    net = library("nn.tasks").DetectionModel(describe("yolov8n", YOLO_ARGS), ch=3, nc=2, verbose=False)
    net.names = dict(enumerate(CLASSES))
    for scores in net.model[-1].cv3:  # a new network is sure that there is nothing anywhere
        torch.nn.init.normal_(scores[-1].weight, std=0.5)
        torch.nn.init.constant_(scores[-1].bias, -1.0)
    for module in net.modules():  # nor does it see differences before its normalisations have seen images
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    blocks = F.interpolate(torch.rand(8, 3, 6, 6), (SIDE, SIDE), mode="bilinear")
    with torch.no_grad():
        net.train()(blocks)
    backbone = build(YOLO, stem="standard", image_size=SIDE, model_args=YOLO_ARGS)
    run = write_run(tmp_path_factory.mktemp("runs") / "yolo", backbone.net, None, "yolo", YOLO, YOLO_ARGS)
    torch.save({"model": None, "ema": net, "train_args": {"imgsz": 64}}, run / "detector.pt")
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data") / "pictures"
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        blocks = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8))
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        blocks.resize((width, height)).save(place / name)
    return place


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


def lines_of(out, name="predictions.csv"):
    with (out / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def boxes_of(lines):
    return np.array([[float(line[side]) for side in ("left", "top", "right", "bottom")] for line in lines])


def labels_of(path, height, width):
    """Boxes in pixels and confidences in a file of labels, read as YOLO's form is described."""
    rows = np.loadtxt(path, ndmin=2).reshape(-1, 6)
    centres, sides = rows[:, 1:3] * [width, height], rows[:, 3:5] * [width, height]
    return rows[:, 0].astype(int), np.concatenate([centres - sides / 2, centres + sides / 2], axis=1), rows[:, 5]


def between(scores):
    """A confidence in the widest gap among the middle ones, so that rounding decides nothing."""
    middle = np.sort(scores)[len(scores) // 3 : 2 * len(scores) // 3]
    place = np.diff(middle).argmax()
    return float(middle[place : place + 2].mean())


def check_equal(found, expected):
    """Compare classes, boxes and confidences; objects that are equally sure may stand in any order."""
    ours, theirs = (np.column_stack([1000 * one[0], one[1], 100 * one[2]]) for one in (found, expected))
    apart = np.abs(ours[:, None] - theirs[None]).max(2)
    assert len(ours) == len(theirs)
    assert apart[linear_sum_assignment(apart)].max() < 0.06


@torch.no_grad()
def expected_objects(detector, path):
    """What a detector finds, by another way than the letterbox of the package."""
    image = torch.from_numpy(pixels_of(path)).permute(2, 0, 1)
    height, width = image.shape[1:]
    factor = SIDE / max(height, width)
    high, wide = round(height * factor), round(width * factor)
    image = torchvision_functional.resize(image, [high, wide], antialias=True).float() / 255
    image = torchvision_functional.normalize(image, IMAGENET_MEAN, IMAGENET_STD)
    boxes, labels, scores = detector.detect(F.pad(image, (0, SIDE - wide, 0, SIDE - high))[None])[0]
    boxes = boxes.numpy() * [width / wide, height / high, width / wide, height / high]
    return boxes.clip(0, [width, height, width, height]), labels.numpy(), scores.numpy()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_boxes_are_those_of_the_detector_in_pixels_of_the_images(torchvision_run, folder, tmp_path, batch_size):
    detector, run = torchvision_run
    expected = {name: expected_objects(detector, folder / name) for name in SIZES}
    least = between(np.concatenate([scores for *_, scores in expected.values()]))
    found = headstart.predict(run, folder, out=tmp_path / "out", batch_size=batch_size, confidence=least, quiet=True)
    lines = lines_of(tmp_path / "out")
    assert list(dict.fromkeys(line["image"] for line in lines)) == sorted(SIZES)
    for name, (boxes, labels, scores) in expected.items():
        own = [line for line in lines if line["image"] == name]
        kept = (scores >= least) & (boxes[:, 2:] > boxes[:, :2]).all(1)
        assert kept.sum() > 3
        wanted = (labels[kept], boxes[kept], scores[kept])
        sure = np.array([float(line["confidence"]) for line in own])
        assert (np.diff(sure) <= 0).all()
        check_equal((np.array([CLASSES.index(line["class"]) for line in own]), boxes_of(own), sure), wanted)
        check_equal(labels_of(tmp_path / "out" / "labels" / f"{FILES[name]}.txt", *SIZES[name]), wanted)
    assert sum(found.counts.values()) == len(lines)
    assert f"{len(lines):,} objects in 4 images in {tmp_path / 'out' / 'labels'}: car " in str(found)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_boxes_and_files_are_those_of_ultralytics_own_predictor(yolo_run, folder, tmp_path, batch_size, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net = library("models").YOLO(str(yolo_run / "detector.pt"))
    asked = {"iou": 0.7, "imgsz": SIDE, "max_det": 1000, "device": "cpu", "verbose": False, "save": False}
    unsure = torch.cat([net.predict(str(folder / name), conf=0.01, **asked)[0].boxes.conf for name in SIZES])
    least = between(unsure.tolist())
    own = {name: net.predict(str(folder / name), conf=least, **asked)[0] for name in SIZES}
    found = headstart.predict(
        yolo_run, folder, out=tmp_path / "out", batch_size=batch_size, confidence=least, quiet=True
    )
    lines = lines_of(tmp_path / "out")
    for name, results in own.items():
        of_image = [line for line in lines if line["image"] == name]
        assert len(results.boxes) > 3
        wanted = (results.boxes.cls.numpy(), results.boxes.xyxy.numpy(), results.boxes.conf.numpy())
        sure = np.array([float(line["confidence"]) for line in of_image])
        check_equal((np.array([CLASSES.index(line["class"]) for line in of_image]), boxes_of(of_image), sure), wanted)
        results.save_txt(tmp_path / "own.txt", save_conf=True)
        written = tmp_path / "out" / "labels" / f"{FILES[name]}.txt"
        check_equal(*(labels_of(path, *SIZES[name]) for path in (written, tmp_path / "own.txt")))
        (tmp_path / "own.txt").unlink()
    assert found.images == 4
    assert sum(found.counts.values()) == len(lines)


def test_boxes_are_drawn_where_they_are(torchvision_run, folder, tmp_path, monkeypatch):
    box = torch.tensor([[40.0, 20.0, 160.0, 70.0]])
    one = Found(box, torch.tensor([1]), torch.tensor([0.8]))
    none = Found(box[:0], torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    monkeypatch.setattr(
        "headstart.verbs.predicting.detect._torchvision",
        lambda work: iter([[(0, one), (1, none)], [(2, none), (3, none)]]),
    )
    found = headstart.predict(torchvision_run[1], folder, out=tmp_path / "out", quiet=True)
    assert (found.images, found.counts) == (4, {"car": 0, "storage tank": 1})
    assert (tmp_path / "out" / "labels" / "a.txt").read_text() == "1 0.500000 0.500000 0.600000 0.555556 0.800000\n"
    assert (tmp_path / "out" / "labels" / "d.txt").read_text() == ""
    with_box, without = (pixels_of(tmp_path / "out" / "drawn" / f"{name}.jpg").astype(int) for name in ("a", "d"))
    assert with_box.shape == without.shape == (180, 400, 3)  # enlarged twice
    plain = pixels_of(folder / "a.png").repeat(2, 0).repeat(2, 1).astype(int)
    changed = np.abs(with_box - plain).max(2) > 60
    rows, columns = np.flatnonzero(changed.mean(1) > 0.3), np.flatnonzero(changed.mean(0) > 0.3)
    np.testing.assert_allclose([columns[0], rows[-1], columns[-1]], [80, 140, 320], atol=4)
    assert not changed[45:135, 90:310].mean() > 0.05
    headstart.predict(torchvision_run[1], folder, out=tmp_path / "plain", draw=False, quiet=True)
    assert not (tmp_path / "plain" / "drawn").exists()


@pytest.mark.parametrize("detector", ["yolo", "fcos"])
def test_broken_images_are_listed_with_their_reason(detector, yolo_run, tmp_path):
    run = yolo_run
    if detector != "yolo":
        net = detector_of(detector)
        run = write_run(tmp_path / "run", net.backbone.net, net.head, detector, MODEL, MODEL_ARGS)
    (tmp_path / "data").mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    noise.save(tmp_path / "data" / "damaged.png")
    content = bytearray((tmp_path / "data" / "damaged.png").read_bytes())
    content[9000:9400] = bytes(400)  # its header and its end are whole
    (tmp_path / "data" / "damaged.png").write_bytes(content)
    (tmp_path / "data" / "text.png").write_text("no image")
    noise.save(tmp_path / "data" / "whole.png")
    found = headstart.predict(run, tmp_path / "data", out=tmp_path / "out", quiet=True)
    assert found.images == 1
    left = {line["image"]: line["reason"] for line in lines_of(tmp_path / "out", "left_out.csv")}
    assert left.keys() == {"text.png", "damaged.png"}
    assert left["damaged.png"] != "cannot be decoded"  # but why
    assert [path.name for path in (tmp_path / "out" / "labels").iterdir()] == ["whole.txt"]


def test_the_checkpoint_of_a_yolo_run_is_not_executed(yolo_run, folder, tmp_path):
    class Harm:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    run = tmp_path / "run"
    run.mkdir()
    for path in yolo_run.iterdir():
        (run / path.name).write_bytes(path.read_bytes())
    torch.save({"model": Harm(), "train_args": {}}, run / "detector.pt")
    with pytest.raises(headstart.errors.UserError, match=r"run: .*detector.pt is damaged or holds more than layers"):
        headstart.predict(run, folder, out=tmp_path / "out", quiet=True)
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "out").exists()


def test_only_confident_objects_stay_and_the_surest_come_first():
    scores = torch.tensor([0.2, 0.9, 0.5, 0.25])
    found = confident(Found(torch.arange(16.0).view(4, 4), torch.arange(4), scores), 0.25)
    assert found.labels.tolist() == [1, 2, 3]
    assert found.boxes[0].tolist() == [4, 5, 6, 7]


def test_boxes_of_which_nothing_is_in_the_image_are_left_out():
    boxes = torch.tensor([[0.0, 3, 0, 9], [2, 3, 5, 9], [2, 3, 5, 3]])
    assert confident(Found(boxes, torch.arange(3), torch.ones(3)), 0.5).labels.tolist() == [1]


def test_a_box_that_is_the_image_is_one_in_shares():
    found = Found(torch.tensor([[0.0, 0.0, 37.0, 11.0]]), torch.tensor([7]), torch.tensor([1.0]))
    assert yolo_lines(found, (11, 37)) == "7 0.500000 0.500000 1.000000 1.000000 1.000000\n"
