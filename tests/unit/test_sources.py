import hashlib
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision import datasets
from torchvision.datasets import ImageFolder

from headstart.data.folders import read_layout
from headstart.data.index import NO_LABEL, SPLITS, BadImage
from headstart.data.options import Options
from headstart.data.sources import open_data
from headstart.errors import UserError


def split_names(data):
    return [SPLITS[code] if code >= 0 else None for code in data.splits.tolist()]


def test_class_folders_are_read_as_torchvision_reads_them(tmp_path, save_image):
    for number, name in enumerate(["dog/b.png", "dog/a.JPG", "cat/z.jpeg", "Emu/1.webp", "emu/2.bmp"]):
        save_image(tmp_path / name, seed=number)
    data = open_data(str(tmp_path))
    reference = ImageFolder(tmp_path)
    expected = {str(path)[len(str(tmp_path)) + 1 :]: label for path, label in reference.samples}
    assert data.classes == tuple(reference.classes)
    assert dict(zip(data.paths.to_pylist(), data.labels.tolist(), strict=True)) == expected
    assert data.paths.to_pylist() == sorted(expected)
    assert data.name == tmp_path.name
    assert data.sizes.tolist() == [[16, 20]] * 5
    data.require_labels("task")


@pytest.mark.parametrize(
    ("folders", "splits", "classes", "labels"),
    [
        ([""], [-1], (), [-1]),
        (["a/b", "a/c"], [-1, -1], (), [-1, -1]),
        (["a", "b", ""], [-1, -1, -1], (), [-1, -1, -1]),
        (["b", "a"], [-1, -1], ("a", "b"), [1, 0]),
        (["train/a", "test/a", "train/b"], [0, 2, 0], ("a", "b"), [0, 0, 1]),
        (["train/a", "Validation/b", "unlabeled/x/y", "unlabelled"], [0, 1, 3, 3], ("a", "b"), [0, 1, -1, -1]),
        (["train", "valid"], [0, 1], (), [-1, -1]),
        (["train/a", "test"], [0, 2], (), [-1, -1]),
        (["train", "plane"], [-1, -1], ("plane", "train"), [1, 0]),
        (["unlabelled/a"], [3], (), [-1]),
    ],
)
def test_layouts(folders, splits, classes, labels):
    layout = read_layout(folders)
    assert (layout.splits, layout.classes, layout.labels) == (splits, classes, labels)


def test_images_beside_train_and_test_are_refused():
    with pytest.raises(UserError, match=r"data: train/ stands beside images that are in no split: 'extra'"):
        read_layout(["train/a", "test/a", "extra"])


def test_flat_folder_has_no_labels_and_says_what_is_needed(tmp_path, save_image):
    save_image(tmp_path / "a.png")
    with pytest.raises(
        UserError, match=r"labels: .* has no labels \(images in '.' are in no class folder\).*CLASS/image"
    ):
        open_data(str(tmp_path)).require_labels("labels")


def test_one_class_is_named(tmp_path, save_image):
    save_image(tmp_path / "duck/a.png")
    with pytest.raises(UserError, match=r"task: .* one class, 'duck'; at least two are needed"):
        open_data(str(tmp_path)).require_labels("task")


def test_split_folders_reach_the_index(tmp_path, save_image):
    for name in ["train/a/1.png", "train/b/1.png", "test/a/1.png", "unlabelled/1.png", "valid/b/1.png"]:
        save_image(tmp_path / name)
    data = open_data(str(tmp_path))
    assert data.paths.to_pylist() == [
        "test/a/1.png",
        "train/a/1.png",
        "train/b/1.png",
        "unlabelled/1.png",
        "valid/b/1.png",
    ]
    assert split_names(data) == ["test", "train", "train", "unlabelled", "val"]
    assert data.labels.tolist() == [0, 0, 1, NO_LABEL, 1]


def test_other_files_are_ignored_and_counted(tmp_path, save_image):
    save_image(tmp_path / "a/1.png")
    save_image(tmp_path / "a/.2.png")
    save_image(tmp_path / ".hidden/3.png")
    (tmp_path / "SOURCE.md").write_text("x")
    (tmp_path / "a/Thumbs.db").write_text("x")
    data = open_data(str(tmp_path))
    assert data.paths.to_pylist() == ["a/1.png"]
    assert (data.ignored, data.bad) == (4, ())


