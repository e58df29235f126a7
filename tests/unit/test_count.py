import json

import numpy as np
import pytest
from PIL import Image

from headstart.data.masks import open_masks
from headstart.data.options import Options
from headstart.data.yolo import open_yolo
from headstart.errors import UserError
from headstart.verbs.count import count, tally
from headstart.verbs.counting_figures import draw

STRICT = Options(max_bad=0)
LIMITS = {"small": 32, "medium": 96}


@pytest.fixture
def folder(tmp_path, save_image):
    """Return a folder of 3 cats and 2 dogs in train, and one of each in test."""
    names = ["train/cat/1", "train/cat/2", "train/cat/3", "train/dog/1", "train/dog/2", "test/cat/1", "test/dog/1"]
    for name in names:
        save_image(tmp_path / "data" / f"{name}.png")
    return tmp_path / "data"


def test_class_folders_are_counted_by_class_and_split(folder):
    counted = count(folder, quiet=True)
    assert counted.totals == {"train": 5, "test": 2}
    assert counted.images == {"cat": {"train": 3, "test": 1}, "dog": {"train": 2, "test": 1}}
    assert counted.without == {"train": 0, "test": 0}
    assert counted.objects is counted.box_sizes is counted.box_sides is counted.pixels is None
    assert str(counted).splitlines() == [
        "data: 7 images (class folders under split folders)",
        "",
        "images  train  test  all",
        "   cat      3     1    4",
        "   dog      2     1    3",
        " (all)      5     2    7",
    ]


def test_out_gets_the_same_as_json_and_a_picture(folder, tmp_path):
    counted = count(folder, out=tmp_path / "out", quiet=True)
    known = json.loads((tmp_path / "out" / "count.json").read_text())
    assert known["images"] == counted.images
    assert known["totals"] == counted.totals
    assert known["fingerprint"] == counted.fingerprint
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["count.json", "count.png"]
    with Image.open(tmp_path / "out" / "count.png") as picture:
        assert np.array(picture.convert("L")).std() > 5


def test_nothing_is_overwritten_unasked_or_written_into_the_data(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "count.json").write_text("mine")
    with pytest.raises(UserError) as error:
        count(folder, out=out, quiet=True)
    assert str(error.value) == f"out: {out} has a count.json (allowed: another folder, or --overwrite)"
    assert (out / "count.json").read_text() == "mine"
    count(folder, out=out, overwrite=True, quiet=True)
    assert (out / "count.json").read_text() != "mine"
    with pytest.raises(UserError, match="lies inside of the data"):
        count(folder, out=folder / "out", quiet=True)
    assert not (folder / "out").exists()
    with pytest.raises(UserError, match="is a file, not a folder"):
        count(folder, out=out / "count.json", quiet=True)


def test_images_without_labels_are_counted_apart(folder, save_image):
    save_image(folder / "unlabelled" / "1.png")
    counted = count(folder, quiet=True)
    assert counted.totals == {"train": 5, "test": 2, "unlabelled": 1}
    assert counted.without == {"train": 0, "test": 0, "unlabelled": 1}
    assert "(none)      0     0           1    1" in str(counted)


def test_classes_and_broken_files_are_those_of_the_settings(folder):
    assert count(folder, classes="pet=cat,dog", quiet=True).images == {"pet": {"train": 5, "test": 2}}
    (folder / "train" / "cat" / "4.png").write_text("text")
    with pytest.raises(UserError, match=r"1 of 8 images"):
        count(folder, quiet=True)
    counted = count(folder, max_bad="20%", quiet=True)
    assert [(bad.path, bad.reason) for bad in counted.bad] == [("train/cat/4.png", "not an image")]
    assert "left out: 1 files or lines: train/cat/4.png (not an image)" in str(counted)


def test_real_boxes_are_counted_as_a_naive_loop_counts_them(real_data, tmp_path):
    root = real_data("aerial")
    counted = tally(open_yolo(root, STRICT))
    names = ["car", "truck", "bus", "minibus", "cyclist"]
    objects = {name: dict.fromkeys(("train", "val", "test"), 0) for name in names}
    images = {name: dict.fromkeys(("train", "val", "test"), 0) for name in names}
    sizes = {name: dict.fromkeys(("small", "medium", "large"), 0) for name in names}
    sides = []
    for split in ("train", "val", "test"):
        for file in (root / "labels" / split).glob("*.txt"):
            with Image.open(root / "images" / split / f"{file.stem}.jpg") as image:
                width, height = image.size
            lines = [line.split() for line in file.read_text().splitlines()]
            for name in {names[int(line[0])] for line in lines}:
                images[name][split] += 1
            for label, _, _, across, down in lines:
                area = float(across) * width * float(down) * height
                objects[names[int(label)]][split] += 1
                sizes[names[int(label)]]["small" if area < 32**2 else "medium" if area < 96**2 else "large"] += 1
                sides.append(area**0.5)
    assert counted.objects == objects
    assert counted.images == images
    assert counted.totals == {"train": 271, "val": 64, "test": 62}
    for name in names:  # a box that is cut off by its rounding may change its size
        for size, number in sizes[name].items():
            assert abs(counted.box_sizes[name][size] - number) <= 5
    assert counted.box_sides["50"] == pytest.approx(np.percentile(sides, 50), abs=0.05)
    draw(tmp_path / "count.png", counted, np.array(sides), LIMITS)
    assert (tmp_path / "count.png").stat().st_size > 5_000


def test_pixels_of_masks_are_counted_without_void(tmp_path, save_image):
    generator = np.random.default_rng(0)
    expected = np.zeros(3, int)
    for number in range(4):
        save_image(tmp_path / "images" / f"{number}.jpg", size=(40, 20))
        ids = generator.choice([0, 1, 2, 255] if number else [0, 255], size=(20, 40)).astype(np.uint8)
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(ids).save(tmp_path / "masks" / f"{number}.png")
        expected += [(ids == value).sum() for value in range(3)]
    counted = tally(open_masks(tmp_path, STRICT))
    assert [row["no split"] for row in counted.pixels.values()] == expected.tolist()
    assert [row["no split"] for row in counted.images.values()] == [4, 3, 3]
    assert f"0      {100 * expected[0] / expected.sum():.1f}" in str(counted)


def test_data_without_any_boxes_are_counted_and_drawn(tmp_path, save_image):
    save_image(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [$x$]")
    counted = tally(open_yolo(tmp_path, STRICT))
    assert counted.without == {"train": 1}
    assert counted.box_sides == {}
    draw(tmp_path / "count.png", counted, np.zeros(0), LIMITS)
    assert (tmp_path / "count.png").exists()
    assert "$x$      0" in str(counted)


def test_an_out_that_cannot_be_ends_with_one_line(folder, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file" / "out", tmp_path / ("x" * 300)):
        with pytest.raises(UserError, match=r"out: .* cannot be"):
            count(folder, out=out, quiet=True)


def test_scripts_that_the_font_lacks_are_drawn_without_a_warning(tmp_path, save_image):
    for name in ("日本", "n\new"):
        save_image(tmp_path / "data" / name / "1.png")
    count(tmp_path / "data", out=tmp_path / "out", quiet=True)  # a warning would be an error
    assert (tmp_path / "out" / "count.png").exists()
