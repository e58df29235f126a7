import numpy as np
import pytest
import torch
import yaml

from headstart.data.index import NO_LABEL, TEST, TRAIN, VAL
from headstart.data.objects import Box, fit
from headstart.data.options import Options
from headstart.data.yolo import label_file, open_yolo
from headstart.errors import UserError

STRICT, LOOSE = Options(max_bad=0), Options(max_bad=1)


@pytest.fixture
def make(tmp_path, save_image):
    """Return a function that writes a YOLO data set: labels by image, and what the YAML file says."""

    def write(labels, **known):
        for image, lines in labels.items():
            save_image(tmp_path / image, size=(40, 20))
            if lines is not None:
                file = tmp_path / label_file(image)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(lines)
        known = {"names": ["car", "bus"], **known} if known else {"names": ["car", "bus"], "train": "images"}
        (tmp_path / "data.yaml").write_text(yaml.safe_dump(known))
        return tmp_path

    return write


def corners(data):
    return np.stack([data.objects[side].to_numpy() for side in ("left", "top", "right", "bottom")], axis=1)


def test_boxes_are_in_pixels_and_images_have_no_labels(make):
    root = make({"images/b.png": "1 0.5 0.5 0.25 0.5\n", "images/a.png": "0 0.25 0.25 0.5 0.5\n1 0.9 0.9 0.2 0.2\n"})
    data = open_yolo(root, STRICT)
    assert data.paths.to_pylist() == ["images/a.png", "images/b.png"]
    assert data.classes == ("car", "bus")
    assert (data.labels == NO_LABEL).all()
    assert data.objects["image"].to_pylist() == [0, 0, 1]
    assert data.objects["label"].to_pylist() == [0, 1, 1]
    np.testing.assert_allclose(corners(data), [[0, 0, 20, 10], [32, 16, 40, 20], [15, 5, 25, 15]], atol=1e-5)


def test_images_without_a_label_file_or_with_an_empty_one_are_background(make):
    root = make({"images/a.png": None, "images/b.png": "", "images/c.png": "0 .5 .5 .5 .5"})
    data = open_yolo(root, STRICT)
    assert data.count == 3
    assert data.objects["image"].to_pylist() == [2]


def test_a_polygon_becomes_the_box_around_it(make):
    root = make({"images/a.png": "1 0.1 0.5 0.4 0.2 0.3 0.9\n"})
    np.testing.assert_allclose(corners(open_yolo(root, STRICT)), [[4, 4, 16, 18]], atol=1e-5)


def test_real_tiles_are_read_as_a_naive_loop_reads_them(real_data):
    root = real_data("aerial")
    data = open_yolo(root, STRICT)
    expected = []
    sizes = data.sizes.tolist()
    for path, (height, width) in zip(data.paths.to_pylist(), sizes, strict=True):
        text = (root / path.replace("images/", "labels/").replace(".jpg", ".txt")).read_text()
        for line in text.splitlines():
            label, x, y, w, h = map(float, line.split())
            expected.append(
                (label, (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            )
    expected = np.array(expected)
    assert data.count == 397
    assert len(expected) == data.objects.num_rows == 3635
    assert (data.objects["label"].to_numpy() == expected[:, 0]).all()
    np.testing.assert_allclose(corners(data), expected[:, 1:], atol=1.0)  # what sticks out by rounding is cut off
    assert np.median(np.abs(corners(data) - expected[:, 1:])) < 1e-3
    assert torch.bincount(data.splits).tolist() == [271, 64, 62]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.5", "4 columns (allowed: 5, a class and a box, or a class and at least 3 points of a polygon)"),
        ("0 0.5 0.5 0.5 0.5 0.9",
         "6 columns (allowed: 5, a class and a box, or a class and at least 3 points of a polygon)"),
        ("0 .1 .1 .2 .2 .3 .3 .4",
         "8 columns (allowed: 5, a class and a box, or a class and at least 3 points of a polygon)"),
        ("2 0.5 0.5 0.5 0.5", "class 2 (allowed: 0 to 1)"),
        ("-1 0.5 0.5 0.5 0.5", "class -1 (allowed: 0 to 1)"),
        ("0.5 0.5 0.5 0.5 0.5", "class 0.5 (allowed: 0 to 1)"),
        ("0 0.5 0.5 -0.5 0.5", "-0.5 (allowed: 0 to 1, shares of the image's width and height)"),
        ("0 20 10 4 4", "20 (allowed: 0 to 1, shares of the image's width and height)"),
        ("0 0.5 nan 0.5 0.5", "nan (allowed: 0 to 1, shares of the image's width and height)"),
        ("0 0.5 0.5 0 0.5", "an empty box"),
        ("0 0.5 0.5 -0.005 0.5", "a box of negative size"),
        ("0 0.9 0.5 0.4 0.5", "a box that sticks out of the image by 4 px; it is 40 wide and 20 high"),
        ("car 0.5 0.5 0.5 0.5", "'car' is no number"),
    ],
)  # fmt: skip
def test_a_bad_line_is_named_and_left_out_or_stops(make, line, reason):
    root = make({"images/a.png": f"0 .5 .5 .5 .5\n\n{line}\n"})
    data = open_yolo(root, LOOSE)
    assert [(bad.path, bad.reason) for bad in data.bad] == [("labels/a.txt:3", reason)]
    assert data.objects.num_rows == 1
    with pytest.raises(UserError) as error:
        open_yolo(root, STRICT)
    assert str(error.value) == (
        f"data: 1 of 2 annotations in {root} are broken (allowed: 0%): labels/a.txt:3 ({reason})"
    )


