"""Predictions of a finetuned classifier."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import headstart
from headstart.errors import UserError

MODEL = {"model": "timm/resnet18", "model_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place, digits = tmp_path_factory.mktemp("digits"), load_digits()
    for number in range(150):
        split = ("train", "val", "test")[number % 3]
        path = place / split / f"d{digits.target[number] % 3}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[number] * 255 / 16).astype(np.uint8)).save(path)
    return place


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "classifier"
    headstart.finetune(data=folder, out=out, min_steps=30, epochs=1, quiet=True, **MODEL)
    return out


def rows(out):
    with (out / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_are_those_that_the_run_was_scored_by(folder, run, tmp_path):
    found = headstart.predict(run, folder, out=tmp_path / "a", quiet=True, batch_size=7)
    lines = rows(tmp_path / "a")
    assert found.images == len(lines) == 150
    test = [line for line in lines if line["image"].startswith("test/")]
    right = [line["prediction"] == line["image"].split("/")[1] for line in test]
    scores = json.loads((run / "result.json").read_text())["scores"]
    assert np.mean(right) == pytest.approx(scores["accuracy"])
    assert sum(found.counts.values()) == 150
    for line in lines:
        shares = {name: float(line[f"p_{name}"]) for name in ("d0", "d1", "d2")}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
        assert line["prediction"] == max(shares, key=shares.get)
        assert float(line["probability"]) == max(shares.values())


def test_images_that_cannot_be_read_are_listed_and_the_others_done(run, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "broken.png").write_text("no image")
    (images / "empty, one.png").write_bytes(b"")
    for name in ("a b.png", "ü.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 9), np.uint8)).save(images / name)
    found = headstart.predict(run, images, out=tmp_path / "out", quiet=True)
    assert [line["image"] for line in rows(tmp_path / "out")] == ["a b.png", "ü.png"]
    with (tmp_path / "out" / "left_out.csv").open(newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [
            ["image", "reason"], ["broken.png", "not an image"], ["empty, one.png", "an empty file"]
        ]  # fmt: skip
    assert "left out: 2 images" in str(found)


def test_mistakes(folder, run, tmp_path):
    headstart.pretrain(data=folder, out=tmp_path / "pretrained", epochs=1, batch_size=16, quiet=True, **MODEL)
    with pytest.raises(UserError, match=r"run: .*pretrained has no classifier \(allowed: the RUN of a finetune\)"):
        headstart.predict(tmp_path / "pretrained", folder, out=tmp_path / "out")
    with pytest.raises(UserError, match=r"run: no folder"):
        headstart.predict(tmp_path / "nothing", folder, out=tmp_path / "out")
    with pytest.raises(UserError, match=r"data: there is no"):
        headstart.predict(run, tmp_path / "nothing", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    headstart.predict(run, folder, out=tmp_path / "out", quiet=True)
    with pytest.raises(UserError, match=r"out: .* is not empty"):
        headstart.predict(run, folder, out=tmp_path / "out", quiet=True)
    before = rows(tmp_path / "out")
    torch.manual_seed(5)
    headstart.predict(run, folder, out=tmp_path / "out", overwrite=True, quiet=True)
    assert rows(tmp_path / "out") == before
