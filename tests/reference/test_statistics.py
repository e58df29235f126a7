"""The statistics of a study against scipy, worked numbers, naive loops and simulations."""

import json
from math import inf, sqrt

import numpy as np
import pytest
from scipy import stats

from headstart.studies.statistics import holm, images_needed, paired_p, summarise, t_interval

BUDGETS = {"1": 10, "2": 20, "5": 50, "10": 100, "20": 200, "50": 500}


def make_rows(arms, budgets=BUDGETS, transfers=("finetune",), seeds=5, noise=0.02, common=0.02, drift=0.0, generator=0):
    """Return rows of arms with one mean, or one per budget.

    A seed's noise has a part of its own, a ``common`` part for all arms and a ``drift`` for all budgets of an arm.
    """
    random = np.random.default_rng(generator)
    rows = []
    for transfer in transfers:
        shared = random.normal(0, common, (len(budgets), seeds))
        for arm, means in arms.items():
            scores = (
                np.reshape(means, (-1, 1))
                + shared
                + random.normal(0, noise, shared.shape)
                + random.normal(0, drift, seeds)
            )
            rows += [
                {"arm": arm, "transfer": transfer, "labels": labels, "images": images, "seed": seed, "score": score}
                for (labels, images), row in zip(budgets.items(), scores.clip(0, 1), strict=True)
                for seed, score in enumerate(row)
            ]
    return rows


def summary_of(rows, **settings):
    return summarise(rows, baseline="scratch", score="accuracy", **{"bootstrap": 200, **settings})


def cells(rows, arm, transfer, labels):
    chosen = [row for row in rows if (row["arm"], row["transfer"], row["labels"]) == (arm, transfer, labels)]
    return [row["score"] for row in sorted(chosen, key=lambda row: row["seed"])]


def test_score_intervals_are_those_of_scipy():
    rows = make_rows({"scratch": 0.5, "simclr": 0.6})
    for found in summary_of(rows)["scores"]:
        values = cells(rows, found["arm"], found["transfer"], found["labels"])
        expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
        assert (found["n"], found["mean"]) == (5, pytest.approx(np.mean(values)))
        assert (found["low"], found["high"]) == pytest.approx(expected)


def test_comparisons_are_the_paired_t_tests_of_scipy():
    rows = make_rows({"scratch": 0.5, "simclr": 0.53}, transfers=("probe", "finetune"))
    found = summary_of(rows, confidence=0.9)["comparisons"]
    assert len(found) == 4 * (len(BUDGETS) + 1)
    for row in found:
        left, right = (row["arm"], row["transfer"]), (row["baseline"], row["baseline_transfer"])
        names = BUDGETS if row["labels"] == "overall" else [row["labels"]]
        a, b = (np.mean([cells(rows, *side, name) for name in names], axis=0) for side in (left, right))
        test = stats.ttest_rel(a, b)
        assert row["difference"] == pytest.approx(np.mean(a - b))
        assert row["p"] == pytest.approx(test.pvalue)
        assert (row["low"], row["high"]) == pytest.approx(tuple(test.confidence_interval(0.9)))
        expected = ("better" if row["difference"] > 0 else "worse") if row["p_holm"] < 0.05 else "no difference"
        assert row["verdict"] == expected
    assert [row["p_holm"] for row in found] == holm([row["p"] for row in found])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # Wikipedia's worked example of Holm's method
        ([0.5, 0.9, 0.001], [1.0, 1.0, 0.003]),
        ([0.02, None, 0.02], [0.04, None, 0.04]),
        ([None], [None]),
        ([], []),
    ],
)
def test_holm_by_hand(values, expected):
    assert holm(values) == [None if value is None else pytest.approx(value) for value in expected]


def test_differences_without_variance_get_the_sign_flip_p():
    assert paired_p([0.0, 0.0, 0.0]) == 1.0
    assert paired_p([0.61 - 0.6, 0.71 - 0.7]) == 0.5
    assert paired_p([0.2] * 5) == 0.0625
    assert paired_p([0.2]) is None
    assert t_interval([0.2], 0.95) == (None, None)


