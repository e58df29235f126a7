"""SimCLR features of real photographs are worth more than random ones."""

from statistics import mean

import pytest
import torch

import headstart

TRAINING_IMAGES, EPOCHS, SEEDS = 5000, 10, 5
# a quarter as wide as ResNet-18 and half as deep: what two cores train in minutes
MODEL = {
    "model": "timm/resnet18",
    "model_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
    "image_size": 32,
}


@pytest.mark.slow
def test_simclr_beats_random_features_on_cifar10(real_data, tmp_path):
    torch.set_num_threads(2)
    # its train/ and test/ in their own proportions: one image in six is for testing
    data = {"data": real_data("cifar10"), "limit": TRAINING_IMAGES * 6 // 5, "quiet": True}
    run = headstart.pretrain(out=tmp_path / "run", epochs=EPOCHS, learning_rate=0.5, include="val", **data, **MODEL)
    labels = {"labels": "10", "seeds": SEEDS}
    trained = headstart.probe(run.out, **data, **labels)
    untrained = headstart.probe("none", **data, **MODEL, **labels)
    gains = [
        100 * (mine["accuracy"] - other["accuracy"])
        for mine, other in zip(trained.scores["rows"], untrained.scores["rows"], strict=True)
    ]
    assert len(gains) == SEEDS
    assert mean(gains) >= 4, gains