def test_a_loop_of_links_ends_and_a_linked_root_is_followed(tmp_path, save_image):
    save_image(tmp_path / "real/a/1.png")
    (tmp_path / "real/a/loop").symlink_to(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    data = open_data(str(tmp_path / "link"))
    assert data.paths.to_pylist() == ["a/1.png"]
    assert data.ignored == 1


def test_odd_names_survive(tmp_path, save_image):
    names = ["a b/ü 1.png", "a b/line\nbreak.png", "c/<script>alert(1)<|script>.png", "c/猫, «x».png", "c/🐈.png"]
    for name in names:
        save_image(tmp_path / name)
    data = open_data(str(tmp_path))
    assert data.paths.to_pylist() == sorted(names, key=str.encode)
    assert data.classes == ("a b", "c")


@pytest.mark.skipif(os.name != "posix", reason="only there is a file name any bytes")
def test_a_name_that_is_not_utf8_is_bad(tmp_path, save_image):
    for number in range(100):
        save_image(tmp_path / f"{number}.png")
    shutil.copy(tmp_path / "0.png", os.fsencode(tmp_path) + b"/\xff.png")
    data = open_data(str(tmp_path))
    assert [(bad.path, bad.reason) for bad in data.bad] == [("\\udcff.png", "a file name that is not UTF-8")]


def test_one_truncated_file_among_200_is_left_out_and_listed(tmp_path, save_image):
    for number in range(200):
        save_image(tmp_path / f"{number % 2}/{number}.jpg", seed=number)
    path = tmp_path / "0/100.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    data = open_data(str(tmp_path))
    assert data.count == 199
    assert [(bad.path, bad.reason) for bad in data.bad] == [("0/100.jpg", "a truncated file")]


def test_three_bad_of_100_are_too_many(tmp_path, save_image):
    for number in range(97):
        save_image(tmp_path / f"{number:02}.png")
    (tmp_path / "x\n.png").touch()
    (tmp_path / "y.jpg").write_text("text")
    (tmp_path / "z.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UserError) as error:
        open_data(str(tmp_path))
    message = str(error.value)
    assert message.startswith("data: 3 of 100 images")
    assert "\n" not in message
    assert all(part in message for part in ["x\\n.png (an empty file)", "y.jpg (not an image)", "z.jpg", "1%"])
    assert open_data(str(tmp_path), Options(max_bad=0.03)).count == 97


def test_a_few_deep_images_among_others_are_left_out(tmp_path, save_image):
    for number in range(200):
        save_image(tmp_path / f"{number}.png")
    Image.fromarray(np.ones((4, 4), np.uint16)).save(tmp_path / "deep.png")
    data = open_data(str(tmp_path))
    assert data.count == 200
    assert data.bad == (BadImage("deep.png", "uint16 grey or colours, where the others are uint8 grey or colours"),)
    message = r"data: the images of .* are of several kinds: 200 of uint8 .*, 1 of uint16 .*, such as deep.png"
    with pytest.raises(UserError, match=message):
        open_data(str(tmp_path), Options(max_bad=0.001))


def test_no_images_and_no_folder(tmp_path):
    (tmp_path / "note.txt").write_text("x")
    with pytest.raises(UserError, match=rf"data: no images in {tmp_path} \(allowed: .jpg .*; 1 other files"):
        open_data(str(tmp_path))
    with pytest.raises(UserError, match=r"data: unknown 'cifar11', did you mean 'cifar10'.*digits.*a folder of images"):
        open_data("cifar11")
    with pytest.raises(UserError, match=r"note.txt is a file"):
        open_data(str(tmp_path / "note.txt"))


def test_fingerprint_depends_on_the_data_alone(tmp_path, save_image):
    names = [f"{label}/{number}.png" for label in "ab" for number in range(4)]
    for seed, name in enumerate(names):
        save_image(tmp_path / "one" / name, seed=seed)
    for seed, name in reversed(list(enumerate(names))):
        save_image(tmp_path / "two" / name, seed=seed)
    first = open_data(str(tmp_path / "one")).fingerprint
    assert first == open_data(str(tmp_path / "two")).fingerprint
    assert len(first) == 16
    save_image(tmp_path / "two/a/1.png", seed=99)
    changed = open_data(str(tmp_path / "two")).fingerprint
    (tmp_path / "one/a/1.png").rename(tmp_path / "one/a/9.png")
    moved = open_data(str(tmp_path / "one")).fingerprint
    assert len({first, changed, moved}) == 3


def test_digits_are_those_of_sklearn():
    data = open_data("digits")
    reference = load_digits()
    assert data.images.shape == (1797, 3, 8, 8)
    for channel in range(3):
        np.testing.assert_array_equal(data.images[:, channel], np.round(reference.images * 255 / 16))
    np.testing.assert_array_equal(data.labels, reference.target)
    assert data.count == len(data.paths) == 1797
    assert set(split_names(data)) == {None}
    assert data.fingerprint == open_data("digits").fingerprint


def fake_cifar10(folder, monkeypatch):
    generator = np.random.default_rng(0)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    files = {f"data_batch_{number}": 4 for number in range(1, 6)} | {"test_batch": 3}
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    sums, everything = {}, []
    for name, count in files.items():
        batch = {"data": generator.integers(0, 256, (count, 3072), dtype=np.uint8), "labels": list(range(count))}
        (base / name).write_bytes(pickle.dumps(batch))
        everything.append(batch["data"])
        sums[name] = hashlib.md5((base / name).read_bytes()).hexdigest()
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    meta_sum = hashlib.md5((base / "batches.meta").read_bytes()).hexdigest()
    kind = datasets.CIFAR10
    monkeypatch.setattr(kind, "train_list", [[name, sums[name]] for name in files if name != "test_batch"])
    monkeypatch.setattr(kind, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": meta_sum})
    return np.concatenate(everything).reshape(-1, 3, 32, 32), names


def test_cifar10_is_read_from_torchvisions_own_files(tmp_path, monkeypatch):
    pixels, names = fake_cifar10(tmp_path, monkeypatch)
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path))
    data = open_data("cifar10")
    assert torch.equal(data.images, torch.from_numpy(pixels))
    assert data.classes == tuple(names)
    assert data.labels.tolist() == [0, 1, 2, 3] * 5 + [0, 1, 2]
    assert split_names(data) == ["train"] * 20 + ["test"] * 3


def test_cifar10_without_a_network_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path))
    monkeypatch.setattr(datasets.CIFAR10, "url", (tmp_path / "none.tar.gz").as_uri())
    with pytest.raises(
        UserError, match=rf"data: cifar10 is not in {tmp_path}.*'cifar-10-batches-py'.*HEADSTART_DATA"
    ) as error:
        open_data("cifar10")
    assert "\n" not in str(error.value)


