"""Finetuning of classifiers: class weights, learning rates that fall on a plateau, and settings by task."""

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

import headstart
from headstart import runs
from headstart.backbones import build
from headstart.config import SCORES, Finetune, Study
from headstart.contracts import Batch
from headstart.data.sources import open_data
from headstart.data.splits import split, strata
from headstart.errors import UserError
from headstart.tasks.classification import Classifier
from headstart.verbs import resolve
from headstart.verbs.finetuning import loop
from headstart.verbs.finetuning.classify import ClassifyJob
from headstart.verbs.finetuning.dispatch import class_weights
from headstart.verbs.finetuning.job import Look
from headstart.verbs.finetuning.loop import plateaus

MODEL = {"model": "timm/resnet18", "model_args": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}}
SHORT = {**MODEL, "data": "digits", "limit": 100, "labels": "4", "epochs": 1, "min_steps": 12, "evaluations": 6}


def test_class_weights_are_those_of_scikit_learn():
    labels = torch.tensor([0] * 7 + [1] * 2 + [2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    np.testing.assert_allclose(class_weights(labels.bincount()).numpy(), expected, rtol=1e-6)
    assert class_weights(torch.tensor([4, 0])).tolist() == [0.5, 0.0]


def test_a_weighted_classifier_minimises_the_weighted_cross_entropy():
    weights = torch.tensor([0.5, 3.0])
    classifier = Classifier(build(**MODEL, image_size=16), classes=2, class_weights=weights)
    torch.nn.init.normal_(classifier.head.weight)
    batch = Batch((torch.randn(6, 3, 16, 16),), torch.tensor([0, 0, 0, 0, 1, 1]), torch.arange(6))
    classifier.eval()
    logits = classifier.logits(batch.views[0])
    each = F.cross_entropy(logits, batch.labels, reduction="none") * weights[batch.labels]
    torch.testing.assert_close(classifier.losses(batch)["loss"], each.sum() / weights[batch.labels].sum())
    assert "class_weights" not in classifier.state_dict()


def test_a_frequent_class_weighs_less(tmp_path, monkeypatch, save_image):
    for number in range(24):
        save_image(tmp_path / "data" / ("rare" if number < 6 else "often") / f"{number}.png", seed=number)
    seen = []
    monkeypatch.setattr(ClassifyJob, "look", lambda self: seen.append(self.task.class_weights) or Look(0.5, 1.0))
    settings = {**SHORT, "data": tmp_path / "data", "limit": None, "labels": "all", "image_size": 16, "quiet": True}
    headstart.finetune(out=tmp_path / "balanced", class_weights="balanced", **settings)
    balanced = seen[-1]
    headstart.finetune(out=tmp_path / "none", **settings)
    assert seen[-1] is None
    often, rare = balanced.tolist()  # 10 and 4 images to train on
    assert (often, rare) == pytest.approx((14 / 20, 14 / 8))


@pytest.mark.parametrize(
    ("scores", "falls"),
    [
        ([0.5, 0.6, 0.7], 0),
        ([0.5, 0.4, 0.4], 1),
        ([0.5, 0.4, 0.4, 0.4, 0.4], 2),
        ([0.5, 0.4, 0.6, 0.5, 0.5], 1),
    ],
)
def test_plateaus_are_counted(scores, falls):
    assert plateaus([Look(score, 1.0) for score in scores], patience=2) == falls


def test_the_learning_rate_falls_on_a_plateau(tmp_path, monkeypatch):
    looks = {2: 0.5, 4: 0.4, 6: 0.3, 8: 0.6, 10: 0.5, 12: 0.5}
    settings = {**SHORT, "schedule": "plateau", "plateau_patience": 2, "learning_rate": 0.01, "warmup": 0.25}
    place = iter(looks.values())
    monkeypatch.setattr(ClassifyJob, "look", lambda self: Look(next(place), 1.0))
    found = headstart.finetune(out=tmp_path / "run", quiet=True, **settings)
    rates = [line["learning_rate"] for line in runs.read_metrics(found.out)]
    assert rates == pytest.approx([0.01 / 3, 0.02 / 3, *[0.01] * 4, *[0.001] * 6])


def test_the_decay_of_moments_reaches_the_optimiser(tmp_path, monkeypatch):
    seen = []
    build = loop.build_optimizer
    monkeypatch.setattr(loop, "build_optimizer", lambda *given, **named: seen.append(build(*given, **named)) or seen[0])
    headstart.finetune(out=tmp_path / "run", quiet=True, **{**SHORT, "betas": (0.8, 0.9), "warmup": "auto"})
    assert [group["betas"] for group in seen[0].param_groups] == [(0.8, 0.9)] * 2
    assert runs.read_result(tmp_path / "run")["config"]["warmup"] == 0.1


def test_a_constant_learning_rate_stays(tmp_path):
    settings = {**SHORT, "schedule": "constant", "optimizer": "adam", "warmup": 0.0}
    found = headstart.finetune(out=tmp_path / "run", quiet=True, **settings)
    assert {line["learning_rate"] for line in runs.read_metrics(found.out)} == {1e-4}


def test_what_a_task_would_ignore_is_refused():
    for given, message in [
        ({"task": "classify", "decoder": "fpn"}, "decoder: task classify has none .allowed with task segment"),
        ({"task": "segment", "detector": "fcos"}, "detector: task segment has none .allowed with task detect"),
        ({"task": "detect", "class_weights": "balanced"}, "allowed with task classify or segment"),
    ]:
        with pytest.raises(UserError, match=message):
            Finetune.create(data="digits", **given)


def test_what_auto_means_for_each_task():
    found = {
        task: resolve.finetune(Finetune.create(data="x", task=task, devices=1, model="torchvision/resnet18"), 100, 64)
        for task in SCORES
    }
    assert [found[task].optimizer for task in SCORES] == ["adamw", "adam", "adam"]
    assert [found[task].learning_rate for task in SCORES] == [1e-3, 1e-4, 1e-4]
    assert [found[task].batch_size for task in SCORES] == [64, 32, 16]
    assert [found[task].weight_decay for task in SCORES] == [0.05, 0.0, 0.0]
    assert [found[task].views for task in SCORES] == ["standard", "segment", "detect"]
    assert found["detect"].detector == "retinanet"
    yolo = Finetune.create(data="x", task="detect", devices=1, model="ultralytics/yolov8n")
    assert resolve.finetune(yolo, 100, 64).detector == "yolo"
    assert resolve.finetune(yolo, 100, 64).optimizer == "auto"
    wrong = yolo.updated(detector="yolo", model="torchvision/resnet18")
    with pytest.raises(UserError, match=r"detector: torchvision/resnet18 is no YOLO network \(allowed: retinanet"):
        resolve.finetune(wrong, 9, 64)


def test_a_study_of_masks_compares_trained_networks_by_their_iou():
    arms = {"scratch": "none", "simclr": {"method": "simclr"}}
    assert Study.create(data="x", arms=arms).transfers == ("probe", "finetune")
    masks = Study.create(data="x", arms=arms, task="segment")
    assert (masks.transfers, masks.score) == (("finetune",), "iou")
    assert Study.create(data="x", arms=arms, task="detect").score == "map50_95"
    with pytest.raises(UserError, match=r"score: task segment has no accuracy \(allowed: iou"):
        Study.create(data="x", arms=arms, task="segment", score="accuracy")
    with pytest.raises(UserError, match="transfers: probe classifies images, task is detect"):
        Study.create(data="x", arms=arms, task="detect", transfers="probe")


def test_images_with_boxes_are_cut_as_if_of_one_class(tmp_path, save_image):
    for number in range(20):
        save_image(tmp_path / "images" / f"{number:02d}.png", seed=number)
        (tmp_path / "labels").mkdir(exist_ok=True)
        (tmp_path / "labels" / f"{number:02d}.txt").write_text("0 0.5 0.5 0.2 0.2\n" if number % 2 else "")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [car]\n")
    data = open_data(tmp_path / "data.yaml")
    assert strata(data).tolist() == [0] * 20
    cut = split(data)
    assert [len(rows) for rows in (cut.train, cut.val, cut.test)] == [12, 4, 4]
    assert len(set(torch.cat([cut.train, cut.val, cut.test]).tolist())) == 20


def test_a_head_on_tiny_features_learns_as_on_large_ones(tmp_path):
    settings = {**SHORT, "limit": 300, "labels": "10", "transfer": "head", "min_steps": 60, "quiet": True}
    settings |= {"learning_rate": 0.01, "image_size": 16}
    run = headstart.pretrain(
        data="digits", limit=300, out=tmp_path / "run", epochs=2, image_size=16, quiet=True, **MODEL
    )
    usual = headstart.finetune(init=run.out, out=tmp_path / "usual", **settings)
    backbone = run.out / runs.BACKBONE
    state = safetensors.torch.load_file(backbone)
    last = "layer4.0.bn2"
    shortcut = "layer4.0.downsample.1"
    for name in (last, shortcut):
        for part in ("weight", "bias"):
            state[f"{name}.{part}"] *= 1e-6
    safetensors.torch.save_file(state, backbone)
    tiny = headstart.finetune(init=run.out, out=tmp_path / "tiny", **settings)
    assert usual.scores["accuracy"] > 0.3
    assert tiny.scores["accuracy"] == pytest.approx(usual.scores["accuracy"], abs=0.05)
    head = safetensors.torch.load_file(tiny.out / runs.HEAD)
    found = headstart.predict(tiny.out, "digits", out=tmp_path / "found", limit=300, quiet=True)
    assert head["weight"].abs().max() > 1e3  # for features as the backbone gives them
    assert len([count for count in found.counts.values() if count > 3]) > 5