def test_each_question_is_asked_once():
    rows = make_rows({"scratch": 0.5, "simclr": 0.6, "byol": 0.6}, {"5": 50}, ("finetune", "probe"), seeds=2)
    found = summary_of(rows)["comparisons"]
    asked = [f"{r['arm']} {r['transfer']} {r['baseline']} {r['baseline_transfer']}" for r in found]
    assert len(asked) == len(set(asked))
    assert set(asked) == {
        "simclr probe scratch probe",
        "byol probe scratch probe",
        "simclr finetune scratch finetune",
        "byol finetune scratch finetune",
        "scratch probe scratch finetune",
        "simclr probe scratch finetune",
        "byol probe scratch finetune",
        "byol probe simclr probe",
        "byol finetune simclr finetune",
    }


def test_labels_saved_are_those_of_pretrained_arms_against_training_from_scratch_first():
    rows = make_rows({"scratch": 0.5, "simclr": 0.6}, {"5": 50, "10": 100}, ("probe", "finetune"))
    found = [f"{r['arm']} {r['transfer']} {r['baseline_transfer']}" for r in summary_of(rows)["labels_saved"]]
    assert list(dict.fromkeys(found)) == ["simclr probe finetune", "simclr finetune finetune", "simclr probe probe"]


def test_the_order_of_rows_decides_nothing():
    rows = make_rows({"scratch": 0.5, "simclr": 0.6, "byol": 0.55}, transfers=("probe", "head", "finetune"), seeds=3)
    expected = json.dumps(summary_of(rows), allow_nan=False)
    random = np.random.default_rng(0)
    for _ in range(3):
        assert json.dumps(summary_of([rows[i] for i in random.permutation(len(rows))]), allow_nan=False) == expected


def test_an_arm_against_itself_shows_no_difference_in_95_of_100_studies():
    means = np.linspace(0.3, 0.8, len(BUDGETS))
    quiet = 0
    for study in range(400):
        rows = make_rows({"scratch": means, "simclr": means}, common=0.03, drift=0.02, generator=study)
        quiet += all(row["verdict"] == "no difference" for row in summary_of(rows, bootstrap=2)["comparisons"])
    # Holm's rate is 95 in 100 or more; 400 studies miss it by chance, but not by much.
    assert stats.binomtest(quiet, 400, 0.95, alternative="less").pvalue > 0.05


def test_a_gap_of_three_standard_deviations_is_found():
    found = 0
    for study in range(30):
        rows = make_rows({"scratch": 0.5, "simclr": 0.5 + 3 * 0.02 * sqrt(2)}, generator=study)
        comparisons = summary_of(rows, bootstrap=2)["comparisons"]
        found += next(row["verdict"] for row in comparisons if row["labels"] == "overall") == "better"
    assert found >= 29


def test_interpolation_on_a_worked_example():
    images = np.array([10.0, 100.0, 1000.0])
    curves = np.array([[0.2, 0.4, 0.6]] * 7 + [[0.2, 0.1, 0.6]])
    targets = np.array([0.3, 0.5, 0.2, 0.6, 0.6 + 1e-6, 0.1, 0.4, 0.4])
    needed = images_needed(targets, curves, images)
    # The last curve dips: its cumulative maximum is 0.2, 0.2, 0.6, half-way from 100 to 1000 in the logarithm.
    assert needed == pytest.approx([10**1.5, 10**2.5, 10, 1000, inf, -inf, 100, 10**2.5])


def test_interpolation_is_that_of_numpy_on_rising_curves():
    random = np.random.default_rng(0)
    images = np.array([5.0, 10.0, 40.0, 300.0])
    curves = np.sort(random.random((200, 4)), axis=1)
    targets = curves[:, 0] + random.random(200) * (curves[:, -1] - curves[:, 0])
    expected = [np.exp(np.interp(t, curve, np.log(images))) for t, curve in zip(targets, curves, strict=True)]
    assert images_needed(targets, curves, images) == pytest.approx(expected)


