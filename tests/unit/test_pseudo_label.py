"""Pseudo-labels: boxes lie where the objects are, in the pixels of the original pictures, and no pickle is executed."""

import csv
import os
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import tifffile
import torch
import torchvision
import yaml
from PIL import Image
from torch import nn

from headstart.backbones import detectors, yolo
from headstart.backbones.detectors import Detector, Found, load_detector
from headstart.data.images import decode
from headstart.data.options import Options
from headstart.data.sources import open_data
from headstart.data.yolo import open_yolo
from headstart.errors import UserError
from headstart.verbs.pseudo_label import pseudo_label

CPU = torch.device("cpu")
WINDOW, STRIDE = 24, 8  # pixels: what the network of squares looks at, and where
RED, GREEN = 0, 1
SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"


def network_of_squares() -> nn.Module:
    """A YOLO network whose weights are set by hand, such that it sees red and green squares of 24 pixels.

    It averages each colour over the square around every eighth pixel; a class's score is high where its colour fills
    the square. The boxes are 1.5 strides of 8 pixels to each side.
    """
    tasks = yolo.library("nn.tasks")
    backbone = [[-1, 1, "nn.AvgPool2d", [WINDOW, STRIDE, STRIDE, False, False]]]
    net = tasks.DetectionModel({"nc": 2, "backbone": backbone, "head": [[[0], 1, "Detect", [2]]]}, verbose=False)
    net.names = {0: "red", 1: "green"}
    boxes, classes = net.model[-1].cv2[0], net.model[-1].cv3[0]
    with torch.no_grad():
        boxes[2].weight.zero_()
        distances = torch.full((4, 16), -20.0)
        distances[:, 1:3] = 0  # halfway between one stride and two
        boxes[2].bias.copy_(distances.flatten())
        for layer, colours in ((classes[0], (RED, GREEN)), (classes[1], (0, 1))):
            layer.conv.weight.zero_()
            for channel, colour in enumerate(colours):
                layer.conv.weight[channel, colour, 1, 1] = 1
        classes[2].weight.copy_(60 * torch.eye(3)[:2, :, None, None])
        classes[2].bias.fill_(-60 * 0.4)  # two activations make 0.49 of a full square and 0.27 of two thirds
    return net.eval()


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "it's yolov5n.pt"  # names that Ultralytics would change
    torch.save({"model": network_of_squares(), "train_args": {"imgsz": 160}}, path)
    return path


def paint(path: Path, *squares: tuple[int, int, int], size: tuple[int, int] = (320, 180), turned: bool = False) -> Path:
    """Save a picture of this width and height with squares (colour, left, top) of 48 pixels.

    Seen at 160 pixels it is 90 high, and is padded by 3 pixels above and below, so that a square at left = 16 n - 16
    and top = 16 n - 22 fills a window of the network.
    """
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    for colour, left, top in squares:
        pixels[top : top + 48, left : left + 48, colour] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if turned:  # stored lying on its side, with the note that it has to be turned by a quarter clockwise
        exif = Image.Exif()
        exif[0x0112] = 6
        image.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif, quality=95)
    else:
        image.save(path)
    return path


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    paint(folder / "a.png", (RED, 32, 10), (GREEN, 240, 122))
    paint(folder / "b c.jpg", (RED, 208, 58), turned=True)
    paint(folder / "deeper" / "a.png", (GREEN, 128, 74))
    paint(folder / "deeper" / "empty.png")
    paint(folder / "tall.png", (GREEN, 122, 32), size=(180, 320))
    return folder


EXPECTED = {
    "a.png": [("red", 32, 10), ("green", 240, 122)],
    "b c.jpg": [("red", 208, 58)],
    "deeper/a.png": [("green", 128, 74)],
    "deeper/empty.png": [],
    "tall.png": [("green", 122, 32)],
}


