"""Batches of views with their masks or boxes."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from headstart.data import loading
from headstart.data.loading import ViewLoader, resident, resident_masks
from headstart.data.sampling import Balanced, EveryImage
from headstart.data.sources import open_data
from headstart.errors import UserError
from headstart.views import Augment, Key, finish, finish_masks, preset, render, render_masks

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
EVERYTHING = Augment(crop=(0.2, 1.0), flip=0.5, flip_vertical=0.5, rotate=30)
OPERATIONS = {
    "none": Augment(),
    "crop": Augment(crop=(0.2, 1.0)),
    "flip": Augment(flip=0.5),
    "flip vertical": Augment(flip_vertical=0.5),
    "rotate": Augment(rotate=45),
    "everything": EVERYTHING,
}
PLAIN = {"mean": (0, 0, 0), "std": (1, 1, 1)}


def blobs(height, width, seed):
    """Return a random pattern of two classes, bool ``[h w]``, of patches about 8 pixels wide."""
    patches = np.random.default_rng(seed).random((height // 8 + 1, width // 8 + 1)) > 0.5
    return np.kron(patches, np.ones((8, 8), bool))[:height, :width]


@pytest.fixture
def masked(tmp_path):
    """Return a function that writes images that show their own masks, of 48x40 pixels or of different sizes."""

    def write(count=12, *, mixed=False):
        for number in range(count):
            shown = blobs(48 + number * mixed, 40 + 3 * number * mixed, number)
            for kind in ("images", "masks"):
                (tmp_path / kind).mkdir(exist_ok=True)
                picture = np.uint8(255) * shown
                pixels = np.stack([picture] * 3, axis=2) if kind == "images" else picture
                Image.fromarray(pixels).save(tmp_path / kind / f"{number:03}.png")
        return open_data(tmp_path)

    return write


@pytest.fixture
def boxed(tmp_path):
    """Return a function that writes black images with one white rectangle each, but the last one with none."""

    def write(count=12, *, mixed=False):
        lines = [["image", "label", "left", "top", "right", "bottom"]]
        for number in range(count):
            left, top = 6 + 2 * (number % 4), 4 + 3 * (number % 3)
            box, name = (left, top, left + 18 - number % 5, top + 14 + number % 4), f"{number:03}.png"
            picture = np.zeros((48 + number * mixed, 40 + 2 * number * mixed, 3), np.uint8)
            if number < count - 1:
                picture[box[1] : box[3], box[0] : box[2]] = 255
            Image.fromarray(picture).save(tmp_path / name)
            lines.append([name, "ab"[number % 2], *box] if number < count - 1 else [name, "", "", "", "", ""])
        with (tmp_path / "manifest.csv").open("w", newline="") as file:
            csv.writer(file).writerows(lines)
        return open_data(tmp_path)

    return write


def loader_of(data, targets="masks", **changes):
    options = {"augments": (EVERYTHING,), "image_size": 24, "batch_size": 4, "seed": 3, "stop": 6, **PLAIN}
    options = {"rows": torch.arange(data.count), **options, **changes}
    return ViewLoader(dataset=data, targets=targets, **options)


def streamed(monkeypatch):
    monkeypatch.setattr(loading, "_room", lambda device: 0)
    resident.cache_clear()


def assert_aligned(views, masks):
    """Assert that masks say of pure pixels, black or white, what they are, and that most pixels are known."""
    shown = views[:, 0]
    known = masks >= 0
    assert set(masks.unique().tolist()) <= {-1, 0, 1}
    assert torch.equal(masks[(shown > 0.999) & known], torch.ones_like(masks[(shown > 0.999) & known]))
    assert torch.equal(masks[(shown < 0.001) & known], torch.zeros_like(masks[(shown < 0.001) & known]))
    pure = ((shown > 0.999) | (shown < 0.001)) & known
    assert pure.double().mean() > 0.3
    assert masks.float().std() > 0.3


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("size", [24, 64])
def test_a_mask_stays_on_its_image(name, size):
    augment, key = OPERATIONS[name], Key(seed=1, step=2, rows=torch.arange(20))
    masks = torch.from_numpy(np.stack([blobs(56, 72, seed) for seed in range(20)])).to(torch.int16)
    images = (255 * masks).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    assert_aligned(render(images, augment, key, size), render_masks(masks, augment, key, size))


def test_a_finished_mask_stays_on_its_finished_image():
    key = Key(seed=1, step=2, rows=torch.arange(20))
    masks = torch.from_numpy(np.stack([blobs(32, 32, seed) for seed in range(20)])).to(torch.int16)
    crops = (255 * masks).to(torch.uint8)[:, None].expand(-1, 3, -1, -1)
    assert_aligned(finish(crops, EVERYTHING, key), finish_masks(masks, EVERYTHING, key))


def test_what_a_rotation_brings_in_is_void():
    key = Key(seed=0, step=0, rows=torch.arange(50))
    masks = render_masks(torch.zeros(50, 32, 32, dtype=torch.int16), Augment(rotate=45), key, 32)
    assert set(masks.unique().tolist()) == {-1, 0}
    assert (masks[:, 16, 16] == 0).all()
    assert (render_masks(torch.zeros(50, 32, 32, dtype=torch.int16), Augment(), key, 32) == 0).all()


@pytest.mark.parametrize("name", ["segment", "detect"])
def test_presets_keep_most_of_the_image(name):
    found = preset(name)
    assert found.crop[0] >= 0.25
    assert found.rotate == 0
    assert found.jitter.hue == 0.05


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("augment", [EVERYTHING, preset("segment")])
def test_batches_have_masks_that_lie_on_their_views(masked, mixed, augment):
    data = masked(mixed=mixed)
    assert (resident(data, torch.device("cpu")) is None) == mixed
    plain = augment.model_copy(update={"jitter": None})
    batches = list(loader_of(data, augments=(plain,)))
    assert [tuple(batch.labels.shape) for batch in batches] == [(4, 24, 24)] * 6
    assert all(batch.labels.dtype == torch.int64 and batch.objects == () for batch in batches)
    assert_aligned(torch.cat([batch.views[0] for batch in batches]), torch.cat([batch.labels for batch in batches]))


@pytest.mark.parametrize("kind", ["masks", "objects"])
@pytest.mark.parametrize("mixed", [False, True])
def test_views_are_those_without_targets(masked, boxed, kind, mixed):
    data = masked(mixed=mixed) if kind == "masks" else boxed(mixed=mixed)
    augment = preset("segment").model_copy(update={"rotate": 10.0})
    for batch, other in zip(
        loader_of(data, kind, augments=(augment,)), loader_of(data, "labels", augments=(augment,)), strict=True
    ):
        assert torch.equal(batch.rows, other.rows)
        assert torch.equal(batch.views[0], other.views[0])
        assert other.objects == ()
        assert other.labels.tolist() == [-1] * 4


def assert_same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.rows, two.rows)
        assert torch.equal(one.labels, two.labels)
        assert len(one.objects) == len(two.objects)
        for boxes, others in zip(one.objects, two.objects, strict=True):
            assert torch.equal(boxes.boxes, others.boxes)
            assert torch.equal(boxes.labels, others.labels)


@pytest.mark.parametrize("kind", ["masks", "objects"])
def test_both_paths_workers_and_resuming_give_the_same_targets(masked, boxed, kind, monkeypatch):
    data = masked() if kind == "masks" else boxed()
    on_device = list(loader_of(data, kind))
    assert_same(on_device[3:], loader_of(data, kind, start=3))
    streamed(monkeypatch)
    assert resident(data, torch.device("cpu")) is None
    assert_same(on_device, loader_of(data, kind))
    assert_same(on_device, loader_of(data, kind, workers=2))
    assert_same(on_device[4:], loader_of(data, kind, start=4, workers=2))


@pytest.mark.parametrize("kind", ["masks", "objects"])
def test_some_of_the_images_keep_their_own_targets(masked, boxed, kind):
    data = masked(mixed=True) if kind == "masks" else boxed(mixed=True)
    chosen = torch.tensor([1, 4, 5, 8, 11])
    options = {"augments": (Augment(),), "batch_size": 5, "stop": 1}
    (few,) = loader_of(data.take(chosen), kind, **options)
    (same,) = loader_of(data, kind, rows=chosen, **options)
    assert torch.equal(chosen[few.rows], same.rows)
    assert torch.equal(few.views[0], same.views[0])
    assert_same([few._replace(rows=same.rows)], [same])


@pytest.mark.parametrize("mixed", [False, True])
def test_boxes_lie_around_what_is_seen(boxed, mixed):
    data, seen, away = boxed(mixed=mixed), 0, 0
    augment = Augment(crop=(0.3, 1.0), flip=0.5, flip_vertical=0.5)
    for batch in loader_of(data, "objects", augments=(augment,), image_size=64, stop=12):
        assert len(batch.objects) == len(batch.rows) == 4
        for row, view, found in zip(batch.rows.tolist(), batch.views[0], batch.objects, strict=True):
            if not len(found.labels):
                away += 1
                continue
            down, across = (view[0] > 0.5).nonzero(as_tuple=True)
            shown = torch.stack([across.min(), down.min(), across.max() + 1, down.max() + 1])
            assert (found.boxes[0] - shown).abs().max() <= 1.01
            assert found.labels.tolist() == [row % 2]
            seen += 1
    assert seen > 20
    assert away >= 3


def test_rotated_boxes_lie_around_what_is_seen(boxed):
    data = boxed(mixed=True)
    augment = Augment(rotate=45, flip=0.5)
    touched = 0
    for batch in loader_of(data, "objects", augments=(augment,), image_size=96, stop=6):
        for view, found in zip(batch.views[0], batch.objects, strict=True):
            if len(found.labels) and found.boxes.min() > 1 and found.boxes.max() < 95:
                down, across = (view[0] > 0.5).nonzero(as_tuple=True)
                shown = torch.stack([across.min(), down.min(), across.max() + 1, down.max() + 1])
                assert (found.boxes[0] - shown).abs().max() <= 2.5  # corners are thinner than a pixel
                touched += 1
    assert touched > 8


def test_an_image_drawn_twice_in_a_step_has_masks_of_its_own(masked):
    data = masked()
    sampler = Balanced(torch.tensor([0] * 11 + [1]), 4, 3)
    for batch in loader_of(data, sampler=sampler, stop=3, augments=(Augment(crop=(0.2, 0.5), flip=0.5),)):
        twins = batch.labels[batch.rows == 11]
        assert len(torch.unique(twins.flatten(1), dim=0)) == len(twins) == 2
        assert_aligned(batch.views[0], batch.labels)


@pytest.mark.parametrize("path", ["resident", "streaming"])
@pytest.mark.parametrize("damage", ["broken", "gone", "other size"])
def test_a_mask_that_cannot_be_read_counts_as_its_image(masked, path, damage, monkeypatch):
    if path == "streaming":
        streamed(monkeypatch)
    data = masked(100)
    file = data.root / "masks" / "050.png"
    reason = {"broken": "not an image", "gone": "the file is gone", "other size": "9x8 pixels, but 48x40 when"}[damage]
    file.unlink()
    if damage == "broken":
        file.write_bytes(b"broken")
    if damage == "other size":
        Image.fromarray(np.zeros((9, 8), np.uint8)).save(file)
    loader = loader_of(data, stop=25, augments=(Augment(),))
    batches = list(loader)
    seen = torch.cat([batch.rows for batch in batches])
    whole = torch.cat([EveryImage(100, 4, 3)(step) for step in range(25)])
    assert torch.equal(seen, torch.where(whole == 50, 51, whole))
    assert list(loader.bad) == ["images/050.png"]
    assert loader.bad["images/050.png"].startswith(f"its mask masks/050.png: {reason}")
    assert_aligned(torch.cat([batch.views[0] for batch in batches]), torch.cat([batch.labels for batch in batches]))
    list(loader_of(data, "labels", stop=2))  # whoever does not learn masks does not miss one
    resident_masks.cache_clear()


def test_too_many_unreadable_masks_stop(masked):
    data = masked(mixed=True)
    (data.root / "masks" / "003.png").unlink()
    with pytest.raises(UserError, match=r"1 of 12 images cannot be decoded .*its mask masks/003.png: the file is gone"):
        list(loader_of(data))


def test_a_table_may_have_images_without_a_mask(tmp_path, masked):
    masked()
    lines = [["image", "mask"], *([f"images/{n:03}.png", f"masks/{n:03}.png" if n else ""] for n in range(4))]
    with (tmp_path / "some.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)
    data = open_data(tmp_path / "some.csv")
    for batch in loader_of(data, rows=torch.arange(1, 4), batch_size=3, stop=2):
        assert_aligned(batch.views[0], batch.labels)
    with pytest.raises(UserError, match=r"images/000.png \(no mask\)"):
        list(loader_of(data, stop=1))
