"""Predicted masks are those of the segmenter at the images' own size, and with the images a data set again."""

import csv
import json
import weakref

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torchvision.transforms.v2 import functional as torchvision_functional

import headstart
from headstart.backbones import build
from headstart.data.letterbox import letterboxed
from headstart.data.loading import IMAGENET_MEAN, IMAGENET_STD
from headstart.data.masks import open_masks, read_mask
from headstart.data.options import Options
from headstart.errors import UserError
from headstart.tasks.segmentation import Segmenter
from headstart.verbs.predicting.segment import likeliest, save_mask, written_values

MODEL = "timm/resnet18"
MODEL_ARGS = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
SIDE = 48
SIZES = {"a.png": (40, 60), "deep er/ü,b.jpg": (97, 31), "images/c.png": (20, 20), "tiny.bmp": (1, 9)}


def segmenter_of(classes):
    torch.manual_seed(classes)
    backbone = build(MODEL, stem="small", image_size=SIDE, model_args=MODEL_ARGS)
    segmenter = Segmenter(backbone, classes=classes, decoder="unet", loss="auto").eval()
    for parameter in segmenter.head.parameters():  # a new head would see the same class everywhere
        parameter.data.mul_(3)
    return segmenter


def write_run(folder, segmenter, classes, mask_values):
    folder.mkdir(parents=True)
    settings = {
        "task": "segment", "model": MODEL, "model_args": MODEL_ARGS, "stem": "small", "image_size": SIDE,
        "channels": 3, "pixel_range": None, "decoder": "unet", "loss": "auto", "detector": "auto",
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "environment.json").write_text(json.dumps({"verb": "finetune"}))
    safetensors.torch.save_file(segmenter.backbone.net.state_dict(), folder / "backbone.safetensors")
    safetensors.torch.save_file(segmenter.head.state_dict(), folder / "head.safetensors")
    (folder / "result.json").write_text(json.dumps({"classes": classes, "mask_values": mask_values}))
    return folder


@pytest.fixture(scope="module")
def segmenter():
    return segmenter_of(3)


@pytest.fixture(scope="module")
def run(segmenter, tmp_path_factory):
    values = [[0], [1], [2, 5]]
    return write_run(tmp_path_factory.mktemp("runs") / "run", segmenter, ["background", "cat", "dog"], values)


