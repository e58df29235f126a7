"""The first and the second start on folders of many images: rate, seconds and memory.

    python benchmarks/index.py --folder /tmp/headstart-index --files 1000000

The folder gets 1,000 class folders of tiny PNG files. They are hard links to 1,000 different ones, because a million
small files would take four gigabytes; so their contents come from memory, but each is opened and looked at by its own
name. A start is a new process that opens the data, cuts the splits and draws the first steps of an epoch. Of each the
seconds and the peak of memory are printed: of the whole process, of importing torch alone, and of what came then.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CLASSES = 1000
STEPS, BATCH = 10, 256
LINKS_FROM = "originals"


def make(folder: Path, count: int) -> None:
    """Add to a tree of images what is missing of so many."""
    import numpy as np
    from PIL import Image

    originals = folder / LINKS_FROM
    if not originals.exists():
        originals.mkdir(parents=True)
        generator = np.random.default_rng(0)
        for number in range(CLASSES):
            pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(originals / f"{number}.png")
    for label in range(CLASSES):
        below = folder / "data" / f"class_{label:03d}"
        below.mkdir(parents=True, exist_ok=True)
        for number in range(len(os.listdir(below)), count // CLASSES):  # noqa: PTH208 (a list of names is enough)
            os.link(originals / f"{(label + number) % CLASSES}.png", below / f"{number:06d}.png")


def peak() -> float:
    """Return the most memory that this process has had, in megabytes."""
    status = Path("/proc/self/status").read_text()  # ru_maxrss would begin with the parent's
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024


def start(data: Path) -> None:
    """Open the data, cut the splits and draw the first steps; print after each how long it took, and the peak."""
    marks = {"interpreter": (time.perf_counter(), peak())}
    import torch

    torch.set_num_threads(1)
    marks["import torch"] = time.perf_counter(), peak()

    from headstart.data.cache import cached
    from headstart.data.folders import open_folder
    from headstart.data.options import DEFAULT
    from headstart.data.sampling import EveryImage
    from headstart.data.splits import split

    marks["other imports"] = time.perf_counter(), peak()
    opened = cached(open_folder, data, DEFAULT)
    marks["open"] = time.perf_counter(), peak()
    train = split(opened).train
    marks["split"] = time.perf_counter(), peak()
    sampler = EveryImage(len(train), BATCH, seed=0)
    for step in range(STEPS):
        sampler(step)
    marks["draw"] = time.perf_counter(), peak()
    print(json.dumps({"images": opened.count, "marks": marks}))


def measure(data: Path, cache: Path) -> tuple[float, dict[str, list[float]]]:
    """Return the seconds of a new process that starts on the data, and its marks."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"HEADSTART_DATA": str(cache), "PYTHONPYCACHEPREFIX": str(cache / "bytecode")}
    begin = time.perf_counter()
    command = [sys.executable, __file__, "--start", str(data)]
    printed = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return time.perf_counter() - begin, json.loads(printed)["marks"]


def report(title: str, seconds: float, marks: dict[str, list[float]]) -> None:
    """Print what a start took, in all and step by step."""
    (_, torch_peak), last = marks["import torch"], [*marks.values()][-1]
    after = last[0] - marks["import torch"][0]
    print(f"  {title}: {seconds:.2f} s and {last[1]:.0f} MB in all;", end=" ")
    print(f"after the import of torch {after:.2f} s and {last[1] - torch_peak:.0f} MB more")
    for before, name in zip([*marks][:-1], [*marks][1:], strict=True):
        took, more = (new - old for new, old in zip(marks[name], marks[before], strict=True))
        print(f"    {name:13} {took:8.2f} s {more:6.0f} MB more")


def main() -> None:
    """Print the figures for 10,000 and 100,000 images, and as many as are asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="a new folder, which is deleted at the end")
    parser.add_argument("--files", type=int, default=1_000_000)
    parser.add_argument("--start", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.start:
        start(options.start)
        return
    if options.folder is None or options.folder.exists():
        parser.error("--folder: a folder that is not there yet")
    data, cache = options.folder / "data", options.folder / "cache"
    try:
        for count in sorted({min(10_000, options.files), min(100_000, options.files), options.files}):
            make(options.folder, count)
            time.sleep(3)  # what changed in the last two seconds is not trusted
            first, marks = measure(data, cache)
            rate = count / (marks["open"][0] - marks["other imports"][0])
            print(f"{count:,} images: {rate:,.0f} images/s in the first start ({first:.1f} s)", end=" ")
            print(f"at a load of {os.getloadavg()[0]:.1f}")
            report("second start", *measure(data, cache))
    finally:
        shutil.rmtree(options.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