def objects_by_source(out: Path, source: Path) -> dict[str, list[tuple[str, float, float, float, float]]]:
    """What headstart reads in a folder of pseudo-labels, by the path of the original picture."""
    data = open_yolo(out, Options())
    found: dict[str, list] = {}
    for path in data.paths.to_pylist():
        found[(out / path).resolve().relative_to(source.resolve()).as_posix()] = []
    for row, label, *box in zip(*(column.to_pylist() for column in data.objects.columns), strict=True):
        original = (out / data.paths[row].as_py()).resolve().relative_to(source.resolve()).as_posix()
        found[original].append((data.classes[label], *box))
    return found


def check_expected(found: dict[str, list], expected: dict[str, list]) -> None:
    assert found.keys() == expected.keys()
    for name, squares in expected.items():
        assert sorted(thing[0] for thing in found[name]) == sorted(colour for colour, *_ in squares)
        boxes = sorted(found[name])
        for (_, left, top), box in zip(sorted(squares), boxes, strict=True):
            np.testing.assert_allclose(box[1:], (left, top, left + 48, top + 48), atol=0.5)


def test_boxes_land_on_the_objects_in_the_pixels_of_the_original_pictures(pictures, weights, tmp_path):
    result = pseudo_label(pictures, weights=weights, out=tmp_path / "out", quiet=True)
    check_expected(objects_by_source(tmp_path / "out", pictures), EXPECTED)
    assert (result.images, result.empty, result.objects) == (5, 1, {"red": 2, "green": 3})
    assert "5 images, 1 of them without an object" in str(result)


def test_ultralytics_reads_the_same_boxes_and_trains_on_them(pictures, weights, tmp_path):
    out = tmp_path / "out"
    pseudo_label(pictures, weights=weights, out=out, quiet=True)
    described = yolo.library("data.utils").check_det_dataset(str(out / "data.yaml"), autodownload=False)
    assert described["names"] == {0: "red", 1: "green"}
    assert described["val"] == described["train"]
    dataset = yolo.library("data.dataset").YOLODataset(
        img_path=described["train"], data=described, task="detect", augment=False, imgsz=64
    )
    found = {}
    for label in dataset.labels:
        height, width = label["shape"]
        original = Path(label["im_file"]).resolve().relative_to(pictures.resolve()).as_posix()
        corners = label["bboxes"].reshape(-1, 4) @ np.array(
            [[1, 0, 1, 0], [0, 1, 0, 1], [-0.5, 0, 0.5, 0], [0, -0.5, 0, 0.5]]
        )
        boxes = corners * [width, height, width, height]
        found[original] = [
            (described["names"][int(number)], *box) for number, box in zip(label["cls"].ravel(), boxes, strict=True)
        ]
    check_expected(found, EXPECTED)


@pytest.mark.parametrize("size", [(320, 180), (97, 211)])
def test_ultralytics_own_predictor_finds_the_same(size, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    net = yolo.library("nn.tasks").DetectionModel(yolo.describe("yolov8n", {"width": 0.125}), ch=3, nc=3, verbose=False)
    torch.save({"model": net, "train_args": {"imgsz": 256}}, "random.pt")
    blocks = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8))
    blocks.resize(size).save("blocks.png")
    scores = load_detector(Path("random.pt"), "auto", confidence=0, image_size="auto", device=CPU)
    confidence = float(scores.detect([decode(Path("blocks.png"))])[0].scores[10])
    own = yolo.library("models").YOLO("random.pt").predict(
        "blocks.png", conf=confidence, iou=0.7, imgsz=256, max_det=1000, device="cpu", verbose=False, save=False
    )[0].boxes  # fmt: skip
    detector = load_detector(Path("random.pt"), "auto", confidence=confidence, image_size="auto", device=CPU)
    found = detector.detect([decode(Path("blocks.png"))])[0]
    assert len(found.scores) >= 5
    np.testing.assert_allclose(found.boxes, own.xyxy, atol=0.05)
    np.testing.assert_allclose(found.scores, own.conf, rtol=1e-4)
    np.testing.assert_array_equal(found.labels, own.cls)


