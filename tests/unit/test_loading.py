import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from headstart.data import loading
from headstart.data.loading import IMAGENET_MEAN, IMAGENET_STD, ViewLoader, images_at, resident
from headstart.data.sampling import Anchored, Balanced, EveryImage
from headstart.data.sources import open_data
from headstart.errors import UserError
from headstart.views import Augment, Jitter, preset

VIEWS = (preset("simclr-small"), Augment(crop=(0.5, 1.0), rotate=20, flip_vertical=0.5, jitter=Jitter(probability=0.5)))
ROUNDING = 1.01 / 255  # crops are rounded to 8 bits, once in each direction, and no more
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")


@pytest.fixture
def folder(tmp_path, save_image):
    """40 files of two classes, all 20 x 16."""
    for number in range(40):
        save_image(tmp_path / f"{'ab'[number % 2]}/{number:02}.png", seed=number)
    return tmp_path


@pytest.fixture
def mixed(tmp_path, save_image):
    """40 files of different sizes."""
    for number in range(40):
        save_image(tmp_path / f"{'ab'[number % 2]}/{number:02}.jpg", seed=number, size=(20 + number, 50 - number))
    return tmp_path


def loader_of(data, rows=None, **changes):
    rows = torch.arange(data.count) if rows is None else rows
    options = {"augments": VIEWS, "image_size": 12, "batch_size": 8, "seed": 3, "stop": 7}
    return ViewLoader(dataset=data, rows=rows, **(options | changes))


def assert_same(first, second, tolerance=0.0):
    first, second = list(first), list(second)
    assert len(first) == len(second) > 0
    for one, two in zip(first, second, strict=True):
        assert torch.equal(one.rows, two.rows)
        assert torch.equal(one.labels, two.labels)
        for view, other in zip(one.views, two.views, strict=True):
            assert (view - other).abs().max() <= tolerance


def streamed(monkeypatch):
    monkeypatch.setattr(loading, "_room", lambda device: 0)
    resident.cache_clear()


def test_every_epoch_is_another_order_of_all_rows():
    first = torch.cat([EveryImage(40, 8, 0)(step) for step in range(5)])
    second = torch.cat([EveryImage(40, 8, 0)(step) for step in range(5, 10)])
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40))
    assert not torch.equal(first, second)
    assert not torch.equal(EveryImage(40, 8, 0)(0), EveryImage(40, 8, 1)(0))


def test_what_is_left_of_an_epoch_is_dropped():
    rows = torch.cat([EveryImage(43, 8, 0)(step) for step in range(5)])
    assert len(set(rows.tolist())) == 40
    assert (
        sorted(torch.cat([EveryImage(43, 8, 0)(step) for step in range(5, 10)]).unique().tolist())
        != rows.unique().tolist()
    )


@pytest.mark.parametrize("kind", ["folder", "mixed"])
def test_batches_have_the_documented_shape(request, kind):
    data = open_data(request.getfixturevalue(kind))
    assert (resident(data, torch.device("cpu")) is None) == (kind == "mixed")
    loader = loader_of(data, mean=(0, 0, 0), std=(1, 1, 1))
    batches = list(loader)
    assert len(batches) == len(loader) == 7
    for step, batch in enumerate(batches):
        assert torch.equal(batch.rows, EveryImage(40, 8, 3)(step))
        assert torch.equal(batch.labels, data.labels[batch.rows])
        assert [tuple(view.shape) for view in batch.views] == [(8, 3, 12, 12)] * 2
        assert all(view.min() >= 0 and view.max() <= 1 and view.dtype == torch.float32 for view in batch.views)
        assert not torch.equal(*batch.views)


@pytest.mark.parametrize("kind", ["folder", "mixed"])
def test_the_number_of_workers_changes_nothing(request, kind, monkeypatch):
    streamed(monkeypatch)
    data = open_data(request.getfixturevalue(kind))
    assert_same(loader_of(data), loader_of(data, workers=2))


def test_both_paths_give_the_same_views(folder, monkeypatch):
    data = open_data(folder)
    crop = Augment(crop=(0.2, 1.0), flip=0.5, rotate=15)
    local = crop.model_copy(update={"crop": (0.05, 0.4), "side": 3 / 7})
    options = {"augments": (crop, local, crop), "image_size": 20, "mean": (0, 0, 0), "std": (1, 1, 1)}
    on_device = list(loader_of(data, **options))
    assert [tuple(view.shape) for view in on_device[0].views] == [(8, 3, side, side) for side in (20, 8, 20)]
    streamed(monkeypatch)
    assert resident(data, torch.device("cpu")) is None
    assert_same(on_device, loader_of(data, **options), tolerance=ROUNDING)


def test_both_paths_show_the_same_images(folder, monkeypatch):
    data = open_data(folder)
    rows = torch.tensor([5, 39, 0, 7])
    options = {"mean": (0, 0, 0), "std": (1, 1, 1)}
    on_device = list(images_at(data, rows, 12, **options))
    streamed(monkeypatch)
    assert_same(on_device, images_at(data, rows, 12, **options), tolerance=ROUNDING)


