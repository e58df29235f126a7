import csv
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import tifffile
import torch
from PIL import Image

from headstart.data.classes import select_classes
from headstart.data.images import raw
from headstart.data.index import OBJECTS
from headstart.data.options import DEFAULT
from headstart.data.scan import assemble, scan
from headstart.data.sources import open_data
from headstart.data.tables import open_table
from headstart.errors import UserError
from headstart.verbs import start
from headstart.verbs.crop import crop

CLASSES = ("car", "bus/coach", "truck")


class Pictures:
    """A folder of pictures with boxes, as a reader of annotations would give it."""

    def __init__(self, root):
        self.root, self.paths, self.splits, self.groups, self.objects = root, [], [], [], []
        self.spoilt = {}

    def add(self, path, pixels, *objects, split=-1, group=None):
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".tif"):
            kind = {"photometric": "rgb" if pixels.shape[2:] == (3,) else "minisblack"}
            tifffile.imwrite(self.root / path, pixels, **kind, planarconfig="contig" if pixels.ndim == 3 else None)
        else:
            Image.fromarray(pixels).save(self.root / path)
        self.objects += [(len(self.paths), *box) for box in objects]
        self.paths.append(path)
        self.splits.append(split)
        self.groups.append(group)

    def spoil(self, path):
        self.spoilt[path] = (self.root / path).read_bytes()

    def open(self, _data, options=DEFAULT):
        for path, contents in self.spoilt.items():
            (self.root / path).write_bytes(contents)
        found = scan(self.root, self.paths)
        columns = zip(*self.objects, strict=True)
        data = assemble(
            "pictures",
            self.root,
            found.columns,
            labels=np.full(len(self.paths), -1),
            splits=np.array(self.splits),
            classes=CLASSES,
            layout="boxes",
            more={"group": self.groups} if any(self.groups) else None,
            objects=pa.table([list(column) for column in columns], schema=OBJECTS),
            options=options,
        )
        for path in self.spoilt:
            (self.root / path).write_bytes(b"")
        return select_classes(data, options.classes) if options.classes else data


