"""From rows to batches of views, as a function of (seed, step) and of nothing that happened before.

Images take one of two paths, which give the same views up to the rounding of crops to 8 bits:

* resident: the pixels of the whole data set lie on the device as one tensor, and views are rendered there. Taken
  for images of one size that need at most a quarter of the device's memory, and on a CPU at most 4 GiB.
* streaming: workers decode each image once per batch and hand over uint8 crops, one per view; the device does the rest.
"""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa
import torch
from torch import Tensor

from headstart.contracts import Batch, Objects
from headstart.data.images import Decoded, decode_all
from headstart.data.index import DataSet
from headstart.data.sampling import EveryImage, Sampler
from headstart.data.schedule import InOrder, Steps
from headstart.data.streaming import TRIES, Crops, read_parts
from headstart.data.targets import ObjectsOf, Targets, all_masks
from headstart.errors import UserError
from headstart.views import PRESETS, Augment, Key, finish, finish_masks, render, render_masks, view_objects

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of RGB in 0..1; torchvision's and timm's weights expect them
IMAGENET_STD = (0.229, 0.224, 0.225)

_GREY_MEAN, _GREY_STD = 0.449, 0.226  # their means, for channels of which nothing is known

_MAX_BAD = 0.01  # share of the rows that may fail to decode


class ViewLoader:
    """Batches of views for the steps start … stop - 1, in order.

    Each step is cut into ``parts`` consecutive parts, and each part into ``world`` consecutive pieces, of which this
    process gets the one of its rank. The batches depend on neither the number of workers nor on the first step.

    An image that cannot be decoded is replaced by the next one of ``rows`` that can, and listed in ``bad``. An image
    that a sampler draws twice in a step gets other views each time.

    Attributes:
        bad: why an image could not be decoded, by its path.
    """

    def __init__(
        self,
        *,
        dataset: DataSet,
        rows: Tensor,
        augments: tuple[Augment, ...],
        image_size: int,
        batch_size: int,
        stop: int,
        start: int = 0,
        parts: int = 1,
        rank: int = 0,
        world: int = 1,
        seed: int = 0,
        sampler: Sampler | None = None,
        labels: Tensor | None = None,
        targets: Targets = "labels",
        workers: int = 0,
        device: torch.device | str = "cpu",
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """Check the settings; nothing is read before the first batch.

        Args:
            dataset: the data.
            rows: the rows to draw from, int64.
            augments: how each view is made; a batch has one view per augment.
            image_size: the side of the views, in pixels, of which an augment may ask for a share.
            batch_size: images per step, over all parts and processes; with a sampler, as it counts them.
            stop: the step after the last one.
            start: the first step.
            parts: how many batches a step is cut into, to accumulate gradients over.
            rank: the number of this process.
            world: how many processes there are.
            seed: of the order and the views.
            sampler: draws positions in ``rows`` for each step, in ``parts * world`` pieces; None draws every image once
                per epoch.
            labels: what the batches show instead of the data set's own labels, int64, one for each of its images.
            targets: what the batches show beside the views: class numbers, or of a single view its masks or objects.
            workers: processes that decode; 0 decodes in this one.
            device: where the views are made.
            mean: of each channel, subtracted from pixels in 0..1; None for those of ``normalisation``.
            std: of each channel, which they are then divided by; None for those of ``normalisation``.

        Raises:
            UserError: the batch is larger than the data, or cannot be cut evenly.
        """
        sampler = sampler or EveryImage(len(rows), batch_size, seed, parts * world)
        assert sampler.batch_size == batch_size
        schedule = Steps(sampler, start, stop, parts, rank, world)
        assert targets == "labels" or len(augments) == 1
        assert {"labels": True, "masks": dataset.mask_values, "objects": dataset.objects is not None}[targets]
        masks = targets == "masks"
        self._crops = Crops(dataset, rows, augments, image_size, seed, schedule, replace=True, masks=masks)
        self._labels = dataset.labels if labels is None else labels
        assert len(self._labels) == dataset.count
        self._objects = dataset.objects if targets == "objects" else None
        self._options = (workers, torch.device(device), *mean_and_deviation(mean, std, dataset))
        self.bad: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._crops)

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self._crops, self._labels, self.bad, *self._options, objects=self._objects)


def normalisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the deviation of each channel that backbones expect: those of ImageNet for three channels."""
    if channels == len(IMAGENET_MEAN):
        return IMAGENET_MEAN, IMAGENET_STD
    return (_GREY_MEAN,) * channels, (_GREY_STD,) * channels


def images_at(
    dataset: DataSet,
    rows: Tensor,
    image_size: int,
    *,
    batch_size: int = 256,
    workers: int = 0,
    device: torch.device | str = "cpu",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Iterator[Batch]:
    """Yield the images of the rows as they are, in order: the short side resized and the centre cropped, normalised.

    Images that cannot be decoded are left out; ``Batch.rows`` says which are there.

    Args:
        dataset: the data.
        rows: which images, int64.
        image_size: the side of the images, in pixels.
        batch_size: images per batch; the last one may be smaller.
        workers: processes that decode; 0 decodes in this one.
        device: where the batches are made.
        mean: of each channel, subtracted from pixels in 0..1; None for those of ``normalisation``.
        std: of each channel, which they are then divided by; None for those of ``normalisation``.

    Yields:
        Batches with one view.

    Raises:
        UserError: more than 1 % of the images cannot be decoded.
    """
    schedule = InOrder(len(rows), batch_size)
    crops = Crops(dataset, rows, (PRESETS["none"],), image_size, 0, schedule, replace=False)
    usual = mean_and_deviation(mean, std, dataset)
    yield from _batches(crops, dataset.labels, {}, workers, torch.device(device), *usual)


def mean_and_deviation(
    mean: Sequence[float] | None, std: Sequence[float] | None, dataset: DataSet
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return what is given, and those of ``normalisation`` for the data set where it is None."""
    usual_mean, usual_std = normalisation(dataset.pixels.channels)
    return tuple(usual_mean if mean is None else mean), tuple(usual_std if std is None else std)


@lru_cache(maxsize=2)
def resident(dataset: DataSet, device: torch.device) -> Decoded | None:
    """Return the pixels of the whole data set on the device, or None if they are to be streamed.

    The last two are kept, because training and evaluation read the same data in turn.
    """
    if dataset.images is not None:
        return Decoded(dataset.images.to(device), {})
    height, width = dataset.sizes[0].tolist()
    depth = dataset.pixels.channels * (4 if dataset.pixels.range else 1) + (2 if dataset.mask_values else 0)
    size = depth * height * width  # bytes, with those of the mask
    if (dataset.sizes != dataset.sizes[0]).any() or size * dataset.count > _room(device):
        return None
    files = (dataset.file(row) for row in range(dataset.count))
    decoded = decode_all(files, dataset.count, height, width, dataset.pixels)
    return Decoded(decoded.images.to(device), decoded.failures)


@lru_cache(maxsize=2)
def resident_masks(dataset: DataSet, device: torch.device) -> Decoded:
    """Return the masks of a data set whose images are resident, on the device."""
    masks = all_masks(dataset)
    return Decoded(masks.images.to(device), masks.failures)


