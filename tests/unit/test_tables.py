import csv

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from headstart.data.images import inspect
from headstart.data.index import SPLITS
from headstart.data.options import DEFAULT, Options
from headstart.data.tables import open_table
from headstart.errors import UserError

LENIENT = Options(max_bad=0.6)


@pytest.fixture
def write(tmp_path, save_image):
    """Return a function that writes a CSV file, and its images but those that begin with no."""

    def write(header, *rows, name="data.csv"):
        path = tmp_path / name
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([header, *rows])
        for number, row in enumerate(rows):
            for cell in row[:1]:
                if cell.endswith(".png") and not cell.startswith(("no", "..", "/")):
                    save_image(tmp_path / cell, seed=number)
        return path

    return write


def by_path(data):
    return dict(zip(data.paths.to_pylist(), data.labels.tolist(), strict=True))


def message(path, options=DEFAULT):
    with pytest.raises(UserError) as error:
        open_table(path, options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_all_columns_reach_the_data_set(write, save_image, tmp_path):
    path = write(
        ["image", "price", "label", "mask", "split", "group"],
        ["b/2.png", "1", "duck", "m.png", "Validation", "pond"],
        ["a.png", "2", "cat", "", "train", ""],
        ["c.png", "3", " duck ", "", "", "pond"],
        ["d.png", "3", "", "", "unlabeled", ""],
    )
    mask = save_image(tmp_path / "m.png")
    data = open_table(path, DEFAULT)
    assert (data.name, data.classes) == ("data", ("cat", "duck"))
    assert by_path(data) == {"a.png": 0, "b/2.png": 1, "c.png": 1, "d.png": -1}
    assert [SPLITS[code] if code >= 0 else None for code in data.splits.tolist()] == [
        "train",
        "val",
        None,
        "unlabelled",
    ]
    assert data.index["mask"].to_pylist() == [None, "m.png", None, None]
    assert data.groups[1] == data.groups[2]
    assert len(set(data.groups.tolist())) == 3
    before = data.fingerprint
    Image.open(mask).convert("L").save(mask)
    assert open_table(path, DEFAULT).fingerprint != before


def test_the_order_of_the_rows_does_not_count(write, save_image, tmp_path):
    rows = [["a.png", "x", "m1.png"], ["b.png", "y", "m2.png"]]
    path = write(["image", "label", "mask"], *rows)
    for number in (1, 2):
        save_image(tmp_path / f"m{number}.png", seed=9 + number)
    prints = []
    for order in (rows, rows[::-1]):
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["image", "label", "mask"], *order])
        prints.append(open_table(path, DEFAULT).fingerprint)
    assert prints[0] == prints[1]


def test_quoting_spaces_line_breaks_and_unicode_survive(write):
    names = ['a "b", c.png', "line\nbreak.png", "<script>.png", "猫 ü.png", " space.png", "NA.png"]
    path = write(["image", "label"], *[[name, name.removesuffix(".png")] for name in names])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    data = open_table(path, DEFAULT)
    found = {name: data.classes[label] for name, label in by_path(data).items()}
    assert found == {name: name.removesuffix(".png").strip() for name in names}


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["10", "9", "x"], ("10", "9", "x")),
        (["1.5", "10", "2"], ("1.5", "2", "10")),
        (["NA", "null", "None"], ("NA", "None", "null")),
    ],
)
def test_numbers_are_sorted_as_numbers(write, labels, classes):
    assert open_table(write(["image", "label"], *[[f"{x}.png", x] for x in labels]), DEFAULT).classes == classes


