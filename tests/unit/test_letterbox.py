"""Whole images on square canvases, and the way back."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as reference

from headstart.data.images import decode
from headstart.data.letterbox import fitted, letterboxed, restored, restored_boxes
from headstart.data.loading import IMAGENET_MEAN, IMAGENET_STD
from headstart.data.options import Options
from headstart.data.sources import open_data

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
SIZES = [(40, 30), (30, 40), (64, 64), (7, 5), (200, 3), (3, 200), (33, 57)]  # width, height


@pytest.fixture
def data(tmp_path, save_image):
    for number, size in enumerate(SIZES):
        save_image(tmp_path / f"{number}.png", seed=number, size=size)
    return open_data(tmp_path)


def boxes_of(data, rows=None, **changes):
    options = {"image_size": 32, "batch_size": 3, "workers": 0, "device": "cpu"}
    rows = torch.arange(data.count) if rows is None else rows
    return list(letterboxed(data, rows, **(options | changes)))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("side", [32, 50])
def test_images_are_resized_as_torchvision_does_and_lie_in_the_upper_left_corner(data, workers, side):
    rows = torch.tensor([6, 0, 1, 5, 2, 3, 4])
    batches = boxes_of(data, rows, image_size=side, workers=workers)
    assert [len(batch.rows) for batch in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([batch.rows for batch in batches]), rows)
    for batch in batches:
        assert batch.images.shape[1:] == (3, side, side)
        for image, row, size in zip(batch.images, batch.rows.tolist(), batch.sizes.tolist(), strict=True):
            pixels = decode(data.file(row))
            expected = reference.resize(pixels, None, max_size=side, antialias=True) if row not in (4, 5) else None
            height, width = fitted(*pixels.shape[1:], side)
            assert size == [height, width]
            assert max(size) == side
            assert min(size) >= 1
            if expected is None or expected.shape[1:] != (height, width):  # torchvision rounds down
                expected = reference.resize(pixels, [height, width], antialias=True)
            normalised = reference.normalize(expected.float() / 255, IMAGENET_MEAN, IMAGENET_STD)
            torch.testing.assert_close(image[:, :height, :width], normalised, rtol=0, atol=1e-5)
            assert (image[:, height:] == 0).all()
            assert (image[:, :, width:] == 0).all()


def test_the_aspect_is_kept_and_no_side_vanishes():
    for width, height in SIZES:
        fit = fitted(height, width, 32)
        assert fit == (max(1, round(height * 32 / max(height, width))), max(1, round(width * 32 / max(height, width))))
    assert fitted(1, 10_000, 64) == (1, 64)
    assert fitted(5, 7, 640) == (457, 640)


def test_mean_and_deviation_may_be_given(data):
    (batch,) = boxes_of(data, torch.tensor([0]), image_size=40, mean=(0.5,) * 3, std=(2,) * 3)
    expected = (decode(data.file(0)).float() / 255 - 0.5) / 2
    torch.testing.assert_close(batch.images[0, :, :30], expected, rtol=0, atol=1e-6)
    assert (batch.images[0, :, 30:] == 0).all()


def test_grey_and_deep_pixels_keep_their_channels_and_precision(tmp_path):
    stored = np.random.default_rng(0).integers(0, 60_000, (2, 10, 20), dtype=np.uint16)
    for number, values in enumerate(stored):
        Image.fromarray(values).save(tmp_path / f"{number}.png")
    data = open_data(tmp_path, Options(channels=1, pixel_range=((0.0, 60_000.0),)))
    (batch,) = boxes_of(data, image_size=20, mean=(0,), std=(1,))
    assert batch.images.shape == (2, 1, 20, 20)
    torch.testing.assert_close(batch.images[:, 0, :10], torch.from_numpy(stored / 60_000).float(), rtol=0, atol=1e-6)


def test_images_in_memory_are_shown_too():
    data = open_data("digits")
    (batch,) = boxes_of(data, torch.arange(3), image_size=8, mean=(0,), std=(1,))
    torch.testing.assert_close(batch.images, data.images[:3].float() / 255)
    assert batch.sizes.tolist() == [[8, 8]] * 3


@pytest.mark.parametrize("workers", [0, 1])
def test_what_cannot_be_decoded_is_left_out_and_named(data, workers):
    for number in (0, 1, 2, 4):
        (data.root / f"{number}.png").write_bytes(b"broken")
    bad = {}
    batches = boxes_of(data, workers=workers, bad=bad)
    assert [batch.rows.tolist() for batch in batches] == [[3, 5], [6]]
    assert [len(batch.images) for batch in batches] == [len(batch.sizes) for batch in batches] == [2, 1]
    assert batches[0].sizes.tolist() == [list(fitted(*SIZES[row][::-1], 32)) for row in (3, 5)]
    assert bad == {f"{number}.png": "not an image" for number in (0, 1, 2, 4)}


def bilinear(maps, high, wide):
    """Resize ``[c h w]`` with half-pixel centres, pixel by pixel."""
    count, height, width = maps.shape
    found = torch.empty(count, high, wide, dtype=maps.dtype)
    for row in range(high):
        for column in range(wide):
            y = min(max((row + 0.5) * height / high - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / wide - 0.5, 0), width - 1)
            top, left = int(y), int(x)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = maps[:, top, left] * (left + 1 - x) + maps[:, top, right] * (x - left)
            lower = maps[:, below, left] * (left + 1 - x) + maps[:, below, right] * (x - left)
            found[:, row, column] = upper * (top + 1 - y) + lower * (y - top)
    return found


@pytest.mark.parametrize(("size", "native"), [((12, 16), (30, 41)), ((16, 5), (9, 3)), ((1, 16), (2, 40))])
def test_maps_are_cut_back_and_resized(size, native):
    maps = torch.rand(2, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = bilinear(maps[:, : size[0], : size[1]], *native)
    torch.testing.assert_close(restored(maps, size, native), expected)
    maps[:, size[0] :] = maps[:, :, size[1] :] = torch.nan  # what lies beside the image has no say
    torch.testing.assert_close(restored(maps, size, native), expected)


@pytest.mark.parametrize("size", [(60, 45), (33, 64), (16, 16)])
def test_there_and_back_puts_a_picture_onto_itself(tmp_path, size):
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    disc = (columns - width * 0.4) ** 2 + (rows - height * 0.6) ** 2 < (min(size) * 0.3) ** 2
    Image.fromarray(np.stack([np.uint8(255) * disc] * 3, axis=2)).save(tmp_path / "a.png")
    (batch,) = boxes_of(open_data(tmp_path), image_size=48, mean=(0,) * 3, std=(1,) * 3)
    shown = restored(batch.images[0], tuple(batch.sizes[0].tolist()), (height, width))[0].numpy() > 0.5
    assert (shown & disc).sum() / (shown | disc).sum() > 0.95


def test_boxes_go_back_to_the_image_and_end_at_its_border():
    boxes = torch.tensor([[3.0, 6, 12, 18], [-4, -4, 200, 200], [40, 30, 48, 48]])
    found = restored_boxes(boxes, (36, 48), (300, 400))
    factor = 400 / 48
    expected = [[3 * factor, 6 * factor, 12 * factor, 18 * factor], [0, 0, 400, 300], [40 * factor, 250, 400, 300]]
    torch.testing.assert_close(found, torch.tensor(expected))
    assert restored_boxes(torch.zeros(0, 4), (36, 48), (300, 400)).shape == (0, 4)
