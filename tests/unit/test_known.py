import numpy as np
import pytest
from PIL import Image
from torchvision import datasets

from headstart.data import hugging_face, known
from headstart.data.index import NO_LABEL
from headstart.data.known import KNOWN_DATA
from headstart.data.options import DEFAULT, Options
from headstart.errors import UserError
from headstart.verbs.finetuning.dispatch import require


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the cache folder of a machine without a network."""
    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setenv("HEADSTART_DATA", str(folder))

    def fail(*args, **kwargs):
        raise OSError("no network")

    for module in (datasets.stl10, datasets.oxford_iiit_pet):
        monkeypatch.setattr(module, "download_and_extract_archive", fail)
    monkeypatch.setattr(datasets.cifar, "download_and_extract_archive", fail)
    monkeypatch.setattr(hugging_face, "_load", lambda path, config: (_ for _ in ()).throw(UserError("no\nnetwork")))
    return folder


def message(name):
    with pytest.raises(UserError) as error:
        KNOWN_DATA[name](DEFAULT)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("cifar10", "'cifar-10-batches-py'"),
        ("stl10", "stl10_binary"),
        ("oxford_pets", "oxford-iiit-pet"),
        ("tiny_imagenet", "tiny-imagenet-200 (unpacked from http"),
        ("plant_seedlings", "plant_seedlings (class folders"),
        ("cats_vs_dogs", "cats_vs_dogs (with Microsoft's PetImages/Cat"),
    ],
)
def test_without_a_network_one_line_says_where_to_put_it(cache, name, folder):
    found = message(name)
    assert found.startswith(f"data: {name} is not in {cache}")
    assert f"put its folder {folder}" in found
    assert f"into {cache}, or let HEADSTART_DATA" in found


@pytest.fixture
def stl10(cache):
    folder = cache / "stl10_binary"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for part, count in (("train", 5), ("test", 4), ("unlabeled", 7)):
        generator.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            generator.integers(1, 4, count, dtype=np.uint8).tofile(folder / f"{part}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\ncar\n")
    (folder / "fold_indices.txt").write_text("0 1 2\n")
    return folder


def test_stl10_is_what_torchvision_reads(stl10, monkeypatch):
    data = KNOWN_DATA["stl10"](DEFAULT)
    monkeypatch.setattr(datasets.STL10, "_check_integrity", lambda self: True)
    place = 0
    for split, code in (("train", 0), ("test", 2), ("unlabeled", 3)):
        reference = datasets.STL10(stl10.parent, split=split)
        rows = slice(place, place + len(reference))
        assert (data.images[rows].numpy() == reference.data).all()
        assert data.labels[rows].tolist() == reference.labels.tolist()
        assert data.splits[rows].tolist() == [code] * len(reference)
        place += len(reference)
    assert place == data.count
    assert data.classes == tuple(reference.classes)
    assert data.labels[-1] == NO_LABEL


def test_stl10_is_mapped_and_its_fingerprint_follows_the_files(stl10, monkeypatch):
    before = KNOWN_DATA["stl10"](DEFAULT)
    written = (stl10 / "images.npy").stat()
    monkeypatch.setattr(known, "replace", None)  # nothing is written again
    again = KNOWN_DATA["stl10"](DEFAULT)
    assert again.fingerprint == before.fingerprint
    assert (stl10 / "images.npy").stat() == written
    monkeypatch.undo()
    monkeypatch.setenv("HEADSTART_DATA", str(stl10.parent))
    (stl10 / "test_X.bin").write_bytes(bytes(4 * 3 * 96 * 96))
    after = KNOWN_DATA["stl10"](DEFAULT)
    assert after.fingerprint != before.fingerprint
    assert after.images[5:9].sum() == 0


def test_stl10_with_a_truncated_file_is_one_line(stl10):
    path = stl10 / "train_X.bin"
    path.write_bytes(path.read_bytes()[:-7])
    assert "put its folder 'stl10_binary' into" in message("stl10")
    assert not (stl10 / "images.npy").exists()


@pytest.fixture
def pets(cache, save_image):
    folder = cache / "oxford-iiit-pet"
    names = {"Abyssinian_1": 1, "american_bulldog_10": 2, "Abyssinian_2": 1, "american_bulldog_9": 2, "Bengal_7": 3}
    for number, name in enumerate(names):
        save_image(folder / f"images/{name}.jpg", seed=number)
        (folder / "annotations/trimaps").mkdir(parents=True, exist_ok=True)
        trimap = np.random.default_rng(number).integers(1, 4, (16, 20), dtype=np.uint8)
        Image.fromarray(trimap).save(folder / f"annotations/trimaps/{name}.png")
    lines = [f"{name} {number} 1 1\n" for name, number in names.items()]
    head = "#Image CLASS-ID SPECIES BREED ID\n"
    for file, part in (("list.txt", [head, *lines]), ("trainval.txt", lines[:2] + lines[4:]), ("test.txt", lines[2:4])):
        (folder / "annotations" / file).write_text("".join(part))
    (folder / "images/Abyssinian_1.mat").touch()
    (folder / "annotations/trimaps/._Abyssinian_1.png").touch()
    return folder


def test_oxford_pets_are_what_torchvision_reads(pets):
    data = KNOWN_DATA["oxford_pets"](DEFAULT)
    assert data.name == "oxford_pets"
    for split, code in (("trainval", 0), ("test", 2)):
        reference = datasets.OxfordIIITPet(pets.parent, split=split)
        expected = dict(zip((path.name for path in reference._images), reference._labels, strict=True))
        rows = (data.splits == code).nonzero().squeeze(1).tolist()
        assert {data.paths[row].as_py().removeprefix("images/"): int(data.labels[row]) for row in rows} == expected
        if split == "trainval":
            assert data.classes == tuple(reference.classes)
        masks = {data.paths[row].as_py(): data.index["mask"][row].as_py() for row in rows}
        assert sorted(masks.values()) == sorted(str(path.relative_to(pets)) for path in reference._segs)


def test_the_trimaps_of_pets_are_classes_of_pixels(pets):
    data, breeds = KNOWN_DATA["oxford_pets_trimaps"](DEFAULT), KNOWN_DATA["oxford_pets"](DEFAULT)
    assert data.classes == ("foreground", "background", "border")
    assert [values[0] for values in data.mask_values] == [1, 2, 3]
    assert data.labels.unique().tolist() == [-1]
    assert data.index["mask"].to_pylist() == breeds.index["mask"].to_pylist()
    assert data.splits.tolist() == breeds.splits.tolist()
    with pytest.raises(UserError, match="oxford_pets has no masks whose values are classes"):
        require("segment", breeds)
    require("segment", data)


def test_broken_pets_are_left_out_and_named(pets):
    (pets / "images/Bengal_7.jpg").write_bytes(b"")
    (pets / "annotations/trimaps/Abyssinian_2.png").unlink()
    assert "2 of 5 images" in message("oxford_pets")
    data = KNOWN_DATA["oxford_pets"](Options(max_bad=0.5))
    assert data.count == 3
    assert {bad.path for bad in data.bad} == {"images/Bengal_7.jpg", "annotations/trimaps/Abyssinian_2.png"}


def test_the_real_pets_are_read(cache, real_data):
    real, folder = real_data("pets"), cache / "oxford-iiit-pet"
    for source, target in (("images", "images"), ("masks", "annotations/trimaps")):
        (folder / target).mkdir(parents=True)
        for file in (real / source).iterdir():
            (folder / target / file.name).symlink_to(file)
    for file in ("trainval.txt", "test.txt"):
        (folder / "annotations" / file).write_text((real / file).read_text())
    data = KNOWN_DATA["oxford_pets"](DEFAULT)
    assert data.classes == ("Abyssinian", "American Bulldog", "Bengal")
    assert data.splits.bincount().tolist() == [300, 0, 298]
    assert data.index["mask"].null_count == 0


def test_a_folder_that_is_a_link_out_of_the_data_is_not_followed(pets, tmp_path):
    (pets / "images").rename(tmp_path / "elsewhere")
    (pets / "images").symlink_to(tmp_path / "elsewhere")
    assert "annotations/trainval.txt:1: the image images/Abyssinian_1.jpg lies outside of" in message("oxford_pets")


@pytest.fixture
def tiny(cache, save_image):
    folder = cache / "tiny-imagenet-200"
    for wnid in ("n02", "n01"):
        for number in range(2):
            save_image(folder / f"train/{wnid}/images/{wnid}_{number}.JPEG", size=(64, 64), seed=number, format="JPEG")
        (folder / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t32\t44\t62\n")
    for number in range(3):
        save_image(folder / f"val/images/val_{number}.JPEG", size=(64, 64), seed=9 + number)
        save_image(folder / f"test/images/test_{number}.JPEG", size=(64, 64), seed=19 + number)
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "words.txt").write_text("n01\tgoldfish\nn02\tshark\nn03\tray\n")
    labels = ("n01", "n02", "n01")
    (folder / "val/val_annotations.txt").write_text(
        "".join(f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n" for number, wnid in enumerate(labels))
    )
    return folder


def test_tiny_imagenet_is_read_in_its_own_layout(tiny):
    data = KNOWN_DATA["tiny_imagenet"](DEFAULT)
    train = datasets.ImageFolder(tiny / "train")
    expected = {path.removeprefix(f"{tiny}/"): (label, 0) for path, label in train.samples}
    expected |= {f"val/images/val_{number}.JPEG": (label, 1) for number, label in enumerate((0, 1, 0))}
    found = zip(data.labels.tolist(), data.splits.tolist(), strict=True)
    assert dict(zip(data.paths.to_pylist(), found, strict=True)) == expected
    assert (data.name, data.classes) == ("tiny_imagenet", ("n01", "n02"))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("val_0.JPEG\tn77\t0\t0\t1\t1\n", "data: val/val_annotations.txt:1: unknown class 'n77'"),
        ("val_0.JPEG\n", "data: val/val_annotations.txt:1: unknown class ''"),
        ("../../../x.JPEG\tn01\n", "val/val_annotations.txt:1: the image val/images/../../../x.JPEG lies outside"),
    ],
)
def test_odd_annotations_of_tiny_imagenet_are_named(tiny, line, expected):
    (tiny / "val/val_annotations.txt").write_text(line)
    assert expected in message("tiny_imagenet")


def test_a_missing_list_is_named(tiny):
    (tiny / "wnids.txt").unlink()
    assert message("tiny_imagenet").startswith(f"data: {tiny} has no wnids.txt")


def test_plant_seedlings_come_as_class_folders_or_as_kaggle_has_them(cache, save_image):
    for name in ("Charlock/1.png", "Maize/2.png"):
        save_image(cache / "plant_seedlings" / name)
    data = KNOWN_DATA["plant_seedlings"](DEFAULT)
    assert (data.name, data.classes, data.splits.tolist()) == ("plant_seedlings", ("Charlock", "Maize"), [-1, -1])
    (cache / "plant_seedlings").rename(cache / "train")
    (cache / "plant_seedlings").mkdir()
    (cache / "train").rename(cache / "plant_seedlings/train")
    save_image(cache / "plant_seedlings/test/3.png")
    kaggle = KNOWN_DATA["plant_seedlings"](DEFAULT)
    assert (kaggle.labels.tolist(), kaggle.fingerprint) == ([0, 1], data.fingerprint)


def test_real_seedlings_are_read(cache, real_data):
    (cache / "plant_seedlings").symlink_to(real_data("plants"))
    data = KNOWN_DATA["plant_seedlings"](DEFAULT)
    assert len(data.classes) == 12
    assert set(data.splits.tolist()) == {0, 1, 2}


def test_cats_and_dogs_come_from_microsofts_folders_with_a_corrupt_file(cache, save_image):
    for number in range(60):
        save_image(cache / f"cats_vs_dogs/PetImages/{('Cat', 'Dog')[number % 2]}/{number}.jpg", seed=number)
    (cache / "cats_vs_dogs/PetImages/Cat/666.jpg").touch()
    (cache / "cats_vs_dogs/PetImages/Cat/Thumbs.db").touch()
    data = KNOWN_DATA["cats_vs_dogs"](Options(max_bad=0.02))
    assert (data.name, data.classes, data.count) == ("cats_vs_dogs", ("Cat", "Dog"), 60)
    assert [(bad.path, bad.reason) for bad in data.bad] == [("Cat/666.jpg", "an empty file")]


def test_half_a_download_is_not_left_behind(cache, monkeypatch):
    def begin(*args, **kwargs):
        (cache / "oxford-iiit-pet" / "images").mkdir(parents=True)
        raise OSError("no network")

    monkeypatch.setattr(datasets.oxford_iiit_pet, "download_and_extract_archive", begin)
    assert message("oxford_pets") == message("oxford_pets")
    assert not (cache / "oxford-iiit-pet").exists()
