"""A segmenter with its images and masks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, NamedTuple, final

import torch
from torch import Tensor

from headstart import runs
from headstart.data.images import THREADS, DecodeError
from headstart.data.letterbox import letterboxed, restored
from headstart.data.streaming import decoded
from headstart.data.targets import Targets, mask_of
from headstart.errors import UserError
from headstart.evaluation.segmentation import (
    class_scores,
    image_scores,
    image_shares,
    pixel_confusion,
    segmentation_scores,
)
from headstart.losses.segmentation import VOID
from headstart.tasks.segmentation import Segmenter
from headstart.verbs import figures, overlays, resolve
from headstart.verbs.finetuning.job import Job, Look

MAX_BAD = 0.01  # share of the images that may be unreadable
LEAST_CHANCE = 1e-7  # about the resolution of float32 at 1: a sure mistake costs much, but not everything
DRAWN = 8  # examples: the three worst, two from the middle, the three best


class Answer(NamedTuple):
    """What a segmenter says of an image.

    Attributes:
        row: the image's row number in its data set.
        chances: the probability of each class, float ``[classes h w]``, in the image's own pixels.
        truth: the class of each pixel, int64 ``[h w]``; -1 for void.
    """

    row: int
    chances: Tensor
    truth: Tensor


class Scored(NamedTuple):
    """What was counted in images: all pixels ``[classes classes]``, the images' rows, and shares of each by name."""

    confusion: Tensor
    rows: list[int]
    shares: dict[str, Tensor]


@final
class SegmentJob(Job[Segmenter]):
    """A segmenter, and the masks that it learns from."""

    score: ClassVar[str] = "iou"
    targets: ClassVar[Targets] = "masks"

    def look(self) -> Look:
        """Return the IoU of the validation images, and the mean cross entropy of their pixels.

        Both are of whole images in their own pixels, so that they can be compared between image sizes. The cross
        entropy is that of the probabilities, whatever loss the training has.
        """
        count = len(self.data.classes)
        confusion, surprise = torch.zeros(count, count, dtype=torch.int64), 0.0
        for answer in self._answers(self.splits.val):
            confusion += pixel_confusion(answer.truth, answer.chances.argmax(0), count).cpu()
            surprise += _surprise(answer)
        return Look(segmentation_scores(confusion)["iou"], surprise / max(int(confusion.sum()), 1))

    def finish(self, folder: Path, *, lean: bool) -> dict[str, Any]:
        """Return the scores of the test images, over all pixels, of each class and as means over images."""
        scored = self._scored(self.splits.test)
        if not lean:
            panels = {"loss": ["loss", "val_loss"], "share": ["train_pixel_accuracy", "val_iou"]}
            figures.curves(folder / "plots" / "curves.png", runs.read_metrics(folder), panels)
        self._draw(folder / "plots" / "predictions.png", scored)
        by_class = class_scores(scored.confusion)
        return {
            "scores": {**segmentation_scores(scored.confusion), **image_scores(scored.shares)},
            "classes": list(self.data.classes),
            "mask_values": [list(values) for values in self.data.mask_values],
            "per_class": {name: [round(value, 6) for value in values.tolist()] for name, values in by_class.items()},
            "confusion": scored.confusion.tolist(),
        }

    def _scored(self, rows: Tensor) -> Scored:
        count = len(self.data.classes)
        total, seen, shares = torch.zeros(count, count, dtype=torch.int64), list[int](), list[dict[str, float]]()
        for answer in self._answers(rows):
            confusion = pixel_confusion(answer.truth, answer.chances.argmax(0), count).cpu()
            total += confusion
            seen.append(answer.row)
            shares.append(image_shares(confusion))
        columns = {name: torch.tensor([one[name] for one in shares], dtype=torch.float64) for name in shares[0]}
        return Scored(total, seen, columns)

    def _draw(self, path: Path, scored: Scored) -> None:
        """Draw the worst, the median and the best predictions by their IoU."""
        shares = scored.shares["image_iou"]
        chosen = {scored.rows[position]: float(shares[position]) for position in extremes(shares, DRAWN)}
        shown = []
        for answer in self._answers(torch.tensor(list(chosen))):
            name = PurePosixPath(self.data.paths[answer.row].as_py()).name
            note = f"prediction, IoU {chosen[answer.row]:.2f}"
            image, predicted = decoded(self.data, answer.row).to(answer.truth.device), answer.chances.argmax(0)
            shown.append(overlays.example(image, answer.truth, predicted, title=name, note=note))
        overlays.examples(path, shown, self.data.classes)

    def _answers(self, rows: Tensor) -> Iterator[Answer]:
        """Yield what the task, in evaluation, says of those of the rows that can be read.

        Raises:
            UserError: more than 1 % of the images or masks cannot be read.
        """
        settings, bad = self.settings, dict[str, str]()
        batches = letterboxed(
            self.data,
            rows,
            int(settings.image_size),
            batch_size=-(-int(settings.batch_size) // (settings.accumulate * self.fabric.world_size)),
            workers=resolve.workers(settings.workers),
            device=self.fabric.device,
            bad=bad,
        )
        self.task.eval()
        for batch in batches:
            chances = self._probabilities(batch.images)
            numbers = batch.rows.tolist()
            with ThreadPoolExecutor(THREADS) as pool:
                masks = list(pool.map(self._mask, numbers))
            for row, of_image, size, mask in zip(numbers, chances, batch.sizes.tolist(), masks, strict=True):
                if isinstance(mask, str):
                    bad[self.data.paths[row].as_py()] = mask
                    continue
                height, width = mask.shape
                truth = mask.to(of_image.device).long()
                yield Answer(row, restored(of_image, (size[0], size[1]), (height, width)), truth)
        self.task.train()
        if len(bad) > MAX_BAD * len(rows):
            listed = ", ".join(f"{path} ({reason})" for path, reason in [*bad.items()][:5])
            raise UserError(f"data: {len(bad)} of {len(rows)} images cannot be read (allowed: {MAX_BAD:.0%}): {listed}")

    @torch.inference_mode()
    def _probabilities(self, images: Tensor) -> Tensor:
        with self.fabric.autocast():
            return self.task.probabilities(images)

    def _mask(self, row: int) -> Tensor | str:
        """Return the class of each pixel of an image, int16 ``[h w]``, or why that is not known."""
        try:
            return mask_of(self.data, row)
        except DecodeError as error:
            return str(error)


def extremes(shares: Tensor, count: int) -> list[int]:
    """Return the positions of the lowest, the middle and the highest shares, in rising order; NaN is left out.

    >>> extremes(torch.arange(20.0), 8)
    [0, 1, 2, 9, 10, 17, 18, 19]
    >>> extremes(torch.tensor([0.5, float("nan"), 0.25]), 8)
    [2, 0]
    """
    order = [int(position) for position in shares.argsort() if not shares[position].isnan()]
    order = order or list(range(len(shares)))
    if len(order) <= count:
        return order
    ends = 3 * count // 8
    middle = count - 2 * ends
    first = (len(order) - middle) // 2
    return [*order[:ends], *order[first : first + middle], *order[-ends:]]


def _surprise(answer: Answer) -> float:
    """Return the sum of -log(probability of the right class) over the pixels that have one."""
    chances = answer.chances.gather(0, answer.truth.clamp_min(0)[None])[0].clamp_min(LEAST_CHANCE)
    return float(-torch.where(answer.truth != VOID, chances, 1).log().sum(dtype=torch.float64))
