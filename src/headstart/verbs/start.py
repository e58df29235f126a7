"""How a verb starts: settings from a file and from its arguments, a backbone from wherever its weights come from."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor, nn

from headstart import runs
from headstart.backbones import build, stems
from headstart.backbones.weights import Matched, load_weights, pretrained_state, read_weights
from headstart.contracts import Backbone
from headstart.data import facts
from headstart.data.index import DataSet
from headstart.data.sources import KNOWN_DATA
from headstart.errors import UserError
from headstart.randomness import mix
from headstart.runs import SettingsT
from headstart.settings import Auto, Stem
from headstart.verbs import resolve

PARTS = ("train", "val", "test")
LARGEST_WEIGHT = 1e6  # published networks stay below 1e3
DEFAULT_MODEL = "torchvision/resnet18"


class Initialised(NamedTuple):
    """A backbone, and the model that it is an instance of."""

    backbone: Backbone
    matched: Matched | None
    model: str
    model_args: dict[str, Any]
    stem: str


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


def run_settings(init: str) -> dict[str, Any] | None:
    """Return the settings of the run that ``init`` names, None when it names something else."""
    folder = Path(init)
    if not folder.is_dir():
        return None
    stored = runs.read_config(folder, "init")
    if not (folder / runs.BACKBONE).exists():
        raise UserError(f"init: {folder} is not finished (it has no {runs.BACKBONE}; go on with --resume)")
    return stored


def initialise(
    init: str, *, model: str, model_args: Mapping[str, Any], stem: Stem, image_size: int, seed: int
) -> Initialised:
    """Return the backbone with its first weights.

    Args:
        init: `none`, a RUN, a weights file, or a published torchvision/ or timm/ name.
        model: MODEL, or `auto` for the run's or the published name's own.
        model_args: for the library's constructor.
        stem: `auto` for the run's, standard for published weights, else by the image size.
        image_size: side of the images in pixels.
        seed: of random weights.

    Raises:
        UserError: nothing has that name, or the weights do not fit the model.
    """
    stored = None if init == "none" else run_settings(init)
    published = init.startswith(("torchvision/", "timm/")) and not Path(init).exists()
    if stored is not None:
        model = stored["model"] if model == "auto" else model
        model_args = model_args or stored["model_args"]
        stem = stored["stem"] if stem == "auto" else stem
    elif published:
        model = init if model == "auto" else model
        stem = "standard" if stem == "auto" else stem
    model = DEFAULT_MODEL if model == "auto" else model
    stem = stems.resolve(stem, image_size)
    torch.manual_seed(mix(seed))
    backbone = build(model, stem=stem, image_size=image_size, model_args=model_args)
    if init == "none":
        return Initialised(backbone, None, model, dict(model_args), stem)
    if stored is not None:
        state = safetensors.torch.load_file(Path(init) / runs.BACKBONE)
    else:
        state = pretrained_state(init) if published else read_weights(Path(init))
    return Initialised(backbone, load_weights(backbone, state, init), model, dict(model_args), stem)


def absolute(data: str) -> str:
    """Return DATA such that it means the same from any working folder."""
    return str(Path(data).resolve()) if data not in KNOWN_DATA and Path(data).exists() else data


def check_outside(out: Path, data: str) -> None:
    """Raise a UserError when the run would lie among the images, where its plots would be taken for some."""
    if data not in KNOWN_DATA and out.resolve().is_relative_to(Path(data).resolve()):
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
    stored = run_settings(init) if init != "none" else None
    if asked == "auto" and stored is not None:
        return int(stored["image_size"])
    return resolve.image_size(asked, facts.native_size(data))