@pytest.mark.parametrize(
    ("as_csv", "as_parquet"),
    [
        (["x", "", "y"], pa.array(["x", None, "y"])),
        (["x", "", "y"], pa.array(["x", None, "y"]).dictionary_encode()),
        (["3", "", "12"], pa.array([3, None, 12])),
        (["3", "", "12"], pa.array([3.0, float("nan"), 12.0])),  # as pandas writes integers of which one is missing
        (["0.5", "", "2.25"], pa.array([0.5, None, 2.25])),
        (["true", "false", ""], pa.array([True, False, None])),
    ],
    ids=["names", "categories", "numbers", "floats", "fractions", "booleans"],
)
def test_parquet_is_read_as_csv(write, tmp_path, as_csv, as_parquet):
    images = ["a.png", "b.png", "c.png"]
    write(["image", "label"], *zip(images, as_csv, strict=True))
    parquet.write_table(pa.table({"image": images, "label": as_parquet, "n": [1, 2, 3]}), tmp_path / "data.parquet")
    one, two = (open_table(tmp_path / f"data.{suffix}", DEFAULT) for suffix in ("csv", "parquet"))
    assert (one.classes, one.labels.tolist()) == (two.classes, two.labels.tolist())
    assert (one.labels == -1).sum() == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("path,label\na.png,1\n", "data: t.csv:1: no column 'image' (found: path, label)"),
        ("", "data: t.csv:1: no column 'image' (found: nothing)"),
        ("image;label\na.png;1\n", "data: t.csv:1: no column 'image' (found: image;label)"),
        ("image,image\na.png,1\n", "data: t.csv:1: the column 'image' is there twice (allowed: once)"),
        ("image,left,right,top\na.png,1,1,1\n", "data: t.csv:1: no column 'bottom' (found: image, left, right, top)"),
        ("image,label\na.png,1\n,2\n", "data: t.csv:3: no image (allowed: the path of one in every row)"),
        ('image,label\n"a\n.png",1\n\nb.png,1,2\n', "data: t.csv:5: Expected 2 columns, got 3: b.png,1,2"),
        ('image,label\n"a\n.png",1\n../b.png,2\n', "data: t.csv:4: the image ../b.png lies outside of the folder"),
        ("image\n/etc/passwd.png\n", "data: t.csv:2: the image /etc/passwd.png lies outside of the folder"),
        ("image,mask\na.png,a/../../m.png\n", "data: t.csv:2: the mask a/../../m.png lies outside of the folder"),
        ("image\na\nlink/x.png\n", "data: t.csv:3: the image link/x.png lies outside of the folder"),
        ("image,split\na,train\nb,\nc,trian\n", "data: t.csv:4: split: unknown 'trian', did you mean 'train'?"),
        (
            "image,left,top,right,bottom\na,1,1,1,x\n",
            "data: t.csv:2: CSV conversion error to double: invalid",
        ),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path, content, expected):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path)
    (tmp_path / "in/t.csv").write_text(content)
    assert expected in message(tmp_path / "in/t.csv", LENIENT)


def test_text_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes("image\nü.png\n".encode("latin-1"))
    assert message(tmp_path / "t.csv").startswith("data: t.csv")


def test_other_spellings_of_a_path_are_one_image(write, tmp_path):
    path = write(["image", "label"], ["a/1.png", "x"], ["2.png", "y"])
    path.write_text(f"image,label\n./a/../a//1.png,x\n{tmp_path}/2.png,y\n")
    assert by_path(open_table(path, DEFAULT)) == {"a/1.png": 0, "2.png": 1}
    path.write_text("image,label\na/1.png,x\n./a/1.png,x\n")
    assert message(path) == "data: data.csv:3: the image a/1.png is listed twice, also in data.csv:2 (allowed: once)"


def test_missing_and_broken_files_are_bad(write, save_image, tmp_path):
    path = write(["image", "label", "mask"], ["a.png", "x", "m.png"], ["b.png", "y", "no.png"], ["no.png", "z", ""],
                 ["c.png", "y", "small.png"], ["d.png", "y", ""])  # fmt: skip
    save_image(tmp_path / "m.png")
    save_image(tmp_path / "small.png", size=(5, 6))
    assert "data: 3 of 5 images" in message(path)
    data = open_table(path, LENIENT)
    assert by_path(data) == {"a.png": 0, "d.png": 1}
    assert [(bad.path, bad.reason) for bad in data.bad] == [
        ("no.png", "the file is gone"),
        ("no.png", "the file is gone"),
        ("small.png", "a mask of 6x5 pixels for an image of 16x20"),
    ]
    assert data.index["crc"].to_pylist() == [inspect(tmp_path / name).crc for name in ("a.png", "d.png")]


BOXES = ["image", "label", "left", "top", "right", "bottom"]


def test_boxes_are_grouped_by_image(write):
    path = write(BOXES, ["b.png", "car", 1, 2, 5.5, 7], ["a.png", "bus", 0, 0, 20, 16.5], ["b.png", "bus", 3, 3, 4, 4],
                 ["c.png", "", "", "", "", ""])  # fmt: skip
    data = open_table(path, DEFAULT)
    assert data.paths.to_pylist() == ["a.png", "b.png", "c.png"]
    assert (data.labels.tolist(), data.classes) == ([-1, -1, -1], ("bus", "car"))
    rows = [tuple(row.values()) for row in data.objects.to_pylist()]
    assert rows == [(0, 0, 0, 0, 20, 16), (1, 1, 1, 2, 5.5, 7), (1, 0, 3, 3, 4, 4)]


