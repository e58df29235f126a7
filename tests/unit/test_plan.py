"""From a study to its cells, and from finished cells to rows."""

import json
from pathlib import Path

import pytest

from headstart import methods
from headstart.config import Study
from headstart.errors import UserError
from headstart.studies.plan import plan
from headstart.studies.results import choose, collect, to_csv

BASE = {
    "data": "digits",
    "image_size": 8,
    "arms": {"scratch": "none", "simclr": {"method": "simclr", "epochs": 3}},
    "labels": [1, 5],
    "seeds": 2,
}
READY_MADE = sorted((Path(__file__).parents[2] / "studies").glob("*.yaml"))


def make(**changes):
    return Study.create(**{**BASE, **changes})


def test_every_combination_is_one_cell():
    cells = plan(make(), "fingerprint")
    kinds = [cell.kind for cell in cells]
    assert kinds.count("pretrain") == 2  # one arm, two seeds
    assert kinds.count("probe") == 2 * 2  # arms and seeds; one probe serves all budgets
    assert kinds.count("finetune") == 2 * 2 * 2
    assert kinds == sorted(kinds, key=lambda kind: kind != "pretrain")
    assert len({cell.id for cell in cells}) == len(cells)


def test_the_plan_is_a_function_of_the_study_and_the_data():
    assert plan(make(), "a") == plan(make(), "a")
    assert not {cell.id for cell in plan(make(), "a")} & {cell.id for cell in plan(make(), "b")}
    renamed = {cell.id for cell in plan(make(name="another name", data="moved"), "a")}
    assert renamed == {cell.id for cell in plan(make(), "a")}


def test_more_seeds_or_budgets_keep_the_cells_that_are_finished():
    before = {cell.id for cell in plan(make(), "a") if cell.kind != "probe"}
    after = {cell.id for cell in plan(make(seeds=3, labels=[1, 5, 20]), "a")}
    assert before < after


def test_arms_are_paired_by_seed():
    cells = [cell for cell in plan(make(), "a") if cell.kind == "finetune"]
    by_arm = {arm: {(c.seed, c.settings["labels"]) for c in cells if c.arm == arm} for arm in ("scratch", "simclr")}
    assert by_arm["scratch"] == by_arm["simclr"]
    for cell in cells:
        twin = next(
            c
            for c in cells
            if c.arm != cell.arm and (c.seed, c.settings["labels"]) == (cell.seed, cell.settings["labels"])
        )
        different = {key for key in cell.settings if cell.settings[key] != twin.settings[key]}
        assert different == {"init"}  # the same splits, views, steps and rates


def test_equal_pretrainings_are_run_once():
    arms = {"scratch": "none", "one": {"epochs": 3}, "two": {"epochs": 3}, "other": {"epochs": 4}}
    cells = plan(make(arms=arms), "a")
    pretrainings = [cell for cell in cells if cell.kind == "pretrain"]
    assert len(pretrainings) == 4  # two different ones, two seeds
    needs = {(cell.arm, cell.seed): cell.needs for cell in cells if cell.kind == "probe"}
    assert needs["one", 0] == needs["two", 0] != needs["other", 0]


def test_a_cell_needs_the_pretraining_of_its_own_arm_and_seed():
    cells = plan(make(), "a")
    pretrainings = {cell.id: cell for cell in cells if cell.kind == "pretrain"}
    for cell in cells:
        if cell.kind != "pretrain" and cell.arm == "simclr":
            assert pretrainings[cell.needs].seed == cell.seed
        elif cell.kind != "pretrain":
            assert cell.needs is None
            assert cell.settings["init"] == "none"


def test_an_arm_that_learns_from_labels_is_planned_once_for_each_budget():
    arms = {"scratch": "none", "simclr": {"method": "simclr"}, "supcon": {"method": "supcon"}}
    cells = plan(make(arms=arms, labels=[1, 5, "all"], transfers=["probe", "finetune"]), "a", labelled=("supcon",))
    pretrainings = {cell.id: cell for cell in cells if cell.kind == "pretrain"}
    by_arm = {arm: [c for c in pretrainings.values() if c.arm == arm] for arm in ("simclr", "supcon")}
    assert [(cell.seed, cell.settings["labels"]) for cell in by_arm["simclr"]] == [(0, "all"), (1, "all")]
    points = {(cell.seed, cell.settings["labels"]) for cell in by_arm["supcon"]}
    assert points == {(seed, labels) for seed in (0, 1) for labels in ("1", "5", "all")}
    transfers = [cell for cell in cells if cell.arm == "supcon" and cell.kind != "pretrain"]
    assert len(transfers) == 2 * 3 * 2
    for cell in transfers:
        budget = (cell.settings["labels"],) if cell.kind == "finetune" else tuple(cell.settings["labels"])
        pretraining = pretrainings[cell.needs]
        assert budget == (pretraining.settings["labels"],)
        assert cell.seed == pretraining.settings["seed"]
        if cell.kind == "probe":
            assert cell.settings["seeds"] == [cell.seed]


