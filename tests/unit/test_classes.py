"""Some classes of a data set, several as one, and how they are written."""

import numpy as np
import pyarrow as pa
import pytest

from headstart.config import Count
from headstart.data.classes import select_classes
from headstart.data.index import OBJECTS
from headstart.data.options import Options
from headstart.data.scan import assemble, scan
from headstart.data.sources import open_data
from headstart.errors import UserError


@pytest.fixture
def folder(tmp_path, save_image):
    for number, name in enumerate(["bus", "car", "car", "duck", "fish", "truck"]):
        save_image(tmp_path / "train" / name / f"{number}.png", seed=number)
    save_image(tmp_path / "unlabelled" / "x.png", seed=9)
    return tmp_path


def labels_by_path(data):
    return dict(zip(data.paths.to_pylist(), data.labels.tolist(), strict=True))


def test_classes_are_kept_in_the_order_that_is_asked_for(folder):
    data = open_data(folder, Options(classes={"fish": ("fish",), "duck": ("duck",)}))
    assert data.classes == ("fish", "duck")
    assert labels_by_path(data) == {"train/duck/3.png": 1, "train/fish/4.png": 0, "unlabelled/x.png": -1}


def test_several_classes_become_one(folder):
    data = open_data(folder, Options(classes={"duck": ("duck",), "vehicle": ("car", "truck", "bus")}))
    assert data.classes == ("duck", "vehicle")
    assert sorted(data.labels.tolist()) == [-1, 0, 1, 1, 1, 1]
    assert data.fingerprint not in (open_data(folder).fingerprint, "")


def test_classes_of_objects_leave_every_image(tmp_path, save_image):
    for name in ("a.png", "b.png"):
        save_image(tmp_path / name)
    found = scan(tmp_path, ["a.png", "b.png"])
    columns = {"image": [0, 0, 1], "label": [0, 1, 2], **{edge: [1.0] * 3 for edge in OBJECTS.names[2:]}}
    none = np.full(2, -1)
    data = assemble(
        "boxes", tmp_path, found.columns, labels=none, splits=none, classes=("car", "duck", "truck"), layout="test",
        objects=pa.table(columns, schema=OBJECTS),
    )  # fmt: skip
    chosen = select_classes(data, {"vehicle": ("truck", "car")})
    assert chosen.count == 2
    assert chosen.objects["image"].to_pylist() == [0, 1]
    assert chosen.objects["label"].to_pylist() == [0, 0]
    assert select_classes(data, {"duck": ("duck",)}).objects["image"].to_pylist() == [0]
    assert chosen.fingerprint != data.fingerprint


def test_unknown_classes(folder):
    with pytest.raises(UserError, match=r"classes: unknown 'duk', did you mean 'duck'"):
        open_data(folder, Options(classes={"duk": ("duk",)}))
    with pytest.raises(UserError, match=r"classes: unlabelled has no labels"):
        open_data(folder / "unlabelled", Options(classes={"duck": ("duck",)}))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("duck", {"duck": ("duck",)}),
        ("duck,fish", {"duck": ("duck",), "fish": ("fish",)}),
        ("vehicle=car,truck", {"vehicle": ("car", "truck")}),
        ("duck, vehicle = car, truck, fish=fish", {"duck": ("duck",), "vehicle": ("car", "truck"), "fish": ("fish",)}),
        ({"vehicle": ["car", "truck"], "duck": "duck"}, {"vehicle": ("car", "truck"), "duck": ("duck",)}),
        (None, None),
        ("none", None),
    ],
)
def test_how_classes_are_written(text, expected):
    assert Count.create(data="x", classes=text).classes == expected


@pytest.mark.parametrize("text", ["duck,duck", "vehicle=car,vehicle=truck,car", "a=", "", {}])
def test_how_classes_are_not_written(text):
    with pytest.raises(UserError, match=r"^classes: "):
        Count.create(data="x", classes=text)


def test_classes_and_ranges_survive_yaml(tmp_path):
    settings = Count.create(data="x", classes="a,b=c,d", pixel_range="0,4095,10,20", max_bad="2.5%")
    assert settings.max_bad == 0.025
    assert settings.pixel_range == ((0.0, 4095.0), (10.0, 20.0))
    (tmp_path / "a.yaml").write_text(settings.to_yaml())
    assert Count.read(tmp_path / "a.yaml") == settings
    with pytest.raises(UserError, match=r"pixel_range: each range needs a lower and a higher value"):
        Count.create(data="x", pixel_range="5,1")
