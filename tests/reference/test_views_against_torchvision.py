import colorsys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as classic
from torchvision.transforms.v2 import functional as reference

from headstart.views import PRESETS, Augment, Key, crop_boxes, crop_one
from headstart.views.geometry import resized_crops, rotate
from headstart.views.photometry import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    grayscale,
    jitter,
    solarize,
)

FACTORS = torch.tensor([0.0, 0.3, 1.0, 1.4, 2.5, 0.9], dtype=torch.float64)
SHIFTS = torch.tensor([0.0, -0.5, 0.5, 0.1, -0.27, 0.33], dtype=torch.float64)


def draw_images(count=6, channels=3, height=24, width=24, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, channels, height, width, generator=generator, dtype=dtype)
    images[:, :, :4, :4] = images[:, :1, :4, :4]  # gray pixels, whose hue is undefined
    images[:, :, 4, :4] = 0
    images[:, :, 5, :4] = 1
    images[:, channels // 2, 6, :4] = images[:, 0, 6, :4]  # two equal channels: the seams of the colour circle
    images[:, -1, 7, :4] = images[:, 0, 7, :4]
    return images


def compare(ours, expected, tolerance):
    torch.testing.assert_close(ours, torch.stack(list(expected)), rtol=0, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
@pytest.mark.parametrize("size", [1, 5, 16, 57])
def test_resized_crops(dtype, tolerance, size):
    images = draw_images(height=40, width=30, dtype=dtype)
    boxes = torch.tensor([[0, 0, 40, 30], [3, 4, 16, 16], [39, 29, 1, 1], [0, 10, 33, 7], [20, 0, 2, 30], [7, 5, 5, 5]])
    flip = torch.tensor([False, True, False, True, False, True])
    vertical = torch.tensor([False, False, True, True, False, True])
    ours = resized_crops(images, boxes, size, flip, vertical)
    expected = []
    for image, box, horizontally, vertically in zip(images, boxes.tolist(), flip, vertical, strict=True):
        crop = reference.resized_crop(image, *box, [size, size], antialias=True)
        crop = reference.horizontal_flip(crop) if horizontally else crop
        expected.append(reference.vertical_flip(crop) if vertically else crop)
    compare(ours, expected, tolerance)


@pytest.mark.parametrize("size", [6, 20, 48])
def test_resized_crops_agree_with_pillow(size):
    images = (draw_images(height=40, width=30) * 255).to(torch.uint8)
    box = torch.tensor([3, 4, 32, 20])
    ours = resized_crops(images, box.expand(len(images), 4), size) * 255
    for image, crop in zip(images, ours, strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy()).crop((4, 3, 24, 35))
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(crop.permute(1, 2, 0).numpy() - expected).max() < 1.01  # Pillow rounds after each direction
        one = crop_one(image, box, size).permute(1, 2, 0).numpy()
        assert np.abs(one.astype(int) - expected).max() <= 1


def test_a_crop_of_the_whole_image_at_its_own_size_is_the_image():
    images = torch.randint(0, 256, (4, 3, 17, 17), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, 17, 17]]).expand(4, 4)
    assert torch.equal(resized_crops(images, boxes, 17), images.float() / 255)


@pytest.mark.parametrize("shape", [(33, 33), (24, 41), (41, 24)])
def test_rotate(shape):
    images = draw_images(height=shape[0], width=shape[1])
    degrees = torch.tensor([0.0, 15.0, -30.0, 90.0, 180.0, 7.3], dtype=torch.float64)
    ours = rotate(images, degrees)
    for image, rotated, angle in zip(images, ours, degrees.tolist(), strict=True):
        bilinear = {"interpolation": reference.InterpolationMode.BILINEAR}
        expected = reference.rotate(image, angle, **bilinear)
        covered = reference.rotate(torch.ones_like(image), angle, **bilinear) > 1 - 1e-6  # all four neighbours inside
        assert covered.double().mean() > 0.4
        torch.testing.assert_close(rotated[covered], expected[covered], rtol=0, atol=1e-5)


def test_rotate_fills_corners_with_the_border():
    assert torch.allclose(rotate(torch.full((1, 3, 9, 9), 0.7), torch.tensor([45.0])), torch.tensor(0.7))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("ours", "expected"),
    [(adjust_brightness, reference.adjust_brightness), (adjust_contrast, reference.adjust_contrast)],
)
def test_brightness_and_contrast(channels, ours, expected):
    images = draw_images(channels=channels)
    compare(ours(images, FACTORS), map(expected, images, FACTORS.tolist()), 1e-9)
    compare(ours(images.float(), FACTORS), map(expected, images.float(), FACTORS.tolist()), 1e-5)


def test_saturation():
    images = draw_images()
    compare(adjust_saturation(images, FACTORS), map(reference.adjust_saturation, images, FACTORS.tolist()), 1e-9)


