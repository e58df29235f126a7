"""Masks and boxes go through crops, flips and rotations as torchvision and plain loops take them."""

import cmath
import math
from fractions import Fraction

import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as reference

from headstart.contracts import Objects
from headstart.views import Augment, Key, crop_boxes, finish_masks, nearest_crops, render_masks, view_objects
from headstart.views.geometry import rotate_nearest
from headstart.views.rendering import angles, flips

NEAREST = reference.InterpolationMode.NEAREST_EXACT
HEIGHT, WIDTH, COUNT = 45, 70, 24
EVERYTHING = Augment(crop=(0.1, 1.0), flip=0.5, flip_vertical=0.5, rotate=40)
AUGMENTS = {
    "crop": Augment(crop=(0.1, 1.0)),
    "centre": Augment(),
    "flips": Augment(crop=(0.3, 1.0), flip=0.5, flip_vertical=0.5),
    "everything": EVERYTHING,
}


def draw_masks(count=COUNT, height=HEIGHT, width=WIDTH):
    return torch.randint(-1, 300, (count, height, width), dtype=torch.int16, generator=torch.Generator().manual_seed(0))


def draw_key(count=COUNT, step=0):
    return Key(seed=7, step=step, rows=torch.arange(count))


def crops_of(augment, key):
    return crop_boxes(augment, key, torch.full((COUNT,), HEIGHT), torch.full((COUNT,), WIDTH))


@pytest.mark.parametrize("size", [1, 5, 16, 57, 128])
def test_nearest_crops_agree_with_a_loop(size):
    masks = draw_masks(3, 20, 30)
    boxes = torch.tensor([[0, 0, 20, 30], [3, 4, 16, 9], [19, 29, 1, 1]])
    for mask, box, crop in zip(masks, boxes.tolist(), nearest_crops(masks, boxes, size), strict=True):
        top, left, height, width = box
        rows, columns = (
            [start + math.floor((pixel + Fraction(1, 2)) * length / size) for pixel in range(size)]
            for start, length in ((top, height), (left, width))
        )
        assert crop.tolist() == [[mask[row, column] for column in columns] for row in rows]


@pytest.mark.parametrize("size", [7, 32, 61])
def test_nearest_crops_agree_with_torchvision(size):
    # odd sizes of crop times view: no centre of a pixel falls between two pixels, which float32 might round either way
    masks = draw_masks(4, 20, 30)
    boxes = torch.tensor([[0, 0, 19, 29], [3, 4, 17, 9], [19, 29, 1, 1], [1, 2, 13, 23]])
    for mask, box, crop in zip(masks, boxes.tolist(), nearest_crops(masks, boxes, size), strict=True):
        expected = reference.resized_crop(mask.float()[None], *box, [size, size], interpolation=NEAREST)
        assert torch.equal(crop.float(), expected[0])


@pytest.mark.parametrize("name", AUGMENTS)
def test_masks(name):
    masks, augment, key, size = draw_masks(), AUGMENTS[name], draw_key(), 33
    boxes = crops_of(augment, key)
    ours = render_masks(masks, augment, key, size)
    assert ours.dtype == torch.int64
    assert torch.equal(ours, finish_masks(nearest_crops(masks, boxes, size), augment, key))
    flip, upside_down = flips(augment, key)
    for place, mask in enumerate(masks):
        crop = nearest_crops(mask[None], boxes[place, None], size)
        expected = tv_tensors.Mask(crop.to(torch.int32))
        expected = reference.horizontal_flip(expected) if flip[place] else expected
        expected = reference.vertical_flip(expected) if upside_down[place] else expected
        if augment.rotate:
            expected = reference.rotate(expected + 1, float(angles(augment, key)[place]), fill=0) - 1
        same = (ours[place] == expected[0]).double().mean()
        assert same == 1 if not augment.rotate else same > 0.99  # rounding may decide between two pixels


@pytest.mark.parametrize("shape", [(33, 33), (24, 42)])  # else 90 degrees would put centres between two pixels
def test_rotated_masks(shape):
    masks = draw_masks(6, *shape)
    degrees = torch.tensor([0.0, 15.0, -30.0, 90.0, 180.0, 7.3])
    for mask, rotated, angle in zip(masks, rotate_nearest(masks, degrees, -1), degrees.tolist(), strict=True):
        expected = reference.rotate(tv_tensors.Mask((mask + 1)[None].int()), angle, fill=0)[0] - 1
        assert (rotated == expected).double().mean() > 0.99
    assert torch.equal(rotate_nearest(masks, degrees, -1)[0], masks[0])
    assert torch.equal(rotate_nearest(masks, degrees, -1)[4], masks[4].flip(0, 1))


