"""The words of a verdict: what they claim in every case, and that they are sentences."""

from itertools import product

import pytest

from headstart.studies.phrases import join, places, points, where
from headstart.studies.verdict import verdict

BETTER, WORSE, SAME, UNKNOWN = "better", "worse", "no difference", "unknown"
SIZE = "95 % interval 3.1 to 9.1"
PROBE = "a linear probe on frozen simclr features"


def compared(verdicts, arm="simclr", transfer="finetune", baseline="scratch", against="finetune", gain=0.061):
    pair = {"arm": arm, "transfer": transfer, "baseline": baseline, "baseline_transfer": against}
    rows = []
    for labels, said in verdicts.items():
        middle = gain * {BETTER: 1, WORSE: -1}.get(said, 0.1)
        low, high = (None, None) if said == UNKNOWN else (middle - 0.03, middle + 0.03)
        rows.append({**pair, "labels": labels, "difference": middle, "low": low, "high": high, "verdict": said})
    return rows


def saved(labels, text, interval, *, images=10, bound="inside", unit="labels per class", saves=True, **side):
    pair = {"arm": "simclr", "transfer": "finetune", "baseline": "scratch", "baseline_transfer": "finetune", **side}
    found = {"images": images, "text": text, "interval": interval, "saved_text": "3", "bound": bound, "n": 5}
    return {**pair, **found, "labels": labels, "unit": unit, "saves": saves}


def headline(rows, known=()):
    return verdict(rows, known, "scratch", 0.95)["headline"]


def test_one_budget_is_better():
    assert headline(compared({"5": BETTER, "10": SAME, "overall": SAME}), [saved("5", "9.5", "6.4 to 17")]) == (
        f"Pretraining saves labels at 5 labels per class: finetuning from simclr beats training from scratch by 6.1 "
        f"points ({SIZE}) and reaches what training from scratch reaches with 9.5 (95 % interval 6.4 to 17)."
    )


def test_several_budgets_are_better_and_the_middle_one_is_told():
    rows = compared({"1": BETTER, "2": BETTER, "5": BETTER, "20%": SAME, "all": WORSE, "overall": SAME})
    known = [saved(labels, "44", "40 to > 50", unit="labelled images", images=20) for labels in ("1", "2", "5")]
    assert headline(rows, known) == (
        "Pretraining saves labels at 1, 2 and 5 labels per class: finetuning from simclr beats training from scratch, "
        f"at 2 labels per class by 6.1 points ({SIZE}) and reaches what training from scratch reaches with 44 labelled "
        "images instead of 20 (95 % interval 40 to more than 50); it is worse with all labels."
    )


def test_uncertain_labels_saved_are_help_and_not_labels_saved():
    rows = compared({"1": BETTER, "2": BETTER})
    known = [saved("1", "2", "1.5 to 3"), saved("2", "3", "1 to 5", saves=False)]
    assert headline(rows, known).startswith("Pretraining helps at every label budget: ")
    assert headline(rows).startswith("Pretraining helps at every label budget: ")


def test_at_the_largest_budget_labels_saved_are_not_measured():
    largest = saved("50", "> 50", "> 50", bound="above") | {"saved_text": "> 0"}
    assert headline(compared({"5": SAME, "50": BETTER}), [largest]) == (
        "Pretraining saves labels at 50 labels per class: finetuning from simclr beats training from scratch by 6.1 "
        f"points ({SIZE}); how many labels that saves, only larger budgets can tell."
    )
    both = headline(compared({"5": BETTER, "50": BETTER}), [saved("5", "> 50", "> 50", bound="above"), largest])
    assert "at 5 labels per class by 6.1 points" in both
    assert both.endswith("reaches what training from scratch reaches with more than 50.")