def test_labels_saved_says_what_was_measured_and_no_more():
    exact = {"scratch": [0.2, 0.4, 0.6], "simclr": [0.1, 0.5, 0.7]}
    rows = make_rows(exact, {"1": 10, "10": 100, "100": 1000}, seeds=3, noise=0, common=0)
    below, inside, above = summary_of(rows, classes=10)["labels_saved"]
    assert (below["bound"], below["text"], below["saved_text"], below["needed"]) == ("below", "< 1", "< 0", None)
    assert (above["bound"], above["text"], above["saved_text"], above["saved"]) == ("above", "> 100", "> 0", None)
    assert (inside["bound"], inside["text"], inside["saved_text"], inside["interval"]) == ("inside", "32", "22", "32")
    assert (inside["needed"], inside["saved"]) == pytest.approx((10**2.5, 10**2.5 - 100))
    assert (inside["images"], inside["score"]) == (100, pytest.approx(0.5))
    in_images = summary_of(rows)
    assert in_images["unit"] == "labelled images"
    assert [row["text"] for row in in_images["labels_saved"]] == ["< 10", "316", "> 1000"]


def test_the_interval_of_labels_saved_may_leave_the_measured_range():
    rows = make_rows(
        {"scratch": [0.3, 0.5, 0.6], "simclr": [0.4, 0.57, 0.8]}, {"1": 10, "10": 100, "100": 1000}, common=0
    )
    row = summary_of(rows, classes=10, bootstrap=2000)["labels_saved"][1]
    assert (row["bound"], row["high"]) == ("inside", None)
    assert row["interval"].endswith(" to > 100")
    assert row["low"] < row["needed"]
    assert row["saves"] == (row["low"] > row["images"])


def test_the_interval_of_labels_saved_covers_the_truth():
    budgets = {"1": 10, "4": 40, "16": 160, "64": 640}
    scratch = np.array([0.2, 0.4, 0.6, 0.8])
    truth, covered = 40 * 4**0.5, 0  # 0.5 lies half-way between the second and the third budget
    for study in range(150):
        arms = {"scratch": scratch, "simclr": scratch + 0.1}
        rows = make_rows(arms, budgets, noise=0.02, common=0.02, generator=study)
        row = summary_of(rows, bootstrap=500)["labels_saved"][1]
        covered += row["low"] <= truth <= row["high"]
    assert 128 <= covered <= 149


def test_one_seed_is_unknown():
    found = summary_of(make_rows({"scratch": 0.5, "simclr": 0.6}, seeds=1))
    assert {row["verdict"] for row in found["comparisons"]} == {"unknown"}
    assert {row["p"] for row in found["comparisons"]} == {row["low"] for row in found["scores"]} == {None}
    assert {row["interval"] for row in found["labels_saved"]} == {"unknown (one seed)"}
    assert found["verdict"]["headline"].startswith("One seed cannot tell whether pretraining saves labels")
    assert not any(row["saves"] for row in found["labels_saved"])


def test_unfinished_studies_compare_the_seeds_that_both_sides_have():
    rows = make_rows({"scratch": 0.5, "simclr": 0.6}, {"1": 10, "5": 50}, noise=0.01)
    rows = [
        row for row in rows if (row["arm"], row["labels"], row["seed"]) not in {("simclr", "1", 4), ("scratch", "5", 0)}
    ]
    found = summary_of(rows)
    assert [row["n"] for row in found["comparisons"]] == [4, 4, 3]
    assert [row["n"] for row in found["labels_saved"]] == [3, 4]
    rows = [row for row in rows if row["arm"] == "scratch" or row["labels"] == "1"]
    assert [row["labels"] for row in summary_of(rows)["comparisons"]] == ["1"]


@pytest.mark.parametrize("rows", [[], make_rows({"scratch": 0.5}), make_rows({"simclr": 0.5})])
def test_nothing_to_compare_is_said_in_words(rows):
    found = summary_of(rows)
    assert found["comparisons"] == found["labels_saved"] == found["verdict"]["details"] == []
    assert found["verdict"]["headline"].startswith("Nothing can be compared yet")
