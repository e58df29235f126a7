"""What every family of methods learns from real photographs is worth more than random weights."""

import shutil
from functools import cache
from statistics import mean

import pytest

import headstart

# a quarter as wide as ResNet-18 and half as deep, and a transformer to match; half of the photographs' 32 pixels
RESNET = {"model": "timm/resnet18", "model_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]}}
TRANSFORMER = {"model": "timm/vit_tiny_patch16_224", "model_args": {"depth": 4, "embed_dim": 96, "num_heads": 3}}
SIZE, BATCH = 16, 64
COUNTS = {"train": 240, "test": 100}  # images of each class
SUBSETS = 5  # of 10 labels per class, the same for all backbones

# What so few steps need: higher rates than the recipes', and teachers that follow faster. The margins, in points of
# accuracy, are at most half of the mean gain that was measured.
CASES = [
    pytest.param("simclr", {"learning_rate": 0.5}, 3, id="contrastive"),
]


@pytest.fixture(scope="module")
def photographs(real_data, tmp_path_factory):
    """Return a folder of few of CIFAR-10's images: to find all 60,000 of them takes longer than to learn from these."""
    source, folder = real_data("cifar10"), tmp_path_factory.mktemp("photographs")
    for part, count in COUNTS.items():
        for kind in sorted((source / part).iterdir()):
            (folder / part / kind.name).mkdir(parents=True)
            for image in sorted(kind.iterdir())[:count]:
                shutil.copy(image, folder / part / kind.name)
    return folder


@pytest.fixture(scope="module")
def pretrain(photographs, tmp_path_factory):
    """Return a function that pretrains with a method once and returns the RUN."""
    runs = tmp_path_factory.mktemp("runs")

    def train(method, **settings):
        if not (runs / method).exists():
            model = TRANSFORMER if method == "mae" else RESNET
            given = {"image_size": SIZE, "batch_size": BATCH, "epochs": 4, **model, **settings}
            headstart.pretrain(out=runs / method, data=photographs, method=method, quiet=True, **given)
        return runs / method

    return train


@pytest.fixture(scope="module")
def accuracies(photographs):
    """Return a function that probes frozen features, at their best stage on validation images if asked for stages."""

    def probe(init, **given):
        rows = headstart.probe(init, data=photographs, labels="10", seeds=SUBSETS, quiet=True, **given).scores["rows"]
        of_stage = {stage: [row for row in rows if row["stage"] == stage] for stage in {row["stage"] for row in rows}}
        best = max(of_stage.values(), key=lambda rows: mean(row["val_accuracy"] for row in rows))
        return [100 * row["accuracy"] for row in best]

    return probe


@pytest.fixture(scope="module")
def random_accuracies(accuracies):
    """Return a function that gives the accuracies of a network without training, once for all methods that have it."""

    @cache
    def probe(transformer, stages):
        return accuracies("none", **(TRANSFORMER if transformer else RESNET), image_size=SIZE, stages=stages)

    return probe


@pytest.mark.slow
@pytest.mark.parametrize(("method", "settings", "margin"), CASES)
def test_learned_features_beat_random_ones(method, settings, margin, pretrain, accuracies, random_accuracies):
    stages = method == "rotation"  # its last layers know about rotations, those before about objects
    if method == "distill":
        settings = {**settings, "method_args": {"teacher": str(pretrain("simclr", **TEACHER))}}
    trained = accuracies(pretrain(method, **settings), stages=stages)
    untrained = random_accuracies(method == "mae", stages)
    gains = [mine - other for mine, other in zip(trained, untrained, strict=True)]
    assert len(gains) == SUBSETS
    assert mean(gains) >= margin, gains
