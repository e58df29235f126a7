import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from headstart.data.index import SPLITS
from headstart.data.sources import open_data
from headstart.errors import UserError
from headstart.verbs.split import split

THREE = "train=75,val=15,test=10"


@pytest.fixture
def classes(tmp_path, save_image):
    for label, count in (("cat", 20), ("dog fish", 12), ("ünicorn", 7)):
        for number in range(count):
            save_image(tmp_path / "data" / label / f"{number // 2}_{number}.png", size=(8, 8), seed=number)
    return tmp_path / "data"


@pytest.fixture
def boxes(tmp_path, save_image):
    generator = np.random.default_rng(0)
    for number in range(24):
        folder = "train" if number < 16 else "val"
        save_image(tmp_path / "boxes" / "images" / folder / f"{number}.jpg", size=(40, 30), seed=number)
        lines = [f"{number % 3} {x:.4f} {y:.4f} 0.2 0.3\n" for x, y in generator.uniform(0.2, 0.8, (number % 4, 2))]
        label = tmp_path / "boxes" / "labels" / folder / f"{number}.txt"
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text("".join(lines))
    (tmp_path / "boxes" / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b, c]\n")
    return tmp_path / "boxes"


def run(data, out, parts=THREE, **given):
    return split(data, out=out, parts=parts, quiet=True, **given)


def listed(folder):
    with (folder / "manifest.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def facts(data):
    return list(zip(data.paths.to_pylist(), data.splits.tolist(), data.labels.tolist(), strict=True))


def test_a_split_reads_back_exactly_for_every_seed(classes, tmp_path):
    source, seen = open_data(classes), set()
    for seed in range(10):
        out = tmp_path / f"out{seed}"
        result = run(classes, out, seed=seed)
        data = open_data(out)
        rows = listed(out)
        assert [row["image"] for row in rows] == data.paths.to_pylist() == source.paths.to_pylist()
        assert [row["split"] for row in rows] == [SPLITS[code] for code in data.splits.tolist()]
        assert torch.equal(data.labels, source.labels)
        assert result.counts == {name: int((data.splits == SPLITS.index(name)).sum()) for name in result.counts}
        assert data.fingerprint == open_data(out).fingerprint
        seen.add(data.fingerprint)
    assert len(seen) == 10


def test_the_sizes_are_right_for_each_class(classes, tmp_path):
    result = run(classes, tmp_path / "out")
    assert result.counts == {"train": 29, "val": 6, "test": 4}
    assert result.classes["cat"] == {"train": 15, "val": 3, "test": 2}
    for found in result.classes.values():
        count = sum(found.values())
        assert all(abs(found[part] - share * count) < 1 for part, share in zip(found, (0.75, 0.15, 0.1), strict=True))
    assert re.search(r"cat +15 +3 +2 +20\n", str(result))
    assert str(result).endswith(f"written to {tmp_path / 'out'}")


def test_parts_of_other_names_are_data_sets(classes, tmp_path):
    run(classes, tmp_path / "out", parts={"ssl": 80, "supervised": 20})
    ssl, supervised = (open_data(tmp_path / "out" / part) for part in ("ssl", "supervised"))
    assert (ssl.name, ssl.count, supervised.count) == ("ssl", 31, 8)
    assert sorted(ssl.paths.to_pylist() + supervised.paths.to_pylist()) == open_data(classes).paths.to_pylist()
    assert ssl.classes == supervised.classes == open_data(classes).classes
    assert {*ssl.splits.tolist(), *supervised.splits.tolist()} == {-1}
    with pytest.raises(UserError, match=r"data: .*out holds several parts.*allowed: .*out/ssl, .*out/supervised"):
        open_data(tmp_path / "out")


def test_parts_of_other_names_keep_the_splits_of_the_data(boxes, tmp_path):
    source = open_data(boxes)
    run(boxes, tmp_path / "out", parts="ssl=50,supervised=50")
    for part in ("ssl", "supervised"):
        data = open_data(tmp_path / "out" / part)
        assert torch.bincount(data.splits).tolist() == [8, 4]
        known = dict(zip(source.paths.to_pylist(), source.splits.tolist(), strict=True))
        assert all(known[path] == code for path, code, _ in facts(data))


def test_a_part_can_be_split_again(classes, tmp_path):
    run(classes, tmp_path / "one", parts="ssl=80,supervised=20")
    run(tmp_path / "one" / "ssl", tmp_path / "two", parts="train=50,test=50")
    assert open_data(tmp_path / "two").count == 31


def test_unlabelled_images_have_no_labels(classes, boxes, tmp_path):
    run(classes, tmp_path / "out", parts="train=50,unlabelled=50")
    data = open_data(tmp_path / "out")
    assert ((data.splits == 3) == (data.labels == -1)).all()
    assert (data.splits == 3).sum() == 19  # half of 20, 12 and 7
    run(boxes, tmp_path / "hidden", parts="train=50,unlabelled=50")
    data = open_data(tmp_path / "hidden")
    owners = data.splits[torch.tensor(data.objects["image"].to_numpy())]
    assert 0 < data.objects.num_rows < open_data(boxes).objects.num_rows
    assert (owners == 0).all()


def test_changed_data_are_refused(classes, tmp_path, save_image):
    run(classes, tmp_path / "out")
    save_image(classes / "cat" / "new.png")
    with pytest.raises(UserError, match=r"data: .*data has changed since it was split into .*out; split it again"):
        open_data(tmp_path / "out")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("cat/0_0.png,", "../0_0.png,", r"manifest.csv:2: no image '../0_0.png'"),
        (",train,", ",train_,", r"manifest.csv:\d+: split: unknown 'train_', did you mean 'train'"),
        ("image,label", "picture,label", "has no column image"),
        ("cat/0_0.png,", "cat/0_1.png,", "the image cat/0_1.png is listed twice"),
    ],
)
def test_a_damaged_manifest_is_one_line(classes, tmp_path, old, new, message):
    run(classes, tmp_path / "out")
    path = tmp_path / "out" / "manifest.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        open_data(tmp_path / "out")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2, "options": {}}', '{"version": 1, "options": {}}'])
