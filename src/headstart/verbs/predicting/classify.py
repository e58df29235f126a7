"""The class of each image."""

from collections.abc import Iterator, Mapping

import pyarrow as pa
import torch

from headstart.data.loading import images_at
from headstart.verbs.predicting.work import Work, table


def classify(work: Work) -> Mapping[str, int]:
    """Write the class of each image with the probabilities of all classes; return how many there are of each class."""
    classes = work.source.classes
    counts = dict.fromkeys(classes, 0)
    with table(work.folder, ["image", "prediction", "probability", *(f"p_{name}" for name in classes)]) as writer:
        for path, shares in _shares(work):
            best = max(range(len(shares)), key=shares.__getitem__)
            counts[classes[best]] += 1
            writer.writerow([path, classes[best], *(f"{value:.6g}" for value in (shares[best], *shares))])
    return counts


@torch.inference_mode()
def _shares(work: Work) -> Iterator[tuple[str, list[float]]]:
    """Yield the path of each image, and the probabilities of the classes."""
    assert work.source.head is not None
    backbone, head = work.source.begun.backbone.to(work.fabric.device), work.source.head.to(work.fabric.device)
    images = work.images
    for batch in images_at(images, torch.arange(images.count), work.source.begun.image_size, **work.reading):
        with work.fabric.autocast():
            logits = head(backbone(batch.views[0]))
        shares, rows = logits.float().softmax(1).cpu(), batch.rows.cpu()
        work.done(rows)
        yield from zip(images.paths.take(pa.array(rows.numpy())).to_pylist(), shares.tolist(), strict=True)
