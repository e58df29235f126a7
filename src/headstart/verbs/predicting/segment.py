"""The class of each pixel, as masks that can be opened again beside the images."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from headstart import runs
from headstart.data.images import THREADS
from headstart.data.letterbox import letterboxed, restored
from headstart.data.masks import CLASSES, MASKS, VOID
from headstart.tasks.segmentation import Segmenter
from headstart.verbs.exporting.source import Source
from headstart.verbs.predicting import pictures
from headstart.verbs.predicting.work import Work, named, table

OVERLAYS = "overlays"


def segment(work: Work) -> Mapping[str, int]:
    """Write the mask of each image, its shares of each class and, if wanted, an overlay; return pixels by class."""
    classes, images = work.source.classes, work.images
    values = written_values(classes, work.source.result["mask_values"])
    (work.folder / CLASSES).write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
    (work.folder / MASKS).mkdir()
    segmenter = build_segmenter(work.source).to(work.fabric.device)
    counts = np.zeros(len(classes), np.int64)
    rows = torch.arange(images.count)
    batches = letterboxed(images, rows, work.source.begun.image_size, bad=work.reasons, **work.reading)
    with (
        table(work.folder, ["image", *(f"share_{name}" for name in classes)]) as writer,
        ThreadPoolExecutor(THREADS) as pool,
    ):
        for batch in batches:
            with torch.inference_mode(), work.fabric.autocast():
                shares = segmenter.probabilities(batch.images).float().cpu()
            found = batch.rows.cpu()
            one = partial(_write, work, values)
            for row, pixels in zip(found.tolist(), pool.map(one, found.tolist(), batch.sizes, shares), strict=True):
                counts += pixels
                shown = (f"{share:.6g}" for share in pixels / pixels.sum())
                writer.writerow([images.paths[row].as_py(), *shown])
            work.done(found)
    return named(classes, counts)


def build_segmenter(source: Source) -> Segmenter:
    """Return the segmenter of a RUN with its weights, in evaluation mode."""
    segmenter = Segmenter(
        source.begun.backbone,
        classes=len(source.classes),
        decoder=source.config["decoder"],
        loss=source.config["loss"],
    )
    segmenter.head.load_state_dict(safetensors.torch.load_file(source.folder / runs.HEAD))
    return segmenter.eval()


def written_values(classes: Sequence[str], mask_values: Sequence[Sequence[int]]) -> np.ndarray:
    """Return the value that is written for each class, such that any mask with ``classes.txt`` beside it is clear.

    Names that are numbers are the values themselves, 0 and 255 stay what they are, and all others are positions. The
    values of the masks that were learned from would not always do: trimaps of 1, 2 and 3 in which 3 does not occur are
    taken for positions, and so are those of classes that were made of several.

    >>> written_values(["background", "pet"], [[0], [255]]), written_values(["background", "pet"], [[2], [1, 3]])
    (array([  0, 255]), array([0, 1]))
    """
    if all(name.isdecimal() and int(name) < VOID for name in classes):
        return np.array([int(name) for name in classes])
    foreground = [values[0] for values in mask_values] == [0, VOID]
    return np.array([0, VOID] if foreground else range(len(classes)))


def likeliest(shares: Tensor, size: tuple[int, int], native: tuple[int, int]) -> Tensor:
    """Return the likeliest class of each pixel of an image, int16 ``[h w]``; of equal ones the first.

    Class by class, because the shares of all of them at the size of a large image may not fit into memory.

    Args:
        shares: of each class on the canvas, float ``[classes s s]``.
        size: height and width of the part of the canvas that is image.
        native: height and width of the image itself, in pixels.
    """
    best = restored(shares[:1], size, native)[0]
    classes = torch.zeros(native, dtype=torch.int16)
    for number in range(1, len(shares)):
        share = restored(shares[number : number + 1], size, native)[0]
        classes[share > best] = number
        best = torch.maximum(best, share)
    return classes


@torch.inference_mode()
def _write(work: Work, values: np.ndarray, row: int, size: Tensor, shares: Tensor) -> np.ndarray:
    """Write what is found in one image, and return how many pixels are of each class."""
    height, width = work.images.sizes[row].tolist()
    classes = likeliest(shares, (int(size[0]), int(size[1])), (height, width))
    save_mask(work.place(MASKS, row, ".png"), values[classes.numpy()])
    if work.settings.draw:
        pictures.save_overlay(work.images, row, classes, work.source.classes, work.place(OVERLAYS, row, ".jpg"))
    return np.bincount(classes.numpy().ravel(), minlength=len(shares))


def save_mask(path: Path, values: np.ndarray) -> None:
    """Write a mask ``[h w]`` as PNG, of 8 bits where they are enough, else of 16."""
    Image.fromarray(values.astype(np.uint8 if values.max(initial=0) <= np.iinfo(np.uint8).max else np.uint16)).save(
        path
    )
