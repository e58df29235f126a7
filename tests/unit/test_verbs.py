"""The verbs pretrain, probe and finetune, as Python functions: what goes in, what is left behind, what is refused."""

import json
import math

import pytest
import safetensors.torch
import timm
import torch
import torchvision

import headstart
from headstart import runs
from headstart.backbones import build, load_weights
from headstart.data.loading import ViewLoader, images_at
from headstart.data.sources import open_data
from headstart.data.splits import label_subset, limited, split
from headstart.errors import UserError
from headstart.evaluation.features import extract
from headstart.evaluation.knn import knn_predict
from headstart.evaluation.linear import probe as probe_linear
from headstart.tasks.classification import Classifier
from headstart.verbs import pretraining as pretraining_module
from headstart.verbs import probe as probe_module
from headstart.verbs.finetuning.classify import ClassifyJob

NARROW = {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1], "zero_init_last": False}
MODEL = {"model": "timm/resnet18", "model_args": NARROW}
DIGITS = {"data": "digits", "limit": 200}
QUICK = {**DIGITS, **MODEL, "epochs": 1, "batch_size": 32, "quiet": True}
BUDGET = {**DIGITS, "labels": "5", "epochs": 1, "min_steps": 8, "evaluations": 4, "batch_size": 25, "quiet": True}


@pytest.fixture(autouse=True)
def one_thread(seeded):
    torch.set_num_threads(1)  # such small networks gain nothing from more


def files_in(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def weights_of(folder, name=runs.BACKBONE):
    return safetensors.torch.load_file(folder / name)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.fixture(scope="module")
def digits():
    return limited(open_data("digits"), 200)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("verbs") / "run"
    headstart.pretrain(out=folder, **QUICK)
    return folder


def test_a_pretraining_leaves_what_it_should_and_nothing_else(run):
    assert files_in(run) >= {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "checkpoints/last.ckpt",
        "backbone.safetensors",
        "head.safetensors",
        "plots/curves.png",
        "plots/views.png",
        "result.json",
    }
    assert not [name for name in files_in(run) if name.endswith(".part")]
    assert {path.name for path in run.iterdir()} <= {
        *("config.yaml", "environment.json", "metrics.jsonl", "checkpoints", "backbone.safetensors"),
        *("head.safetensors", "plots", "result.json", ".lock", "features", "probes"),
    }
    lines = runs.read_metrics(run)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert {"step", "epoch", "loss", "learning_rate", "images_per_second", "data_wait"} <= lines[0].keys()
    environment = json.loads((run / "environment.json").read_text())
    assert environment["data"]["fingerprint"]
    assert environment["data"]["parts"]["pretrain"]["images"] == 120


def test_nothing_that_decides_a_pretraining_stays_auto(run):
    settings = runs.read_config(run, "init")
    assert [name for name, value in settings.items() if value == "auto"] == ["workers"]
    assert (settings["image_size"], settings["stem"], settings["views"]) == (8, "small", "2*digits")
    assert settings["method_args"]["temperature"] == 0.2


@pytest.mark.parametrize(("model", "arguments"), [("timm/resnet18", NARROW), ("torchvision/resnet18", {})])
def test_the_backbone_loads_into_its_own_library(model, arguments, tmp_path):
    settings = {**QUICK, "limit": 40, "batch_size": 8, "image_size": 32, "stem": "standard"}
    found = headstart.pretrain(out=tmp_path / "run", **{**settings, "model": model, "model_args": arguments})
    own = {"timm/resnet18": timm.create_model, "torchvision/resnet18": torchvision.models.get_model}[model]
    result = own("resnet18", num_classes=10, **arguments).load_state_dict(weights_of(found.out), strict=False)
    assert (set(result.missing_keys), result.unexpected_keys) == ({"fc.weight", "fc.bias"}, [])


def test_a_config_repeats_the_run_bit_for_bit(run, tmp_path):
    again = headstart.pretrain(config=run / "config.yaml", out=tmp_path / "again", quiet=True)
    assert equal(weights_of(run), weights_of(again.out))
    assert equal(weights_of(run, runs.HEAD), weights_of(again.out, runs.HEAD))
    assert (tmp_path / "again" / "config.yaml").read_text() == (run / "config.yaml").read_text()
    other = headstart.pretrain(config=run / "config.yaml", out=tmp_path / "other", seed=1, quiet=True)
    assert not equal(weights_of(run), weights_of(other.out))


def test_test_images_enter_a_pretraining_only_when_asked_for(digits, tmp_path, monkeypatch):
    seen = set()

    class Spy(ViewLoader):
        def __iter__(self):
            for batch in super().__iter__():
                seen.update(batch.rows.tolist())
                yield batch

    monkeypatch.setattr(pretraining_module, "ViewLoader", Spy)
    cut = split(digits)
    settings = {**QUICK, "batch_size": 40, "epochs": 3}
    headstart.pretrain(out=tmp_path / "train", **settings)
    assert seen == set(cut.train.tolist())
    headstart.pretrain(out=tmp_path / "all", include="val,test", **settings)
    assert seen == set(range(200))


@pytest.mark.parametrize(
    ("folders", "images"),
    [
        ({"": 6, "deep/down/here": 10}, 16),
        ({"cat": 10, "dog": 10}, 12),
        ({"train/cat": 10, "train/dog": 10, "test/cat": 4, "test/dog": 4}, 16),
        ({"train/cat": 8, "train/dog": 8, "val/cat": 3, "val/dog": 3, "test/cat": 3, "test/dog": 3}, 16),
        ({"unlabelled": 8, "train/cat": 4, "train/dog": 4, "test/cat": 4, "test/dog": 4}, 14),
    ],
    ids=["flat", "classes", "train-test", "train-val-test", "unlabelled"],
)
def test_folders_of_every_layout(folders, images, tmp_path, save_image):
    for folder, count in folders.items():
        for number in range(count):
            size = (20 + number % 3, 18)  # of several sizes, so that they are streamed
            save_image(tmp_path / "data" / folder / f"{number}.png", size=size, seed=len(folder) + number)
    settings = {**QUICK, "limit": None, "batch_size": 6, "workers": 0}
    found = headstart.pretrain(out=tmp_path / "run", **{**settings, "data": str(tmp_path / "data")})
    environment = json.loads((found.out / "environment.json").read_text())
    assert environment["data"]["parts"]["pretrain"]["images"] == images
    assert found.config["image_size"] == 18
    assert math.isfinite(found.scores["loss"])


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": "lars"}, {"optimizer": "adamw"}, {"accumulate": 2}, {"precision": "bf16"}],
    ids=["lars", "adamw", "accumulate", "bf16"],
)
def test_ways_to_train(run, changes, tmp_path):
    found = headstart.pretrain(out=tmp_path / "run", **{**QUICK, **changes})
    assert math.isfinite(found.scores["loss"])
    assert not equal(weights_of(run), weights_of(found.out))
    assert all(value.dtype == weights_of(run)[key].dtype for key, value in weights_of(found.out).items())