def test_pictures_are_linked_and_confidences_kept(pictures, weights, tmp_path):
    out = tmp_path / "out"
    pseudo_label(pictures, weights=weights, out=out, quiet=True)
    links = sorted((out / "images").rglob("*.*"))
    assert len(links) == 5
    assert all(link.is_symlink() and link.samefile(link.resolve()) for link in links)
    labels = {path.stem: path.read_text() for path in (out / "labels").rglob("*.txt")}
    assert set(labels) == {link.stem for link in links}  # two pictures are called a.png
    assert labels["empty"] == ""
    assert all(len(line.split()) == 5 for text in labels.values() for line in text.splitlines())
    with (out / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["image"], row["label"]) for row in rows if row["image"] != "a.png"] == [
        ("b c.jpg", "red"),
        ("deeper/a.png", "green"),
        ("tall.png", "green"),
    ]
    assert all(0.9 < float(row["score"]) <= 1 for row in rows)
    assert [float(rows[2][edge]) for edge in ("left", "top", "right", "bottom")] == pytest.approx(
        (208, 58, 256, 106), abs=0.5
    )


def test_classes_are_selected_and_merged(pictures, weights, tmp_path):
    result = pseudo_label(pictures, weights=weights, out=tmp_path / "one", classes="green", quiet=True)
    assert result.objects == {"green": 3}
    result = pseudo_label(pictures, weights=weights, out=tmp_path / "both", classes="thing=green,red", quiet=True)
    assert result.objects == {"thing": 5}
    assert yaml.safe_load((tmp_path / "both" / "data.yaml").read_text())["names"] == {0: "thing"}


def test_confidence_is_the_lowest_that_is_kept(pictures, weights, tmp_path):
    found = {}
    for confidence in (0.0001, 0.5, 1.0):
        out = tmp_path / str(confidence)
        found[confidence] = sum(
            pseudo_label(pictures, weights=weights, out=out, confidence=confidence, quiet=True).objects.values()
        )
    assert found[0.0001] > found[0.5] == 5
    assert found[1.0] == 0


def test_splits_of_the_data_are_kept(weights, tmp_path):
    source = tmp_path / "source"
    for split in ("train", "val", "unlabelled"):
        paint(source / split / "1.png", (RED, 32, 10))
    pseudo_label(source, weights=weights, out=tmp_path / "out", quiet=True)
    data = open_yolo(tmp_path / "out", Options())
    assert sorted(data.splits.tolist()) == [0, 0, 1]
    assert data.objects.num_rows == 3


def test_batches_decide_nothing(pictures, weights, tmp_path):
    texts = []
    for size in (1, 2, 8):
        pseudo_label(pictures, weights=weights, out=tmp_path / str(size), batch_size=size, quiet=True)
        texts.append((tmp_path / str(size) / "scores.csv").read_text())
    assert texts[0] == texts[1] == texts[2]


def test_deep_pictures_are_seen_at_their_own_range(weights, tmp_path):
    deep = np.zeros((180, 320, 3), np.uint16)
    deep[10:58, 32:80, RED] = 4095
    (tmp_path / "deep").mkdir()
    tifffile.imwrite(tmp_path / "deep" / "a.tif", deep, photometric="rgb")
    pseudo_label(tmp_path / "deep", weights=weights, out=tmp_path / "out", quiet=True)
    check_expected(objects_by_source(tmp_path / "out", tmp_path / "deep"), {"a.tif": [("red", 32, 10)]})


class Whole(Detector):
    """Finds one object in every image: all of it."""

    names: ClassVar = {7: "digit"}

    def detect_equal(self, images):
        height, width = images.shape[2:]
        box = torch.tensor([[0.0, 0.0, width, height]])
        return [Found(box, torch.tensor([0.75]), torch.tensor([7])) for _ in images]


