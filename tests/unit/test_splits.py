from collections import Counter
from itertools import pairwise

import pytest
import torch

from headstart.data.index import array_data
from headstart.data.sources import open_data
from headstart.data.splits import Budget, label_subset, parse_budget, split
from headstart.errors import UserError


def made(labels, splits=None, classes=None):
    labels = list(labels)
    classes = [f"class{number}" for number in range(max(labels) + 1)] if classes is None else classes
    splits = [-1] * len(labels) if splits is None else splits
    return array_data("made", torch.zeros(len(labels), 3, 2, 2, dtype=torch.uint8), labels, splits, classes)


def shuffled_labels(counts, seed=0):
    labels = torch.cat([torch.full((count,), label) for label, count in enumerate(counts)])
    return labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]


def per_class(labels, rows):
    return [Counter(labels[rows].tolist())[label] for label in range(int(labels.max()) + 1)]


def assert_partition(parts, count):
    assert sorted(torch.cat(list(parts)).tolist()) == list(range(count))
    assert all(part.tolist() == sorted(part.tolist()) for part in parts)


def test_no_splits_gives_60_20_20_of_each_class():
    labels = shuffled_labels([50, 100, 10, 3, 4])
    parts = split(made(labels.tolist()))
    assert_partition((parts.train, parts.val, parts.test), 167)
    assert per_class(labels, parts.train) == [30, 60, 6, 1, 2]
    assert per_class(labels, parts.val) == per_class(labels, parts.test) == [10, 20, 2, 1, 1]
    assert len(parts.unlabelled) == 0


def test_the_cut_is_a_function_of_seed_and_data():
    data = made(shuffled_labels([40, 40]).tolist())
    first, again, other = split(data), split(data), split(data, seed=1)
    assert torch.equal(first.test, again.test)
    assert not torch.equal(first.test, other.test)
    assert not torch.equal(first.test, torch.arange(16))


@pytest.mark.parametrize("held_out", [1, 2])
def test_the_only_held_out_split_is_the_test(held_out):
    labels = [0] * 20 + [1] * 40 + [0, 1] * 5
    splits = [0] * 60 + [held_out] * 10
    parts = split(made(labels, splits))
    assert_partition((parts.train, parts.val, parts.test), 70)
    assert parts.test.tolist() == list(range(60, 70))
    assert per_class(torch.tensor(labels), parts.val) == [3, 6]


def test_given_splits_are_kept():
    splits = [0, 1, 2, 3] * 5
    labels = [code if code < 2 else 0 for code in splits]
    parts = split(made(labels, splits), needs_labels=False)
    for code, rows in enumerate((parts.train, parts.val, parts.test, parts.unlabelled)):
        assert rows.tolist() == list(range(code, 20, 4))


@pytest.mark.parametrize("classes", [(), ("one",)])
def test_without_labels_everything_is_train(classes):
    parts = split(made([len(classes) - 1] * 9, classes=classes))
    assert parts.train.tolist() == list(range(9))
    assert len(parts.val) == len(parts.test) == 0


def test_only_held_out_images_cannot_be_split():
    with pytest.raises(UserError, match="data: made has no training images"):
        split(made([0, 1], [2, 2]))


def test_a_class_too_small_is_named_or_stays_in_train():
    data = made([0] * 10 + [1] * 2)
    with pytest.raises(UserError, match=r"data: class 'class1' has 2 training images \(allowed: at least 3"):
        split(data)
    parts = split(data, needs_labels=False)
    assert {10, 11} <= set(parts.train.tolist())
    assert per_class(data.labels, parts.train) == [6, 2]


def test_a_class_without_training_images_is_named():
    with pytest.raises(UserError, match="data: class 'class1' has 0 training images"):
        split(made([0, 0, 0, 1, 0], [0, 0, 0, 2, 2]))
    with pytest.raises(UserError, match="data: class 'class1' has 0 training images"):
        split(made([0, 0, 0, 1, 0], [0, 0, 0, 1, 2]))


def test_folder_order_does_not_move_the_cut(tmp_path, save_image):
    names = [f"{label}/{number}.png" for label in "ab" for number in range(10)]
    for folder, order in (("one", names), ("two", names[::-1])):
        for name in order:
            save_image(tmp_path / folder / name)
    first, second = (open_data(tmp_path / folder) for folder in ("one", "two"))
    assert torch.equal(split(first).test, split(second).test)


