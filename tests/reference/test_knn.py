import math

import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from headstart.errors import UserError
from headstart.evaluation.knn import knn_predict


def naive(train_features, train_labels, features, classes, k, temperature):
    predictions = []
    for one in features.double():
        similarities = []
        for other in train_features.double():
            similarities.append(float(one @ other / (one.norm() * other.norm())))
        nearest = sorted(range(len(similarities)), key=lambda row: (-similarities[row], row))[:k]
        votes = [0.0] * classes
        for row in nearest:
            votes[int(train_labels[row])] += math.exp(similarities[row] / temperature)
        predictions.append(votes.index(max(votes)))
    return torch.tensor(predictions)


def noise(seed):
    generator = torch.Generator().manual_seed(seed)
    train_features = torch.randn(90, 5, generator=generator, dtype=torch.float64)
    train_labels = torch.randint(4, (90,), generator=generator)
    return train_features, train_labels, torch.randn(40, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("k", [1, 7, 20, 500])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_prediction_is_that_of_a_naive_loop(k, temperature):
    train_features, train_labels, features = noise(0)
    expected = naive(train_features, train_labels, features, 4, k, temperature)
    assert torch.equal(knn_predict(train_features, train_labels, features, 4, k, temperature, chunk=7), expected)


def test_with_a_huge_temperature_it_is_an_unweighted_vote():
    digits = load_digits()
    features, labels = torch.from_numpy(digits.data), torch.from_numpy(digits.target)
    reference = KNeighborsClassifier(n_neighbors=9, metric="cosine").fit(features[:900], labels[:900])
    predictions = knn_predict(features[:900], labels[:900], features[900:], 10, 9, temperature=1e12)
    assert torch.equal(predictions, torch.from_numpy(reference.predict(features[900:])))
    assert (predictions == labels[900:]).double().mean() > 0.9


def test_of_equal_neighbours_the_first_rows_are_taken():
    train_features = torch.ones(50, 2)
    train_labels = torch.tensor([2] * 3 + [1] * 47)
    assert knn_predict(train_features, train_labels, torch.ones(1, 2), 3, k=5).item() == 2


def test_of_classes_with_equal_votes_the_lowest_wins():
    train_features = torch.eye(4)[[0, 1, 0, 1]]
    train_labels = torch.tensor([3, 1, 1, 3])
    assert knn_predict(train_features, train_labels, torch.tensor([[1.0, 1.0, 0.0, 0.0]]), 4, k=4).item() == 1


def test_neither_length_nor_chunk_nor_half_precision_of_clear_features_matters():
    train_features, train_labels, features = noise(1)
    expected = knn_predict(train_features, train_labels, features, 4, 10)
    assert torch.equal(knn_predict(train_features * 3, train_labels, features * 7, 4, 10, chunk=1), expected)
    axes, labels = torch.eye(3).bfloat16(), torch.arange(3)
    assert torch.equal(knn_predict(axes, labels, axes, 3, k=2), labels)


@pytest.mark.parametrize(("setting", "name"), [({"k": 0}, "k"), ({"k": 1, "temperature": 0.0}, "temperature")])
def test_a_number_out_of_range_is_named(setting, name):
    train_features, train_labels, features = noise(2)
    with pytest.raises(UserError, match=f"^{name}: "):
        knn_predict(train_features, train_labels, features, 4, **setting)
    with pytest.raises(UserError, match=r"^train_labels: "):
        knn_predict(train_features, train_labels, features, 2, k=1)
