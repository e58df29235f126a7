"""The scores of a segmentation against scikit-learn and torchmetrics."""

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, precision_score, recall_score

from headstart.errors import UserError
from headstart.evaluation.segmentation import (
    class_scores,
    image_scores,
    image_shares,
    pixel_confusion,
    segmentation_scores,
)

torchmetrics = pytest.importorskip("torchmetrics")
segmentation = pytest.importorskip("torchmetrics.segmentation")


def draw(classes, *, images=6, seed=0, absent=()):
    """Labels, some void, and predictions that are right in about half of the pixels, without the classes absent."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (images, 9, 11), generator=generator)
    random = torch.randint(0, classes, labels.shape, generator=generator)
    predictions = torch.where(torch.rand(labels.shape, generator=generator) < 0.5, labels, random)
    for number in absent:
        labels[labels == number], predictions[predictions == number] = 0, 0
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = -1
    return labels, predictions


def flat(labels, predictions):
    known = labels != -1
    return labels[known].numpy(), predictions[known].numpy()


def by_image(labels, predictions, classes):
    found = [
        image_shares(pixel_confusion(truth, guess, classes)) for truth, guess in zip(labels, predictions, strict=True)
    ]
    return {name: torch.tensor([shares[name] for shares in found], dtype=torch.float64) for name in found[0]}


def test_confusion_counts_every_pixel_that_has_a_class():
    labels, predictions = draw(3)
    expected = torch.zeros(3, 3, dtype=torch.int64)
    for truth, guess in zip(labels.flatten().tolist(), predictions.flatten().tolist(), strict=True):
        if truth >= 0:
            expected[truth, guess] += 1
    assert torch.equal(pixel_confusion(labels.to(torch.int16), predictions, 3), expected)


def test_confusions_of_images_add_up_to_that_of_the_data_set():
    labels, predictions = draw(3)
    parts = [pixel_confusion(truth, guess, 3) for truth, guess in zip(labels, predictions, strict=True)]
    assert torch.equal(torch.stack(parts).sum(0), pixel_confusion(labels, predictions, 3))


def test_a_label_that_is_no_class_is_refused():
    with pytest.raises(UserError, match=r"^labels: 0\.\.3"):
        pixel_confusion(torch.tensor([0, 3]), torch.tensor([0, 1]), 3)


def test_scores_of_two_classes_are_those_of_the_second_one():
    labels, predictions = draw(2)
    truth, guess = flat(labels, predictions)
    scores = segmentation_scores(pixel_confusion(labels, predictions, 2))
    assert scores["iou"] == pytest.approx(jaccard_score(truth, guess), abs=1e-12)
    assert scores["f1"] == pytest.approx(f1_score(truth, guess), abs=1e-12)
    assert scores["dice"] == scores["f1"]
    assert scores["precision"] == pytest.approx(precision_score(truth, guess), abs=1e-12)
    assert scores["recall"] == pytest.approx(recall_score(truth, guess), abs=1e-12)
    assert scores["pixel_accuracy"] == pytest.approx(accuracy_score(truth, guess), abs=1e-12)
    assert scores["mean_iou"] == pytest.approx(jaccard_score(truth, guess, average="macro"), abs=1e-12)


@pytest.mark.parametrize("absent", [(), (1, 3)])
def test_scores_of_more_classes_are_means_over_those_that_occur(absent):
    labels, predictions = draw(5, absent=absent)
    truth, guess = flat(labels, predictions)
    scores = segmentation_scores(pixel_confusion(labels, predictions, 5))
    macro = {"average": "macro", "zero_division": 0}
    assert scores["iou"] == pytest.approx(jaccard_score(truth, guess, **macro), abs=1e-12)
    assert scores["mean_iou"] == scores["iou"]
    assert scores["f1"] == pytest.approx(f1_score(truth, guess, **macro), abs=1e-12)
    assert scores["precision"] == pytest.approx(precision_score(truth, guess, **macro), abs=1e-12)
    assert scores["recall"] == pytest.approx(recall_score(truth, guess, **macro), abs=1e-12)


@pytest.mark.parametrize(("classes", "absent"), [(2, ()), (5, ()), (5, (1, 3))])
def test_scores_are_those_of_torchmetrics(classes, absent):
    labels, predictions = draw(classes, absent=absent)
    scores = segmentation_scores(pixel_confusion(labels, predictions, classes))
    if classes == 2:
        kind = {"task": "binary", "ignore_index": -1}
    else:
        kind = {"task": "multiclass", "num_classes": classes, "average": "macro", "ignore_index": -1}
    for name, metric in {
        "iou": torchmetrics.JaccardIndex,
        "f1": torchmetrics.F1Score,
        "precision": torchmetrics.Precision,
        "recall": torchmetrics.Recall,
    }.items():
        assert scores[name] == pytest.approx(float(metric(**kind)(predictions, labels)), abs=1e-6), name


def test_tables_of_classes_are_those_of_scikit_learn():
    labels, predictions = draw(5, absent=(3,))
    truth, guess = flat(labels, predictions)
    found = class_scores(pixel_confusion(labels, predictions, 5))
    each = {"average": None, "labels": range(5), "zero_division": 0}
    np.testing.assert_allclose(found["iou"], jaccard_score(truth, guess, **each), atol=1e-12)
    np.testing.assert_allclose(found["dice"], f1_score(truth, guess, **each), atol=1e-12)
    np.testing.assert_allclose(found["recall"], recall_score(truth, guess, **each), atol=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_image_scores_are_means_of_the_scores_of_images(classes):
    labels, predictions = draw(classes)
    scores = image_scores(by_image(labels, predictions, classes))
    average = {"average": "binary" if classes == 2 else "macro"}
    pairs = [flat(truth, guess) for truth, guess in zip(labels, predictions, strict=True)]
    assert scores["image_iou"] == pytest.approx(np.mean([jaccard_score(*pair, **average) for pair in pairs]), abs=1e-12)
    assert scores["image_dice"] == pytest.approx(np.mean([f1_score(*pair, **average) for pair in pairs]), abs=1e-12)


@pytest.mark.parametrize("classes", [2, 4])
def test_image_scores_are_those_of_torchmetrics(classes):
    labels, predictions = draw(classes)
    labels = labels.clamp_min(0)  # its segmentation metrics know no void
    scores = image_scores(by_image(labels, predictions, classes))
    kind = {"num_classes": classes, "include_background": classes > 2, "input_format": "index"}
    iou = segmentation.MeanIoU(**kind)(predictions, labels)
    dice = segmentation.DiceScore(**kind, average="macro", aggregation_level="samplewise")(predictions, labels)
    assert scores["image_iou"] == pytest.approx(float(iou), abs=1e-6)
    assert scores["image_dice"] == pytest.approx(float(dice), abs=1e-6)


def test_images_and_data_set_differ_where_objects_differ_in_size():
    labels, predictions = torch.zeros(2, 10, 10, dtype=torch.int64), torch.zeros(2, 10, 10, dtype=torch.int64)
    labels[0], predictions[0] = 1, 1
    labels[1, 0, 0], predictions[1, 5, 5] = 1, 1
    assert image_scores(by_image(labels, predictions, 2))["image_iou"] == 0.5
    assert segmentation_scores(pixel_confusion(labels, predictions, 2))["iou"] == pytest.approx(100 / 102)


def test_an_empty_image_counts_only_where_something_is_predicted_in_it():
    empty, full = torch.zeros(4, 4, dtype=torch.int64), torch.ones(4, 4, dtype=torch.int64)
    labels, predictions = torch.stack([full, empty, empty]), torch.stack([full, empty, full])
    shares = by_image(labels, predictions, 2)
    assert shares["image_iou"].isnan().tolist() == [False, True, False]
    assert image_scores(shares) == {"image_iou": 0.5, "image_dice": 0.5}


@pytest.mark.parametrize("value", [0, -1])
def test_masks_without_foreground_divide_nothing_by_zero(value):
    labels, predictions = torch.full((3, 4, 4), value), torch.zeros(3, 4, 4, dtype=torch.int64)
    scores = segmentation_scores(pixel_confusion(labels, predictions, 2))
    background = float(value == 0)
    expected = {"iou": 0, "dice": 0, "f1": 0, "precision": 0, "recall": 0}
    assert scores == {**expected, "mean_iou": background, "pixel_accuracy": background}
    assert image_scores(by_image(labels, predictions, 2)) == {"image_iou": 0, "image_dice": 0}