def draw_objects():
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    drawn = []
    for place in range(COUNT):
        corners = torch.rand(place % 7, 2, 2, generator=generator).sort(dim=1).values.flatten(1)
        corners[:, 2:] += 0.02  # of the side, so that no box is empty
        drawn.append(Objects(corners.clamp(max=1) * scale, torch.arange(len(corners))))
    return drawn


@pytest.mark.parametrize("name", ["crop", "centre", "flips"])
@pytest.mark.parametrize("size", [20, 96])
def test_boxes(name, size):
    augment, key, objects = AUGMENTS[name], draw_key(), draw_objects()
    crops = crops_of(augment, key)
    flip, upside_down = flips(augment, key)
    kept = dropped = 0
    for place, view in enumerate(view_objects(objects, crops, augment, key, size)):
        top, left, height, width = crops[place].tolist()
        boxes = tv_tensors.BoundingBoxes(objects[place].boxes, format="XYXY", canvas_size=(HEIGHT, WIDTH))
        expected = reference.resized_crop(boxes, top, left, height, width, [size, size])
        expected = reference.horizontal_flip(expected) if flip[place] else expected
        expected = reference.vertical_flip(expected) if upside_down[place] else expected
        right = []
        for number, (one, before) in enumerate(zip(expected.tolist(), objects[place].boxes.tolist(), strict=True)):
            across, down = (max(0, one[side + 2] - one[side]) for side in (0, 1))
            whole = (before[2] - before[0]) * (before[3] - before[1]) * size / width * size / height
            if across >= 2 and down >= 2 and across * down >= whole / 4:
                right.append(number)
        assert view.labels.tolist() == right
        torch.testing.assert_close(view.boxes, expected.as_subclass(torch.Tensor)[right], rtol=0, atol=1e-4)
        kept, dropped = kept + len(right), dropped + len(boxes) - len(right)
    assert kept > 10
    assert dropped > 5


def test_rotated_boxes():
    augment, key, size = Augment(crop=(0.9, 1.0), rotate=90), draw_key(), 64
    crops = crops_of(augment, key)
    middle = crops[:, [1, 0]] + crops[:, [3, 2]] / 2
    boxes = torch.cat([middle - torch.tensor([9, 4]), middle + torch.tensor([3, 7])], dim=1)  # stays within the view
    objects = [Objects(box[None], torch.tensor([place])) for place, box in enumerate(boxes)]
    scale = size / crops[:, [3, 2, 3, 2]].float()
    for place, view in enumerate(view_objects(objects, crops, augment, key, size)):
        moved = (boxes[place] - crops[place, [1, 0, 1, 0]]) * scale[place]
        before = tv_tensors.BoundingBoxes(moved[None], format="XYXY", canvas_size=(size, size))
        expected = reference.rotate(before, float(angles(augment, key)[place]))
        torch.testing.assert_close(view.boxes, expected.as_subclass(torch.Tensor), rtol=0, atol=1e-3)
        assert view.labels.tolist() == [place]


def test_what_rotation_moves_out_of_the_view_counts_as_lost():
    augment, key, count = Augment(rotate=180), draw_key(400), 400
    crops, box = torch.tensor([[0, 0, 40, 40]]).expand(count, 4), [0.0, 0, 7.5, 7.5]
    objects = [Objects(torch.tensor([box, [18, 18, 22, 22]]), torch.tensor([5, 6]))] * count
    small = 0
    for view, angle in zip(
        view_objects(objects, crops, augment, key, 40), angles(augment, key).double().tolist(), strict=True
    ):
        turn = cmath.rect(1, -math.radians(angle))  # rows grow downwards
        corners = [complex(x - 20, y - 20) * turn + 20 + 20j for x in box[::2] for y in box[1::2]]
        sides = [[corner.real for corner in corners], [corner.imag for corner in corners]]
        whole = math.prod(max(side) - min(side) for side in sides)
        left = [min(40, max(side)) - max(0, min(side)) for side in sides]
        share = math.prod(left) / whole if min(left) > 0 else 0
        kept = share >= 0.25 and min(left) >= 2
        assert view.labels.tolist() == ([5, 6] if kept else [6])
        small += share < 0.25 and min(left) >= 2
    assert small > 5


def test_images_without_objects():
    none = Objects(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    key = draw_key(2)
    for augment in AUGMENTS.values():
        views = view_objects([none, none], torch.tensor([[0, 0, 9, 9]] * 2), augment, key, 8)
        assert [(tuple(view.boxes.shape), tuple(view.labels.shape)) for view in views] == [((0, 4), (0,))] * 2