def test_a_damaged_reference_is_one_line(classes, tmp_path, text):
    run(classes, tmp_path / "out")
    (tmp_path / "out" / "split.json").write_text(text)
    with pytest.raises(UserError, match=r"data: .*split.json (is no reference to split data|has version 2)"):
        open_data(tmp_path / "out")


def test_the_reference_says_all(classes, tmp_path):
    run(classes, tmp_path / "out", seed=3, max_bad=0.5, classes="cat,pet=dog fish,ünicorn")
    stored = json.loads((tmp_path / "out" / "split.json").read_text())
    assert stored["data"] == str(classes)
    assert (stored["seed"], stored["parts"]) == (3, {"train": 75.0, "val": 15.0, "test": 10.0})
    assert open_data(tmp_path / "out").classes == ("cat", "pet")


def test_groups_by_a_pattern(classes, tmp_path):
    result = run(classes, tmp_path / "out", group=r"^(.*/\d+)_")
    assert "groups, each of them in one part" in str(result)
    data = open_data(tmp_path / "out")
    names = [path.rpartition("_")[0] for path in data.paths.to_pylist()]
    assert data.index["group"].to_pylist() == names
    assert all(len({code for other, code in zip(names, data.splits.tolist(), strict=True) if other == name}) == 1
               for name in names)  # fmt: skip


def test_groups_by_a_column_of_the_table(classes, tmp_path):
    paths = open_data(classes).paths.to_pylist()
    lines = [f"{path},{path.partition('/')[0]},place{number % 6}\n" for number, path in enumerate(paths)]
    (classes / "manifest.csv").write_text("image,label,place\n" + "".join(lines))
    run(classes, tmp_path / "out", group="place")
    data = open_data(tmp_path / "out")
    assert data.index["group"].to_pylist() == [f"place{number % 6}" for number in range(len(paths))]
    assert all(len(data.splits[data.groups == group].unique()) == 1 for group in data.groups.unique())


def test_a_group_that_is_too_large_is_reported(classes, tmp_path):
    result = run(classes, tmp_path / "out", group="^(cat|...)", parts="train=40,val=30,test=30")
    assert "group cat has 20 images, more than train should have (16)" in result.notes


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (
            "place",
            r"group: 'place' is no column of the data's table, and no regular expression with one group: it has 0",
        ),
        ("(", r"group: '\(' is no column .*missing \), unterminated subpattern"),
        (r"^(cat)", r"group: '\^\(cat\)' finds nothing in 19 of 39 paths: dog fish/0_0.png, .* 14 more"),
        ("", "group: is empty"),
    ],
)
def test_a_group_that_matches_nothing_is_one_line(classes, tmp_path, group, message):
    with pytest.raises(UserError, match=message):
        run(classes, tmp_path / "out", group=group)
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ("train=50,test=40", "parts: the sizes add up to 90"),
        ("train=50,../x=50", "parts: '../x' cannot be the name of a folder"),
        ("train=99.9,test=0.1", "parts: test gets none of 39 images"),
    ],
)
def test_wrong_parts_are_refused(classes, tmp_path, parts, message):
    with pytest.raises(UserError, match=message):
        run(classes, tmp_path / "out", parts=parts)