def test_a_label_file_that_is_no_text_leaves_its_image_out(make):
    root = make({"images/a.png": "0 .5 .5 .5 .5", "images/b.png": ""})
    (root / "labels" / "b.txt").write_bytes(b"\xff\xfe\x00")
    data = open_yolo(root, LOOSE)
    assert data.paths.to_pylist() == ["images/a.png"]
    assert [(bad.path, bad.reason) for bad in data.bad] == [("labels/b.txt", "not a text file")]


def test_rounding_is_cut_off():
    box = fit(Box(0, -1, -0.5, 40.9, 20, "a.txt:1"), 20, 40)
    assert box[1:5] == (0, 0, 40, 20)
    assert fit(Box(0, 50, 0, 60, 10, ""), 20, 40) == "a box outside of the image, which is 40 wide and 20 high"
    assert fit(Box(0, float("inf"), 0, 60, 10, ""), 20, 40) == "a coordinate that is not finite"


def test_splits_come_from_folders_lists_of_folders_and_text_lists(make):
    images = [f"images/{folder}/{n}.png" for folder in ("one", "two", "three", "four") for n in range(2)]
    root = make(dict.fromkeys(images, "0 .5 .5 .5 .5"), train=["images/one", "images/two"], val="images/three",
                test="test.txt")  # fmt: skip
    (root / "test.txt").write_text(f"./images/four/0.png\n\n{root}/images/four/1.png\n")
    data = open_yolo(root / "data.yaml", STRICT)
    expected = {"one": TRAIN, "two": TRAIN, "three": VAL, "four": TEST}
    assert data.count == 8
    assert data.splits.tolist() == [expected[path.split("/")[1]] for path in data.paths.to_pylist()]


@pytest.mark.parametrize("path", [".", None, "../not/on/this/machine", "/datasets/of/somebody/else"])
def test_a_path_that_is_not_there_is_ignored(make, path):
    root = make({"images/a.png": "0 .5 .5 .5 .5"}, train="images", path=path)
    assert open_yolo(root, STRICT).objects.num_rows == 1


def test_a_path_outside_is_followed_only_if_the_file_itself_is_named(make, tmp_path):
    root = make({"images/a.png": "0 .5 .5 .5 .5"})
    other = tmp_path / "configs"
    other.mkdir()
    (other / "data.yaml").write_text("path: ..\ntrain: images\nnames: {0: car}")
    assert open_yolo(other / "data.yaml", STRICT).paths.to_pylist() == ["images/a.png"]
    with pytest.raises(UserError) as error:
        open_yolo(other, STRICT)
    assert str(error.value) == (
        f"data: {other}/data.yaml: path: .. leads out of the data folder (allowed: a folder inside of it; where it is"
        " meant, name data.yaml itself as the data)"
    )
    assert root == tmp_path


def test_what_roboflow_writes_is_found(make):
    root = make({"train/images/a.png": "0 .5 .5 .5 .5", "valid/images/b.png": "0 .5 .5 .5 .5"},
                train="../train/images", val="../valid/images")  # fmt: skip
    assert open_yolo(root, STRICT).splits.tolist() == [TRAIN, VAL]


def test_one_folder_for_train_and_val_is_train(make):
    root = make({"images/a.png": "0 .5 .5 .5 .5"}, train="images", val="images")
    assert open_yolo(root, STRICT).splits.tolist() == [TRAIN]


