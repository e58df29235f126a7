"""What is exported: a RUN with its backbone, its head and all that is known about them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from headstart import runs
from headstart.backbones import of_library
from headstart.backbones.given import Initialised, initialise
from headstart.data.loading import normalisation
from headstart.errors import UserError

VERBS = ("pretrain", "finetune")
SAMPLE = 2  # random images on which features are compared


@dataclass(frozen=True)
class Source:
    """A finished RUN.

    Attributes:
        folder: of the run.
        config: its settings.
        result: its result.json.
        environment: its environment.json.
        begun: the backbone with its weights, in evaluation mode, and what it is.
        head: the linear classifier of a finetuned run.
    """

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]
    environment: dict[str, Any]
    begun: Initialised
    head: nn.Linear | None

    @property
    def library(self) -> str:
        """The library that the model is of."""
        return of_library(self.begun.model)[0]

    @property
    def name(self) -> str:
        """The model's name in its library."""
        return of_library(self.begun.model)[1]

    @property
    def state(self) -> dict[str, Tensor]:
        """The backbone's tensors under its library's names."""
        return {key: value.detach().contiguous() for key, value in self.begun.backbone.net.state_dict().items()}

    @property
    def classes(self) -> list[str]:
        """The names of the classes that a finetuned run tells apart; none after a pretraining."""
        return list(self.result.get("classes", []))

    @property
    def channels(self) -> int:
        """The channels of the images."""
        channels = self.config.get("channels", "auto")
        return 3 if channels == "auto" else int(channels)

    @property
    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The mean and the deviation of each channel of pixels in 0..1, which images are normalised by."""
        return normalisation(self.channels)

    @property
    def pixel_range(self) -> Any:
        """The values of deep pixels that become 0 and 1 in each channel, None for 8-bit ones."""
        ranges = self.config.get("pixel_range")
        return None if ranges == "auto" else ranges

    def facts(self) -> dict[str, Any]:
        """Return what one has to know to use the weights."""
        mean, std = self.normalisation
        return {
            "model": self.begun.model,
            "model_args": self.begun.model_args,
            "stem": self.begun.stem,
            "image_size": self.begun.image_size,
            "channels": self.channels,
            "pixel_range": self.pixel_range,
            "mean": mean,
            "std": std,
        }

    def texts(self) -> dict[str, str]:
        """Return the facts as texts: JSON, but for those that are texts already."""
        facts = {**self.facts(), **({"classes": self.classes} if self.head is not None else {})}
        return {name: value if isinstance(value, str) else json.dumps(value) for name, value in facts.items()}

    def images(self, count: int = SAMPLE) -> Tensor:
        """Return random images, float ``[count c h w]``, of the RUN's size and channels."""
        size, generator = self.begun.image_size, torch.Generator().manual_seed(0)
        return torch.randn(count, self.channels, size, size, generator=generator)


def read_source(run: str) -> Source:
    """Return the RUN in a folder, with its weights loaded.

    Raises:
        UserError: the folder holds no finished pretrain or finetune.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"run: no folder {run} (allowed: the RUN of a {' or a '.join(VERBS)})")
    config = runs.read_config(folder, "run")
    result = runs.read_result(folder)
    try:
        environment = json.loads((folder / runs.ENVIRONMENT).read_text())
    except (OSError, ValueError):
        raise UserError(f"run: {folder} has no readable {runs.ENVIRONMENT}, as every run has") from None
    if environment.get("verb") not in VERBS:
        raise UserError(f"run: {folder} holds a {environment.get('verb')} (allowed: a {' or a '.join(VERBS)})")
    if result is None:
        raise UserError(f"run: {folder} is not finished (it has no {runs.RESULT}; go on with --resume)")
    channels = config.get("channels", "auto")
    begun = initialise(str(folder), channels=3 if channels == "auto" else int(channels))
    begun.backbone.eval()
    return Source(folder, config, result, environment, begun, _head(folder, config))


def difference(expected: Tensor, found: Tensor) -> float:
    """Return by how much features differ at most, as a share of the largest of them."""
    if expected.shape != found.shape:
        return float("inf")
    smallest = torch.finfo(expected.dtype).tiny  # untrained networks may give features of any size
    return float((expected - found).abs().max() / expected.abs().max().clamp(min=smallest))


def _head(folder: Path, config: dict[str, Any]) -> nn.Linear | None:
    if config.get("task") != "classify":
        return None
    state = safetensors.torch.load_file(folder / runs.HEAD)
    classes, dim = state["weight"].shape
    head = nn.Linear(dim, classes)
    head.load_state_dict(state)
    return head.eval()