def test_a_probe_is_what_one_does_by_hand(run, digits):
    found = headstart.probe(run, **DIGITS, labels="1,5", seeds=[3, 4], neighbours=5, penalties=[0.1, 1.0], quiet=True)
    backbone = build(MODEL["model"], image_size=8, model_args=NARROW)
    load_weights(backbone, weights_of(run), "by hand")
    cut, device = split(digits), torch.device("cpu")
    train, val, test = (
        extract(backbone, images_at(digits, rows, 8), device=device) for rows in (cut.train, cut.val, cut.test)
    )
    labels = [digits.labels[part.rows] for part in (train, val, test)]
    assert [(row["labels"], row["seed"]) for row in found.scores["rows"]] == [("1", 3), ("1", 4), ("5", 3), ("5", 4)]
    for row in found.scores["rows"]:
        rows = label_subset(digits.labels, cut.train, row["labels"], row["seed"])
        chosen = torch.tensor([train.rows.tolist().index(name) for name in rows.tolist()])
        parts = zip((train, val, test), labels, strict=True)
        solved = probe_linear(
            *(part for pair in parts for part in (pair[0].features, pair[1])), [chosen], torch.tensor([0.1, 1.0])
        )[0]
        assert (row["penalty"], row["val_accuracy"]) == pytest.approx((solved.penalty, solved.val_accuracy))
        assert row["accuracy"] == pytest.approx(solved.test_accuracy)
        nearest = knn_predict(train.features[chosen], labels[0][chosen], test.features, 10, 5)
        assert row["knn5_accuracy"] == pytest.approx(float((nearest == labels[2]).double().mean()))
    assert (found.out / "scores.csv").read_text().startswith("labels,images,seed,accuracy")


def test_a_second_probe_computes_no_features(run, monkeypatch):
    settings = {**DIGITS, "penalties": [1.0], "seeds": 1, "quiet": True}
    first = headstart.probe(run, labels="1", **settings)

    def refuse(*arguments, **named):
        raise AssertionError("the features were kept")

    monkeypatch.setattr(probe_module, "extract", refuse)
    assert headstart.probe(run, labels="1", **settings).scores == first.scores
    headstart.probe(run, labels="2,5", **settings)
    with pytest.raises(AssertionError, match="were kept"):
        headstart.probe(run, labels="1", **{**settings, "limit": 180})


def test_a_budget_that_a_class_cannot_fill_is_refused_before_anything_is_computed(run, tmp_path, monkeypatch):
    monkeypatch.setattr(probe_module, "extract", lambda *arguments, **named: pytest.fail("features were computed"))
    with pytest.raises(UserError, match=r"labels: 500 per class, but class '\d' has only 1\d training images"):
        headstart.probe(run, **{**DIGITS, "limit": 190}, labels="1,500", quiet=True)
    with pytest.raises(UserError, match="labels: 500 per class"):
        headstart.finetune(init=run, out=tmp_path / "run", **{**BUDGET, "labels": "500"})
    assert not (tmp_path / "run").exists()