@pytest.mark.parametrize("kind", ["folder", "mixed"])
def test_resuming_gives_the_tail(request, kind):
    data = open_data(request.getfixturevalue(kind))
    whole = list(loader_of(data, parts=2))
    assert_same(whole[8:], loader_of(data, parts=2, start=4))


@pytest.mark.parametrize("kind", ["folder", "mixed"])
def test_parts_and_ranks_together_are_the_whole_batch(request, kind):
    data = open_data(request.getfixturevalue(kind))
    whole = list(loader_of(data, stop=3))
    ranks = [list(loader_of(data, stop=3, parts=2, rank=rank, world=2)) for rank in range(2)]
    for step, batch in enumerate(whole):
        pieces = [ranks[rank][2 * step + part] for part in range(2) for rank in range(2)]
        assert torch.equal(torch.cat([piece.rows for piece in pieces]), batch.rows)
        for view in range(2):
            together = torch.cat([piece.views[view] for piece in pieces])
            assert torch.allclose(together, batch.views[view], atol=1e-5)


ROWS = torch.arange(38, 4, -1)


def samplers_of(data):
    labels = data.labels[ROWS]
    return {
        "balanced": Balanced(labels, 8, 3, pieces=4),
        "anchored": Anchored(labels, 16, 3, anchors=1, background=1, pieces=4),
    }


@pytest.mark.parametrize("name", ["balanced", "anchored"])
@pytest.mark.parametrize("kind", ["folder", "mixed"])
def test_a_sampler_says_which_images_each_piece_has(request, kind, name):
    data = open_data(request.getfixturevalue(kind))
    sampler = samplers_of(data)[name]
    options = {"rows": ROWS, "sampler": sampler, "batch_size": sampler.batch_size, "stop": 3}
    ranks = [list(loader_of(data, parts=2, rank=rank, world=2, **options)) for rank in range(2)]
    for step, batch in enumerate(loader_of(data, **options)):
        pieces = [ranks[rank][2 * step + part] for part in range(2) for rank in range(2)]
        assert torch.equal(torch.cat([piece.rows for piece in pieces]), ROWS[sampler(step)])
        assert torch.equal(batch.rows, ROWS[sampler(step)])
        assert torch.equal(batch.labels, data.labels[batch.rows])
        for view in range(2):
            assert torch.allclose(torch.cat([piece.views[view] for piece in pieces]), batch.views[view], atol=1e-5)
        for piece in pieces:
            assert piece.labels.tolist() == ([0, 1, 1] if name == "anchored" else [int(piece.labels[0])] * 2)


@pytest.mark.parametrize("kind", ["folder", "mixed"])
def test_labels_that_are_given_are_the_ones_shown(request, kind):
    data = open_data(request.getfixturevalue(kind))
    labels = torch.arange(40) % 5 - 1
    for batch in loader_of(data, labels=labels, rows=ROWS, stop=2):
        assert torch.equal(batch.labels, labels[batch.rows])


def test_an_image_drawn_twice_in_a_step_has_other_views(folder, monkeypatch):
    data = open_data(folder)
    labels = torch.tensor([0] * 39 + [1])  # half of the images of a step are the last one
    options = {"sampler": Balanced(labels, 8, 3), "stop": 2, "mean": (0, 0, 0), "std": (1, 1, 1)}
    options["augments"] = (Augment(crop=(0.2, 0.5), flip=0.5),)
    on_device = list(loader_of(data, **options))
    for batch in on_device:
        own = batch.views[0][batch.rows == 39]
        assert len(torch.unique(own.flatten(1), dim=0)) == len(own) == 4
    streamed(monkeypatch)
    assert_same(on_device, loader_of(data, **options), tolerance=ROUNDING)


def test_only_the_given_rows_are_seen(folder):
    data = open_data(folder)
    rows = torch.arange(1, 40, 3)
    seen = torch.cat([batch.rows for batch in loader_of(data, rows=rows, batch_size=4, stop=9)])
    assert set(seen.tolist()) == set(rows.tolist())


def test_the_loader_leaves_global_randomness_alone(mixed):
    data = open_data(mixed)
    before = torch.get_rng_state()
    list(loader_of(data, stop=2, workers=1))
    assert torch.equal(before, torch.get_rng_state())


def test_what_workers_get_can_be_pickled(mixed):
    crops = loader_of(open_data(mixed))._crops
    assert all(map(torch.equal, pickle.loads(pickle.dumps(crops))[1].crops, crops[1].crops))


@pytest.mark.parametrize("changes", [{"batch_size": 41}, {"batch_size": 0}, {"batch_size": 8, "parts": 3}])
def test_batches_that_do_not_fit_are_refused(folder, changes):
    with pytest.raises(
        UserError, match=r"^batch_size: \d+ (is larger than the data \(40 images\)|is not|cannot be cut)"
    ):
        loader_of(open_data(folder), **changes)


