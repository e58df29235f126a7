import numpy as np
import pytest

from headstart.data.crops import background_boxes, crop_boxes, draw_sides, overlaps

SIZES = np.array([[100, 200]])  # height, width


def crop(*box, context=0.2, min_size=32, size=(100, 200)):
    return crop_boxes(np.array([box], np.float32), np.array([size]), context, min_size)[0].tolist()


def test_an_object_is_in_the_middle_with_context_on_each_side():
    assert crop(100, 40, 140, 60) == [92, 22, 148, 78]  # 40 + 2 · 8 wide, around (120, 50)
    assert crop(100, 40, 140, 60, context=0.0) == [100, 30, 140, 70]


def test_a_small_object_gets_the_smallest_square():
    assert crop(100, 40, 104, 44) == [86, 26, 118, 58]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((0, 40, 10, 50), [0, 29, 32, 61]),
        ((190, 40, 200, 50), [168, 29, 200, 61]),
        ((90, 0, 100, 10), [79, 0, 111, 32]),
        ((190, 95, 200, 100), [168, 68, 200, 100]),
    ],
)
def test_at_the_border_the_square_moves_inwards(box, expected):
    assert crop(*box) == expected


def test_in_a_small_picture_it_is_the_largest_square_that_fits():
    assert crop(0, 0, 190, 90) == [45, 0, 145, 100]
    assert crop(2, 2, 6, 6, size=(20, 30)) == [0, 0, 20, 20]


def test_every_square_is_whole_inside_and_around_its_object():
    generator = np.random.default_rng(0)
    sizes = generator.integers(40, 400, (500, 2))
    corners = generator.uniform(0, 1, (500, 2, 2)) * sizes[:, None, ::-1]
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    for context, min_size in ((0.0, 1), (0.2, 32), (1.5, 96)):
        squares = crop_boxes(boxes, sizes, context, min_size)
        sides = squares[:, 2:] - squares[:, :2]
        assert (sides[:, 0] == sides[:, 1]).all()
        assert (squares[:, :2] >= 0).all()
        assert (squares[:, 2:] <= sizes[:, ::-1]).all()
        longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
        wanted = np.maximum(longer * (1 + 2 * context), min_size)
        fits = wanted <= sizes.min(axis=1) - 1
        assert (np.abs(sides[fits, 0] - wanted[fits]) <= 1).all()
        assert (squares[fits, :2] <= boxes[fits, :2] + 1).all()
        assert (squares[fits, 2:] >= boxes[fits, 2:] - 1).all()


def test_overlaps_are_those_of_a_naive_loop():
    generator = np.random.default_rng(0)
    squares, boxes = (np.sort(generator.integers(0, 9, (40, 2, 2)), axis=1).reshape(40, 4) for _ in range(2))

    def share(a, b):
        across = range(max(a[0], b[0]), min(a[2], b[2]))
        return len(across) * len(range(max(a[1], b[1]), min(a[3], b[3]))) > 0

    assert overlaps(squares, boxes).tolist() == [[share(a, b) for b in boxes.tolist()] for a in squares.tolist()]


def test_backgrounds_touch_nothing_and_keep_the_sizes():
    generator = np.random.default_rng(1)
    sizes = np.array([[300, 400]] * 6)
    corners = generator.uniform(0, 300, (6, 8, 2))
    objects = [np.concatenate([corner, corner + 20.5], axis=1) for corner in corners]
    sides = generator.integers(32, 60, 200)
    pictures, boxes = background_boxes(sides, sizes, objects, 0)
    assert (boxes[:, 2] - boxes[:, 0]).tolist() == (boxes[:, 3] - boxes[:, 1]).tolist() == sides.tolist()
    for picture, box in zip(pictures, boxes, strict=True):
        grid = np.zeros((300, 400), bool)
        for left, top, right, bottom in objects[picture]:
            grid[int(top) : int(np.ceil(bottom)), int(left) : int(np.ceil(right))] = True
        left, top, right, bottom = box
        assert 0 <= left < right <= 400
        assert 0 <= top < bottom <= 300
        assert not grid[top:bottom, left:right].any()
    assert np.bincount(pictures).min() >= 25  # the pictures take turns


def test_backgrounds_are_everywhere():
    _, boxes = background_boxes(np.full(4000, 10), np.array([[20, 30]]), [np.zeros((0, 4))], 0)
    counts = np.unique(boxes[:, :2], axis=0, return_counts=True)[1]
    expected = 4000 / (11 * 21)
    assert len(counts) == 11 * 21
    assert ((counts - expected) ** 2 / expected).sum() < 300  # chi-square with 230 degrees of freedom, p = 0.001


def test_where_there_is_no_room_other_pictures_are_used():
    full, free = np.array([[0.0, 0.0, 60.0, 60.0]]), np.array([[0.0, 0.0, 5.0, 5.0]])
    sizes = np.array([[60, 60], [60, 60], [20, 20]])
    pictures, _ = background_boxes(np.full(30, 30), sizes, [full, free, free[:0]], 0)
    assert pictures.tolist() == [1] * 30
    pictures, boxes = background_boxes(np.full(30, 30), sizes[[0, 2]], [full, free[:0]], 0)
    assert (len(pictures), boxes.shape) == (0, (0, 4))
    assert len(background_boxes(np.full(3, 30), sizes[:0], [], 0)[0]) == 0


def test_backgrounds_are_a_function_of_the_seed():
    made = [background_boxes(np.full(9, 10), SIZES, [np.zeros((0, 4))], seed)[1].tolist() for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


def test_sides_are_drawn_evenly():
    sides = np.array([5, 6, 7])
    assert sorted(draw_sides(sides, 3, 0)) == [5, 6, 7]
    assert sorted(draw_sides(sides, 7, 0))[:6:2] == [5, 6, 7]
    assert len(set(draw_sides(np.arange(9), 4, 0).tolist())) == 4
    assert len(draw_sides(sides[:0], 4, 0)) == 0
