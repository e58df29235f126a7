"""Predictions of a finetuned classifier, and what files of predictions are called."""

import csv
import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

import headstart
from headstart.errors import UserError
from headstart.verbs.predicting.work import Work, file_names

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
    assert "left out: 2 of " in str(found)


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/1.jpg", "a/2.JPEG", "b/1.jpg"], ["a/1", "a/2", "b/1"]),
        (["a/1.jpg", "a/1.png", "a/2.png"], ["a/1.jpg", "a/1.png", "a/2"]),
        (["images/1.jpg", "train/images/images/2.jpg", "images.d/3.jpg"], ["1", "train/2", "images.d/3"]),
        (["images/1.jpg", "1.jpg"], ["images/1.jpg", "1.jpg"]),
        (["1.jpg", "1.png", "1.jpg.png"], ["1.jpg", "1.png", "1.jpg.png"]),
        ([".jpg", "a/.png", "no end", "a.b/c", "d.e.f.png"], [".jpg", "a/.png", "no end", "a.b/c", "d.e.f"]),
        (["line\nbreak.png", 'ü, "x".png', "b\\c.png"], ["line\nbreak", 'ü, "x"', "b\\c"]),
        ([], []),
    ],
)
def test_names_of_files_are_distinct_and_like_those_of_the_images(paths, names):
    assert file_names(pa.array(paths, pa.string())).to_pylist() == names


def test_names_stay_distinct_in_many_random_cases():
    generator = np.random.default_rng(0)
    for _ in range(200):
        parts = [".".join(generator.choice(["a", "b", "png", "images"], size)) for size in (1, 2, 3) for _ in range(6)]
        paths = sorted(
            {"/".join(generator.choice(parts, 1 + number % 3)) + ".png"[: number % 5] for number in range(20)}
        )
        names = file_names(pa.array(paths)).to_pylist()
        assert len(set(names)) == len(paths)


def test_a_folder_in_the_place_of_a_file_is_said(tmp_path):
    images = pa.array(["a.jpg", "a.png/b.jpg"])

    class Images:
        paths = images

    work = Work(None, None, Images, tmp_path, None, None, torch.zeros(2, dtype=torch.bool))
    work.place("masks", 0, ".png").write_text("a file")
    with pytest.raises(UserError, match=r"data: 'a\.png/b\.jpg' cannot have a file masks/a\.png/b\.png"):
        work.place("masks", 1, ".png")


def test_mistakes(folder, run, tmp_path):
    headstart.pretrain(data=folder, out=tmp_path / "pretrained", epochs=1, batch_size=16, quiet=True, **MODEL)
    with pytest.raises(
        UserError, match=r"run: .*pretrained has no head that predicts \(allowed: the RUN of a finetune\)"
    ):
        headstart.predict(tmp_path / "pretrained", folder, out=tmp_path / "out")
    with pytest.raises(UserError, match=r"run: no folder"):
        headstart.predict(tmp_path / "nothing", folder, out=tmp_path / "out")
    with pytest.raises(UserError, match=r"data: there is no"):
        headstart.predict(run, tmp_path / "nothing", out=tmp_path / "out")
    with pytest.raises(UserError, match=r"confidence: task classify has none \(allowed with the RUN of task detect\)"):
        headstart.predict(run, folder, out=tmp_path / "out", confidence=0.5)
    with pytest.raises(UserError, match=r"draw: task classify draws nothing"):
        headstart.predict(run, folder, out=tmp_path / "out", draw=False)
    assert not (tmp_path / "out").exists()
    headstart.predict(run, folder, out=tmp_path / "out", quiet=True)
    with pytest.raises(UserError, match=r"out: .* is not empty"):
        headstart.predict(run, folder, out=tmp_path / "out", quiet=True)
    before = rows(tmp_path / "out")
    torch.manual_seed(5)
    headstart.predict(run, folder, out=tmp_path / "out", overwrite=True, quiet=True)
    assert rows(tmp_path / "out") == before