def test_hue():
    images = draw_images()
    compare(adjust_hue(images, SHIFTS), map(reference.adjust_hue, images, SHIFTS.tolist()), 1e-5)
    compare(adjust_hue(images.float(), SHIFTS), map(reference.adjust_hue, images.float(), SHIFTS.tolist()), 1e-5)


def test_hue_agrees_with_the_standard_library():
    images = draw_images(height=8, width=8)
    for image, shifted, shift in zip(images, adjust_hue(images, SHIFTS), SHIFTS.tolist(), strict=True):
        for pixel, result in zip(image.flatten(1).T.tolist(), shifted.flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            expected = colorsys.hsv_to_rgb((hue + shift) % 1, saturation, value)
            assert result == pytest.approx(expected, abs=1e-9)


def test_jitter_applies_each_images_operations_in_its_own_order():
    images = draw_images()
    generator = torch.Generator().manual_seed(1)
    operations = [adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue]
    factors = torch.rand(6, 4, generator=generator, dtype=torch.float64) + torch.tensor([0.5, 0.5, 0.5, -0.5])
    order = torch.rand(6, 4, generator=generator).argsort(dim=1)
    active = torch.tensor([True, True, False, True, True, True])
    names = ["brightness", "contrast", "saturation", "hue"]
    expected = []
    for number, image in enumerate(images):
        for operation in order[number].tolist() if active[number] else []:
            image = getattr(reference, f"adjust_{names[operation]}")(image, factors[number, operation].item())
        expected.append(image)
    compare(jitter(images, operations, factors, order, active), expected, 1e-5)


def test_grayscale():
    images = draw_images(count=2)
    compare(grayscale(images, torch.tensor([True, False])), [reference.rgb_to_grayscale(images[0], 3), images[1]], 1e-9)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("kernel", [1, 3, 9])
def test_gaussian_blur(channels, kernel):
    images = draw_images(channels=channels, height=20, width=28)
    sigmas = torch.tensor([0.1, 0.5, 1.0, 1.3, 2.0, 10.0], dtype=torch.float64)
    expected = [
        reference.gaussian_blur(image, [kernel] * 2, [sigma])
        for image, sigma in zip(images, sigmas.tolist(), strict=True)
    ]
    compare(gaussian_blur(images, sigmas, kernel), expected, 1e-9)


def test_solarize():
    images = draw_images(count=2)
    images[0, 0, 10, :4] = 0.5
    compare(solarize(images, 0.5, torch.tensor([True, False])), [reference.solarize(images[0], 0.5), images[1]], 0)


@pytest.mark.parametrize(("height", "width"), [(400, 500), (300, 900)])
@pytest.mark.parametrize("name", ["simclr", "simclr-weak"])
def test_crop_boxes_are_distributed_as_torchvisions(height, width, name):
    augment, count = PRESETS[name], 2000
    key = Key(seed=5, step=0, rows=torch.arange(count))
    ours = crop_boxes(augment, key, torch.full((count,), height), torch.full((count,), width)).double().numpy()
    torch.manual_seed(0)
    image = torch.empty(1, height, width)
    draw = RandomResizedCrop.get_params
    theirs = np.array([draw(image, list(augment.crop), list(augment.ratio)) for _ in range(count)], dtype=float)
    for measure in (
        lambda box: box[:, 2] * box[:, 3],
        lambda box: box[:, 3] / box[:, 2],
        lambda box: box[:, 0] / (height - box[:, 2] + 1),
        lambda box: box[:, 1] / (width - box[:, 3] + 1),
    ):
        assert stats.ks_2samp(measure(ours), measure(theirs)).pvalue > 1e-3
    assert (ours[:, 0] + ours[:, 2]).max() <= height
    assert (ours[:, 1] + ours[:, 3]).max() <= width


@pytest.mark.parametrize(("height", "width"), [(1000, 7), (7, 1000), (31, 2000)])
def test_crop_boxes_fall_back_as_torchvision(height, width):
    augment = Augment(crop=(0.9, 1.0))
    key = Key(seed=0, step=0, rows=torch.arange(8))
    boxes = crop_boxes(augment, key, torch.full((8,), height), torch.full((8,), width))
    expected = RandomResizedCrop.get_params(torch.empty(1, height, width), list(augment.crop), list(augment.ratio))
    assert boxes.tolist() == [list(expected)] * 8


@pytest.mark.parametrize(("height", "width"), [(20, 30), (31, 20), (16, 16)])
def test_without_a_crop_the_box_is_the_centre_square(height, width):
    key = Key(seed=0, step=0, rows=torch.arange(2))
    boxes = crop_boxes(PRESETS["none"], key, torch.full((2,), height), torch.full((2,), width))
    picture = torch.arange(height * width).reshape(1, height, width)
    top, left, side, _ = boxes[0].tolist()
    centre = picture[:, top : top + side, left : left + side]
    assert side == min(height, width)
    if (height - width) % 2 == 0:  # otherwise there are two centres
        assert torch.equal(centre, classic.center_crop(picture, [side, side]))
