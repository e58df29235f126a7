"""Where to cut squares out of pictures: around labelled objects, and where none of them is."""

from collections.abc import Sequence

import numpy as np

from headstart.randomness import mix

_TRIES = (20, 200)  # places that are drawn in a picture at once, before it counts as having no room
_PICTURES = 100  # that are tried for one background crop


def crop_boxes(boxes: np.ndarray, sizes: np.ndarray, context: float, min_size: int) -> np.ndarray:
    """Return the squares around objects: left, top, right and bottom in whole pixels, int64 ``[n 4]``.

    A square has the object in its middle, unless it has to move to stay inside of the picture. Where the picture is
    smaller than the square, it is the largest one that fits.

    Args:
        boxes: left, top, right and bottom of each object in pixels, ``[n 4]``.
        sizes: height and width of the picture of each object in pixels, ``[n 2]``.
        context: padding on each side, as a share of the object's longer side.
        min_size: smallest side of a square in pixels.
    """
    corners, far = boxes[:, :2].astype(np.float64), boxes[:, 2:].astype(np.float64)
    longer = (far - corners).max(axis=1, initial=0)
    sides = np.maximum(np.ceil(longer * (1 + 2 * context) - 1e-6), min_size)  # 0.1 + 0.2 is a little more than 0.3
    sides = np.minimum(sides, sizes.min(axis=1))[:, None]
    starts = np.floor((corners + far - sides) / 2 + 0.5)
    starts = np.clip(starts, 0, sizes[:, ::-1] - sides)
    return np.concatenate([starts, starts + sides], axis=1).astype(np.int64)


def draw_sides(sides: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return that many sides, each of those given as often as every other, up to one; shuffled."""
    generator = np.random.default_rng(seed)
    rounds = [generator.permutation(sides) for _ in range(-(-count // len(sides)))] if len(sides) else [sides]
    return np.concatenate([sides[:0], *rounds])[:count]


def background_boxes(
    sides: np.ndarray, sizes: np.ndarray, objects: Sequence[np.ndarray], seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return squares at random places that overlap no object; fewer than asked for, where there is no room.

    The pictures take turns. Where one has no room for a square, or none was found, the next ones are tried.

    Args:
        sides: of each square in pixels, int64 ``[n]``.
        sizes: height and width of each picture in pixels, ``[p 2]``.
        objects: the boxes of each picture's objects in pixels, ``[m 4]`` each.
        seed: of the places.

    Returns:
        The picture of each square, int64 ``[k]``, and its left, top, right and bottom, int64 ``[k 4]``.
    """
    order = np.random.default_rng(mix(seed, 0)).permutation(len(sizes))
    pictures, boxes = list[int](), list[np.ndarray]()
    for number, side in enumerate(sides):
        generator = np.random.default_rng(mix(seed, 1, number))
        for turn in range(min(_PICTURES, len(order))):
            picture = int(order[(number + turn) % len(order)])
            box = _free_box(int(side), sizes[picture], objects[picture], generator)
            if box is not None:
                pictures.append(picture)
                boxes.append(box)
                break
    return np.array(pictures, np.int64), np.array(boxes, np.int64).reshape(-1, 4)


def overlaps(squares: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return which squares ``[n 4]`` share some area with which boxes ``[m 4]``: bool ``[n m]``."""
    begin = np.maximum(squares[:, None, :2], boxes[None, :, :2])
    end = np.minimum(squares[:, None, 2:], boxes[None, :, 2:])
    return np.asarray((begin < end).all(axis=2))


def _free_box(side: int, size: np.ndarray, objects: np.ndarray, generator: np.random.Generator) -> np.ndarray | None:
    height, width = size
    if side > min(height, width):
        return None
    for tries in _TRIES:
        left = generator.integers(0, width - side + 1, tries)
        top = generator.integers(0, height - side + 1, tries)
        squares = np.stack([left, top, left + side, top + side], axis=1)
        free = squares[~overlaps(squares, objects).any(axis=1)]
        if len(free):
            return np.asarray(free[0])
    return None