def test_random_features_are_probed_without_a_run(tmp_path):
    settings = {**DIGITS, **MODEL, "labels": "5", "seeds": 1, "penalties": [1.0], "quiet": True}
    found = headstart.probe("none", **settings)
    assert found.out is None
    assert headstart.probe("none", out=tmp_path / "kept", **settings).scores == found.scores
    assert (tmp_path / "kept" / "result.json").exists()
    assert headstart.probe("none", seed=1, **settings).scores != found.scores


def test_a_head_leaves_the_backbone_as_it_is_and_finetune_does_not(run, tmp_path):
    head = headstart.finetune(init=run, transfer="head", out=tmp_path / "head", **BUDGET)
    assert equal(weights_of(head.out), weights_of(run))  # the statistics of its normalisation, too
    assert weights_of(head.out, runs.HEAD)["weight"].abs().sum() > 0
    whole = headstart.finetune(init=run, out=tmp_path / "whole", **BUDGET)
    changed = weights_of(whole.out)
    assert not any(torch.equal(value, changed[key]) for key, value in weights_of(run).items() if "conv1.weight" in key)
    assert (whole.config["model"], whole.config["stem"], whole.config["batch_size"]) == ("timm/resnet18", "small", 25)
    assert files_in(whole.out) == {
        *("config.yaml", "environment.json", "metrics.jsonl", "backbone.safetensors", "head.safetensors"),
        *("checkpoints/last.ckpt", "checkpoints/best.ckpt", "plots/curves.png", "plots/confusion_matrix.png"),
        *("result.json", ".lock"),
    }


def test_test_scores_are_those_of_the_weights_that_were_best_on_validation(digits, run, tmp_path):
    found = headstart.finetune(init=run, out=tmp_path / "run", learning_rate=0.03, **BUDGET)
    classifier = Classifier(build(MODEL["model"], image_size=8, model_args=NARROW), classes=10)
    load_weights(classifier.backbone, weights_of(found.out), "by hand")
    classifier.head.load_state_dict(weights_of(found.out, runs.HEAD))
    classifier.eval()
    cut, shares = split(digits), []
    for rows in (cut.val, cut.test):
        batch = next(images_at(digits, rows, 8))
        shares.append(float((classifier.logits(batch.views[0]).argmax(1) == batch.labels).double().mean()))
    looks = [line["val_accuracy"] for line in runs.read_metrics(found.out) if "val_accuracy" in line]
    assert len(looks) == 4
    assert [found.scores["val_accuracy"], found.scores["accuracy"]] == pytest.approx(shares)
    assert max(looks) == found.scores["val_accuracy"]


def test_training_stops_when_patience_is_at_an_end_and_keeps_the_best(run, tmp_path, monkeypatch):
    looks = iter([(0.5, 1.0), (0.6, 1.0), (0.6, 1.1), (0.1, 2.0), (0.9, 0.1)])
    monkeypatch.setattr(ClassifyJob, "look", lambda self: next(looks))
    settings = {**BUDGET, "min_steps": 20, "evaluations": 10, "epochs": 1}
    found = headstart.finetune(init=run, out=tmp_path / "run", patience=2, **settings)
    assert runs.read_metrics(found.out)[-1]["step"] == 8
    assert found.scores["val_accuracy"] == 0.6
    assert runs.read_result(found.out)["best_epoch"] == 2.0  # step 4 of two steps an epoch


def test_where_weights_come_from(run, tmp_path):
    of_run = headstart.finetune(init=run, out=tmp_path / "run", **BUDGET)
    file = str(run / runs.BACKBONE)
    of_file = headstart.finetune(init=file, out=tmp_path / "file", **MODEL, **BUDGET)
    assert equal(weights_of(of_run.out), weights_of(of_file.out))
    scratch = headstart.finetune(out=tmp_path / "none", **MODEL, **BUDGET)
    assert not equal(weights_of(of_run.out), weights_of(scratch.out))


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("nowhere.safetensors", "init: no file"),
        ("empty", "init: .*empty is no run"),
        ("unfinished", "init: .*unfinished is not finished"),
        ("run/checkpoints/last.ckpt", "init: "),
        ("run/backbone.safetensors", "init: .*does not fit"),  # without its model_args
    ],
)
def test_weights_that_are_none_are_refused(init, message, run, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.yaml").write_text((run / "config.yaml").read_text())
    given = str(run.parent / init) if init.startswith("run") else str(tmp_path / init)
    with pytest.raises(UserError, match=message) as caught:
        headstart.finetune(init=given, out=tmp_path / "out", **BUDGET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=message):
        headstart.probe(given, **DIGITS, quiet=True)
