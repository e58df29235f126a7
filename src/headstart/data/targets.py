"""What is learned beside an image: its mask or its objects."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from headstart.contracts import Objects
from headstart.data.images import THREADS, Decoded, DecodeError, check_size
from headstart.data.index import NO_LABEL, DataSet
from headstart.data.masks import read_mask

Targets = Literal["labels", "masks", "objects"]


def mask_of(dataset: DataSet, row: int) -> Tensor:
    """Return the class of each pixel of an image, int16 ``[h w]``; -1 where it is of no class.

    Raises:
        DecodeError: there is no mask, it is broken, or it is not of the image's size.
    """
    assert dataset.root is not None
    path = dataset.index["mask"][row].as_py()
    if path is None:
        raise DecodeError("no mask")
    try:
        mask = read_mask(dataset.root / path, dataset.mask_values)
        check_size(mask.shape, *dataset.sizes[row].tolist())
    except DecodeError as error:
        raise DecodeError(f"its mask {path}: {error}") from error
    return mask


def all_masks(dataset: DataSet) -> Decoded:
    """Return the masks of a data set whose images are of one size, int16 ``[n h w]``, and by row why one has none."""
    masks = torch.full((dataset.count, *dataset.sizes[0].tolist()), NO_LABEL, dtype=torch.int16)
    failures = dict[int, str]()

    def look(row: int) -> Tensor | str:
        try:
            return mask_of(dataset, row)
        except DecodeError as error:
            return str(error)

    with ThreadPoolExecutor(THREADS) as pool:
        for row, found in enumerate(pool.map(look, range(dataset.count))):
            if isinstance(found, str):
                failures[row] = found
            else:
                masks[row] = found
    return Decoded(masks, failures)


class ObjectsOf:
    """The objects of each image of a data set."""

    def __init__(self, objects: pa.Table, device: torch.device) -> None:
        columns = {name: np.from_dlpack(objects[name].combine_chunks()) for name in objects.column_names}
        self._images = torch.from_numpy(columns["image"].astype(np.int64)).to(device)
        self._labels = torch.from_numpy(columns["label"].astype(np.int64)).to(device)
        sides = [columns[side] for side in ("left", "top", "right", "bottom")]
        self._boxes = torch.from_numpy(np.stack(sides, axis=1).astype(np.float32)).to(device)

    def __call__(self, rows: Tensor) -> list[Objects]:
        """Return the objects of each of the rows, int64 ``[b]`` on the same device, in pixels of the image."""
        starts, ends = (torch.searchsorted(self._images, rows, right=right).tolist() for right in (False, True))
        spans = [slice(*span) for span in zip(starts, ends, strict=True)]
        return [Objects(self._boxes[span], self._labels[span]) for span in spans]
