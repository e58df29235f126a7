"""A backbone with the weights that it begins with: those of a RUN, of a file, a library's published ones, or random."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from headstart import runs
from headstart.backbones import NO_ARGS, build, stems
from headstart.backbones.weights import Matched, load_weights, pretrained_state, read_weights
from headstart.backbones.yolo_pixels import normalised_state
from headstart.contracts import Backbone
from headstart.errors import UserError
from headstart.randomness import mix
from headstart.settings import Auto, Stem

DEFAULT_MODEL = "torchvision/resnet18"
PUBLISHED_SIZE = 224  # pixels: the side of the images that most published networks were trained on


class Initialised(NamedTuple):
    """A backbone, and what it is.

    Attributes:
        backbone: with its first weights.
        matched: how the given weights fit; None for random ones.
        model: MODEL.
        model_args: of the library's constructor.
        stem: ``small`` or ``standard``.
        image_size: the side in pixels that it was built for.
    """

    backbone: Backbone
    matched: Matched | None
    model: str
    model_args: dict[str, Any]
    stem: stems.ResolvedStem
    image_size: int


def run_settings(init: str) -> dict[str, Any] | None:
    """Return the settings of the run that ``init`` names, None when it names something else.

    Raises:
        UserError: it names a folder that is no run, or one that is not finished.
    """
    folder = Path(init)
    if init == "none" or not folder.is_dir():
        return None
    stored = runs.read_config(folder, "init")
    if not (folder / runs.BACKBONE).exists():
        raise UserError(f"init: {folder} is not finished (it has no {runs.BACKBONE}; go on with --resume)")
    return stored


def initialise(
    init: str,
    *,
    model: str | Auto = "auto",
    model_args: Mapping[str, Any] = NO_ARGS,
    stem: Stem = "auto",
    image_size: int | Auto = "auto",
    channels: int = 3,
    seed: int | None = None,
) -> Initialised:
    """Return the backbone that ``init`` names, with its weights.

    Args:
        init: ``none``, a RUN, a weights file, or a published ``torchvision/`` or ``timm/`` name.
        model: MODEL, or ``auto`` for the run's or the published name's own.
        model_args: for the library's constructor; empty for the run's.
        stem: ``auto`` for the run's, standard for published weights, else by the image size.
        image_size: side of the images in pixels, or ``auto`` for the run's, else 224.
        channels: of the images; weights for three are spread over others, as timm does it.
        seed: what to seed torch's generator with before weights are drawn; None leaves it alone.

    Raises:
        UserError: nothing has that name, or the weights do not fit the model.
    """
    stored = run_settings(init)
    published = init.startswith(("torchvision/", "timm/")) and not Path(init).exists()
    if stored is not None:
        model = stored["model"] if model == "auto" else model
        model_args = model_args or stored["model_args"]
        stem = stored["stem"] if stem == "auto" else stem
        image_size = int(stored["image_size"]) if image_size == "auto" else image_size
    elif published:
        model = init if model == "auto" else model
        stem = "standard" if stem == "auto" else stem
    model = DEFAULT_MODEL if model == "auto" else model
    size = PUBLISHED_SIZE if image_size == "auto" else image_size
    resolved = stems.resolve(stem, size)
    if seed is not None:
        torch.manual_seed(mix(seed))
    backbone = build(model, stem=resolved, image_size=size, model_args=model_args, channels=channels)
    matched = None
    if init != "none":
        if stored is not None:
            state = safetensors.torch.load_file(Path(init) / runs.BACKBONE)
        else:
            state = pretrained_state(init) if published else _file_state(Path(init), model)
        matched = load_weights(backbone, state, init)
    return Initialised(backbone, matched, model, dict(model_args), resolved, size)


def _file_state(path: Path, model: str) -> dict[str, Tensor]:
    """Return the tensors of a weights file: by their names, or those of the network that Ultralytics has written."""
    try:
        return read_weights(path)
    except UserError:
        if not model.startswith("ultralytics/") or path.suffix != ".pt" or not path.is_file():
            raise
        return normalised_state(path)