@pytest.mark.parametrize(
    ("text", "budget", "name"),
    [
        (5, Budget(per_class=5), "5"),
        (" 10 ", Budget(per_class=10), "10"),
        ("20%", Budget(percent=20.0), "20%"),
        ("0.5%", Budget(percent=0.5), "0.5%"),
        ("100%", Budget(percent=100.0), "100%"),
        ("all", Budget(), "all"),
        (Budget(per_class=3), Budget(per_class=3), "3"),
    ],
)
def test_budgets_are_read(text, budget, name):
    assert parse_budget(text) == budget
    assert parse_budget(text).name == name


@pytest.mark.parametrize("text", ["", "0", "-1", "5.5", "0%", "101%", "%", "All", "5 %", True, 2.5, None, "1e2", "٣"])
def test_other_budgets_are_refused(text):
    with pytest.raises(UserError, match=r"labels: .* is no budget.*20%, all"):
        parse_budget(text)


def test_subsets_of_one_seed_are_nested():
    labels = shuffled_labels([100, 150, 317, 20])
    rows = torch.arange(0, 587, 1)
    for seed in range(3):
        chosen = {budget: set(label_subset(labels, rows, budget, seed).tolist()) for budget in [1, 5, 10, 20]}
        assert chosen[1] < chosen[5] < chosen[10] < chosen[20]
        shares = [set(label_subset(labels, rows, f"{share}%", seed).tolist()) for share in range(1, 101)]
        assert all(small <= large for small, large in pairwise(shares))
        assert shares[-1] == set(range(587)) == set(label_subset(labels, rows, "all", seed).tolist())


def test_counts_and_shares_are_nested_in_each_other():
    labels = shuffled_labels([200, 210, 190])
    rows = torch.arange(600)
    order = [1, 5, 10, 20, "20%", 60, "50%", "all"]
    subsets = [set(label_subset(labels, rows, budget, 3).tolist()) for budget in order]
    assert all(small < large for small, large in pairwise(subsets))


@pytest.mark.parametrize("percent", [1, 3, 10, 20, 33.3, 50, 90])
def test_a_share_is_exact_stratified_and_has_every_class(percent):
    counts = [7, 31, 100, 317, 545]
    labels = shuffled_labels(counts)
    chosen = per_class(labels, label_subset(labels, torch.arange(1000), f"{percent}%", 0))
    assert sum(chosen) == round(10 * percent)
    assert all(abs(got - max(1, count * percent / 100)) < 1.5 for got, count in zip(chosen, counts, strict=True))
    assert min(chosen) >= 1


def test_a_count_is_per_class_and_a_function_of_its_arguments():
    labels = shuffled_labels([30, 40])
    rows = torch.randperm(70)[:60]
    subset = label_subset(labels, rows, 5, 0)
    assert per_class(labels, subset) == [5, 5]
    assert set(subset.tolist()) <= set(rows.tolist())
    assert torch.equal(subset, label_subset(labels, rows.flip(0), 5, 0))
    assert not torch.equal(subset, label_subset(labels, rows, 5, 1))


def test_every_image_of_a_class_is_as_likely():
    labels = torch.zeros(10, dtype=torch.int64)
    draws = torch.cat([label_subset(labels, torch.arange(10), 3, seed) for seed in range(1000)])
    counts = torch.bincount(draws, minlength=10)
    assert ((counts - 300) ** 2 / 210).sum() < 27.9  # chi-square with 9 degrees of freedom, p = 0.001


def test_images_without_labels_are_never_taken():
    labels = torch.tensor([0, -1, 1, -1, 0])
    assert label_subset(labels, torch.arange(5), "all", 0).tolist() == [0, 2, 4]
    with pytest.raises(UserError, match="labels: no training image has a label"):
        label_subset(labels, torch.tensor([1, 3]), "all", 0)


def test_a_budget_larger_than_a_class_is_refused():
    labels = torch.tensor([0] * 60 + [1] * 31)
    with pytest.raises(UserError) as error:
        label_subset(labels, torch.arange(91), 50, 0, classes=("cat", "duck"))
    assert str(error.value) == (
        "labels: 50 per class, but class 'duck' has only 31 training images (allowed: 1 to 31, 1% to 100%, all)"
    )