@pytest.mark.parametrize("size", [(20, 16), (33, 47)])
def test_images_are_resized_and_cropped_as_torchvision_does(tmp_path, save_image, size):
    for number in range(5):
        save_image(tmp_path / f"{number}.png", seed=number, size=size)
    save_image(tmp_path / "9.png", size=(18, 18) if size == (33, 47) else size)  # another size: they are streamed
    data = open_data(tmp_path)
    rows = torch.tensor([4, 0, 2, 3, 1])
    batches = list(images_at(data, rows, 10, batch_size=2))
    assert [len(batch.rows) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.rows for batch in batches]), rows)
    images = torch.cat([batch.views[0] for batch in batches])
    for image, row in zip(images, rows, strict=True):
        pixels = torch.from_numpy(np.array(Image.open(tmp_path / f"{row}.png"))).permute(2, 0, 1)
        square = F.center_crop(pixels, [min(size)] * 2)
        expected = F.normalize(F.resize(square, [10, 10], antialias=True).float() / 255, IMAGENET_MEAN, IMAGENET_STD)
        assert (image - expected).abs().max() < 1.01 / 255 / min(IMAGENET_STD)


def test_native_size_is_exact():
    data = open_data("digits")
    (batch,) = images_at(data, torch.arange(7), 8, mean=(0, 0, 0), std=(1, 1, 1))
    assert torch.equal((batch.views[0] * 255).round().to(torch.uint8), data.images[:7])
    assert batch.labels.tolist() == data.labels[:7].tolist()


@pytest.fixture(params=["resident", "streaming"])
def damaged(request, tmp_path, save_image, monkeypatch):
    """200 images, of which number 50 broke after the folder was read."""
    if request.param == "streaming":
        streamed(monkeypatch)
    for number in range(200):
        save_image(tmp_path / f"{number:03}.png", seed=number, size=(8, 8))
    data = open_data(tmp_path)
    (tmp_path / "050.png").write_bytes(b"broken")
    return data


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_replaced_by_the_next_row_and_listed(damaged, workers):
    rows = torch.tensor([row for row in range(200) if row != 51]).roll(7)
    whole = torch.cat([rows[EveryImage(199, 8, 3)(step)] for step in range(24)])
    loader = loader_of(damaged, rows=rows, stop=24, workers=workers)
    seen = torch.cat([batch.rows for batch in loader])
    assert 50 in whole
    assert torch.equal(seen, torch.where(whole == 50, 52, whole))
    assert loader.bad == {"050.png": "not an image"}


def test_a_replaced_image_has_its_own_label_and_the_same_views_on_both_paths(damaged, monkeypatch):
    sampler = Balanced(torch.arange(200) // 51 % 2, 8, 3)  # image 50 is the last of its class
    options = {"sampler": sampler, "stop": 30, "augments": (Augment(crop=(0.2, 1.0), flip=0.5),)}
    options |= {"labels": torch.arange(200) // 51 % 2, "mean": (0, 0, 0), "std": (1, 1, 1)}
    found = list(loader_of(damaged, **options))
    drawn = torch.stack([sampler(step) for step in range(30)])
    assert 50 in drawn
    for batch, positions in zip(found, drawn, strict=True):
        assert torch.equal(batch.rows, torch.where(positions == 50, 51, positions))
        assert torch.equal(batch.labels, options["labels"][batch.rows])
    streamed(monkeypatch)
    assert_same(found, loader_of(damaged, **options), tolerance=ROUNDING)


def test_broken_images_are_left_out_of_evaluation(damaged):
    batches = list(images_at(damaged, torch.arange(200), 8, batch_size=16))
    assert torch.cat([batch.rows for batch in batches]).tolist() == [row for row in range(200) if row != 50]
    assert len(batches[3].views[0]) == 15


def test_too_many_broken_images_are_an_error(damaged):
    for name in ("060.png", "070.png"):
        (damaged.root / name).unlink()
    with pytest.raises(
        UserError, match=r"data: 3 of 200 images cannot be decoded.*060.png \(the file is gone\)"
    ) as error:
        list(loader_of(damaged, stop=25, workers=1))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="3 of 200"):
        list(images_at(damaged, torch.arange(200), 8))


def test_real_images_stream_and_lie_resident_alike(real_data, monkeypatch):
    data = open_data(real_data("plants") / "val" / "Maize")
    options = {
        "mean": (0, 0, 0),
        "std": (1, 1, 1),
        "augments": (Augment(crop=(0.08, 1.0), flip=0.5),),
        "image_size": 32,
    }
    on_device = list(loader_of(data, stop=3, **options))
    streamed(monkeypatch)
    assert_same(on_device, loader_of(data, stop=3, workers=2, **options), tolerance=ROUNDING)