def draw(path, height, width, seed):
    generator = np.random.default_rng(seed)
    blocks = Image.fromarray(generator.integers(0, 256, (5, 5, 3), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks.resize((width, height), Image.Resampling.BILINEAR).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data") / "images of many kinds"
    for seed, (name, size) in enumerate(SIZES.items()):
        draw(place / name, *size, seed)
    return place


def pixels_of(path):
    with Image.open(path) as image:
        return np.array(image)


def lines_of(out, name="predictions.csv"):
    with (out / name).open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@torch.no_grad()
def expected_classes(segmenter, path):
    """The likeliest classes, by another way than the letterbox of the package."""
    image = torch.from_numpy(pixels_of(path)).permute(2, 0, 1)
    height, width = image.shape[1:]
    longest = max(height, width)
    high, wide = (max(1, round(side * SIDE / longest)) for side in (height, width))
    image = torchvision_functional.resize(image, [high, wide], antialias=True).float() / 255
    image = torchvision_functional.normalize(image, IMAGENET_MEAN, IMAGENET_STD)
    shares = segmenter.probabilities(F.pad(image, (0, SIDE - wide, 0, SIDE - high))[None])
    part = shares[:, :, :high, :wide]
    return F.interpolate(part, (height, width), mode="bilinear", align_corners=False)[0].argmax(0).numpy()


@pytest.mark.parametrize("batch_size", [1, 3])
def test_masks_are_those_of_the_segmenter_at_the_images_own_size(segmenter, run, folder, tmp_path, batch_size):
    found = headstart.predict(run, folder, out=tmp_path / "out", batch_size=batch_size, quiet=True)
    files = {"a.png": "a", "deep er/ü,b.jpg": "deep er/ü,b", "images/c.png": "c", "tiny.bmp": "tiny"}
    written = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*")}
    assert written == {
        "predictions.csv", "classes.txt", "prepared.json",
        *(f"masks/{name}.png" for name in files.values()), *(f"overlays/{name}.jpg" for name in files.values()),
    }  # fmt: skip
    lines = {line["image"]: line for line in lines_of(tmp_path / "out")}
    assert list(lines) == sorted(SIZES)
    counts = np.zeros(3, int)
    for name, file in files.items():
        mask = pixels_of(tmp_path / "out" / "masks" / f"{file}.png")
        expected = expected_classes(segmenter, folder / name)
        np.testing.assert_array_equal(mask, expected)
        shares = np.bincount(expected.ravel(), minlength=3) / expected.size
        counts += np.bincount(expected.ravel(), minlength=3)
        columns = [float(lines[name][f"share_{label}"]) for label in ("background", "cat", "dog")]
        np.testing.assert_allclose(columns, shares, atol=1e-6)
    assert len(np.flatnonzero(counts)) >= 2
    assert found.counts == dict(zip(("background", "cat", "dog"), counts.tolist(), strict=True))
    assert f"background {100 * counts[0] / counts.sum():.1f} %" in str(found)


def test_masks_are_those_that_the_run_was_scored_by(tmp_path):
    for number in range(15):
        generator = np.random.default_rng(number)
        mask, (top, left) = np.zeros((24, 30), np.uint8), generator.integers(0, 12, 2)
        mask[top : top + 10, left : left + 12] = 255
        pixels = np.where(mask[..., None] > 0, [200, 60, 60], [60, 160, 60]) + generator.integers(-40, 40, (24, 30, 3))
        for kind, values in (("images", pixels.astype(np.uint8)), ("masks", mask)):
            place = tmp_path / "data" / kind / ("train", "val", "test")[number % 3] / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(place)
    run, out = tmp_path / "run", tmp_path / "out"
    headstart.finetune(
        data=tmp_path / "data", task="segment", out=run, image_size=32, epochs=1, min_steps=6, evaluations=1,
        learning_rate=1e-3, model=MODEL, model_args=MODEL_ARGS, quiet=True,
    )  # fmt: skip
    headstart.predict(run, tmp_path / "data", out=out, quiet=True)
    pairs = [
        (pixels_of(path) > 0, pixels_of(out / "masks" / path.relative_to(tmp_path / "data" / "masks")) > 0)
        for path in sorted((tmp_path / "data" / "masks" / "test").iterdir())
    ]
    both, either = (sum(join(*pair).sum() for pair in pairs) for join in (np.logical_and, np.logical_or))
    scores = json.loads((run / "result.json").read_text())["scores"]
    assert len(pairs) == 5
    assert both > 0
    assert both / either == pytest.approx(scores["iou"], abs=1e-9)


def test_overlays_show_the_classes_and_are_left_out_when_not_wanted(run, tmp_path):
    draw(tmp_path / "data" / "large.png", 700, 2048, 1)
    headstart.predict(run, tmp_path / "data", out=tmp_path / "out", quiet=True)
    mask = pixels_of(tmp_path / "out" / "masks" / "large.png")
    assert mask.shape == (700, 2048)
    shown = pixels_of(tmp_path / "out" / "overlays" / "large.jpg").astype(int)
    assert shown.shape == (350, 1024, 3)
    own = pixels_of(tmp_path / "data" / "large.png").reshape(350, 2, 1024, 2, 3).mean((1, 3))
    changed = np.abs(shown - own).max(2) > 40
    foreground = mask[::2, ::2] > 0
    assert 0.02 < foreground.mean() < 0.98
    assert changed[foreground].mean() > 0.7
    assert changed[~foreground].mean() < 0.1
    headstart.predict(run, tmp_path / "data", out=tmp_path / "plain", draw=False, quiet=True)
    assert not (tmp_path / "plain" / "overlays").exists()
    assert np.array_equal(pixels_of(tmp_path / "plain" / "masks" / "large.png"), mask)


@pytest.mark.parametrize(
    ("classes", "mask_values", "written"),
    [
        (["background", "foreground"], [[0], [255]], [0, 255]),
        (["background", "pet"], [[2], [1, 3]], [0, 1]),
        (["foreground", "background", "border"], [[1], [2], [3]], [0, 1, 2]),
        (["3", "77", "9"], [[3], [77], [9]], [3, 77, 9]),
    ],
)
def test_with_the_images_beside_them_masks_are_a_data_set_again(classes, mask_values, written, tmp_path):
    segmenter = segmenter_of(len(classes))
    run = write_run(tmp_path / "run", segmenter, classes, mask_values)
    out = tmp_path / "out"
    for number in range(4):
        draw(tmp_path / "data" / f"{number // 2}" / f"{number}.png", 30 + number, 40, number)
    headstart.predict(run, tmp_path / "data", out=out, quiet=True)
    seen = set().union(*(set(np.unique(pixels_of(path)).tolist()) for path in (out / "masks").rglob("*.png")))
    assert seen <= set(written)
    assert len(seen) >= 2
    (tmp_path / "data").rename(out / "images")
    data = open_masks(out, Options(max_bad=0))
    assert data.classes == tuple(classes)
    assert data.count == 4
    for row, name in enumerate(data.paths.to_pylist()):
        classes_again = read_mask(out / data.index["mask"][row].as_py(), data.mask_values)
        np.testing.assert_array_equal(classes_again, expected_classes(segmenter, out / name))


def test_values_are_clear_in_a_mask_by_itself(tmp_path):
    for names, values in [(["a", "b"], [[0], [255]]), (["a", "b", "c"], [[1], [2], [3]]), (["4", "2"], [[4], [2]])]:
        written = written_values(names, values)
        for present in ([0], [1], [0, 1]):
            place = tmp_path / "-".join([*names, *map(str, present)])
            draw(place / "images" / "x.png", 6, 6, 0)
            (place / "masks").mkdir()
            mask = written[np.resize(present, (6, 6))]
            save_mask(place / "masks" / "x.png", mask)
            (place / "classes.txt").write_text("".join(f"{name}\n" for name in names))
            data = open_masks(place, Options(max_bad=0))
            assert data.classes == tuple(names)
            again = read_mask(place / "masks" / "x.png", data.mask_values)
            np.testing.assert_array_equal(again, np.resize(present, (6, 6)))


def test_many_classes_need_sixteen_bits(tmp_path):
    names = [f"class {number}" for number in range(300)]
    written = written_values(names, [[number] for number in range(300)])
    mask = written[np.arange(300).reshape(20, 15)]
    save_mask(tmp_path / "wide.png", mask)
    save_mask(tmp_path / "narrow.png", mask[:17])
    assert pixels_of(tmp_path / "wide.png").dtype == np.uint16
    assert pixels_of(tmp_path / "narrow.png").dtype == np.uint8
    for name, rows in (("wide", 20), ("narrow", 17)):
        again = read_mask(tmp_path / f"{name}.png", [[number] for number in range(300)])
        np.testing.assert_array_equal(again, np.arange(300).reshape(20, 15)[:rows])


def test_the_likeliest_class_is_that_of_all_maps_together():
    shares = torch.rand(7, 24, 24, generator=torch.Generator().manual_seed(0)).softmax(0)
    shares[3] = shares[1]  # of equal ones the first
    together = F.interpolate(shares[None, :, :24, :10], (57, 23), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(likeliest(shares, (24, 10), (57, 23)).long(), together)


def test_two_images_of_one_name_keep_their_ends(run, tmp_path):
    draw(tmp_path / "data" / "a" / "1.png", 20, 30, 0)
    draw(tmp_path / "data" / "a" / "1.bmp", 30, 20, 1)
    draw(tmp_path / "data" / "images" / "b.png", 10, 10, 2)
    draw(tmp_path / "data" / "a" / "1.png.png", 12, 13, 3)
    headstart.predict(run, tmp_path / "data", out=tmp_path / "out", quiet=True)
    sizes = {
        path.relative_to(tmp_path / "out" / "masks").as_posix(): pixels_of(path).shape
        for path in (tmp_path / "out" / "masks").rglob("*.png")
    }
    assert sizes == {"a/1.png.png.png": (12, 13), "a/1.png.png": (20, 30), "a/1.bmp.png": (30, 20), "b.png": (10, 10)}


def test_broken_images_are_listed_and_the_others_done(run, folder, tmp_path):
    data = tmp_path / "data"
    draw(data / "whole.png", 20, 20, 0)
    (data / "text.png").write_text("no image")
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8))
    noise.save(data / "damaged.png")
    content = bytearray((data / "damaged.png").read_bytes())
    content[9000:9400] = bytes(400)  # its header and its end are whole
    (data / "damaged.png").write_bytes(content)
    found = headstart.predict(run, data, out=tmp_path / "out", quiet=True)
    assert [line["image"] for line in lines_of(tmp_path / "out")] == ["whole.png"]
    left = {line["image"]: line["reason"] for line in lines_of(tmp_path / "out", "left_out.csv")}
    assert left.keys() == {"text.png", "damaged.png"}
    assert left["text.png"] == "not an image"
    assert left["damaged.png"] != "cannot be decoded"  # but why
    assert "left out: 2 of " in str(found)


def test_memory_does_not_grow_with_the_images(run, tmp_path, monkeypatch):
    for number in range(12):
        draw(tmp_path / "data" / f"{number}.png", 16, 24, number)
    alive, most = weakref.WeakSet(), 0

    def watched(*given, **more):
        nonlocal most
        for batch in letterboxed(*given, **more):
            alive.add(batch.images)
            most = max(most, len(alive))
            yield batch
            del batch

    monkeypatch.setattr("headstart.verbs.predicting.segment.letterboxed", watched)
    headstart.predict(run, tmp_path / "data", out=tmp_path / "out", batch_size=1, quiet=True)
    assert len(lines_of(tmp_path / "out")) == 12
    assert most <= 2


def test_an_interrupted_prediction_leaves_nothing(run, folder, tmp_path, monkeypatch):
    done = []

    def interrupted(path, values):
        if done:
            raise KeyboardInterrupt
        done.append(path)
        save_mask(path, values)

    monkeypatch.setattr("headstart.verbs.predicting.segment.save_mask", interrupted)
    with pytest.raises(KeyboardInterrupt):
        headstart.predict(run, folder, out=tmp_path / "place" / "out", batch_size=1, quiet=True)
    assert done
    assert list((tmp_path / "place").iterdir()) == []


def test_mistakes(run, folder, tmp_path):
    with pytest.raises(UserError, match=r"confidence: task segment has none \(allowed with the RUN of task detect\)"):
        headstart.predict(run, folder, out=tmp_path / "out", confidence=0.5)
    with pytest.raises(UserError, match=r"data: .* is read in 1 channels \(allowed with .*run: 3\)"):
        headstart.predict(run, folder, out=tmp_path / "out", channels=1)
    assert not (tmp_path / "out").exists()
