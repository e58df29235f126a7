"""The job of a detector: batches with boxes, looks, and what is left behind."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.fabric import Fabric
from PIL import Image

from headstart.backbones import build
from headstart.config import Finetune
from headstart.data.sources import open_data
from headstart.data.splits import Splits
from headstart.evaluation.detection import Detections, truth_of
from headstart.tasks import detection
from headstart.tasks.detection import Detector, Found
from headstart.verbs import drawing
from headstart.verbs.drawing import colour, draw_boxes, sheet
from headstart.verbs.finetuning.detect import DetectJob, finish_scores

TINY = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}
SIZES = [(96, 64), (64, 96), (80, 80), (128, 100), (50, 70), (64, 64)]  # width and height of the images


@pytest.fixture
def folder(tmp_path) -> Path:
    """A YOLO data set: one red or green rectangle in each image but the last."""
    generator = np.random.default_rng(0)
    for name in ("images", "labels"):
        (tmp_path / "data" / name).mkdir(parents=True)
    for number, (width, height) in enumerate(SIZES):
        pixels = generator.integers(0, 60, (height, width, 3), dtype=np.uint8)
        line = ""
        if number < len(SIZES) - 1:
            left, top = width // 4, height // 4
            pixels[top : top + height // 2, left : left + width // 2, number % 2] = 255
            line = f"{number % 2} 0.5 0.5 0.5 0.5\n"
        Image.fromarray(pixels).save(tmp_path / "data" / "images" / f"{number}.png")
        (tmp_path / "data" / "labels" / f"{number}.txt").write_text(line)
    (tmp_path / "data" / "data.yaml").write_text("train: images\nnames: [red, green]\n")
    return tmp_path / "data"


@pytest.fixture
def job(folder, monkeypatch) -> DetectJob:
    monkeypatch.setattr(detection, "CHANNELS", 64)
    data = open_data(str(folder))
    settings = Finetune.create(
        **{"data": str(folder), "task": "detect", "model": "timm/resnet18", "image_size": 64, "batch_size": 4},
        **{"views": "detect", "workers": 0, "detector": "retinanet"},
    )
    splits = Splits(torch.arange(4), torch.tensor([4]), torch.tensor([3, 4, 5]), torch.zeros(0, dtype=torch.int64))
    backbone = build("timm/resnet18", image_size=64, stem="standard", model_args=TINY)
    task = Detector(backbone, classes=2, image_size=64)
    return DetectJob(settings, data, splits, splits.train, task, Fabric(accelerator="cpu", devices=1))


def all_of(truth, *, score: float = 0.5) -> Detections:
    return Detections(truth.images, truth.boxes, truth.labels, torch.full((len(truth.labels),), score))


def test_batches_hold_boxes_and_give_losses(job):
    batches = list(job.batches(0, 3))
    assert len(batches) == 3
    for batch in batches:
        assert batch.views[0].shape == (4, 3, 64, 64)
        assert len(batch.objects) == 4
        assert all(len(one.boxes) == len(one.labels) for one in batch.objects)
    assert any(len(one.labels) for batch in batches for one in batch.objects)
    assert job.task.losses(batches[0])["loss"].isfinite()


def test_a_look_scores_the_validation_images_and_leaves_the_training_on(job):
    job.task.train()
    look = job.look()
    assert 0 <= look.score < 1
    assert 0 < look.loss < 100
    assert job.task.training


def test_boxes_come_back_in_pixels_of_the_image(job, monkeypatch, tmp_path):
    """A detector that finds on each canvas what is there has the best score there is."""
    truth, seen = truth_of(job.data, job.splits.test), iter(job.splits.test.tolist())

    def on_canvas(self, answers):
        found = []
        for _ in answers.anchors:
            row = next(seen)
            height, width = job.data.sizes[row].tolist()
            known = truth.images == row
            boxes = truth.boxes[known] * 64 / max(height, width)
            found.append(Found(boxes, truth.labels[known], torch.full((int(known.sum()),), 0.75)))
        return found

    monkeypatch.setattr(Detector, "found_in", on_canvas)
    result = job.finish(tmp_path / "run", lean=True)
    assert result["scores"]["map50_95"] > 0.85  # the short side of a canvas is in whole pixels
    assert result["scores"]["confidence"] == 0.75
    assert result["scores"]["recall"] == 1
    assert not (tmp_path / "run").exists()


def test_loss_of_a_look_is_that_of_the_boxes_on_the_canvas(job):
    from headstart.contracts import Batch, Objects
    from headstart.data.letterbox import letterboxed

    part = next(iter(letterboxed(job.data, job.splits.val, 64, batch_size=4, workers=0, device="cpu")))
    truth = truth_of(job.data, job.splits.val)  # 50 wide, 70 high
    scale = torch.tensor([46 / 50, 64 / 70, 46 / 50, 64 / 70])
    objects = (Objects(truth.boxes * scale, truth.labels),)
    with torch.inference_mode():
        wanted = job.task.eval().losses(Batch((part.images,), torch.zeros(1), part.rows, objects))["loss"]
    assert job.look().loss == pytest.approx(float(wanted), rel=1e-4)


def test_finished_scores_can_be_written_and_are_drawn(job, tmp_path):
    truth = truth_of(job.data, job.splits.test)
    result = finish_scores(job.data, job.splits.test, all_of(truth), tmp_path, lean=False)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["scores"]["map50_95"] == pytest.approx(1)
    assert result["per_class"] == {
        "red": {"objects": 1, "ap50": pytest.approx(1), "ap50_95": pytest.approx(1)},
        "green": {"objects": 1, "ap50": pytest.approx(1), "ap50_95": pytest.approx(1)},
    }
    for name in ("precision_recall", "detections"):
        with Image.open(tmp_path / "plots" / f"{name}.png") as picture:
            assert min(picture.size) > 200


def test_nothing_found_and_nothing_there_is_drawn_too(job, tmp_path):
    none = all_of(truth_of(job.data, torch.tensor([5])))
    result = finish_scores(job.data, torch.tensor([5]), none, tmp_path, lean=False)
    assert result["scores"]["map50"] == 0
    assert result["scores"]["ap_small"] is None
    assert (tmp_path / "plots" / "detections.png").exists()


def test_boxes_are_drawn_where_they_are():
    picture = np.zeros((60, 80, 3), np.uint8)
    drawn = draw_boxes(picture, np.array([[10.0, 20.0, 50.0, 50.0]]), [1], ("car", "boat"), [0.5])
    ours = (drawn == colour(1)).all(axis=2)
    assert ours[20, 10:50].all()  # the upper edge
    assert ours[49, 10:50].all()
    assert ours[20:50, 10].all()
    assert ours[20:50, 49].all()
    assert not ours[25:45, 15:45].any()
    assert not ours[51:].any()
    assert ours[:20].any()  # the name above it
    assert (picture == 0).all()


def test_pictures_are_enlarged_before_they_are_drawn_on():
    picture = np.zeros((10, 20, 3), np.uint8)
    drawn = draw_boxes(picture, np.array([[2.0, 2.0, 8.0, 8.0]]), [0], ("car",), scale=4)
    assert drawn.shape == (40, 80, 3)
    assert (drawn[8, 8:32] == colour(0)).all()


def test_names_cover_no_other_names():
    boxes = np.array([[5.0 + 2 * number, 30.0, 60.0, 60.0] for number in range(6)])
    drawn = draw_boxes(np.zeros((100, 100, 3), np.uint8), boxes, [0, 1, 2, 3, 4, 5], list("abcdef"), [0.9] * 6)
    assert drawn.shape == (100, 100, 3)
    taken = [(0.0, 0.0, 30.0, 14.0)]
    free = drawing._free((2.0, 16.0, 40.0, 40.0), (0, 0, 28, 14), (60, 60), taken)
    assert free == (2.0, 40.0, 32.0, 54.0)  # below, because above is taken
    assert drawing._free((0.0, 0.0, 10.0, 10.0), (0, 0, 58, 14), (60, 20), [(0.0, 0.0, 60.0, 20.0)]) is None


def test_a_sheet_holds_every_picture():
    values = [[50, 60], [70, 80], [90, 100]]
    pictures = [[np.full((20, 30, 3), value, np.uint8) for value in row] for row in values]
    whole = sheet(pictures, ["truth", "found"], ("car", "boat"))
    for value in range(50, 110, 10):
        assert (whole == value).all(axis=2).sum() >= 20 * 30
