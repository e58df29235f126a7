"""How a verb starts and ends: settings from a file and from its arguments, checks, and weights to leave behind."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from torch import Tensor, nn

from headstart import runs
from headstart.backbones.given import run_settings
from headstart.config import Data
from headstart.data import facts
from headstart.data.index import DataSet
from headstart.data.known import KNOWN_DATA
from headstart.data.options import Options
from headstart.data.sources import open_data
from headstart.data.splits import limited
from headstart.errors import UserError
from headstart.runs import SettingsT
from headstart.settings import Auto
from headstart.verbs import resolve

PARTS = ("train", "val", "test")
DataT = TypeVar("DataT", bound=Data)
LARGEST_WEIGHT = 1e6  # published networks stay below 1e3


def settings(
    kind: type[SettingsT],
    given: Mapping[str, Any],
    check: Callable[[SettingsT], SettingsT],
    *,
    config: str | Path | None,
    out: Path | None,
    resume: bool,
) -> SettingsT:
    """Return a verb's checked settings: those given win over the file's; a resumed run has those that it began with."""
    if config is not None:
        given = kind.read(Path(config), **given).model_dump(exclude_unset=True)
    if resume and out is not None and (out / runs.CONFIG).exists():
        return runs.stored_settings(kind, out, given, check)
    return check(kind.create(**given))


def opened(settings: Data, init: str = "none") -> DataSet:
    """Return the data that settings name, in the channels and the range of pixels of the run that ``init`` names.

    Raises:
        UserError: as ``headstart.data.sources.open_data`` does.
    """
    stored = run_settings(init) or {}
    channels, ranges = settings.channels, settings.pixel_range
    if channels == "auto" and stored.get("channels") in (1, 3):  # grey and colour images are had in either
        channels = int(stored["channels"])
    options = Options(settings.max_bad, settings.classes, channels, ranges)
    data = limited(open_data(settings.data, options), settings.limit)
    known = stored.get("pixel_range")
    if data.pixels.range is None or ranges != "auto" or known in (None, "auto") or len(known) != data.pixels.channels:
        return data
    return replace(data, pixels=replace(data.pixels, range=tuple((low, high) for low, high in known)))


def recorded(settings: DataT, data: DataSet) -> DataT:
    """Return the settings with the channels and the range of pixels that were found."""
    return settings.updated(channels=data.pixels.channels, pixel_range=data.pixels.range)


def pixels_line(data: DataSet) -> str | None:
    """Return in one line how unusual pixels are read, None for 8-bit colours."""
    channels, ranges = data.pixels.channels, data.pixels.range
    parts = []
    if ranges:
        scales = list(dict.fromkeys(f"{low:g} … {high:g}" for low, high in ranges))
        shown = ", ".join(scales[:4]) + (", …" if len(scales) > 4 else "")
        parts.append(f"pixels of more than 8 bits: {shown} become 0 … 1")
    if channels != 3:
        parts.append(f"{channels} channels, so that views change no hue, saturation or colours to grey")
    return "; ".join(parts) or None


def absolute(data: str) -> str:
    """Return DATA such that it means the same from any working folder."""
    place = os.path.expanduser(data)  # noqa: PTH111  a Path would raise an error for ~nobody
    known = data in KNOWN_DATA or not data
    return os.path.realpath(place) if not known and os.path.exists(place) else data  # noqa: PTH110  nor for long names


def check_outside(out: Path, data: str) -> None:
    """Raise a UserError when the run would lie among the images, where its plots would be taken for some."""
    if data not in KNOWN_DATA and Path(os.path.realpath(out)).is_relative_to(os.path.realpath(data)):
        raise UserError(f"out: {out} lies inside of the data {data} (allowed: a folder outside of it)")


def check_weights(module: nn.Module) -> None:
    """Raise a UserError when the last step of a training left weights behind that are of no use."""
    largest = max(float(parameter.detach().abs().max()) for parameter in module.parameters())
    if not largest < LARGEST_WEIGHT:
        raise UserError(f"learning_rate: the training diverged, a weight grew to {largest:.2g} (try a lower one)")


def last_checkpoint(folder: Path, resume: bool) -> Path | None:
    """Return the checkpoint to go on from, None when there is nothing to go on from."""
    path = folder / runs.LAST
    return path if resume and path.exists() else None


def save_weights(path: Path, module: nn.Module) -> None:
    """Write a module's state as safetensors, whole or not at all."""
    state = state_of(module)
    runs.replace(path, lambda temporary: safetensors.torch.save_file(state, temporary))


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a module's state on the CPU."""
    return {key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}


def image_size(init: str, asked: int | Auto, data: DataSet) -> int:
    """Return the side of the images: as asked, else the run's that ``init`` names, else by the images themselves."""
    stored = run_settings(init)
    if asked == "auto" and stored is not None:
        return int(stored["image_size"])
    return resolve.image_size(asked, facts.native_size(data))
