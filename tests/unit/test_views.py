import pytest
import torch
from pydantic import ValidationError
from scipy import stats

from headstart.errors import UserError
from headstart.views import (
    PRESETS,
    Augment,
    Blur,
    Jitter,
    Key,
    crop_boxes,
    crop_one,
    finish,
    photometry,
    preset,
    render,
)

EVERYTHING = Augment(
    crop=(0.2, 1.0),
    flip=0.5,
    flip_vertical=0.5,
    rotate=30,
    jitter=Jitter(probability=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    gray=0.3,
    blur=Blur(probability=0.5),
    solarize=0.3,
    side=0.9,
)
COLOURS = Jitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)


def draw_images(count=16, channels=3, height=24, width=24):
    """Smooth random images, which survive resizing."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, channels, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 1)
    return (smooth * 255).to(torch.uint8)


def draw_key(count=16, seed=1, step=2, view=0):
    return Key(seed=seed, step=step, rows=torch.arange(100, 100 + count), view=view)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_give_views_that_differ_from_row_to_row_but_not_from_call_to_call(name):
    images = draw_images()[:1].expand(16, -1, -1, -1)
    views = render(images, preset(name), draw_key(), 20)
    assert views.shape == (16, 3, 20, 20)
    assert views.dtype == torch.float32
    assert 0 <= views.min() <= views.max() <= 1
    assert torch.equal(views, render(images, preset(name), draw_key(), 20))
    different = torch.unique(views.flatten(1), dim=0)
    assert len(different) == (1 if name == "none" else 16)


def test_an_unknown_preset_is_a_user_error():
    with pytest.raises(UserError, match="views: unknown 'simclrr', did you mean 'simclr'"):
        preset("simclrr")


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"crop": (0.0, 1.0)}, "crop"),
        ({"crop": (0.5, 1.1)}, "crop"),
        ({"crop": (0.8, 0.5)}, "crop"),
        ({"ratio": (-1, 1)}, "ratio"),
        ({"ratio": (2, 1)}, "ratio"),
        ({"flip": 1.5}, "flip"),
        ({"flip_vertical": -0.1}, "flip_vertical"),
        ({"rotate": -5}, "rotate"),
        ({"gray": float("nan")}, "gray"),
        ({"solarize": 2}, "solarize"),
        ({"jitter": {"hue": 0.6}}, "hue"),
        ({"jitter": {"brightness": -1}}, "brightness"),
        ({"blur": {"sigma": (0, 1)}}, "sigma"),
        ({"side": 0.0}, "side"),
        ({"side": 1.1}, "side"),
        ({"grey": 0.2}, "grey"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(settings, field):
    with pytest.raises(ValidationError, match=field):
        Augment(**settings)


@pytest.mark.parametrize(
    ("side", "image_size", "pixels"),
    [
        (3 / 7, 224, 96),
        (3 / 7, 64, 28),
        (3 / 7, 32, 14),
        (3 / 7, 96, 48),  # 41 px, to a multiple of 16
        (3 / 7, 8, 8),
        (3 / 7, 5, 5),
        (0.01, 100, 16),
        (0.01, 64, 8),
        (0.99, 33, 32),
        (0.99, 100, 96),
        (0.99, 65, 64),
        (1.0, 33, 33),
        (1.0, 225, 225),
    ],
)
def test_the_side_of_a_view_fits_strides_and_the_image(side, image_size, pixels):
    assert Augment(side=side).pixels(image_size) == pixels


def test_local_presets_are_smaller_views_of_smaller_crops():
    for name in ("swav", "dino"):
        local, whole = preset(f"{name}-local"), preset("swav" if name == "swav" else "dino-first")
        assert local.pixels(224) == 96
        assert whole.pixels(224) == 224
        assert local.crop[1] <= whole.crop[0]


def test_an_augment_is_frozen_and_survives_json():
    with pytest.raises(ValidationError, match="frozen"):
        EVERYTHING.flip = 1.0
    assert Augment.model_validate_json(EVERYTHING.model_dump_json()) == EVERYTHING


@pytest.mark.parametrize("augment", [EVERYTHING, *PRESETS.values()])
def test_views_do_not_depend_on_the_rest_of_the_batch(augment):
    images, key = draw_images(height=30), draw_key()
    views = render(images, augment, key, 16)
    order = torch.tensor([7, 3, 12])
    some = render(images[order], augment, Key(key.seed, key.step, key.rows[order], key.view), 16)
    torch.testing.assert_close(some, views[order], rtol=0, atol=1e-6)


@pytest.mark.parametrize("change", [{"seed": 2}, {"step": 3}, {"view": 1}])
def test_seed_step_and_view_change_every_view(change):
    images = draw_images()
    first = render(images, EVERYTHING, draw_key(), 24)
    second = render(images, EVERYTHING, draw_key(**change), 24)
    assert (first - second).abs().amax(dim=(1, 2, 3)).min() > 0.01


@pytest.mark.parametrize("augment", PRESETS.values(), ids=PRESETS)
@pytest.mark.parametrize(("height", "width"), [(24, 24), (40, 56)])
def test_crops_made_by_workers_give_the_same_views(augment, height, width):
    images, key = draw_images(height=height, width=width), draw_key()
    crops = []
    for image, row in zip(images, key.rows, strict=True):
        alone = Key(key.seed, key.step, row[None], key.view)
        box = crop_boxes(augment, alone, torch.tensor([height]), torch.tensor([width]))[0]
        crops.append(crop_one(image, box, 16))
    difference = (finish(torch.stack(crops), augment, key) - render(images, augment, key, 16)).abs()
    assert difference.mean() < 1 / 255
    assert difference.max() < 6 / 255  # the jitter of colours magnifies the rounding


def test_finish_of_whole_images_is_render_exactly():
    images, key = draw_images(), draw_key()
    augment = EVERYTHING.model_copy(update={"crop": None})
    assert torch.equal(finish(images, augment, key), render(images, augment, key, 24))
    assert torch.equal(finish(images.float() / 255, augment, key), finish(images, augment, key))


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_none_at_the_native_size_is_the_image(channels):
    images = draw_images(channels=channels)
    assert torch.equal(render(images, PRESETS["none"], draw_key(), 24), images.float() / 255)


@pytest.mark.parametrize("channels", [1, 5])
def test_operations_on_colours_are_left_out_without_three_channels(channels):
    images, key = draw_images(channels=channels), draw_key()
    colourful = Augment(jitter=Jitter(saturation=0.5, hue=0.2), gray=1.0)
    assert torch.equal(render(images, colourful, key, 24), images.float() / 255)
    without = Jitter(brightness=COLOURS.brightness, contrast=COLOURS.contrast)
    both = [render(images, Augment(jitter=jitter), key, 24) for jitter in (COLOURS, without)]
    assert torch.equal(*both)
    assert render(images, EVERYTHING, key, 20).shape == (16, channels, 20, 20)


ALWAYS = {
    "flip": (Augment(flip=1), lambda images: images.flip(-1)),
    "flip_vertical": (Augment(flip_vertical=1), lambda images: images.flip(-2)),
    "gray": (Augment(gray=1), lambda images: photometry.grayscale(images, torch.ones(len(images), dtype=torch.bool))),
    "solarize": (Augment(solarize=1), lambda images: torch.where(images >= 0.5, 1 - images, images)),
    "blur": (
        Augment(blur=Blur(probability=1, sigma=(1.3, 1.3))),
        lambda images: photometry.gaussian_blur(images, torch.full((len(images),), 1.3), 3),
    ),
    "jitter": (Augment(jitter=COLOURS), None),
}


@pytest.mark.parametrize("name", ALWAYS)
def test_probability_one_is_always_and_zero_is_never(name):
    images, key = draw_images(64), draw_key(64)
    augment, expected = ALWAYS[name]
    views = render(images, augment, key, 24)
    plain = images.float() / 255
    assert (views - plain).abs().amax(dim=(1, 2, 3)).min() > 0
    if expected:
        torch.testing.assert_close(views, expected(plain), rtol=0, atol=1e-6)
    value = getattr(augment, name)
    never = value.model_copy(update={"probability": 0.0}) if isinstance(value, Jitter | Blur) else 0.0
    assert torch.equal(render(images, augment.model_copy(update={name: never}), key, 24), plain)


@pytest.mark.parametrize("name", ["flip", "flip_vertical", "gray", "solarize", "blur", "jitter"])
def test_other_probabilities_are_the_share_of_changed_images(name):
    count = 3000
    images = draw_images(1, height=8, width=8).expand(count, -1, -1, -1)
    value = getattr(ALWAYS[name][0], name)
    some = value.model_copy(update={"probability": 0.3}) if isinstance(value, Jitter | Blur) else 0.3
    views = render(images, Augment(**{name: some}), draw_key(count), 8)
    changed = (views != images.float() / 255).flatten(1).any(dim=1).sum().item()
    assert stats.binomtest(changed, count, 0.3).pvalue > 1e-3


def test_an_operation_more_leaves_the_draws_of_the_others_unchanged():
    images, key = draw_images(), draw_key()
    before = EVERYTHING.model_copy(update={"solarize": 0.0})
    views = render(images, before, key, 24)
    solarized = render(images, before.model_copy(update={"solarize": 1.0}), key, 24)
    assert torch.equal(solarized, torch.where(views >= 0.5, 1 - views, views))
    flipped, plain = (render(images, Augment(crop=(0.2, 1.0), flip=flip), key, 24) for flip in (1.0, 0.0))
    torch.testing.assert_close(flipped, plain.flip(-1), rtol=0, atol=1e-6)


def test_factors_and_orders_are_drawn_uniformly_per_image(monkeypatch):
    drawn = {}
    monkeypatch.setattr(
        photometry,
        "jitter",
        lambda images, _, factors, order, active: drawn.update(factors=factors, order=order) or images,
    )
    count = 5000
    render(draw_images(1, height=8, width=8).expand(count, -1, -1, -1), Augment(jitter=COLOURS), draw_key(count), 8)
    for factors, (low, high) in zip(drawn["factors"].T, [(0.6, 1.4)] * 3 + [(-0.1, 0.1)], strict=True):
        assert stats.kstest(factors.numpy(), stats.uniform(low, high - low).cdf).pvalue > 1e-3
    _, counts = torch.unique(drawn["order"], dim=0, return_counts=True)
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_angles_are_drawn_from_both_sides():
    ramp = torch.arange(32).mul(8).to(torch.uint8).expand(2000, 1, 32, 32)  # brighter to the right
    views = render(ramp, Augment(rotate=20), draw_key(2000), 32)[:, 0, 12:20, 12:20].double()
    rise = (views[:, :1, :] - views[:, -1:, :]).mean(dim=(1, 2))
    run = (views[:, :, -1:] - views[:, :, :1]).mean(dim=(1, 2))
    angles = torch.atan2(rise, run).rad2deg()
    assert stats.kstest(angles.abs().numpy(), stats.uniform(0, 20).cdf).pvalue > 1e-3
    assert stats.binomtest(int((angles > 0).sum()), 2000, 0.5).pvalue > 1e-3


def test_views_keep_their_precision_under_autocast():
    images, key = draw_images(), draw_key()
    crops = images[:, :, :16, :16]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rendered, finished = render(images, EVERYTHING, key, 16), finish(crops, EVERYTHING, key)
    assert torch.equal(rendered, render(images, EVERYTHING, key, 16))
    assert torch.equal(finished, finish(crops, EVERYTHING, key))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_views_are_the_same_on_cuda():
    images, key = draw_images(), draw_key()
    on_cuda = render(images.cuda(), EVERYTHING, Key(key.seed, key.step, key.rows.cuda(), key.view), 24)
    torch.testing.assert_close(on_cuda.cpu(), render(images, EVERYTHING, key, 24), rtol=0, atol=1e-4)
