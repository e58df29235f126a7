"""Views per second: SimCLR's augmentation on a batch, against torchvision's transforms image by image, in one process.

    python benchmarks/views.py --size 32 --batch 256 --threads 1

Both make the same operations with the same probabilities from uint8 images in memory. The two take turns, and the ratio
is the median over the rounds, because machines are noisy.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torchvision.transforms import v2

from headstart.views import PRESETS, Key, render


def torchvision_views(size: int) -> Callable[[Tensor], Tensor]:
    """Return SimCLR's CIFAR-10 augmentation as torchvision users write it."""
    composed: Callable[[Tensor], Tensor] = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.08, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    return composed


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (options.batch, 3, options.size, options.size), dtype=torch.uint8)
    rows = torch.arange(options.batch)
    transform = torchvision_views(options.size)
    ours, theirs = [], []
    for step in range(options.rounds + 1):  # the first round warms up
        begin = time.perf_counter()
        render(images, PRESETS["simclr-small"], Key(0, step, rows), options.size)
        middle = time.perf_counter()
        torch.stack([transform(image) for image in images])
        ours.append(options.batch / (middle - begin))
        theirs.append(options.batch / (time.perf_counter() - middle))
    ratio = median(mine / other for mine, other in zip(ours[1:], theirs[1:], strict=True))
    print(f"{options.batch} images of {options.size} px, {options.threads} threads, {options.rounds} rounds, medians")
    print(f"headstart    {median(ours[1:]):8,.0f} views/s")
    print(f"torchvision  {median(theirs[1:]):8,.0f} views/s")
    print(f"ratio        {ratio:8.1f}")


if __name__ == "__main__":
    main()