def _room(device: torch.device) -> int:
    """Return how many bytes of images may be kept on the device."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory) // 4
    return min(4 << 30, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)


class _Shown(NamedTuple):
    """A batch before normalisation: which images, their views, and the masks or objects in the first of these."""

    rows: Tensor
    views: list[Tensor]
    masks: Tensor | None = None
    objects: tuple[Objects, ...] = ()


def _batches(
    crops: Crops,
    labels: Tensor,
    bad: dict[str, str],
    workers: int,
    device: torch.device,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    *,
    objects: pa.Table | None = None,
) -> Iterator[Batch]:
    found = ObjectsOf(objects, device) if objects is not None else None
    store = resident(crops.dataset, device)
    shown = _rendered(crops, store, bad, found) if store else _finished(crops, bad, workers, device, found)
    offset = torch.tensor(mean, device=device).view(-1, 1, 1)
    scale = torch.tensor(std, device=device).view(-1, 1, 1)
    labels = labels.to(device)
    for rows, views, masks, boxes in shown:
        if len(rows):
            seen = labels[rows] if masks is None else masks
            yield Batch(tuple((view - offset) / scale for view in views), seen, rows, boxes)


def _rendered(crops: Crops, store: Decoded, bad: dict[str, str], objects: ObjectsOf | None) -> Iterator[_Shown]:
    """Yield batches whose pixels lie on the device."""
    masks = resident_masks(crops.dataset, store.images.device) if crops.masks else None
    reasons = {**(masks.failures if masks else {}), **store.failures}
    broken = torch.isin(crops.rows, torch.tensor(list(reasons), dtype=torch.int64))
    failures = {crops.dataset.paths[row].as_py(): reasons[row] for row in crops.rows[broken].tolist()}
    _record(failures, bad, len(crops.rows))
    good = (~broken).nonzero().squeeze(1)
    for index in range(len(crops)):
        step, positions, repeats = crops.schedule.at(index)
        if crops.replace:  # by the next good one
            positions = good[torch.searchsorted(good, positions) % len(good)]
        else:
            positions, repeats = positions[~broken[positions]], repeats[~broken[positions]]
        rows = crops.rows[positions].to(store.images.device)
        images, boxes = store.images[rows], crops.boxes(step, rows, repeats) if objects else None
        keys = [crops.key(step, rows, repeats, view) for view in range(len(crops.augments))]
        yield _Shown(
            rows,
            [render(images, *view) for view in zip(crops.augments, keys, crops.sides, strict=True)],
            render_masks(masks.images[rows], crops.augments[0], keys[0], crops.sides[0]) if masks else None,
            _objects(crops, objects, rows, boxes, keys[0]),
        )


def _finished(
    crops: Crops, bad: dict[str, str], workers: int, device: torch.device, objects: ObjectsOf | None
) -> Iterator[_Shown]:
    """Yield batches whose crops come from workers."""
    for part in read_parts(crops, workers, pin=device.type == "cuda"):
        _record(part.failures, bad, len(crops.rows))
        rows = part.rows.to(device, non_blocking=True)
        pixels = [crop.to(device, non_blocking=True) for crop in part.crops]
        keys = [crops.key(part.step, rows, part.repeats, view) for view in range(len(crops.augments))]
        boxes = crops.boxes(part.step, part.rows, part.repeats).to(device) if objects else None
        masks = part.masks.to(device, non_blocking=True) if part.masks is not None else None
        yield _Shown(
            rows,
            [finish(*view) for view in zip(pixels, crops.augments, keys, strict=True)],
            finish_masks(masks, crops.augments[0], keys[0]) if masks is not None else None,
            _objects(crops, objects, rows, boxes, keys[0]),
        )


def _objects(
    crops: Crops, objects: ObjectsOf | None, rows: Tensor, boxes: Tensor | None, key: Key
) -> tuple[Objects, ...]:
    """Return the objects in the first views, none where they are not wanted."""
    if objects is None or boxes is None or not len(rows):
        return ()
    return view_objects(objects(rows), boxes[0], crops.augments[0], key, crops.sides[0])


def _record(failures: dict[str, str], bad: dict[str, str], count: int) -> None:
    """Add failures to the bad images; raise a UserError when these are too many of the rows."""
    bad.update(failures)
    if len(bad) > _MAX_BAD * count or len(failures) >= TRIES:
        listed = ", ".join(f"{path} ({reason})" for path, reason in list(bad.items())[:5])
        raise UserError(f"data: {len(bad)} of {count} images cannot be decoded (allowed: {_MAX_BAD:.0%}): {listed}")
