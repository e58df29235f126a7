"""Scores of detections against faster-coco-eval, torchmetrics, and loops that follow the definitions."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_iou

from headstart.evaluation.detection import (
    MAX_DETECTIONS,
    Detections,
    Truth,
    coco_results,
    coco_truth,
    curves,
    detection_scores,
    evaluate,
    per_class,
    truth_of,
)

CLASSES = ("car", "truck", "boat")


def boxes_of(generator: torch.Generator, count: int, size: int) -> torch.Tensor:
    sides = 8 * 30 ** torch.rand(count, 2, generator=generator)  # 8 … 240 px: of all three areas
    corners = torch.rand(count, 2, generator=generator) * (size - sides).clamp_min(1)
    return torch.cat([corners, (corners + sides).clamp_max(size)], dim=1)


def scene(seed: int, *, images: int = 12, objects: int = 60, size: int = 320) -> tuple[Truth, Detections]:
    """Objects; detections that are near to some of them, others that are anywhere, and some of the wrong class."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(images) * 3 + 5  # rows of a data set, of which others were not looked at
    where = rows[torch.randint(images, (objects,), generator=generator)]
    boxes, labels = boxes_of(generator, objects, size), torch.randint(3, (objects,), generator=generator)
    near = torch.randint(objects, (2 * objects,), generator=generator)
    noise = torch.randn(2 * objects, 4, generator=generator) * (boxes[near, 2:] - boxes[near, :2]).repeat(1, 2) * 0.08
    found = boxes[near] + noise
    found = torch.cat([torch.minimum(found[:, :2], found[:, 2:] - 1), found[:, 2:]], dim=1).clamp(0, size)
    guesses = boxes_of(generator, objects, size)
    wrong = torch.rand(2 * objects, generator=generator) < 0.15
    found_labels = torch.where(wrong, (labels[near] + 1) % 3, labels[near])
    detections = Detections(
        torch.cat([where[near], rows[torch.randint(images, (objects,), generator=generator)]]),
        torch.cat([found, guesses]),
        torch.cat([found_labels, torch.randint(3, (objects,), generator=generator)]),
        torch.rand(3 * objects, generator=generator),
    )
    return Truth(rows, torch.full((images, 2), size), where, boxes, labels), detections


def crowded() -> tuple[Truth, Detections]:
    """One image with 150 objects, all of them found."""
    columns, lines = torch.meshgrid(torch.arange(15), torch.arange(10), indexing="ij")
    corners = torch.stack([columns, lines], dim=-1).reshape(-1, 2).float() * 20
    boxes, labels = torch.cat([corners, corners + 12], dim=1), torch.zeros(150, dtype=torch.int64)
    where = torch.zeros(150, dtype=torch.int64)
    scores = torch.linspace(0.9, 0.1, 150)
    return Truth(torch.tensor([0]), torch.tensor([[300, 300]]), where, boxes, labels), Detections(
        where, boxes, labels, scores
    )


def nothing_found() -> Detections:
    none = torch.zeros(0, dtype=torch.int64)
    return Detections(none, torch.zeros(0, 4), none, torch.zeros(0))


def as_coco(boxes: torch.Tensor) -> torch.Tensor:
    boxes = boxes.double()
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1)