def test_better_only_over_all_budgets_is_said():
    rows = compared({"1": SAME, "5": SAME, "10": SAME, "overall": BETTER}, transfer="probe")
    known = [saved("5", "11", "4.9 to 24", transfer="probe", saves=False)]
    assert headline(rows, known) == (
        f"Pretraining helps, which shows only over all budgets together: {PROBE} beats training from scratch by 6.1 "
        f"points on average ({SIZE}) but at no single budget; at 5 labels per class it reaches what training from "
        "scratch reaches with 11 (95 % interval 4.9 to 24)."
    )


def test_no_difference_is_no_proof_of_equality():
    rows = compared({"5": SAME, "20%": SAME, "overall": SAME})
    assert headline(rows) == (
        "Pretraining was not shown to save labels: finetuning from simclr scored +0.6 points against training from "
        "scratch over all budgets together (95 % interval −2.4 to 3.6); this is no proof that they are equal."
    )
    rows[-1] |= {"low": 0.001, "high": 0.02}
    assert "(95 % interval 0.1 to 2.0, before correction for 3 comparisons); this is no proof" in headline(rows)
    rows[-1] |= {"low": -0.006, "high": 0.009}
    assert headline(rows).endswith("(95 % interval −0.6 to 0.9); a difference of more than 1 point is unlikely.")


def test_worse_is_said():
    assert headline(compared({"5": WORSE, "10": WORSE, "20": UNKNOWN})) == (
        "Pretraining did not save labels: finetuning from simclr is worse than training from scratch at 5 and 10 "
        "labels per class (most at 5 labels per class: −6.1 points, 95 % interval −9.1 to −3.1); one seed cannot tell "
        "at 20 labels per class."
    )


def test_one_seed_cannot_tell():
    found = verdict(compared({"5": UNKNOWN, "overall": UNKNOWN}), [], "scratch", 0.95)
    assert found["headline"] == (
        "One seed cannot tell whether pretraining saves labels: finetuning from simclr scored +0.6 points against "
        "training from scratch over all budgets together; more seeds would give an interval."
    )
    assert found["details"] == []


def test_without_finetuning_nobody_knows_labels_saved():
    rows = compared({"5": BETTER, "all": BETTER}, transfer="probe", against="probe")
    assert headline(rows) == (
        "Labels saved are unknown without training from scratch (transfer finetune). "
        f"A linear probe on frozen simclr features beats a linear probe on random features at every label budget "
        f"(most at 5 labels per class: +6.1 points, {SIZE})."
    )


def test_the_best_use_is_the_largest_gain_among_those_shown():
    rows = compared({"5": SAME}, gain=0.9) + compared({"5": BETTER}, "byol", "probe", gain=0.05)
    rows += compared({"5": BETTER}, "moco", "head", gain=0.04)
    found = verdict(rows, [], "scratch", 0.95)
    assert found["best"] == {
        **{"arm": "byol", "transfer": "probe", "baseline": "scratch", "baseline_transfer": "finetune"},
        **{"labels": "5", "gain": "5"},
    }
    assert "a linear probe on frozen byol features beats" in found["headline"]
    assert [detail.split(" beats ")[0] for detail in found["details"]] == [
        "A trained head on frozen moco features",
        "No difference between finetuning from simclr and training from scratch was shown at 5 labels per class "
        "(+9.0 points, 95 % interval 6.0 to 12.0 before correction).",
    ]


def test_details_say_what_the_headline_left_out_and_no_more():
    rows = compared({"1": BETTER, "5": SAME, "10": SAME, "overall": BETTER}, transfer="probe")
    rows += compared({"1": SAME, "5": SAME, "10": SAME, "overall": WORSE})
    rows += compared({"1": BETTER, "5": BETTER, "10": BETTER}, transfer="probe", against="probe")
    rows += compared({"1": WORSE}, arm="scratch", transfer="probe")
    assert verdict(rows, [], "scratch", 0.95)["details"] == [
        f"A linear probe on frozen simclr features beats training from scratch at 1 label per class (+6.1 points, "
        f"{SIZE}); no difference was shown elsewhere; over all budgets together it is better (+6.1 points, {SIZE}).",
        "No difference between finetuning from simclr and training from scratch was shown at any label budget; over "
        "all budgets together it is worse (−6.1 points, 95 % interval −9.1 to −3.1).",
        "Under a linear probe, frozen simclr features beat random features at every label budget.",
    ]