@pytest.mark.parametrize("line", ["../secret.png", "/etc/secret.png", "images/../../secret.png"])
def test_a_list_that_leads_out_is_refused(make, line):
    root = make({"images/a.png": "0 .5 .5 .5 .5"}, train="train.txt")
    (root / "train.txt").write_text(f"images/a.png\n{line}\n")
    with pytest.raises(UserError) as error:
        open_yolo(root, LOOSE)
    message = str(error.value)
    assert message.startswith(f"data: {root}/train.txt:2: the path ")
    assert message.endswith(f"leads out of the data folder (allowed: files inside of {root})")


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({"train": "../../etc"}, "data: {file}: train: the path ../../etc leads out of the data folder"
         " (allowed: files inside of {root})"),
        ({"train": "pictures"}, "data: {file}: train: there is no {root}/pictures (allowed: a folder or a .txt list)"),
        ({"train": 3}, "data: {file}: train: 3 (allowed: a folder, a .txt list, or a list of them)"),
        ({"nc": 2}, "data: {file} describes no YOLO data (allowed: train, val or test, and names)"),
        ({"train": "images", "names": None},
         "data: {file}: names: is needed (allowed: a list of class names, or number: name lines)"),
        ({"train": "images", "names": {0: "a", 2: "b"}},
         "data: {file}: names: the numbers ['0', '2'] (allowed: 0, 1, 2, …)"),
        ({"train": "images", "names": ["a", "a"]}, "data: {file}: names: 'a' is given twice (allowed: once)"),
        ({"train": "images", "val": ["images"]},
         "data: {file}: the image images/a.png is in train and in val (allowed: one split)"),
        ({"train": "elsewhere"}, "data: no image in {root} has labels: there is no elsewhere/b.txt for elsewhere/b.png"
         " (allowed: labels/…/NAME.txt beside images/…/NAME.jpg)"),
    ],
)  # fmt: skip
def test_a_wrong_description_is_refused_in_one_line(make, save_image, known, message):
    root = make({"images/a.png": "0 .5 .5 .5 .5"}, **known)
    if known.get("train") == "elsewhere":
        save_image(root / "elsewhere" / "b.png")
    with pytest.raises(UserError) as error:
        open_yolo(root, STRICT)
    assert str(error.value) == message.format(root=root, file=root / "data.yaml")


def test_the_fingerprint_changes_with_a_box(make):
    before = open_yolo(make({"images/a.png": "0 .5 .5 .5 .5"}), STRICT).fingerprint
    assert open_yolo(make({"images/a.png": "0 .5 .5 .5 .6"}), STRICT).fingerprint != before
    assert open_yolo(make({"images/a.png": "0 .5 .5 .5 .5"}), STRICT).fingerprint == before


def test_odd_names_are_read(make):
    names = ["images/a b.png", "images/new\nline.png", "images/<script>.png", "images/ünï.png"]
    data = open_yolo(make(dict.fromkeys(names, "0 .5 .5 .5 .5\n0 .5 .5 .5")), LOOSE)
    assert sorted(data.paths.to_pylist()) == sorted(names)
    assert "labels/new\\nline.txt:2" in [bad.path for bad in data.bad]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: 2024-99-99\nnames: [a]", r"data.yaml cannot be read as YAML: month must be in 1..12"),
        ("train: " + "[" * 3000 + "]" * 3000, r"data.yaml cannot be read as YAML: maximum recursion depth"),
        ('train: "a\\0b"\nnames: [a]', r"data.yaml: train: the path a\\x00b leads out"),
        ("train: images\nnames: [a, ~]", r"data.yaml: names: None \(allowed: text and numbers"),
        ("train: images\nnames: [yes, no]", r"data.yaml: names: True \(allowed: text and numbers"),
        ("train: images\nnc: 3\nnames: [a, b]", r"data.yaml: nc: 3, but names: has 2"),
    ],
)
def test_other_mistakes_of_the_description(make, text, message):
    root = make({"images/a.png": "0 0.5 0.5 0.2 0.2\n"})
    (root / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        open_yolo(root, STRICT)


def test_a_folder_that_is_a_link_out_of_the_data_is_refused(make, tmp_path_factory):
    root = make({"images/a.png": "0 0.5 0.5 0.2 0.2\n"}, train="images", val="link")
    (root / "link").symlink_to(tmp_path_factory.mktemp("outside"))
    with pytest.raises(UserError, match=r"data.yaml: val: link is a link that leads out"):
        open_yolo(root, STRICT)