def by_faster_coco_eval(truth: Truth, detections: Detections, classes: int) -> dict[str, float]:
    from faster_coco_eval import COCO, COCOeval_faster

    objects = zip(truth.images.tolist(), truth.labels.tolist(), as_coco(truth.boxes).tolist(), strict=True)
    known = {
        "images": [{"id": row, "height": 320, "width": 320} for row in truth.rows.tolist()],
        "categories": [{"id": number, "name": str(number)} for number in range(classes)],
        "annotations": [
            {
                **{"id": number, "image_id": image, "category_id": label},
                **{"bbox": box, "area": box[2] * box[3], "iscrowd": 0},
            }
            for number, (image, label, box) in enumerate(objects, 1)
        ],
    }
    columns = (detections.images, detections.labels, detections.scores.double(), as_coco(detections.boxes))
    found = [
        {"image_id": image, "category_id": label, "score": score, "bbox": box}
        for image, label, score, box in zip(*(column.tolist() for column in columns), strict=True)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        dataset = COCO(known)
        counted = COCOeval_faster(dataset, dataset.loadRes(found), "bbox")
        counted.params.maxDets = [1, 10, MAX_DETECTIONS]
        counted.evaluate()
        counted.accumulate()
    precision = counted.eval["precision"][..., -1]

    def mean(part: np.ndarray) -> float:
        return float(part[part > -1].mean())

    return {
        "map50_95": mean(precision[..., 0]),
        "map50": mean(precision[0, ..., 0]),
        "map75": mean(precision[5, ..., 0]),
        **{name: mean(precision[..., area]) for area, name in enumerate(("ap_small", "ap_medium", "ap_large"), 1)},
    }


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_faster_coco_eval(seed):
    truth, detections = scene(seed)
    scores = detection_scores(truth, detections, CLASSES)
    wanted = by_faster_coco_eval(truth, detections, 3)
    assert 0.05 < wanted["map50_95"] < 0.8
    assert {name: scores[name] for name in wanted} == pytest.approx(wanted, abs=1e-9)


def test_scores_are_those_of_torchmetrics():
    detection = pytest.importorskip("torchmetrics.detection")
    truth, detections = scene(7)
    # of up to 100 boxes, more than there are in an image; its own recalls are in single precision: 0.6 is above 3 / 5
    recalls = np.linspace(0, 1, 101).tolist()
    metric = detection.MeanAveragePrecision(class_metrics=True, rec_thresholds=recalls)
    for row in truth.rows.tolist():
        found, known = detections.images == row, truth.images == row
        boxes, labels, scores = (column[found] for column in detections[1:])
        metric.update(
            [{"boxes": boxes, "scores": scores, "labels": labels}],
            [{"boxes": truth.boxes[known], "labels": truth.labels[known]}],
        )
    wanted = metric.compute()
    scores = detection_scores(truth, detections, CLASSES)
    names = {
        **{"map50_95": "map", "map50": "map_50", "map75": "map_75"},
        **{"ap_small": "map_small", "ap_medium": "map_medium", "ap_large": "map_large"},
    }
    for ours, theirs in names.items():
        assert scores[ours] == pytest.approx(float(wanted[theirs]), abs=1e-6), ours
    by_class = per_class(evaluate(truth, detections, 3), CLASSES)
    ours = [by_class[name]["ap50_95"] for name in CLASSES]
    assert ours == pytest.approx(wanted["map_per_class"].tolist(), abs=1e-6)


def matched(truth: Truth, detections: Detections, label: int, threshold: float) -> list[tuple[float, bool]]:
    """Score and whether it is a hit of each detection of a class: greedily, each to the best object that is left."""
    pairs = []
    for row in truth.rows.tolist():
        found = (detections.images == row) & (detections.labels == label)
        known = truth.boxes[(truth.images == row) & (truth.labels == label)].double()
        taken = set()
        for place in detections.scores[found].argsort(descending=True, stable=True).tolist():
            box = detections.boxes[found][place].double()
            overlaps = box_iou(box[None], known)[0].tolist()
            free = [(overlap, number) for number, overlap in enumerate(overlaps) if number not in taken]
            best, number = max(free, default=(0.0, -1))
            if best >= threshold:
                taken.add(number)
            pairs.append((float(detections.scores[found][place]), best >= threshold))
    return sorted(pairs, key=lambda pair: -pair[0])


def average_precision(pairs: list[tuple[float, bool]], objects: int) -> float:
    """Mean over the recalls 0, 0.01 … 1 of the highest precision that is had with at least that recall."""
    points, hits = [], 0
    for count, (_, hit) in enumerate(pairs, 1):
        hits += hit
        points.append((hits / objects, hits / count))
    highest = [max((p for r, p in points if r >= recall), default=0.0) for recall in np.linspace(0, 1, 101)]
    return float(np.mean(highest))


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_a_loop(seed):
    truth, detections = scene(seed, images=4, objects=15)
    counts = truth.labels.bincount(minlength=3).tolist()
    known = [label for label in range(3) if counts[label]]
    found = per_class(evaluate(truth, detections, 3), CLASSES)
    thresholds = np.linspace(0.5, 0.95, 10)
    means = []
    for label in known:
        each = [average_precision(matched(truth, detections, label, float(at)), counts[label]) for at in thresholds]
        assert found[CLASSES[label]]["ap50"] == pytest.approx(each[0], abs=1e-9)
        assert found[CLASSES[label]]["ap50_95"] == pytest.approx(np.mean(each), abs=1e-9)
        assert found[CLASSES[label]]["objects"] == counts[label]
        means.append(np.mean(each))
    assert detection_scores(truth, detections, CLASSES)["map50_95"] == pytest.approx(np.mean(means), abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_precision_and_recall_are_those_of_the_best_mean_f1(seed):
    truth, detections = scene(seed, images=5, objects=20)
    pairs = {label: matched(truth, detections, label, 0.5) for label in range(3)}
    counts = truth.labels.bincount(minlength=3).tolist()
    assert min(counts) > 0
    best = (-1.0,)
    for threshold in sorted(detections.scores.tolist(), reverse=True):
        each = []
        for label in range(3):
            kept = [hit for score, hit in pairs[label] if score >= threshold]
            precision, recall = sum(kept) / max(len(kept), 1), sum(kept) / counts[label]
            f1 = 2 * precision * recall / (precision + recall) if sum(kept) else 0.0
            each.append((f1, precision, recall))
        f1, precision, recall = np.mean(each, axis=0)
        if f1 > best[0] + 1e-12:
            best = (f1, precision, recall, threshold)
    scores = detection_scores(truth, detections, CLASSES)
    assert [scores[name] for name in ("precision", "recall", "confidence")] == pytest.approx(best[1:], abs=1e-6)


def test_crowded_images_are_not_cut_at_a_hundred():
    truth, detections = crowded()
    scores = detection_scores(truth, detections, ("car",))
    assert scores["map50"] == pytest.approx(1)
    assert scores["recall"] == 1
    assert scores["confidence"] == pytest.approx(0.1)


def test_order_and_numbering_of_the_images_do_not_matter():
    truth, detections = scene(1)
    back, mixed = torch.arange(len(truth.rows)).flip(0), torch.randperm(len(detections.scores))
    shuffled = truth._replace(rows=truth.rows[back], sizes=truth.sizes[back])
    again = Detections(*(column[mixed] for column in detections))
    assert detection_scores(shuffled, again, CLASSES) == pytest.approx(detection_scores(truth, detections, CLASSES))


def test_sizes_without_an_object_have_no_score():
    truth, detections = crowded()  # of 12 px
    scores = detection_scores(truth, detections, ("car",))
    assert scores["ap_small"] == pytest.approx(1)
    assert scores["ap_medium"] is None
    assert scores["ap_large"] is None


def test_classes_without_an_object_leave_the_mean_as_it_is():
    truth, detections = crowded()
    stray = Detections(torch.tensor([0]), torch.tensor([[0.0, 0.0, 9.0, 9.0]]), torch.tensor([1]), torch.tensor([0.99]))
    both = Detections(*(torch.cat(pair) for pair in zip(detections, stray, strict=True)))
    evaluation = evaluate(truth, both, 2)
    assert per_class(evaluation, ("car", "boat"))["boat"] == {"objects": 0, "ap50": None, "ap50_95": None}
    assert detection_scores(truth, both, ("car", "boat"))["map50"] == pytest.approx(1)
    assert np.isnan(curves(evaluation).precision[1]).all()


def test_nothing_found_is_a_score_of_zero():
    truth, _ = scene(0)
    scores = detection_scores(truth, nothing_found(), CLASSES)
    assert all(value == 0 for value in scores.values())
    assert (curves(evaluate(truth, nothing_found(), 3)).mean == 0).all()


def test_nothing_to_find_is_defined():
    truth, detections = scene(0)
    empty = truth._replace(images=truth.images[:0], boxes=truth.boxes[:0], labels=truth.labels[:0])
    scores = detection_scores(empty, detections, CLASSES)
    assert scores["map50_95"] == scores["map50"] == scores["precision"] == scores["recall"] == 0
    assert scores["ap_small"] is None
    assert not any(math.isnan(value) for value in scores.values() if value is not None)
    assert (curves(evaluate(empty, detections, 3)).mean == 0).all()
    none = empty._replace(rows=empty.rows[:0], sizes=empty.sizes[:0])
    assert detection_scores(none, nothing_found(), CLASSES)["map50"] == 0


def test_curves_hold_the_average_precision():
    truth, detections = scene(2)
    evaluation = evaluate(truth, detections, 3)
    found = curves(evaluation)
    assert found.recall[[0, 50, 100]].tolist() == [0, 0.5, 1]
    by_class = per_class(evaluation, CLASSES)
    assert found.precision.mean(axis=1).tolist() == pytest.approx([by_class[name]["ap50"] for name in CLASSES])
    assert found.mean.mean() == pytest.approx(detection_scores(truth, detections, CLASSES)["map50"])


def test_nothing_is_printed(capsys):
    detection_scores(*scene(0), CLASSES)
    assert capsys.readouterr().out == ""


def test_truth_is_read_from_a_data_set(real_data):
    from headstart.data.sources import open_data

    data = open_data(str(real_data("aerial")))
    rows = torch.tensor([3, 40, 7])
    truth = truth_of(data, rows)
    assert truth.sizes.tolist() == data.sizes[rows].tolist()
    lines = [line for line in data.objects.to_pylist() if line["image"] in {3, 40, 7}]
    assert len(truth.boxes) == len(lines) > 0
    assert truth.images.tolist() == [line["image"] for line in lines]
    assert truth.labels.tolist() == [line["label"] for line in lines]
    wanted = [[line[side] for side in ("left", "top", "right", "bottom")] for line in lines]
    assert torch.equal(truth.boxes, torch.tensor(wanted))
    found = Detections(truth.images, truth.boxes, truth.labels, torch.full((len(lines),), 0.5))
    assert detection_scores(truth, found, data.classes)["map50_95"] == pytest.approx(1)


def test_what_is_written_in_the_form_of_coco_has_the_same_scores():
    truth, detections = scene(0)
    files = [f"{row}.jpg" for row in truth.rows.tolist()]
    known, found = coco_truth(truth, CLASSES, files), coco_results(detections)
    assert [image["file_name"] for image in known["images"]] == files
    assert [category["name"] for category in known["categories"]] == list(CLASSES)
    dataset = COCO()
    dataset.dataset = json.loads(json.dumps(known))
    with contextlib.redirect_stdout(io.StringIO()):
        dataset.createIndex()
        counted = COCOeval(dataset, dataset.loadRes(json.loads(json.dumps(found))), "bbox")
        counted.params.maxDets = [1, 10, MAX_DETECTIONS]
        counted.evaluate()
        counted.accumulate()
    precision = counted.eval["precision"][..., 0, -1]
    scores = detection_scores(truth, detections, CLASSES)
    assert scores["map50_95"] == pytest.approx(precision[precision > -1].mean(), abs=1e-9)