def test_features_that_fare_alike_stand_in_one_sentence():
    rows = compared({"5": SAME})
    for arm, said in {"byol": BETTER, "moco": BETTER, "rotation": WORSE, "mae": SAME, "dino": UNKNOWN}.items():
        rows += compared({"5": said}, arm, "probe", against="probe")
    assert verdict(rows, [], "scratch", 0.95)["details"] == [
        "Under a linear probe, frozen rotation features are worse than random features at 5 labels per class; frozen "
        "byol and moco features beat random features at 5 labels per class; frozen mae features were not shown to "
        "differ from random features."
    ]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (
            [SAME, SAME, SAME],
            ["When finetuned, no difference between byol, moco and simclr was shown."],
        ),
        (
            [BETTER, BETTER, WORSE],
            ["When finetuned, in one comparison or more byol beats moco and simclr; simclr beats moco."],
        ),
        (
            [BETTER, SAME, SAME],
            [
                "When finetuned, in one comparison or more byol beats moco; "
                "between the other arms no difference was shown."
            ],
        ),
        (
            [BETTER],
            [f"Finetuning from byol beats finetuning from moco at 5 labels per class (+6.1 points, {SIZE})."],
        ),
        ([UNKNOWN], []),
    ],
)
def test_arms_are_ranked_in_one_sentence(said, expected):
    sides = [("byol", "moco"), ("byol", "simclr"), ("moco", "simclr")]
    rows = compared({"5": SAME})
    for (left, right), called in zip(sides, said, strict=False):
        rows += compared({"5": called}, left, baseline=right)
    assert verdict(rows, [], "scratch", 0.95)["details"] == expected


def test_every_combination_is_made_of_sentences():
    kinds = (BETTER, WORSE, SAME, UNKNOWN)
    cases = [
        dict(zip(names, said, strict=True))
        for names in (("1",), ("all",), ("1", "overall"), ("1", "20%", "overall"), ("1", "2", "all"))
        for said in product(kinds, repeat=len(names))
    ]
    for case, transfer, bound in product(cases, ("probe", "finetune"), ("inside", "above", "below", None)):
        sure = "> 9" if bound == "above" else "1 to 9"
        known = [saved(b, "> 9" if bound == "above" else "5", sure, bound=bound, transfer=transfer) for b in case]
        rows = compared(case, transfer=transfer) + compared(case, "byol", "head")
        rows += compared(case, transfer="probe", against="probe") + compared(case, "byol", baseline="simclr")
        found = verdict(rows, known if bound else [], "scratch", 0.95)
        for text in (found["headline"], *found["details"]):
            assert text[0].isupper()
            assert text.endswith(".")
            assert text.count("(") == text.count(")")
            assert not any(
                wrong in text for wrong in ("  ", " ;", "..", "None", "nan", " 1 labels", "at with", "()", " ,")
            )
        assert found["headline"].startswith("Pretraining saves labels") <= (BETTER in case.values())


def test_places_and_numbers_in_words():
    assert where("1") == "at 1 label per class"
    assert (
        where("1", "5", "20%", "50%", "all")
        == "at 1 and 5 labels per class, 20 % and 50 % of the labels and all labels"
    )
    assert where("all") == "with all labels"
    assert where("overall") == "over all budgets together"
    assert join(["a"]) == "a"
    assert join(["a", "b", "c"]) == "a, b and c"
    assert [points(-0.0004, "+"), points(-0.061), points(0.061, "+")] == ["+0.0", "−6.1", "+6.1"]
    rows = compared({"1": SAME, "2": SAME, "overall": SAME})
    assert [places(rows[:2], rows), places(rows[:1], rows)] == ["at every label budget", "at 1 label per class"]
