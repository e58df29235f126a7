"""The verb study on this machine: nothing finished is repeated, nothing failed stops the others."""

import csv
import json
import shutil
from functools import partial

import pytest
import yaml

import headstart
from headstart.config import Study
from headstart.errors import UserError
from headstart.studies.prepare import prepare

STUDY = {
    "name": "tiny",
    "data": "digits",
    "limit": 200,
    "model": "timm/resnet18",
    "model_args": {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1], "zero_init_last": False},
    "transfers": ["probe", "finetune"],
    "arms": {"scratch": "none", "simclr": {"method": "simclr"}},
    "labels": [1, 5],
    "seeds": 2,
    "pretrain": {"epochs": 1, "batch_size": 40},
    "finetune": {"epochs": 1, "min_steps": 2, "evaluations": 1},
    "probe": {"penalties": [1.0]},
}
study = partial(headstart.study, quiet=True, workers=1)


def finished(folder):
    """Return when each cell was finished, in nanoseconds."""
    return {path.parent.name: path.stat().st_mtime_ns for path in folder.glob("cells/*/result.json")}


def rows_of(folder):
    with (folder / "results.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    return folder, study(folder / "tiny.yaml", out=folder / "out")


@pytest.fixture
def copy(whole, tmp_path):
    shutil.copytree(whole[0] / "out", tmp_path / "out")
    return tmp_path / "out"


def test_a_study_leaves_cells_rows_summary_and_report(whole):
    out, result = whole[0] / "out", whole[1]
    assert {path.name for path in out.iterdir()} - {".lock"} == {
        *("study.yaml", "environment.json", "cells", "results.csv", "summary.json", "report.html", "curves.png")
    }
    # two pretrainings, a probe for each arm and seed, a finetune for each arm, seed and budget
    assert len(finished(out)) == 2 + 4 + 8
    rows = rows_of(out)
    assert len(rows) == 16
    points = {(row["arm"], row["transfer"], row["labels"], row["seed"]) for row in rows}
    assert points == {
        (arm, transfer, labels, seed)
        for arm in ("scratch", "simclr")
        for transfer in ("probe", "finetune")
        for labels in "15"
        for seed in "01"
    }
    assert all(row["chosen"] == "True" and 0 <= float(row["accuracy"]) <= 1 for row in rows)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["cells"] == {"planned": 14, "finished": 14, "failed": []}
    assert (summary["unfinished"], summary["data"]["images"], summary["data"]["test"]) == (False, 200, 40)
    assert json.loads(json.dumps(result.scores)) == summary
    assert str(out / "report.html") in str(result)
    assert "<html" in (out / "report.html").read_text()


def test_label_subsets_are_paired(whole):
    # the same images for every arm: the environment of a cell has their hash
    found = {}
    for cell in (whole[0] / "out" / "cells").iterdir():
        known = json.loads((cell / "environment.json").read_text())
        if known["verb"] == "finetune":
            settings = yaml.safe_load((cell / "config.yaml").read_text())
            key = (settings["labels"], settings["seed"])
            found.setdefault(key, []).append(known["data"]["parts"]["labelled"]["hash"])
    assert [len(hashes) for hashes in found.values()] == [2] * 4
    assert all(len(set(hashes)) == 1 for hashes in found.values())
    assert len({hashes[0] for hashes in found.values()}) == 4


def test_run_again_nothing_is_repeated(whole):
    folder, first = whole
    before, summary = finished(folder / "out"), dict(first.scores)
    again = study(folder / "tiny.yaml", out=folder / "out")
    assert finished(folder / "out") == before
    assert {**again.scores, "seconds": 0, "date": 0} == {**summary, "seconds": 0, "date": 0}


def test_only_what_is_missing_runs_again(copy, whole):
    before = finished(copy)
    rows = rows_of(copy)
    probe = next(row["cell"] for row in rows if row["transfer"] == "probe" and row["arm"] == "simclr")
    (copy / "cells" / probe / "result.json").unlink()
    shutil.rmtree(copy / "cells" / next(row["cell"] for row in rows if row["transfer"] == "finetune"))
    study(whole[0] / "tiny.yaml", out=copy)
    after = finished(copy)
    assert after.keys() == before.keys()
    assert len([cell for cell in before if after[cell] != before[cell]]) == 2
    timed = [{name: value for name, value in row.items() if name != "seconds"} for row in rows]
    assert [{name: value for name, value in row.items() if name != "seconds"} for row in rows_of(copy)] == timed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": 3}, "seeds: differs from the study in"),
        ({"labels": [1]}, "labels: differs from"),
        ({"arms": {"scratch": "none", "simclr": {"epochs": 2}}}, "arms: differs from"),
        ({"limit": 180}, "limit: differs from"),
    ],
)
def test_a_folder_with_another_study_is_refused(change, message, whole):
    before = finished(whole[0] / "out")
    with pytest.raises(UserError, match=message):
        study(out=whole[0] / "out", **{**STUDY, **change})
    assert finished(whole[0] / "out") == before


