import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data.images import DecodeError
from headstart.data.index import NO_SPLIT, TEST, TRAIN
from headstart.data.masks import is_masks, open_masks, read_mask
from headstart.data.options import Options
from headstart.errors import UserError

STRICT, LOOSE = Options(max_bad=0), Options(max_bad=1)


def save_mask(path, values, mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values))
    if mode == "P":
        image = Image.fromarray(np.asarray(values, np.uint8), "L")
        image.putpalette([(7 * place) % 256 for place in range(768)])
    image.save(path)


def grid(*values, size=(20, 40), dtype=np.uint8):
    """Return a mask in which the values take turns."""
    return np.resize(np.array(values, dtype), size)


@pytest.fixture
def make(tmp_path, save_image):
    """Return a function that writes images of 40x20 pixels and their masks, by path without images/ and masks/."""

    def write(masks, *, names=None, **options):
        for name, values in masks.items():
            save_image(tmp_path / "images" / f"{name}.jpg", size=(40, 20))
            if values is not None:
                save_mask(tmp_path / "masks" / f"{name}.png", values, **options)
        if names is not None:
            (tmp_path / "classes.txt").write_text("\n".join(names) + "\n")
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("values", "names", "classes", "stored"),
    [
        ((0, 255), None, ("background", "foreground"), (0, 255)),
        ((0, 1), None, ("background", "foreground"), (0, 1)),
        ((0, 1, 255), None, ("background", "foreground"), (0, 1)),
        ((1, 2, 3), None, ("foreground", "background", "border"), (1, 2, 3)),
        ((0, 2, 9, 255), None, ("0", "2", "9"), (0, 2, 9)),
        ((0, 255), ["sky", "tree"], ("sky", "tree"), (0, 255)),
        ((0, 2, 255), ["sky", "tree", "road"], ("sky", "tree", "road"), (0, 1, 2)),
        ((1, 2, 3), ["pet", "rest", "edge"], ("pet", "rest", "edge"), (1, 2, 3)),
        ((0, 2, 9), ["0", "2", "9"], ("0", "2", "9"), (0, 2, 9)),
        ((1, 2), ["sky", "tree", "road"], ("sky", "tree", "road"), (0, 1, 2)),
    ],
)
@pytest.mark.parametrize("mode", ["L", "P"])
def test_what_values_mean(make, values, names, classes, stored, mode):
    root = make({"a": grid(*values), "b": grid(values[0])}, names=names, mode=mode)
    data = open_masks(root, STRICT)
    assert (data.classes, data.mask_values) == (classes, tuple((value,) for value in stored))
    assert data.index["mask"].to_pylist() == ["masks/a.png", "masks/b.png"]
    expected = [[stored.index(value) if value in stored else -1 for value in row] for row in grid(*values).tolist()]
    assert read_mask(root / "masks" / "a.png", data.mask_values).tolist() == expected


def test_real_trimaps_are_read_as_pillow_reads_them(real_data):
    data = open_masks(real_data("pets"), STRICT)
    assert data.count == 600
    assert data.classes == ("foreground", "background", "border")
    for row in range(0, 600, 100):
        stored = np.array(Image.open(data.root / data.index["mask"][row].as_py()))
        ids = read_mask(data.root / data.index["mask"][row].as_py(), data.mask_values)
        assert ids.dtype == torch.int16
        assert (ids.numpy() == stored.astype(int) - 1).all()
        assert data.sizes[row].tolist() == list(stored.shape)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.eye(4, dtype=bool), np.eye(4)),
        (np.stack([255 * np.eye(4)] * 3, axis=2).astype(np.uint8), 255 * np.eye(4)),
        (np.stack([np.eye(4)] * 3 + [np.full((4, 4), 9)], axis=2).astype(np.uint8), np.eye(4)),
        (np.stack([np.eye(4), np.full((4, 4), 9)], axis=2).astype(np.uint8), np.eye(4)),
        ((300 * np.eye(4)).astype(np.uint16), 300 * np.eye(4)),
    ],
    ids=["one bit", "grey RGB", "grey RGBA", "with alpha", "16 bit"],
)
def test_one_value_per_pixel_is_enough_in_any_mode(tmp_path, array, expected):
    save_mask(tmp_path / "mask.png", array)
    ids = read_mask(tmp_path / "mask.png", [[int(value)] for value in np.unique(expected)])
    assert ids.tolist() == (expected > 0).astype(int).tolist()


