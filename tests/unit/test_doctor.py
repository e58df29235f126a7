"""The verb doctor: what it finds in data that were broken on purpose, and what it leaves behind."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from headstart.config import Doctor
from headstart.data.examination import examine
from headstart.data.index import NO_LABEL, NO_SPLIT, OBJECTS, TEST, TRAIN, DataSet, array_data
from headstart.data.scan import assemble, scan
from headstart.data.sources import open_data
from headstart.errors import UserError
from headstart.reports.doctor import report
from headstart.verbs.doctor import doctor, find
from headstart.verbs.doctoring.advice import Known, choose
from headstart.verbs.doctoring.finding import Finding
from headstart.verbs.doctoring.speed import extrapolated

TINY = {
    "model": "timm/resnet18",
    "model_args": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]},
    "image_size": 16,
    "batch_size": 8,
    "epochs": 2,
}


def noise(seed: int, size: tuple[int, int] = (24, 24)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


def class_folders(root: Path, count: int = 12) -> Path:
    for number in range(count):
        save(root / "ab"[number % 2] / f"{number:02d}.png", noise(number))
    return root


def found(data: DataSet, **settings: object) -> dict[str, Finding]:
    examined = examine(data, torch.arange(data.count))
    findings = find(Doctor(data="x", **settings), data, examined)
    assert len({finding.name for finding in findings}) == len(findings)
    return {finding.name: finding for finding in findings}


def boxes_on(root: Path, boxes: list[tuple[int, int, float, float, float, float]]) -> DataSet:
    seen = scan(root, sorted(path.name for path in root.iterdir()))
    count = seen.columns.num_rows
    columns = [list(column) for column in zip(*boxes, strict=True)]
    return assemble(
        "boxes",
        root,
        seen.columns,
        labels=np.full(count, NO_LABEL),
        splits=np.full(count, NO_SPLIT),
        classes=("car", "truck"),
        layout="boxes",
        objects=pa.table(columns, schema=OBJECTS),
    )


def test_good_data_have_nothing_to_fix(tmp_path):
    findings = found(open_data(class_folders(tmp_path, 40)))
    assert {finding.severity for finding in findings.values()} == {"fine"}
    assert findings["class balance"].text.startswith("2 classes; rarest 'a' with 20")


def test_broken_files_must_be_fixed_above_the_allowed_share(tmp_path):
    class_folders(tmp_path)
    (tmp_path / "a" / "empty.jpg").write_bytes(b"")
    (tmp_path / "a" / "text.png").write_text("no image")
    diagnosis = doctor(tmp_path, skip="speed", quiet=True, **TINY)
    broken = next(finding for finding in diagnosis.findings if finding.name == "broken files")
    assert (broken.severity, broken.count) == ("must fix", 2)
    assert broken.examples == ("a/empty.jpg (an empty file)", "a/text.png (not an image)")
    allowed = doctor(tmp_path, skip=("speed",), quiet=True, max_bad=0.2, **TINY)
    assert next(finding.severity for finding in allowed.findings if finding.name == "broken files") == "should look"
    assert "broken files" not in {finding.name for finding in allowed.must_fix}


def test_duplicates_across_splits_must_be_fixed(tmp_path):
    for number in range(6):
        save(tmp_path / "train" / "ab"[number % 2] / f"{number}.png", noise(number))
        save(tmp_path / "test" / "ab"[number % 2] / f"{number}.png", noise(number + 50))
    save(tmp_path / "test" / "a" / "same.png", noise(0))
    smooth = np.asarray(Image.fromarray(noise(99, (4, 4))).resize((64, 64), Image.Resampling.BICUBIC))
    save(tmp_path / "train" / "b" / "smooth.png", smooth)
    save(tmp_path / "test" / "b" / "darker.png", (smooth * 0.9).astype(np.uint8))
    findings = found(open_data(tmp_path))
    exact, near = findings["exact duplicates across splits"], findings["near duplicates across splits"]
    assert (exact.severity, exact.count, exact.examples) == ("must fix", 2, ("test/a/same.png = train/a/0.png",))
    assert (near.severity, near.count, near.examples) == (
        "must fix",
        2,
        ("test/b/darker.png = train/b/smooth.png",),
    )


def test_duplicates_in_one_split_and_of_two_classes(tmp_path):
    class_folders(tmp_path)
    save(tmp_path / "a" / "again.png", noise(0))
    save(tmp_path / "b" / "other.png", noise(2))
    findings = found(open_data(tmp_path))
    again, other = findings["exact duplicates"], findings["exact duplicates of several classes"]
    assert (again.severity, again.examples) == ("should look", ("a/00.png = a/again.png",))
    assert (other.severity, other.examples) == ("must fix", ("a/02.png = b/other.png",))
    assert findings["near duplicates"].severity == "fine"
    assert not any("duplicates" in name for name in found(open_data(tmp_path), skip=("duplicates",)))


def test_images_of_one_colour_are_no_near_duplicates():
    images = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 3, 8, 8).contiguous()
    findings = found(array_data("flat", images, [NO_LABEL] * 4, [NO_SPLIT] * 4, []))
    assert findings["constant images"].count == 4
    assert findings["near duplicates"].count == findings["exact duplicates"].count == 0


def test_odd_images_are_found(tmp_path):
    class_folders(tmp_path / "data", 12)
    for name, size in (("long", (20, 100)), ("large", (200, 200)), ("small", (5, 5))):
        save(tmp_path / "data" / "a" / f"{name}.png", noise(7, size))
    Image.fromarray(noise(8)).convert("L").save(tmp_path / "data" / "b" / "grey.png")
    findings = found(open_data(tmp_path / "data"))
    assert findings["long images"].examples == ("a/long.png (100x20)",)
    assert findings["extreme sizes"].examples == ("a/large.png (200x200)", "a/small.png (5x5)")
    assert findings["small images"].examples == ("a/small.png (5x5)",)
    assert findings["modes"].examples == ("b/grey.png",)
    assert (findings["grey images"].severity, findings["grey images"].count) == ("should look", 1)


def test_rare_classes_are_found(tmp_path):
    for number in range(45):
        save(tmp_path / ("rare" if number < 2 else "common") / f"{number}.png", noise(number))
    findings = found(open_data(tmp_path))
    assert findings["class balance"].severity == "should look"
    assert findings["class balance"].examples[0] == "rare (2)"
    assert (findings["small classes"].severity, findings["small classes"].examples) == ("must fix", ("rare (2)",))


def test_wrong_boxes_are_found(tmp_path):
    for name in "abc":
        save(tmp_path / f"{name}.png", noise(ord(name), (40, 60)))
    data = boxes_on(
        tmp_path,
        [
            (0, 0, 10, 10, 30, 30),
            (0, 0, 10, 10, 30, 30),
            (0, 1, 50, 10, 70, 30),
            (1, 0, 61, 0, 80, 20),
            (1, 1, 20, 5, 20, 20),
            (1, 1, 20, 5, 22, 20),
        ],
    )
    findings = found(data)
    assert (findings["lost boxes"].severity, findings["lost boxes"].count) == ("must fix", 2)
    assert findings["boxes outside"].examples == ("a.png (x 50 to 70, y 10 to 30)",)
    assert findings["tiny boxes"].examples == ("b.png (x 20 to 22, y 5 to 20)",)
    assert findings["repeated boxes"].count == 2
    assert findings["boxes"].text == "6 boxes; 1 image without any"
    assert "objects" in findings["class balance"].text


def test_wrong_masks_are_found(tmp_path):
    masks = {"a": noise(0)[:, :, 0] % 2, "b": np.zeros((24, 24), np.uint8), "c": noise(0, (10, 24))[:, :, 0] % 2}
    for name in "abcd":
        save(tmp_path / "images" / f"{name}.png", noise(ord(name)))
    for name, mask in masks.items():
        save(tmp_path / "masks" / f"{name}.png", mask)
    seen = scan(tmp_path, [f"images/{name}.png" for name in "abcd"])
    nothing = np.full(4, -1)
    more = {"mask": [f"masks/{name}.png" for name in "abcd"]}
    data = assemble(
        "m", tmp_path, seen.columns, labels=nothing, splits=nothing, classes=("x", "y"), layout="masks", more=more
    )
    findings = found(data)
    assert findings["empty masks"].examples == ("masks/b.png",)
    broken = findings["broken masks"]
    assert broken.severity == "must fix"
    assert broken.examples == ("masks/c.png (24x10, but its image is 24x24)", "masks/d.png (the file is gone)")


def test_groups_in_two_splits_must_be_fixed(tmp_path):
    for number in range(4):
        save(tmp_path / f"{number}.png", noise(number))
    seen = scan(tmp_path, [f"{number}.png" for number in range(4)])
    splits = np.array([TRAIN, TEST, TRAIN, TEST])
    more = {"group": ["one", "one", "two", None]}
    data = assemble(
        "g", tmp_path, seen.columns, labels=np.full(4, -1), splits=splits, classes=(), layout="table", more=more
    )
    divided = found(data)["groups across splits"]
    assert (divided.severity, divided.count) == ("must fix", 1)
    assert divided.examples == ("0.png (train) = 1.png (test)",)


def test_the_rules_choose_a_method():
    def method(**facts: object) -> str:
        return choose(Known(1000, 0, 0, background=False, places=False)._replace(**facts)).method

    assert method() == "simclr"
    assert method(places=True) == "densecl"
    assert method(background=True, labelled=500, classes=2, places=True) == "supcon-anchor"


def test_what_is_left_behind(tmp_path):
    class_folders(tmp_path / "<b> data", 24)
    out = tmp_path / "out"
    diagnosis = doctor(tmp_path / "<b> data", out=out, report=True, quiet=True, **TINY)
    kept = json.loads((out / "doctor.json").read_text())
    assert [finding["name"] for finding in kept["findings"]] == [finding.name for finding in diagnosis.findings]
    assert kept["must_fix"] == 0
    assert not diagnosis.must_fix
    assert kept["speed"]["hours"] == pytest.approx(kept["speed"]["steps"] * 8 / kept["speed"]["overall"] / 3600)
    assert kept["speed"]["steps"] == 2 * (16 // 8)  # two epochs of the 16 training images
    assert kept["data"]["decoded"] == kept["data"]["images"] == 24
    with Image.open(out / "plots" / "images.png") as sheet:
        assert sheet.width > 8 * 160
    assert (out / "plots" / "views.png").is_file()
    page = (out / "report.html").read_text()
    assert page == report(out).read_text()
    assert "&lt;b&gt; data" in page
    assert "<b> data" not in page
    assert page.count("data:image/png;base64,") == 2
    text = str(diagnosis)
    assert "Begin with simclr, 2 epochs of batch 8" in text
    assert "--data" in text
    assert "images/s" in text
    with pytest.raises(UserError, match=r"out: .* is not empty"):
        doctor(tmp_path / "<b> data", out=out, quiet=True, **TINY)
    doctor(tmp_path / "<b> data", out=out, overwrite=True, quiet=True, skip="speed,duplicates", **TINY)
    assert json.loads((out / "doctor.json").read_text())["speed"] is None
    assert not (out / "report.html").exists()


def test_two_images_can_be_examined(tmp_path):
    for number in range(2):
        save(tmp_path / f"{number}.png", noise(number))
    diagnosis = doctor(tmp_path, quiet=True)
    assert [finding.name for finding in diagnosis.must_fix] == ["pretraining"]
    assert "2 images to pretrain on" in diagnosis.must_fix[0].text
    assert diagnosis.advice is None


def test_crops_with_a_background_get_anchors(tmp_path):
    for number in range(24):
        save(tmp_path / ("car", "background")[number % 2] / f"{number}.png", noise(number))
    diagnosis = doctor(tmp_path, quiet=True, **TINY)
    assert diagnosis.advice is not None
    assert diagnosis.speed is not None
    assert diagnosis.advice.method == "supcon-anchor"
    assert diagnosis.speed.training > 0


@pytest.mark.parametrize("channels", [1, 5])
def test_deep_pixels_of_any_channels_are_examined(tmp_path, channels):
    import tifffile

    for number in range(12):
        deep = np.random.default_rng(number).integers(0, 4096, (20, 20, channels), np.uint16)
        tifffile.imwrite(tmp_path / f"{number}.tif", deep.squeeze(), photometric="minisblack", planarconfig=None)
    findings = found(open_data(tmp_path))
    assert "uint16" in findings["modes"].text
    assert findings["near duplicates"].severity == "fine"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"near": 13}, "near: 13 bits (allowed: 0 to 12"),
        ({"method": "simclrr"}, "did you mean 'simclr'"),
        ({"report": True}, "report: needs a folder"),
        ({"skip": "sleep"}, "skip"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, given, message):
    class_folders(tmp_path)
    with pytest.raises(UserError) as caught:
        doctor(tmp_path, quiet=True, **given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_a_batch_takes_is_extrapolated():
    assert extrapolated([(8, 1.0), (32, 2.5)], 128) == pytest.approx(2.5 + 96 / 16)
    assert extrapolated([(8, 1.0), (32, 0.8)], 64) == pytest.approx(1.6)


def test_names_of_classes_are_printed_in_one_line(tmp_path):
    for number in range(4):
        save(tmp_path / "data" / ["a\nb", "c"][number % 2] / f"{number}.png", noise(number))
    findings = found(open_data(tmp_path / "data"))
    assert "a\\nb (2)" in findings["small classes"].examples
    assert "\n" not in findings["class balance"].text
