"""SimCLR features of real photographs are worth more than random ones."""

from statistics import mean

import pytest
import torch

import headstart

TRAINING_IMAGES, EPOCHS, SEEDS = 5000, 12, 5


@pytest.mark.slow
def test_simclr_beats_random_features_on_cifar10(real_data, tmp_path):
    torch.set_num_threads(2)
    # its train/ and test/ in their own proportions: one image in six is for testing
    data = {"data": real_data("cifar10"), "limit": TRAINING_IMAGES * 6 // 5, "quiet": True}
    model = {"model": "torchvision/resnet18", "image_size": 32}
    run = headstart.pretrain(out=tmp_path / "run", epochs=EPOCHS, batch_size=256, include="val", **data, **model)
    labels = {"labels": "10", "seeds": SEEDS}
    trained = headstart.probe(run.out, **data, **labels)
    untrained = headstart.probe("none", **data, **model, **labels)
    gains = [
        100 * (mine["accuracy"] - other["accuracy"])
        for mine, other in zip(trained.scores["rows"], untrained.scores["rows"], strict=True)
    ]
    assert len(gains) == SEEDS
    assert mean(gains) >= 4, gains