def test_real_plants(real_data):
    data = open_data(real_data("plants"))
    assert (data.count, len(data.classes), data.bad, data.ignored) == (4750, 12, (), 1)
    assert torch.bincount(data.splits).tolist() == [3319, 708, 723]
    assert data.sizes.unique().tolist() == [150]


def test_a_name_that_is_no_data_ends_with_one_line(tmp_path):
    for name in ("", "hf:", "wds:"):
        with pytest.raises(UserError, match=f"data: '{name}' names nothing"):
            open_data(name)
    with pytest.raises(UserError, match=rf"data: there is no {tmp_path}/nothing \(allowed: a folder of images"):
        open_data(tmp_path / "nothing")
    with pytest.raises(UserError, match="data: there is no ~nobody-of-that-name/x"):
        open_data("~nobody-of-that-name/x")
    with pytest.raises(UserError, match=r"data: x+ cannot be read \(File name too long\)"):
        open_data("x" * 300)
    with pytest.raises(UserError, match=r"data: the name .*\\udcff is not UTF-8"):
        open_data(tmp_path / os.fsdecode(b"\xff"))


def test_data_that_nobody_may_read_end_with_one_line(tmp_path, monkeypatch):
    (tmp_path / "table.csv").write_text("image\n")

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied", str(tmp_path / "table.csv"))

    monkeypatch.setattr("headstart.data.tables._csv", refuse)
    with pytest.raises(UserError, match=r"data: .*table.csv cannot be read \(Permission denied\)"):
        open_data(tmp_path / "table.csv")


def test_data_of_broken_images_alone_are_refused_whatever_is_allowed(tmp_path):
    (tmp_path / "1.jpg").touch()
    with pytest.raises(UserError, match=r"1 of 1 images .* are broken \(allowed: not all of them\): 1.jpg"):
        open_data(tmp_path, Options(max_bad=1))


def test_the_allowed_share_is_written_in_full(tmp_path, save_image):
    save_image(tmp_path / "1.png")
    (tmp_path / "2.jpg").touch()
    with pytest.raises(UserError, match=r"allowed: 0.05%"):
        open_data(tmp_path, Options(max_bad=0.0005))


def test_neither_pipes_nor_endless_files_make_one_wait(tmp_path, save_image):
    save_image(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    (tmp_path / "3.png").symlink_to("/dev/zero")
    (tmp_path / "4.png").symlink_to("4.png")
    data = open_data(tmp_path, Options(max_bad=1))
    assert data.count == 1
    assert [bad.path for bad in data.bad] == ["2.png", "3.png", "4.png"]
    assert data.bad[2].reason == "too many levels of symbolic links"