def test_failed_cells_are_listed_and_do_not_stop_the_others(tmp_path):
    arms = {"scratch": "none", "simclr": {}, "wild": {"learning_rate": 1e30, "learning_rate_scaling": "none"}}
    changes = {"arms": arms, "transfers": "probe", "seeds": 2, "pretrain": {"epochs": 3, "batch_size": 40}}
    result = study(out=tmp_path / "out", **{**STUDY, **changes})
    cells = result.scores["cells"]
    assert (cells["planned"], cells["finished"]) == (4 + 6, 4 + 6 - 4)
    errors = {(cell["transfer"], cell["seed"]): cell["error"] for cell in cells["failed"]}
    assert {cell["arm"] for cell in cells["failed"]} == {"wild"}
    assert "learning_rate: loss is " in errors["pretrain", 0]
    assert errors["probe", 1].startswith("its pretraining ")
    assert result.scores["unfinished"]
    assert {row["arm"] for row in rows_of(tmp_path / "out")} == {"scratch", "simclr"}
    assert len(list((tmp_path / "out" / "cells").glob("*.error"))) == 2


def test_an_arm_against_itself_differs_by_nothing(tmp_path):
    # one pretraining, run once, under two names
    arms = {"scratch": "none", "one": {"method": "simclr"}, "two": {"method": "simclr"}}
    result = study(out=tmp_path / "out", **{**STUDY, "arms": arms, "labels": [5]})
    assert result.scores["cells"]["finished"] == 2 + 3 * 2 * 2
    rows = {(row["arm"], row["transfer"], row["seed"]): row["accuracy"] for row in rows_of(tmp_path / "out")}
    for (arm, transfer, seed), accuracy in rows.items():
        if arm == "one":
            assert accuracy == rows["two", transfer, seed]


def test_a_method_that_learns_from_labels_sees_those_of_its_budget_alone(tmp_path):
    arms = {"scratch": "none", "supcon": {"method": "supcon"}}
    changes = {"arms": arms, "transfers": ["probe"], "labels": [1, 5], "seeds": 1}
    result = study(out=tmp_path / "out", **{**STUDY, **changes})
    assert result.scores["cells"] == {"planned": 2 + 1 + 2, "finished": 5, "failed": []}
    shown = []
    for cell in (tmp_path / "out" / "cells").iterdir():
        settings = yaml.safe_load((cell / "config.yaml").read_text())
        if settings.get("method") == "supcon":
            shown.append((settings["labels"], settings["seed"]))
    assert sorted(shown) == [("1", 0), ("5", 0)]
    points = {(row["arm"], row["labels"], row["seed"]) for row in rows_of(tmp_path / "out")}
    assert points == {(arm, labels, "0") for arm in arms for labels in "15"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"scratch": None, "a": {"method": "mae"}}}, "arms.a: model: mae needs a vision transformer"),
        ({"arms": {"scratch": None, "a": {"limit": 100}}}, "arms.a: limit: 100 is for the study to set"),
        ({"arms": {"scratch": None, "a": {"method": "supcon-pairs"}}}, "arms.a: labels: no class has two labelled"),
        ({"grid": {"pretrain.method": ["simclr", "supcon"]}}, "arms.simclr: some points of the grid learn from labels"),
        ({"grid": {"pretrain.method_args.temperature": [0]}}, r"arms.simclr: method_args.temperature: input should"),
    ],
)
def test_mistakes_in_an_arm_are_found_before_any_runs(change, message):
    with pytest.raises(UserError, match=message):
        prepare(Study.create(**{**STUDY, **change}))


def test_the_arms_that_learn_from_labels_are_known():
    labelled = {"supcon": {"method": "supcon"}, "balanced": {"method": "simclr", "sampling": "balanced"}}
    assert prepare(Study.create(**{**STUDY, "arms": {**STUDY["arms"], **labelled}})).labelled == tuple(labelled)


def test_mistakes_are_found_before_the_folder_is_made(tmp_path):
    for change, message in [
        ({"labels": [500]}, "labels: 500 per class"),
        ({"model": "torchvision/resnet19"}, "model: unknown"),
        ({"arms": {"scratch": None, "a": {"method": "simclrr"}}}, "arms.a: method: unknown 'simclrr'"),
        ({"arms": {"scratch": None, "a": "nowhere.pth"}}, "arms.a: init: no file"),
        ({"finetune": {"views": "rainbow"}}, "views: unknown 'rainbow'"),
    ]:
        with pytest.raises(UserError, match=message):
            study(out=tmp_path / "out", **{**STUDY, **change})
        assert not (tmp_path / "out").exists()
