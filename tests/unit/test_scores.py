import numpy as np
import pytest
import torch
from sklearn import metrics

from headstart.errors import UserError
from headstart.evaluation.scores import classification_scores, confusion, per_class


def draw(seed, classes=6, present=6, size=200):
    random = np.random.default_rng(seed)
    labels = random.integers(0, present, size)
    predictions = np.where(random.random(size) < 0.5, labels, random.integers(0, classes, size))
    return torch.from_numpy(labels), torch.from_numpy(predictions)


@pytest.mark.parametrize("seed", range(3))
def test_confusion_is_that_of_sklearn(seed):
    labels, predictions = draw(seed)
    expected = metrics.confusion_matrix(labels, predictions, labels=range(8))
    assert torch.equal(confusion(labels, predictions, 8), torch.from_numpy(expected))


@pytest.mark.parametrize(("classes", "present"), [(6, 6), (3, 5), (5, 3)])
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_scores_are_those_of_sklearn_also_with_classes_that_miss(classes, present):
    labels, predictions = draw(1, classes, present)
    scores = classification_scores(confusion(labels, predictions, 9))
    assert scores["accuracy"] == pytest.approx(metrics.accuracy_score(labels, predictions))
    assert scores["balanced_accuracy"] == pytest.approx(metrics.balanced_accuracy_score(labels, predictions))
    assert scores["macro_f1"] == pytest.approx(metrics.f1_score(labels, predictions, average="macro", zero_division=0))


def test_shares_per_class_are_those_of_sklearn():
    labels, predictions = draw(2, classes=4, present=5)
    shares = per_class(confusion(labels, predictions, 7))
    expected = metrics.precision_recall_fscore_support(labels, predictions, labels=range(7), zero_division=0)
    for name, values in zip(("precision", "recall", "f1"), expected, strict=False):
        torch.testing.assert_close(shares[name], torch.from_numpy(values))


def test_matrices_of_parts_add_up():
    labels, predictions = draw(3)
    parts = confusion(labels[:70], predictions[:70], 6) + confusion(labels[70:], predictions[70:], 6)
    assert torch.equal(parts, confusion(labels, predictions, 6))


def test_wrong_input_is_named():
    labels, predictions = draw(4)
    with pytest.raises(UserError, match=r"labels: .*allowed: 0\.\.2"):
        confusion(labels, predictions, 3)
    with pytest.raises(UserError, match="predictions: 5 of them for 200"):
        confusion(labels, predictions[:5], 6)
    with pytest.raises(UserError, match="confusion: counts no prediction"):
        classification_scores(torch.zeros(2, 2, dtype=torch.int64))
