import fcntl
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headstart.data import hugging_face
from headstart.data.hugging_face import open_hugging_face
from headstart.data.images import decode
from headstart.data.options import DEFAULT, Options
from headstart.errors import UserError

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Return the cache folder; the library keeps its own below it, and has no network."""
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache/hugging_face"


@pytest.fixture
def images(tmp_path, save_image):
    """Return the paths of six image files of different kinds."""
    suffixes = (".png", ".jpg", ".webp", ".png", ".gif", ".tif")
    return [str(save_image(tmp_path / f"files/{n}{suffix}", seed=n)) for n, suffix in enumerate(suffixes)]


def splits_of(images, **columns):
    """Return a data set with four images in train and two in test; columns are values and feature by name."""
    features = datasets.Features({"id": datasets.Value("int64"), "photo": datasets.Image(),
                                  **{name: feature for name, (_, feature) in columns.items()}})  # fmt: skip
    values = {"id": list(range(6)), "photo": images, **{name: values for name, (values, _) in columns.items()}}
    return datasets.DatasetDict({
        split: datasets.Dataset.from_dict({name: column[part] for name, column in values.items()}, features=features)
        for split, part in {"train": slice(0, 4), "test": slice(4, 6)}.items()
    })  # fmt: skip


LABELS = ([1, 0, 2, -1, 0, 1], datasets.ClassLabel(names=["zebra", "ape", "fox"]))


def message(name, options=DEFAULT):
    with pytest.raises(UserError) as error:
        open_hugging_face(str(name), options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_saved_data_set_keeps_bytes_labels_and_splits(images, tmp_path):
    splits_of(images, coarse=LABELS, label=LABELS).save_to_disk(tmp_path / "saved")
    data = open_hugging_face(str(tmp_path / "saved"), DEFAULT)
    contents = [data.file(row).getvalue() for row in range(data.count)]
    expected = [Path(name).read_bytes() for name in [*images[4:], *images[:4]]]
    assert contents == expected  # test stands before train
    assert [path.rpartition(".")[2] for path in data.paths.to_pylist()] == ["gif", "tif", "png", "jpg", "webp", "png"]
    assert data.classes == ("zebra", "ape", "fox")
    assert data.labels.tolist() == [0, 1, 1, 0, 2, -1]
    assert data.splits.tolist() == [2, 2, 0, 0, 0, 0]


def test_the_second_opening_reads_the_shards(images, tmp_path, cache, monkeypatch):
    splits_of(images, label=LABELS).save_to_disk(tmp_path / "saved")
    first = open_hugging_face(str(tmp_path / "saved"), DEFAULT)
    written = {path: path.stat().st_mtime_ns for path in cache.rglob("*.tar")}
    monkeypatch.setattr(hugging_face, "_write", None)
    assert open_hugging_face(str(tmp_path / "saved"), DEFAULT).fingerprint == first.fingerprint
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.tar")} == written
    assert [path.name for path in cache.iterdir() if path.is_dir()] == [next(iter(written)).parent.name]


def test_a_name_of_the_hub_needs_the_hub_once(images, monkeypatch):
    asked = []

    def load(path, config):
        asked.append((path, config))
        return splits_of(images, label=LABELS)

    monkeypatch.setattr(hugging_face, "_load", load)
    prints = {open_hugging_face(name, DEFAULT).fingerprint for name in ("owner/pets:small", "owner/pets:small")}
    assert (asked, len(prints)) == ([("owner/pets", "small")], 1)
    open_hugging_face("owner/pets", DEFAULT)
    assert asked[1:] == [("owner/pets", None)]


def test_shards_are_cut_at_their_size(images, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(hugging_face, "SHARD_BYTES", 4000)
    splits_of(images, label=LABELS).save_to_disk(tmp_path / "saved")
    data = open_hugging_face(str(tmp_path / "saved"), DEFAULT)
    shards = sorted(cache.rglob("*.tar"))
    assert [shard.name for shard in shards][:2] == ["test-00000.tar", "train-00000.tar"]
    assert len(shards) > 2
    assert data.count == 6
    for shard in shards:
        with tarfile.open(shard) as archive:
            names = archive.getnames()
            assert all(not name.endswith(".cls") or f"{name[:9]}." in "".join(names) for name in names)


def test_a_killed_process_leaves_nothing_that_counts(images, tmp_path, cache, monkeypatch):
    splits_of(images, label=LABELS).save_to_disk(tmp_path / "saved")
    whole = hugging_face._add

    def killed(archive, name, content):
        if name.startswith("000000002"):
            raise KeyboardInterrupt
        whole(archive, name, content)

    monkeypatch.setattr(hugging_face, "_add", killed)
    with pytest.raises(KeyboardInterrupt):
        open_hugging_face(str(tmp_path / "saved"), DEFAULT)
    left = [path for path in cache.iterdir() if path.is_dir()]
    assert all(path.name.startswith(".") for path in left)
    (left[0] / "train-00007.tar").write_bytes(b"half")  # of the killed process
    monkeypatch.setattr(hugging_face, "_add", whole)
    assert open_hugging_face(str(tmp_path / "saved"), DEFAULT).count == 6
    assert not [path for path in cache.rglob("*") if path.name == "train-00007.tar" or path.name.endswith(".part")]
    with next(iter(cache.glob(".*.lock"))).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is free


def test_folders_that_the_library_reads_are_opened(tmp_path, save_image):
    for number, name in enumerate(["train/ape/1.png", "train/fox/2.png", "test/fox/3.png"]):
        save_image(tmp_path / "folder" / name, seed=number)
    data = open_hugging_face(str(tmp_path / "folder"), DEFAULT)
    assert data.classes == ("ape", "fox")
    assert sorted(zip(data.splits.tolist(), data.labels.tolist(), strict=True)) == [(0, 0), (0, 1), (2, 1)]
    pixels = np.asarray(Image.open(tmp_path / "folder/test/fox/3.png"))
    row = data.splits.tolist().index(2)
    assert (decode(data.file(row)).permute(1, 2, 0).numpy() == pixels).all()


def test_plain_labels_missing_images_and_other_splits(images, tmp_path, capsys):
    parts = splits_of([None, *images[1:]], label=(["x", "y", "", "x", "z", "y"], datasets.Value("string")))
    parts["extra"] = parts["test"]
    parts["unsupervised"] = parts["test"]
    parts.save_to_disk(tmp_path / "saved")
    assert "1 of 8 images" in message(tmp_path / "saved")
    assert "the splits extra are left out (read: train, test, unlabelled)" in capsys.readouterr().err
    data = open_hugging_face(str(tmp_path / "saved"), Options(max_bad=0.2))
    assert data.classes == ("x", "y", "z")
    assert data.splits.bincount().tolist() == [3, 0, 2, 2]
    assert [bad.reason for bad in data.bad] == ["an empty file"]


def test_data_without_images_are_refused(tmp_path, cache):
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "saved")
    assert message(tmp_path / "saved") == "data: hf: no column of type Image (found: text)"
    assert not [path for path in cache.iterdir() if path.is_dir() and not path.name.startswith(".")]


def test_what_cannot_be_had_is_one_line(monkeypatch):
    found = message("owner/nothing-at-all")
    assert found.startswith("data: hf:owner/nothing-at-all cannot be had (")
    assert "let hf:FOLDER name a copy" in found
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert message("owner/other") == "data: hf: needs the library datasets: pip install 'headstart[hf]'"