def test_colours_and_floats_are_refused(tmp_path):
    save_mask(tmp_path / "colour.png", np.random.default_rng(0).integers(0, 9, (4, 4, 3), dtype=np.uint8))
    with pytest.raises(DecodeError, match="a mask in colours"):
        read_mask(tmp_path / "colour.png", [[0], [1]])
    save_mask(tmp_path / "float.tif", np.zeros((4, 4), np.float32))
    with pytest.raises(DecodeError, match="a mask of float32"):
        read_mask(tmp_path / "float.tif", [[0], [1]])


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        ({"images/train/a": "masks/train/a", "images/test/a": "masks/test/a"}, [TEST, TRAIN]),
        ({"test/images/a": "test/masks/a", "train/images/x/a": "train/masks/x/a"}, [TEST, TRAIN]),
        ({"images/a": "masks/a", "images/x/b": "masks/x/b"}, [NO_SPLIT, NO_SPLIT]),
    ],
)
def test_splits_stand_above_or_below(tmp_path, save_image, paths, splits):
    for image, mask in paths.items():
        save_image(tmp_path / f"{image}.jpg", size=(40, 20))
        save_mask(tmp_path / f"{mask}.png", grid(0, 1))
    assert is_masks(tmp_path)
    data = open_masks(tmp_path, STRICT)
    assert data.splits.tolist() == splits
    assert data.index["mask"].to_pylist() == [f"{mask}.png" for _, mask in sorted(paths.items())]


def test_other_folders_are_not_taken_for_it(tmp_path, save_image):
    save_image(tmp_path / "images" / "a.jpg")
    assert not is_masks(tmp_path)


@pytest.mark.parametrize(
    ("mask", "path", "reason"),
    [
        (None, "images/b.jpg", "no mask masks/b.png"),
        (grid(0, 1, size=(10, 40)), "masks/b.png", "a mask 40 wide and 10 high of an image 40 wide and 20 high"),
        (grid(0, 2, 7), "masks/b.png", "the value 2, but there are 2 classes (allowed: 0 to 1, 255 for none)"),
        (np.random.default_rng(0).integers(0, 9, (20, 40, 3), dtype=np.uint8), "masks/b.png",
         "a mask in colours (allowed: grey levels or a palette, whose values are classes)"),
    ],
)  # fmt: skip
def test_an_image_without_a_right_mask_is_left_out_or_stops(make, mask, path, reason):
    root = make({"a": grid(0, 1), "b": mask}, names=["sky", "tree"])
    data = open_masks(root, LOOSE)
    assert [(bad.path, bad.reason) for bad in data.bad] == [(path, reason)]
    assert data.paths.to_pylist() == ["images/a.jpg"]
    with pytest.raises(UserError) as error:
        open_masks(root, STRICT)
    assert str(error.value) == f"data: 1 of 2 images in {root} are broken (allowed: 0%): {path} ({reason})"


@pytest.mark.parametrize(
    ("content", "reason"), [(b"", "an empty file"), (b"text", "not an image"), (None, "a truncated file")]
)
def test_a_broken_mask_is_named(make, content, reason):
    root = make({"a": grid(0, 1), "b": np.random.default_rng(0).integers(0, 2, (20, 40), dtype=np.uint8)})
    file = root / "masks" / "b.png"
    file.write_bytes(file.read_bytes()[:-40] if content is None else content)
    assert [(bad.path, bad.reason) for bad in open_masks(root, LOOSE).bad] == [("masks/b.png", reason)]


def test_jpeg_masks_are_refused(make, save_image):
    root = make({"a": grid(0, 1), "b": None})
    save_image(root / "masks" / "b.jpg", size=(40, 20))
    assert [(bad.path, bad.reason) for bad in open_masks(root, LOOSE).bad] == [
        ("masks/b.jpg", "a mask as .jpg, which changes the values (allowed: .png, .bmp, .gif, .tif, .tiff)")
    ]


def test_smoothed_masks_are_no_classes(make):
    root = make({"a": grid(*range(256))})
    with pytest.raises(UserError) as error:
        open_masks(root, STRICT)
    assert str(error.value) == (
        f"data: the masks in {root} have 255 values, which are no classes if they are shades"
        " (allowed: a classes.txt with a name in each line, or up to 64 values)"
    )


def test_the_fingerprint_changes_with_a_mask(make):
    before = open_masks(make({"a": grid(0, 1)}), STRICT).fingerprint
    assert open_masks(make({"a": grid(1, 0)}), STRICT).fingerprint != before
    assert open_masks(make({"a": grid(0, 1)}), STRICT).fingerprint == before


def test_class_names_are_checked(make):
    with pytest.raises(UserError, match="has no names or one name twice"):
        open_masks(make({"a": grid(0, 1)}, names=["sky", "sky"]), STRICT)


def test_folders_that_are_links_are_not_followed(make):
    root = make({"1": grid(0, 1)})
    (root / "images").rename(root / "elsewhere")
    (root / "images").symlink_to(root / "elsewhere")
    with pytest.raises(UserError, match="images is a link, which is not followed"):
        open_masks(root, Options())