def test_only_what_it_wrote_is_overwritten(classes, tmp_path):
    out = tmp_path / "out"
    run(classes, out)
    with pytest.raises(UserError, match=r"out: .* is not empty \(allowed: a new or empty folder, or --overwrite\)"):
        run(classes, out)
    run(classes, out, overwrite=True, by="copies")
    assert sorted(path.name for path in out.iterdir()) == ["prepared.json", "test", "train", "val"]
    (out / "train" / "cat" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"overwrite: .* also holds train/cat/mine.txt, which split has not written"):
        run(classes, out, overwrite=True)
    assert (out / "train" / "cat" / "mine.txt").exists()
    with pytest.raises(UserError, match=r"out: .* lies inside of the data"):
        run(classes, classes / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("x")
    with pytest.raises(UserError, match=r"out: .*other is not empty \(allowed: a new or empty folder\)"):
        run(classes, tmp_path / "other", overwrite=True)


@pytest.mark.parametrize("by", ["links", "copies"])
def test_class_folders_open_as_the_manifest_does(classes, tmp_path, by):
    run(classes, tmp_path / "manifest")
    run(classes, tmp_path / "tree", by=by)
    asked, found = open_data(tmp_path / "manifest"), open_data(tmp_path / "tree")
    assert found.classes == asked.classes
    expected = {(f"{SPLITS[code]}/{path}", code, label) for path, code, label in facts(asked)}
    assert set(facts(found)) == expected
    first = tmp_path / "tree" / found.paths[0].as_py()
    assert first.is_symlink() == (by == "links")
    original = classes / first.relative_to(tmp_path / "tree" / "test")
    assert first.read_bytes() == original.read_bytes()


@pytest.mark.parametrize("by", ["links", "copies"])
def test_boxes_become_a_yolo_data_set(boxes, tmp_path, by):
    (boxes / "images" / "val" / "16.jpg").rename(boxes / "images" / "val" / "0.jpg")  # a clash with train/0.jpg
    (boxes / "labels" / "val" / "16.txt").rename(boxes / "labels" / "val" / "0.txt")
    run(boxes, tmp_path / "manifest", parts="train=10,val=90")
    run(boxes, tmp_path / "tree", parts="train=10,val=90", by=by)
    asked, found = open_data(tmp_path / "manifest"), open_data(tmp_path / "tree")
    assert found.count == asked.count == 24
    assert (tmp_path / "tree" / "images" / "val" / "0_2.jpg").exists()

    def described(data):
        owners = data.objects["image"].to_numpy()
        columns = [data.objects[name].to_numpy() for name in ("label", "left", "top", "right", "bottom")]
        return sorted(
            (int(data.splits[owner]), *np.round(box, 3)) for owner, *box in zip(owners, *columns, strict=True)
        )

    assert described(found) == described(asked)


def test_masks_go_with_their_images(tmp_path, save_image):
    for number in range(10):
        save_image(tmp_path / "data" / "images" / f"{number}.png", size=(8, 8), seed=number)
        mask = tmp_path / "data" / "masks" / f"{number}.png"
        mask.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8), number % 2, np.uint8)).save(mask)
    run(tmp_path / "data", tmp_path / "manifest", parts="train=50,test=50")
    run(tmp_path / "data", tmp_path / "tree", parts="train=50,test=50", by="copies")
    asked, found = open_data(tmp_path / "manifest"), open_data(tmp_path / "tree")
    for data in (asked, found):
        pairs = zip(data.paths.to_pylist(), data.index["mask"].to_pylist(), strict=True)
        assert all(Path(image).stem == Path(mask).stem for image, mask in pairs)
    splits = [{(Path(path).name, code) for path, code, _ in facts(data)} for data in (asked, found)]
    assert splits[0] == splits[1]


def test_images_in_memory_are_written_as_png(tmp_path):
    run("digits", tmp_path / "manifest", limit=200)
    run("digits", tmp_path / "tree", by="links", limit=200)
    asked, found = open_data(tmp_path / "manifest"), open_data(tmp_path / "tree")
    assert asked.images is not None
    assert asked.count == 200
    assert torch.bincount(asked.splits).tolist() == torch.bincount(found.splits).tolist()
    row = int((asked.splits == 1).nonzero()[0])
    path = tmp_path / "tree" / "val" / asked.classes[asked.labels[row]] / f"{Path(asked.paths[row].as_py()).name}.png"
    assert np.array_equal(np.array(Image.open(path)), asked.images[row].permute(1, 2, 0).numpy())