@pytest.mark.parametrize(
    ("changes", "labelled", "message"),
    [
        ({"grid": {"pretrain.labels": ["all"]}}, (), "grid: labels is for the study to set"),
        ({"grid": {"pretrain.seed": [3, 4]}}, (), "grid: seed is for the study to set"),
        ({"grid": {"finetune.labels": ["all"]}}, (), "grid: labels is for the study to set"),
        ({"grid": {"finetune.init": ["other"]}}, (), "grid: init is for the study to set"),
        (
            {"arms": {"scratch": None, "a": {"method": "supcon", "labels": 5}}},
            ("a",),
            "arms.a: labels is for the study",
        ),
        ({"arms": {"scratch": None, "a": {"seed": 5}}}, (), "arms.a: seed is for the study"),
    ],
)
def test_what_pairs_the_arms_is_for_the_study_to_set(changes, labelled, message):
    with pytest.raises(UserError, match=message):
        plan(make(**changes), "a", labelled=labelled)


def test_a_grid_multiplies_the_cells_it_concerns():
    grid = {"finetune.learning_rate": [1e-4, 1e-3], "pretrain.method_args.temperature": [0.1, 0.5]}
    cells = plan(make(grid=grid), "a")
    pretrainings = [cell for cell in cells if cell.kind == "pretrain"]
    assert {cell.settings["method_args"]["temperature"] for cell in pretrainings} == {0.1, 0.5}
    of_scratch = [cell for cell in cells if cell.kind == "finetune" and cell.arm == "scratch"]
    of_simclr = [cell for cell in cells if cell.kind == "finetune" and cell.arm == "simclr"]
    assert len(of_scratch) == 2 * 2 * 2  # seeds, budgets, learning rates
    assert len(of_simclr) == 2 * len(of_scratch)  # and temperatures


def test_given_weights_are_an_arm():
    cells = plan(make(arms={"scratch": None, "given": "timm/resnet18.a1_in1k"}), "a")
    assert all(cell.kind != "pretrain" for cell in cells)
    assert {cell.settings["init"] for cell in cells if cell.arm == "given"} == {"timm/resnet18.a1_in1k"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"arms": {"scratch": None, "a": {"epoch": 3}}}, "arms.a: option: unknown 'epoch', did you mean 'epochs'"),
        ({"finetune": {"patienc": 3}}, "finetune: option: unknown 'patienc', did you mean 'patience'"),
        ({"probe": {"penalties": [-1]}}, "probe: penalties"),
    ],
)
def test_a_mistake_in_a_part_names_the_part(changes, message):
    with pytest.raises(UserError, match=message):
        plan(make(**changes), "a")


def row(accuracy, val, **more):
    return {
        "arm": "a",
        "transfer": "finetune",
        "labels": "5",
        "seed": 0,
        "accuracy": accuracy,
        "val_accuracy": val,
        **more,
    }


def test_the_point_of_the_grid_is_chosen_on_validation_not_on_test():
    rows = [row(0.9, 0.5), row(0.6, 0.8), row(0.7, 0.8), row(0.1, 0.2, seed=1)]
    assert choose(rows, "accuracy") == [rows[1], rows[3]]


def test_rows_of_unfinished_cells_are_left_out(tmp_path):
    cells = plan(make(), "a")
    probe = next(cell for cell in cells if cell.kind == "probe")
    (tmp_path / probe.id).mkdir()
    scores = [{"labels": "1", "images": 10, "seed": 0, "accuracy": 0.5, "val_accuracy": 0.4}]
    (tmp_path / probe.id / "result.json").write_text(json.dumps({"scores": {"rows": scores}}))
    rows = collect(cells, tmp_path, "accuracy")
    assert [(r["arm"], r["transfer"], r["labels"], r["chosen"], r["cell"]) for r in rows] == [
        (probe.arm, "probe", "1", True, probe.id)
    ]
    assert to_csv(rows).splitlines()[0].startswith("arm,transfer,labels,images,seed,accuracy")


@pytest.mark.parametrize("path", READY_MADE, ids=lambda path: path.stem)
def test_ready_made_studies_can_be_planned(path):
    study = Study.read(path)
    cells = plan(study.updated(image_size=64), "fingerprint")
    assert {cell.arm for cell in cells} == set(study.arms)
    assert all(cell.settings["task"] == study.task for cell in cells if cell.kind in ("head", "finetune"))
    for cell in cells:
        if cell.kind == "pretrain":
            methods.resolve(cell.settings["method"], cell.settings["method_args"])