def noise(height, width, seed=0, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels > 1 else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    found = Pictures(tmp_path / "data")
    monkeypatch.setattr(start, "open_data", found.open)
    return found


@pytest.fixture
def filled(pictures):
    for number in range(6):
        x, y = 10 + 20 * number, 5 + 10 * number
        objects = [(0, x, y, x + 30, y + 20), (number % 3, 150, 60, 166, 80)]
        pictures.add(f"p{number}.png", noise(120, 200, number), *objects, split=0 if number < 4 else 2)
    return pictures


def run(pictures, out, **given):
    return crop(pictures.root, out=out, quiet=True, **given)


def listed(out):
    with (out / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def square(row):
    return tuple(int(row[f"crop_{side}"]) for side in ("left", "top", "right", "bottom"))


def test_crops_are_cut_out_of_their_pictures(filled, tmp_path):
    result = run(filled, tmp_path / "out", quality=100)
    rows = listed(tmp_path / "out")
    assert len(rows) == 12
    for row in rows:
        left, top, right, bottom = square(row)
        picture = np.array(Image.open(filled.root / row["picture"]))[top:bottom, left:right]
        cut = np.array(Image.open(tmp_path / "out" / row["image"]))
        assert cut.shape == picture.shape
        assert np.abs(cut.astype(int) - picture).mean() < 3
    first = rows[0]
    assert (first["image"], first["label"], first["split"]) == ("train/car/car_000001.jpg", "car", "train")
    assert (first["picture"], first["group"], first["object_right"]) == ("p0.png", "p0.png", "40")
    assert {row["image"] for row in rows if row["label"] == "bus/coach"} == {
        "train/bus_coach/bus_coach_000001.jpg",
        "test/bus_coach/bus_coach_000002.jpg",
    }
    assert result.counts["car"] == {"train": 6, "test": 2}
    assert "background" not in result.counts
    assert re.search(r"car +6 +2\n", str(result))


def test_the_result_opens_as_labelled_data(filled, tmp_path):
    run(filled, tmp_path / "out", background="equal")
    data = open_table(tmp_path / "out" / "manifest.csv", DEFAULT)
    assert data.objects is None
    assert data.classes == ("background", "bus/coach", "car", "truck")
    assert torch.bincount(data.labels).tolist() == [12, 2, 8, 2]
    assert torch.bincount(data.splits).tolist() == [16, 0, 8]
    assert len(data.groups.unique()) == 6


def test_without_splits_there_are_class_folders(pictures, tmp_path):
    pictures.add("a.jpg", noise(60, 160), (0, 5, 5, 25, 25), (2, 30, 30, 50, 50))
    run(pictures, tmp_path / "out", background=3)
    folders = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert folders == ["background", "car", "truck"]
    (tmp_path / "out" / "manifest.csv").unlink()
    assert open_data(tmp_path / "out").classes == ("background", "car", "truck")


def test_backgrounds_touch_no_object_even_of_other_classes(filled, tmp_path):
    result = run(filled, tmp_path / "out", background="equal", classes="vehicle=car,truck")
    rows = listed(tmp_path / "out")
    objects = {}
    for image, _, *box in filled.objects:
        objects.setdefault(filled.paths[image], []).append(box)
    backgrounds = [row for row in rows if row["label"] == "background"]
    assert result.counts == {"vehicle": {"train": 7, "test": 3}, "background": {"train": 7, "test": 3}}
    assert {row["object_left"] for row in backgrounds} == {""}
    for row in backgrounds:
        left, top, right, bottom = square(row)
        for box in objects[row["picture"]]:
            assert right <= box[0] or left >= box[2] or bottom <= box[1] or top >= box[3]

    def sides(split, background):
        found = [square(row) for row in rows if row["split"] == split and (row["label"] == "background") == background]
        return sorted(right - left for left, _, right, _ in found)

    assert sides("train", True) == sides("train", False)
    assert sides("test", True) == sides("test", False)


def test_a_number_of_backgrounds_is_shared_by_the_splits(filled, tmp_path):
    result = run(filled, tmp_path / "out", background=31)
    assert result.counts["background"] == {"train": 21, "test": 10}


def test_the_seed_decides_on_backgrounds_alone(filled, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(filled, tmp_path / name, background=20, seed=seed)
    contents = [
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.jpg")}
        for name in "abc"
    ]
    assert contents[0] == contents[1]
    same = {str(path.parent.name) for path in contents[0] if contents[0][path] == contents[2][path]}
    assert "car" in same
    assert any(contents[0][path] != contents[2][path] for path in contents[0])


def test_a_lack_of_room_is_one_line(pictures, tmp_path):
    pictures.add("a.jpg", noise(40, 40), (0, 2, 2, 38, 38), split=0)
    pictures.add("b.jpg", noise(200, 200), (0, 2, 2, 38, 38), split=2)
    result = run(pictures, tmp_path / "out", background="equal")
    assert result.notes == ("background: only 0 of 1 crops in train: there is no room for more",)
    assert result.counts["background"] == {"test": 1}


def test_pictures_without_objects_give_backgrounds(pictures, tmp_path):
    pictures.add("a.jpg", noise(40, 40), (0, 2, 2, 38, 38))
    pictures.add("b.jpg", noise(60, 60))
    run(pictures, tmp_path / "out", background=3)
    assert [row["picture"] for row in listed(tmp_path / "out")] == ["a.jpg", "b.jpg", "b.jpg", "b.jpg"]


def test_the_group_of_a_picture_is_that_of_its_crops(pictures, tmp_path):
    for number in range(4):
        pictures.add(f"{number}.jpg", noise(60, 60, number), (0, 5, 5, 25, 25), group=f"place{number // 2}")
    run(pictures, tmp_path / "out", background=4)
    assert {(row["picture"], row["group"]) for row in listed(tmp_path / "out")} == {
        (f"{number}.jpg", f"place{number // 2}") for number in range(4)
    }


@pytest.mark.parametrize(
    ("channels", "dtype"), [(1, np.uint16), (3, np.uint16), (5, np.uint8), (4, np.uint16), (2, np.uint8)]
)
def test_unusual_pixels_stay_as_they_are(pictures, tmp_path, channels, dtype):
    pixels = noise(60, 80, channels=channels, dtype=dtype)
    pictures.add("a.tif", pixels, (0, 5, 5, 30, 25))
    run(pictures, tmp_path / "out")
    (row,) = listed(tmp_path / "out")
    assert row["image"] == "car/car_000001.tif"
    left, top, right, bottom = square(row)
    cut = raw(tmp_path / "out" / row["image"])
    assert cut.dtype == dtype
    assert np.array_equal(cut, pixels.reshape(60, 80, channels)[top:bottom, left:right])


def test_grey_pictures_give_grey_crops(pictures, tmp_path):
    pictures.add("a.png", noise(60, 80, channels=1), (0, 5, 5, 30, 25))
    run(pictures, tmp_path / "out")
    with Image.open(tmp_path / "out" / "car" / "car_000001.jpg") as cut:
        assert cut.mode == "L"


def test_a_turned_picture_is_cut_upright(pictures, tmp_path):
    pixels = np.zeros((60, 100, 3), np.uint8)
    pixels[:20, 80:] = (255, 0, 0)  # after a quarter turn clockwise: at the lower right
    exif = Image.Exif()
    exif[0x0112] = 6
    pictures.add("a.jpg", pixels, (0, 40, 80, 60, 100))
    Image.fromarray(pixels).save(pictures.root / "a.jpg", exif=exif, quality=100, subsampling=0)
    run(pictures, tmp_path / "out", context=0.0, min_size=10)
    cut = np.array(Image.open(tmp_path / "out" / "car" / "car_000001.jpg"))
    assert cut.shape == (20, 20, 3)
    assert (np.abs(cut.astype(int) - (254, 0, 0)) < 12).all()


def test_a_broken_picture_is_listed_or_stops(filled, tmp_path):
    filled.spoil("p1.png")  # after the look at it, so that only decoding finds it
    with pytest.raises(UserError, match=r"data: 1 of 6 images in .* are broken \(allowed: 1%\): p1.png \(an empty"):
        run(filled, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    result = run(filled, tmp_path / "out", max_bad="50%")
    assert [file.path for file in result.bad] == ["p1.png"]
    rows = listed(tmp_path / "out")
    assert {row["picture"] for row in rows} == set(filled.paths) - {"p1.png"}
    assert {row["image"] for row in rows} == {
        path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.jpg")
    }
    assert "1 left out: p1.png" in str(result)


def test_only_crops_are_overwritten(filled, tmp_path):
    out = tmp_path / "out"
    run(filled, out)
    with pytest.raises(UserError, match=r"out: .* is not empty"):
        run(filled, out)
    run(filled, out, overwrite=True, classes="truck")
    assert {row["label"] for row in listed(out)} == {"truck"}
    assert not list(out.rglob("car*"))
    (out / "notes.txt").write_text("x")
    with pytest.raises(UserError, match=r"also holds notes\.txt, which crop has not written"):
        run(filled, out, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "out"]


def test_data_without_boxes_are_refused(tmp_path, save_image):
    for label in "ab":
        save_image(tmp_path / "data" / label / "1.png")
    with pytest.raises(UserError, match=r"data: data has no boxes, which crop needs \(class folders\)"):
        crop(tmp_path / "data", out=tmp_path / "out", quiet=True)
    with pytest.raises(UserError, match="data: digits has no boxes"):
        crop("digits", out=tmp_path / "out", quiet=True)
    assert [path.name for path in Path(tmp_path).iterdir()] == ["data"]


def test_a_class_may_have_a_name_too_long_for_a_file(tmp_path, save_image):
    save_image(tmp_path / "data" / "images" / "1.png", size=(40, 20))
    (tmp_path / "data" / "labels").mkdir()
    (tmp_path / "data" / "labels" / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (tmp_path / "data" / "data.yaml").write_text(f"train: images\nnames: [{'ü' * 200}]\n")
    assert crop(tmp_path / "data", out=tmp_path / "out", quiet=True).counts == {"ü" * 200: {"train": 1}}
    assert open_data(tmp_path / "out").classes == ("ü" * 200,)


def test_a_full_disk_ends_with_one_line(filled, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("headstart.verbs.crop._save", full)
    with pytest.raises(UserError, match=r"out: .*out cannot be written to \(No space left on device\)"):
        run(filled, tmp_path / "out")
    assert not any("out" in path.name for path in tmp_path.iterdir())
