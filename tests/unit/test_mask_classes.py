"""Classes of masks: some of them, and several as one."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.config import Count
from headstart.data import cache, masks
from headstart.data.index import TEST, TRAIN, VAL
from headstart.data.masks import read_mask
from headstart.data.options import Options
from headstart.data.sources import open_data
from headstart.errors import UserError
from headstart.verbs.count import count

TRIMAP = np.resize(np.array([1, 1, 2, 2, 2, 3], np.uint8), (8, 12))


@pytest.fixture
def trimaps(tmp_path, save_image):
    for number in range(3):
        save_image(tmp_path / "data" / "images" / f"{number}.jpg", seed=number, size=(12, 8))
        (tmp_path / "data" / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.roll(TRIMAP, number)).save(tmp_path / "data" / "masks" / f"{number}.png")
    return tmp_path / "data"


def opened(folder, classes):
    return open_data(folder, Options(classes=Count.create(data="x", classes=classes).classes))


def mask_of(data, row=0):
    return read_mask(data.root / data.index["mask"][row].as_py(), data.mask_values).numpy()


@pytest.mark.parametrize(
    ("classes", "names", "values", "numbers"),
    [
        (None, ("foreground", "background", "border"), ((1,), (2,), (3,)), {1: 0, 2: 1, 3: 2}),
        ("background,pet=foreground,border", ("background", "pet"), ((2,), (1, 3)), {1: 1, 2: 0, 3: 1}),
        ("background,pet=border,foreground", ("background", "pet"), ((2,), (3, 1)), {1: 1, 2: 0, 3: 1}),
        ("rest=background,border,pet=foreground", ("rest", "pet"), ((2, 3), (1,)), {1: 1, 2: 0, 3: 0}),
        ("background,foreground", ("background", "foreground"), ((2,), (1,)), {1: 1, 2: 0, 3: -1}),
        ("border", ("border",), ((3,),), {1: -1, 2: -1, 3: 0}),
    ],
)
def test_values_become_the_classes_that_are_asked_for(trimaps, classes, names, values, numbers):
    data = opened(trimaps, classes)
    assert (data.classes, data.mask_values, data.count) == (names, values, 3)
    for row in range(3):
        expected = np.vectorize(numbers.get)(np.roll(TRIMAP, row))
        assert (mask_of(data, row) == expected).all()


def test_the_fingerprint_tells_classes_apart(trimaps):
    choices = [
        None,
        "background,pet=foreground,border",
        "pet=foreground,border,background",
        "background=background,border,pet=foreground",
        "background,pet=foreground",
        "background,pet=border",
    ]
    prints = [opened(trimaps, choice).fingerprint for choice in choices]
    assert len(set(prints)) == len(prints)
    assert [opened(trimaps, choice).fingerprint for choice in choices] == prints


def test_void_stays_void(tmp_path, save_image):
    save_image(tmp_path / "images" / "a.jpg", size=(4, 2))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.array([[0, 1, 2, 255], [255, 2, 1, 0]], np.uint8)).save(tmp_path / "masks" / "a.png")
    (tmp_path / "classes.txt").write_text("sky\nroof\nroad\n")
    data = opened(tmp_path, "sky,built=roof,road")
    assert mask_of(data).tolist() == [[0, 1, 1, -1], [-1, 1, 1, 0]]


def test_foreground_of_255_is_a_class_as_any_other(tmp_path, save_image):
    save_image(tmp_path / "images" / "a.jpg", size=(4, 2))
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.array([[0, 0, 255, 255]] * 2, np.uint8)).save(tmp_path / "masks" / "a.png")
    assert mask_of(opened(tmp_path, "foreground,background")).tolist() == [[1, 1, 0, 0]] * 2
    assert mask_of(opened(tmp_path, "foreground")).tolist() == [[-1, -1, 0, 0]] * 2


def test_the_wrong_name_is_corrected(trimaps):
    with pytest.raises(UserError, match=r"^classes: unknown 'forground', did you mean 'foreground'"):
        opened(trimaps, "background,pet=forground")


def test_the_index_on_the_disk_keeps_the_values(trimaps, monkeypatch, tmp_path):
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SETTLED", -1e9)  # the files of this test are only just there
    first = open_data(trimaps)
    assert list((tmp_path / "cache" / "index").glob("*.arrow"))
    monkeypatch.setattr(masks, "read_masks", None)  # nobody looks at the masks again
    again = open_data(trimaps)
    assert again.mask_values == first.mask_values == ((1,), (2,), (3,))
    merged = opened(trimaps, "background,pet=foreground,border")
    assert merged.mask_values == ((2,), (1, 3))


def test_count_counts_the_pixels_of_merged_classes(trimaps):
    whole = count(trimaps, quiet=True).pixels
    merged = count(trimaps, classes="background,pet=foreground,border", quiet=True).pixels
    amounts = {name: sum(row.values()) for name, row in whole.items()}
    assert {name: sum(row.values()) for name, row in merged.items()} == {
        "background": amounts["background"],
        "pet": amounts["foreground"] + amounts["border"],
    }


def test_labels_of_a_table_are_its_classes_although_it_has_masks(trimaps):
    lines = [["image", "mask", "label", "split"]]
    for number, split in enumerate(["train", "val", "test"]):
        lines.append([f"images/{number}.jpg", f"masks/{number}.png", "cat" if number else "dog", split])
    with (trimaps / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    data = opened(trimaps, "dog,cat")
    assert (data.classes, data.mask_values) == (("dog", "cat"), ())
    assert data.labels.tolist() == [0, 1, 1]
    assert data.splits.tolist() == [TRAIN, VAL, TEST]


def test_real_trimaps_as_two_classes(real_data):
    data = opened(real_data("pets"), "background,pet=foreground,border")
    assert data.classes == ("background", "pet")
    for row in (0, 250, 599):
        stored = np.array(Image.open(data.root / data.index["mask"][row].as_py()))
        found = read_mask(data.root / data.index["mask"][row].as_py(), data.mask_values)
        assert torch.equal(found == 1, torch.from_numpy((stored == 1) | (stored == 3)))
        assert torch.equal(found == 0, torch.from_numpy(stored == 2))
