"""How fast this machine is with the data: decoding, views and steps of the training, each measured for some seconds."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from typing import NamedTuple

import torch

from headstart.data.examination import pixels
from headstart.data.images import DecodeError
from headstart.data.index import DataSet
from headstart.randomness import permutation
from headstart.training.fit import fit
from headstart.training.machine import device_name, prepared
from headstart.training.optim import build_optimizer
from headstart.verbs.doctoring.memory import Peak
from headstart.verbs.pretraining import Pretraining

SAMPLE = 512  # images that are decoded and turned into views, or one batch
_DECODING, _VIEWS, _STEPS = 2.0, 4.0, 4.0  # seconds, each
_FIRST, _GROWTH = 8, 4  # images of the smallest batch that is timed, and how the next one is larger
_LONG = 3.0  # seconds of a step after which no third batch is timed
_TOO_LONG = 10.0  # seconds of a step of the smallest batch after which no other is timed
_TIMED = 4  # steps of each batch; the first one is slower and does not count
_ORDER = 7  # what the order is drawn for


@dataclass(frozen=True)
class Speed:
    """What was measured, and what a training will take.

    Attributes:
        device: what it was measured on.
        decoding: images per second that one thread decodes; None for images that are in memory.
        views: images per second of which all views are made.
        training: images per second of the training, views not counted; extrapolated from the batches that were timed.
        overall: images per second of both together.
        hours: of the whole pretraining; None where no step could be measured.
        memory: bytes at the most, beside what the process needs without a training; None where it is not known.
        memory_there: bytes that the device has.
        measured_batch: images of the largest batch that was timed.
        steps: of the whole pretraining.
    """

    device: str
    decoding: float | None
    views: float
    training: float
    overall: float
    hours: float
    memory: int | None
    memory_there: int
    measured_batch: int
    steps: int


class Timed(NamedTuple):
    """How long a step of a batch took, and how many bytes of memory, None where nobody knows."""

    batch_size: int
    seconds: float
    memory: int | None


def sample(training: Pretraining) -> Pretraining:
    """Return the training on some hundred of its images, which are soon decoded."""
    count = max(SAMPLE, int(training.settings.batch_size))
    rows = training.rows[permutation(len(training.rows), training.settings.seed, _ORDER)[:count]].sort().values
    return replace(training, data=training.data.take(rows), rows=torch.arange(len(rows)), labels=training.labels[rows])


def measure(training: Pretraining, part: Pretraining) -> Speed:
    """Return how fast a training is, from some seconds of its parts.

    On a CPU, views and steps share the cores, so that their times add up; beside a GPU the slower one counts.

    Args:
        training: all of it, with the method on the CPU.
        part: its sample, which is measured.
    """
    device = part.fabric.device
    decoding = None if part.data.images is not None else decoding_rate(part.data)
    views = views_rate(part)
    peak = Peak(device)
    timed, batch_size = step_times(part, peak), int(training.settings.batch_size)
    rate = batch_size / extrapolated([(step.batch_size, step.seconds) for step in timed], batch_size)
    overall = 1 / (1 / views + 1 / rate) if device.type == "cpu" else min(views, rate)
    return Speed(
        device=device_name(),
        decoding=decoding,
        views=views,
        training=rate,
        overall=overall,
        hours=training.steps * batch_size / overall / 3600,
        memory=_memory(timed, batch_size),
        memory_there=_memory_there(device),
        measured_batch=timed[-1].batch_size,
        steps=training.steps,
    )


def decoding_rate(data: DataSet) -> float:
    """Return how many images per second one thread decodes."""

    def decode(row: int) -> int:
        with suppress(DecodeError):
            pixels(data, row)
        return 1

    return _rate((decode(row) for row in range(data.count)), _DECODING, lambda: None)


def views_rate(part: Pretraining) -> float:
    """Return of how many images per second all views are made, as in training: by its workers, on its device."""
    batches = iter(part.loader(0))
    begin = time.perf_counter()
    first = len(next(batches).rows)  # starts the workers, or decodes all images that stay in memory
    _wait(part)
    took = time.perf_counter() - begin
    counts = (len(batch.rows) for batch in batches)
    return _rate(counts, _VIEWS, lambda: _wait(part)) if took < _VIEWS and part.steps > 1 else first / took


def step_times(part: Pretraining, peak: Peak) -> list[Timed]:
    """Time steps of growing batches until one takes long, or the training's own is reached.

    Raises:
        torch.cuda.OutOfMemoryError: not even the smallest batch fits.
    """
    most, timed = int(part.settings.batch_size), list[Timed]()
    batch = min(_FIRST, most)
    while not timed or timed[-1].batch_size < most:
        peak.forget()
        try:
            seconds = _step_time(part, batch)
        except torch.cuda.OutOfMemoryError:
            if not timed:
                raise
            break
        timed.append(Timed(batch, seconds, peak.bytes()))
        if seconds > (_LONG if len(timed) > 1 else _TOO_LONG):
            break
        batch = min(batch * _GROWTH, most)
    return timed


def _step_time(part: Pretraining, batch_size: int) -> float:
    """Return how many seconds a step takes; the weights stay as they are."""
    smaller = replace(part, settings=part.settings.updated(batch_size=batch_size, accumulate=1))
    batch = next(iter(smaller.loader(0)))
    settings = part.settings
    optimizer = build_optimizer(
        part.method, settings.optimizer, weight_decay=0.0, betas=(0.9, 0.999), peak=float(settings.learning_rate)
    )
    trained, set_up = part.fabric.setup(prepared(part.method, part.fabric), optimizer)
    steps = fit(
        trained,
        repeat(batch),
        set_up,
        fabric=part.fabric,
        learning_rates=lambda step: 0.0,
        start=0,
        steps=_TIMED,
        parts=1,
        seed=settings.seed,
    )
    seconds = list[float]()
    for step in steps:
        seconds.append(step.seconds)
        if sum(seconds) > _STEPS:
            break
    return min(seconds)


def _rate(counts: Iterator[int], seconds: float, wait: Callable[[], None]) -> float:
    """Return how many per second are counted, for at most so many seconds."""
    begin, total = time.perf_counter(), 0
    for count in counts:
        wait()
        total += count
        if time.perf_counter() - begin > seconds:
            break
    return total / max(time.perf_counter() - begin, 1e-9)


def _wait(part: Pretraining) -> None:
    if part.fabric.device.type == "cuda":
        torch.cuda.synchronize(part.fabric.device)


def _memory(timed: list[Timed], batch_size: int) -> int | None:
    """Return the bytes of memory that a batch takes, by those that smaller ones took."""
    points = [(step.batch_size, float(step.memory)) for step in timed if step.memory is not None]
    return int(extrapolated(points, batch_size)) if points else None


def extrapolated(points: list[tuple[int, float]], batch_size: int) -> float:
    """Return what a batch takes, given what smaller ones took: weights take the same for all, images in proportion.

    >>> extrapolated([(8, 300.0), (32, 600.0)], 128), extrapolated([(8, 300.0)], 16), extrapolated([(8, 3.0)], 8)
    (1800.0, 600.0, 3.0)
    """
    last, took = points[-1]
    if last >= batch_size:
        return took
    before, less = points[-2] if len(points) > 1 else (0, 0.0)
    slope = (took - less) / (last - before)
    return took + (slope if slope > 0 else took / last) * (batch_size - last)


def _memory_there(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