def test_boxes_that_cannot_be_are_bad_lines(write):
    rows = [["a.png", "car", 1, 1, 3, 3], ["a.png", "car", 5, 1, 5, 3], ["a.png", "car", 5, 1, 4, 3],
            ["a.png", "car", -2, 1, 4, 3], ["a.png", "car", 1, 1, 22, 3], ["a.png", "", 1, 1, 3, 3],
            ["a.png", "car", 1, "", 3, 3], ["a.png", "car", 20, 1, 20.5, 3], ["no.png", "car", 1, 1, 3, 3]]  # fmt: skip
    data = open_table(write(BOXES, *rows), Options(max_bad=1.0))
    assert data.objects.num_rows == 1
    reasons = {bad.path: bad.reason for bad in data.bad}
    assert reasons.pop("no.png") == "the file is gone"
    assert reasons == {
        "data.csv:3": "an empty box",
        "data.csv:4": "a box of negative size",
        "data.csv:5": "a box that sticks out of the image by 2 px; it is 20 wide and 16 high",
        "data.csv:6": "a box that sticks out of the image by 2 px; it is 20 wide and 16 high",
        "data.csv:7": "a box without a label",
        "data.csv:8": "a coordinate that is not finite",
        "data.csv:9": "a box outside of the image, which is 20 wide and 16 high",
    }


def test_a_manifest_of_crops_is_a_table_of_images(write):
    rows = [["a.png", "car", 500, 500, 600, 600, "p.jpg"], ["b.png", "car", 500, 500, 600, 600, "p.jpg"]]
    path = write([*BOXES, "picture"], *rows, name="manifest.csv")
    data = open_table(path, DEFAULT)
    assert (data.name, data.objects, data.labels.tolist()) == (path.parent.name, None, [0, 0])


def test_rows_of_one_image_agree(write):
    path = write([*BOXES, "split"], ["a.png", "x", 1, 1, 3, 3, "train"], ["a.png", "x", 1, 1, 3, 3, "test"])
    assert "data.csv:3: split" in message(path)
    assert "of a.png is another one than in data.csv:2" in message(path)


def test_a_parquet_file_that_holds_images_says_what_opens_it(tmp_path):
    parquet.write_table(pa.table({"image": [{"bytes": b"x", "path": None}]}), tmp_path / "t.parquet")
    assert f"hf:{tmp_path} opens files that hold images" in message(tmp_path / "t.parquet")
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing else")
    assert message(tmp_path / "t.parquet").startswith("data: t.parquet is not a Parquet file")


def test_a_table_without_rows(write):
    assert message(write(["image", "label"])) == "data: data.csv has no rows (allowed: one for each image)"


def test_the_line_that_is_not_utf8_is_named(write):
    path = write(["image", "label"], ["1.png", "x"])
    path.write_bytes(path.read_bytes() + b"2.png,\xe9\n")
    assert message(path) == "data: data.csv:3: not UTF-8 (allowed: CSV in UTF-8)"


def test_a_path_with_a_null_byte_is_refused(write):
    path = write(["image", "label"], ["1.png", "x"])
    path.write_bytes(path.read_bytes() + b"a\0/2.png,y\n")
    assert message(path).startswith("data: data.csv:3: the image a\\x00/2.png lies outside")


def test_masks_without_labels_are_the_classes(write, save_image, tmp_path):
    for number, name in enumerate(["a.png", "b.png", "c.png", "d.png"]):
        save_image(tmp_path / name, seed=number)
    height, width = 16, 20
    for name, values in {"a": (0, 1), "b": (0, 2), "c": (0, 300)}.items():
        mask = np.zeros((height, width), np.uint16)
        mask[:4] = values[1]
        Image.fromarray(mask).save(tmp_path / f"{name}_mask.png")
    path = write(["image", "mask"], ["a.png", "a_mask.png"], ["b.png", "b_mask.png"], ["d.png", ""])
    data = open_table(path, DEFAULT)
    assert (data.classes, data.mask_values) == (("0", "1", "2"), ((0,), (1,), (2,)))
    assert data.index["mask"].to_pylist() == ["a_mask.png", "b_mask.png", None]
    assert data.labels.tolist() == [-1, -1, -1]
    (tmp_path / "classes.txt").write_text("sky\nroof\nroad\n")
    path = write(["image", "mask"], ["a.png", "a_mask.png"], ["b.png", "b_mask.png"], ["c.png", "c_mask.png"])
    data = open_table(path, LENIENT)
    assert data.classes == ("sky", "roof", "road")
    assert [bad.reason for bad in data.bad] == [
        "the value 300, but there are 3 classes (allowed: 0 to 2, 255 for none)"
    ]
