import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from headstart.errors import UserError
from headstart.evaluation import linear
from headstart.evaluation.linear import choose_penalty, fit_linear, probe, standardise


@pytest.fixture(scope="module")
def digits():
    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.from_numpy(data.data)[order], torch.from_numpy(data.target)[order]


def reference(features, labels, penalty):
    """Return scikit-learn's classifier and its objective."""
    model = LogisticRegression(C=penalty, tol=1e-8, max_iter=20_000).fit(features, labels)
    logits = torch.from_numpy(model.decision_function(features))
    targets = torch.searchsorted(torch.from_numpy(model.classes_), labels)
    loss = penalty * F.cross_entropy(logits, targets, reduction="sum") + 0.5 * (model.coef_**2).sum()
    return model, float(loss)


@pytest.mark.parametrize("penalty", [1e-4, 1e-2, 1.0, 1e1])
@pytest.mark.parametrize("size", [40, 300])
def test_optimum_is_that_of_sklearn(digits, size, penalty):
    features, labels = digits
    scaled = torch.from_numpy(StandardScaler().fit_transform(features))
    models = fit_linear(features, labels, 10, [torch.arange(size)], torch.tensor([penalty], dtype=torch.float64))
    model, loss = reference(scaled[:size], labels[:size], penalty)
    assert models.converged.all()
    assert models.loss.item() == pytest.approx(loss, rel=1e-6)
    agreement = (models.predict(features)[0] == torch.from_numpy(model.predict(scaled))).double().mean()
    assert agreement >= 0.998


def test_objective_and_gradient_hold_for_the_weights_returned(digits):
    features, labels = digits
    subset = torch.arange(0, 600, 3)
    models = fit_linear(features, labels, 10, [subset], torch.tensor([0.3]))
    scaled = (features[subset] - models.mean) / models.scale
    weight, bias = models.weight[0].clone().requires_grad_(), models.bias[0].clone().requires_grad_()
    error = F.cross_entropy(scaled @ weight.T + bias, labels[subset], reduction="sum")
    loss = 0.3 * error + weight.square().sum() / 2
    loss.backward()
    assert loss.item() == pytest.approx(models.loss.item(), rel=1e-6)
    assert weight.grad.abs().max() < 1e-2 * models.weight.abs().max()
    assert bias.grad.abs().max() < 1e-2


def test_problems_solved_together_are_those_solved_alone(digits, monkeypatch):
    features, labels = digits
    subsets = [torch.arange(60), torch.arange(60, 120), torch.arange(60).flip(0), torch.arange(200)]
    penalties = torch.tensor([0.1, 10.0, 0.1, 1.0], dtype=torch.float64)
    together = fit_linear(features, labels, 10, subsets, penalties, tolerance=1e-13)
    monkeypatch.setattr(linear, "_NUMBERS_AT_ONCE", 1)
    apart = fit_linear(features, labels, 10, subsets, penalties, tolerance=1e-13)
    torch.testing.assert_close(together.weight, apart.weight, rtol=1e-4, atol=1e-5)
    assert torch.equal(together.predict(features), apart.predict(features))
    assert torch.equal(together.weight[0], together.weight[2])


def test_a_class_without_rows_is_never_predicted_as_if_it_were_left_out(digits):
    features, labels = digits
    subset = (labels[:400] < 6).nonzero()[:, 0]
    models = fit_linear(features, labels, 10, [subset], torch.tensor([1.0]))
    scaled = torch.from_numpy(StandardScaler().fit_transform(features))
    model, loss = reference(scaled[subset], labels[subset], 1.0)
    assert models.loss.item() == pytest.approx(loss, rel=1e-6)
    assert models.bias[0, 6:].isneginf().all()
    agreement = (models.predict(features)[0] == torch.from_numpy(model.predict(scaled))).double().mean()
    assert agreement >= 0.998


def test_one_row_per_class_more_features_than_rows_and_one_class_only(digits):
    features, labels = digits
    wide = torch.cat([features, features.square(), features.sqrt()], 1)
    first = torch.stack([(labels == label).nonzero()[0, 0] for label in range(10)])
    models = fit_linear(wide, labels, 10, [first, (labels == 4).nonzero()[:, 0]], torch.tensor([1.0, 1.0]))
    assert models.converged.all()
    assert models.weight.isfinite().all()
    assert torch.equal(models.predict(wide[first])[0], torch.arange(10))
    assert (models.predict(wide)[1] == 4).all()


def test_standardisation_is_that_of_sklearn_and_leaves_constants_alone(digits):
    features = torch.cat([digits[0], torch.full((len(digits[0]), 1), 0.1, dtype=torch.float64)], 1)
    scaler = StandardScaler().fit(features)
    mean, scale = standardise(features)
    torch.testing.assert_close(mean, torch.from_numpy(scaler.mean_))
    torch.testing.assert_close(scale, torch.from_numpy(scaler.scale_))
    assert scale[-1] == 1


def test_ties_go_to_the_stronger_penalty():
    assert choose_penalty(torch.tensor([0.5, 0.8, 0.8, 0.1]), torch.tensor([1.0, 10.0, 0.1, 0.01])) == 2


def test_probe_chooses_on_validation_data_and_scores_the_test_data(digits):
    features, labels = digits
    train, val, test = slice(0, 200), slice(200, 500), slice(500, None)
    grid = torch.logspace(-3, 1, 5)
    subsets = [torch.arange(50), torch.arange(200)]
    scores = probe(
        features[train], labels[train], features[val], labels[val], features[test], labels[test], subsets, grid, 10
    )
    mean, scale = standardise(features[train])
    scaled = (features - mean) / scale
    for subset, score in zip(subsets, scores, strict=True):
        model = LogisticRegression(C=score.penalty, tol=1e-6, max_iter=20_000).fit(scaled[subset], labels[subset])
        assert score.val_accuracy == pytest.approx(model.score(scaled[val], labels[val]), abs=0.004)
        assert score.test_accuracy == pytest.approx(model.score(scaled[test], labels[test]), abs=0.002)
        assert score.test_accuracy == (score.predictions == labels[test]).double().mean()
    wrong = (labels[test] + 1) % 10
    again = probe(features[train], labels[train], features[val], labels[val], features[test], wrong, subsets, grid, 10)
    assert [score.penalty for score in again] == [score.penalty for score in scores]


def test_wrong_input_is_named(digits):
    features, labels = digits
    one = torch.ones(1)
    with pytest.raises(UserError, match=r"^subsets: "):
        fit_linear(features, labels, 10, [torch.arange(0)], one)
    with pytest.raises(UserError, match=r"^subsets: "):
        fit_linear(features, labels, 5, [torch.arange(100)], one)
    with pytest.raises(UserError, match=r"^penalties: 1 for 2"):
        fit_linear(features, labels, 10, [torch.arange(9)] * 2, one)
    with pytest.raises(UserError, match=r"^penalties: not all"):
        fit_linear(features, labels, 10, [torch.arange(9)], -one)
    with pytest.raises(UserError, match=r"^features: "):
        fit_linear(features / 0, labels, 10, [torch.arange(9)], one)