def test_images_that_are_no_files_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.verbs.pseudo_label.load_detector", lambda *_, **__: Whole())
    pseudo_label("digits", weights="any", out=tmp_path / "out", limit=12, quiet=True)
    data = open_yolo(tmp_path / "out", Options())
    assert (data.count, data.classes, data.objects.num_rows) == (12, ("digit",), 12)
    digits = open_data("digits")
    assert (digits.images == decode(data.root / data.paths[0].as_py())[:1]).flatten(1).all(1).any()
    assert data.objects["right"].to_pylist() == [8.0] * 12


def test_broken_pictures_are_left_out_or_stop_the_verb(pictures, weights, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (180, 320, 3), dtype=np.uint8)
    Image.fromarray(noise).save(pictures / "tall.png")
    whole = (pictures / "tall.png").read_bytes()
    (pictures / "tall.png").write_bytes(whole[: len(whole) // 2] + bytes(200) + whole[-200:])  # a good end
    with pytest.raises(UserError, match=r"1 of 5 images .* are broken \(allowed: 1%\): tall.png"):
        pseudo_label(pictures, weights=weights, out=tmp_path / "out", quiet=True)
    assert not any(path.name.startswith((".out", "out")) for path in tmp_path.iterdir())
    result = pseudo_label(pictures, weights=weights, out=tmp_path / "out", max_bad="20%", quiet=True)
    assert (result.images, [bad.path for bad in result.bad]) == (4, ["tall.png"])
    assert "1 left out: tall.png" in str(result)


class Payload:
    """What runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("model", ["auto", f"torchvision/{SMALL}"])
def test_no_pickle_from_outside_is_executed(model, pictures, tmp_path):
    for content in (Payload(tmp_path / "executed"), {"model": Payload(tmp_path / "executed")}):
        torch.save(content, tmp_path / "evil.pt")
        with pytest.raises(UserError, match=r"^weights: .*evil.pt is damaged or holds more than"):
            pseudo_label(pictures, weights=tmp_path / "evil.pt", model=model, out=tmp_path / "out", quiet=True)
        assert not (tmp_path / "executed").exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "executed").is_dir()  # it would have been


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": "grean"}, r"^classes: unknown 'grean', did you mean 'green'\? \(allowed: red, green\)"),
        ({"weights": "none.pt"}, r"^weights: no file .*none.pt"),
        ({"weights": "a.onnx"}, r"^model: is needed to read a.onnx \(allowed: torchvision/NAME"),
        ({"model": "torchvision/fasterrcnn"}, r"^model: unknown 'torchvision/fasterrcnn', did you mean"),
        ({"model": f"torchvision/{SMALL}"}, r"^weights: .* holds (no|more than) tensors"),
        ({"confidence": 2}, r"^confidence: .*less than or equal to 1"),
        ({"images": "nowhere"}, r"^images: unknown 'nowhere'"),
    ],
)
def test_mistakes_end_with_one_line(options, message, pictures, weights, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        pseudo_label(**{"images": pictures, "weights": weights, "out": tmp_path / "out", "quiet": True, **options})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_only_pseudo_labels_are_replaced(pictures, weights, tmp_path):
    out = tmp_path / "out"
    pseudo_label(pictures, weights=weights, out=out, quiet=True)
    with pytest.raises(UserError, match=r"^out: .* is not empty \(allowed: a new or empty folder, or --overwrite\)"):
        pseudo_label(pictures, weights=weights, out=out, quiet=True)
    assert pseudo_label(pictures, weights=weights, out=out, limit=2, overwrite=True, quiet=True).images == 2
    (out / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match=r"^overwrite: .* also holds mine.txt"):
        pseudo_label(pictures, weights=weights, out=out, overwrite=True, quiet=True)
    for images in (out, out / "images"):
        with pytest.raises(UserError, match=r"^out: .*\(allowed: a folder"):
            pseudo_label(images, weights=weights, out=out, overwrite=True, quiet=True)
    assert len(list((pictures).rglob("*.*"))) == 5


def test_a_missing_ultralytics_is_one_line(weights, monkeypatch):
    def missing(name: str):
        raise ModuleNotFoundError(name=name.split(".")[0])

    monkeypatch.setattr(yolo, "import_module", missing)
    with pytest.raises(UserError, match=r"pip install 'headstart\[yolo\]'"):
        load_detector(weights, "auto", confidence=0.5, image_size="auto", device=CPU)


def test_networks_without_upright_boxes_are_refused(tmp_path):
    tasks = yolo.library("nn.tasks")
    net = tasks.ClassificationModel(yolo.describe("yolov8n-cls", {"width": 0.125}), verbose=False)
    torch.save({"model": net}, tmp_path / "classes.pt")
    with pytest.raises(UserError, match=r"^weights: classes.pt holds a ClassificationModel \(allowed: YOLO"):
        load_detector(tmp_path / "classes.pt", "auto", confidence=0.5, image_size="auto", device=CPU)


def torchvision_file(folder: Path, classes: int, name: str = SMALL) -> tuple[nn.Module, Path]:
    torch.manual_seed(0)
    net = torchvision.models.get_model(
        name, weights=None, weights_backbone=None, num_classes=classes, box_score_thresh=0, box_detections_per_img=1000
    ).eval()
    path = folder / "net.pth"
    torch.save(net.state_dict(), path)
    return net, path


@torch.no_grad()
def test_torchvision_detectors_find_what_their_library_finds(pictures, tmp_path):
    net, path = torchvision_file(tmp_path, 4)
    detector = load_detector(path, f"torchvision/{SMALL}", confidence=0, image_size="auto", device=CPU)
    assert detector.names == {1: "1", 2: "2", 3: "3"}
    images = [decode(pictures / name) for name in ("a.png", "tall.png")]
    for found, image in zip(detector.detect(images), images, strict=True):
        own = net([image / 255])[0]
        assert len(own["boxes"]) > 0
        order = own["scores"].argsort(descending=True, stable=True)
        torch.testing.assert_close(found.scores.sort(descending=True).values, own["scores"][order], rtol=1e-4, atol=0)
        assert found.boxes[:, 2].max() <= image.shape[2]
        assert found.boxes[:, 3].max() <= image.shape[1]


def test_the_image_size_is_the_longer_side():
    with torch.device("meta"):
        net, ssd = (detectors.create(name, 3) for name in (SMALL, "ssdlite320_mobilenet_v3_large"))
    detectors.aim(net, SMALL, 0.5, 128)
    seen, _ = net.transform([torch.zeros(3, 90, 160)])
    assert seen.image_sizes == [(72, 128)]
    with pytest.raises(UserError, match=r"^image_size: torchvision/ssdlite320_.* sees images at 320 \(allowed: auto\)"):
        detectors.aim(ssd, "ssdlite320_mobilenet_v3_large", 0.5, 128)


@pytest.mark.parametrize(
    ("name", "classes"),
    [(SMALL, 91), ("retinanet_resnet50_fpn", 2), ("fcos_resnet50_fpn", 7),
     ("ssd300_vgg16", 21)],
)  # fmt: skip
def test_the_number_of_classes_is_read_from_the_state(name, classes):
    with torch.device("meta"):
        state = detectors.create(name, classes).state_dict()
    assert detectors.number_of_classes(name, state) == classes


def test_classes_have_their_published_names_where_there_are_as_many():
    coco = detectors.class_names(SMALL, 91)
    assert (len(coco), coco[1], coco[3], coco[90]) == (80, "person", "car", "toothbrush")
    assert all(first < second for first, second in pairwise(coco))
    assert detectors.class_names("keypointrcnn_resnet50_fpn", 2) == {1: "person"}
    assert detectors.class_names("retinanet_resnet50_fpn", 2) == {0: "0", 1: "1"}


def test_weights_of_another_detector_do_not_fit(tmp_path):
    _, path = torchvision_file(tmp_path, 4)
    with pytest.raises(UserError, match=r"^weights: .*net.pth does not fit torchvision/retinanet_resnet50_fpn: "):
        load_detector(path, "torchvision/retinanet_resnet50_fpn", confidence=0.5, image_size="auto", device=CPU)