def test_odd_names_survive(tmp_path, save_image):
    for number, name in enumerate(["a b.png", 'say "hi",.png', "line\nbreak.png", "<script>.png", "ü.png", "NA.png"]):
        save_image(tmp_path / "data" / ("x" if number % 2 else "y") / name, size=(8, 8), seed=number)
    run(tmp_path / "data", tmp_path / "out", parts="train=50,test=50")
    assert open_data(tmp_path / "out").paths.to_pylist() == open_data(tmp_path / "data").paths.to_pylist()


def test_nothing_is_left_of_a_failure(classes, tmp_path, monkeypatch):
    monkeypatch.setattr("headstart.verbs.split.write_split", lambda *_: Path("/nowhere").stat())
    with pytest.raises(FileNotFoundError):
        run(classes, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_groups_of_the_data_are_kept_without_being_asked_for(classes, tmp_path):
    paths = open_data(classes).paths.to_pylist()
    (classes / "manifest.csv").write_text("image,group\n" + "".join(f"{path},g{len(path) % 3}\n" for path in paths))
    run(classes, tmp_path / "out", parts="train=50,test=50")
    data = open_data(tmp_path / "out")
    assert data.index["group"].type == pa.string()
    assert all(len(data.splits[data.groups == group].unique()) == 1 for group in data.groups.unique())


def test_groups_of_a_column_are_compared_as_text(tmp_path, save_image):
    for number in range(4):
        save_image(tmp_path / "data" / f"{number}.png", seed=number)
    rows = ("0.png,01", "./1.png,1", "x/../2.png,1", "3.png,")
    (tmp_path / "data" / "manifest.csv").write_text("\n".join(["image,place", *rows]) + "\n")
    run(tmp_path / "data", tmp_path / "out", group="place", parts="train=50,val=50")
    assert [row["group"] for row in listed(tmp_path / "out")] == ["01", "1", "1", ""]


def test_a_pattern_that_finds_an_empty_text_finds_nothing(classes, tmp_path):
    with pytest.raises(UserError, match=r"group: '\(x\?\)' finds nothing in 39 of 39 paths"):
        run(classes, tmp_path / "out", group="(x?)")


@pytest.mark.parametrize("name", ["split.json", "manifest.csv", "prepared.json", "A"])
def test_parts_may_not_be_called_as_other_files_and_parts(classes, tmp_path, name):
    with pytest.raises(UserError, match="cannot be the name of a folder"):
        run(classes, tmp_path / "out", parts=f"a=50,{name}=50")
    assert not (tmp_path / "out").exists()


def test_an_image_that_is_gone_stops_the_copying(classes, tmp_path, monkeypatch):
    def vanish(*args, **kwargs):
        data = open_data(*args, **kwargs)
        (classes / "cat" / "0_0.png").unlink()
        return data

    monkeypatch.setattr("headstart.verbs.start.open_data", vanish)
    with pytest.raises(UserError, match=r"0_0.png is gone since the data were opened"):
        run(classes, tmp_path / "out", by="copies")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_out_may_not_lie_among_the_images(boxes, tmp_path):
    with pytest.raises(UserError, match=r"out: .* lies among the images of boxes"):
        run(boxes / "data.yaml", boxes / "images" / "train" / "out")
    assert run(boxes / "data.yaml", boxes / "out").counts


def test_an_out_that_cannot_be_ends_with_one_line(classes, tmp_path):
    (tmp_path / "file").touch()
    for out, why in ((tmp_path / "file" / "out", "Not a directory"), (tmp_path / ("x" * 300), "File name too long")):
        with pytest.raises(UserError, match=rf"out: .* cannot be written to \({why}\)"):
            run(classes, out)


def test_a_loop_of_links_is_no_data(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UserError, match=r"data: there is no .*loop"):
        run(tmp_path / "loop", tmp_path / "out")


@pytest.mark.parametrize("change", [{"data": None}, {"parts": [1]}, {"parts": {"train": "x"}}])
def test_a_reference_of_wrong_types_ends_with_one_line(classes, tmp_path, change):
    run(classes, tmp_path / "out")
    known = json.loads((tmp_path / "out" / "split.json").read_text())
    (tmp_path / "out" / "split.json").write_text(json.dumps({**known, **change}))
    with pytest.raises(UserError, match=r"split.json (is no reference|refers to other data: unknown 'None')"):
        open_data(tmp_path / "out")
