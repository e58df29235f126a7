"""Networks of other libraries behind one contract: pooled features, feature maps, and what shape they have."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from headstart.backbones import timm, torchvision, yolo
from headstart.backbones.stems import Stem, resolve
from headstart.backbones.weights import Matched, load_weights, pretrained_state, read_weights
from headstart.contracts import Backbone
from headstart.errors import unknown

__all__ = ["Matched", "Stem", "build", "has_tokens", "list_models", "load_weights", "pretrained_state", "read_weights"]

BUILDERS: dict[str, Callable[..., Backbone]] = {
    "torchvision": torchvision.build,
    "timm": timm.build,
    "ultralytics": yolo.build,
}
TOKENS: dict[str, Callable[[str, Mapping[str, object]], bool]] = {
    "torchvision": torchvision.has_tokens,
    "timm": timm.has_tokens,
    "ultralytics": yolo.has_tokens,
}
NO_ARGS: Mapping[str, object] = MappingProxyType({})


def build(
    model: str,
    *,
    stem: Stem = "auto",
    image_size: int,
    model_args: Mapping[str, object] = NO_ARGS,
    channels: int = 3,
) -> Backbone:
    """Build a backbone with random weights.

    Args:
        model: ``torchvision/NAME``, ``timm/NAME`` or ``ultralytics/NAME``.
        stem: the first layers: ``standard`` as the library has them, ``small`` with a quarter of their downsampling,
            ``auto`` for ``small`` at 64 pixels and below.
        image_size: the side of the images in pixels.
        model_args: further arguments for the library's own constructor.
        channels: of the images.

    Raises:
        UserError: the model is unknown or gives no feature maps, the stem does not exist for it, or the library does
            not take ``model_args``.
    """
    library, name = of_library(model)
    resolved = resolve(stem, image_size)
    return BUILDERS[library](name, stem=resolved, image_size=image_size, model_args=model_args, channels=channels)


def has_tokens(model: str, model_args: Mapping[str, object] = NO_ARGS) -> bool:
    """Say whether ``build`` would return a ``headstart.contracts.TokenBackbone``; builds nothing that takes memory.

    Raises:
        UserError: as ``build`` does for ``model`` and ``model_args``.
    """
    library, name = of_library(model)
    return TOKENS[library](name, model_args)


def of_library(model: str) -> tuple[str, str]:
    """Return the library of a model and its name there, or raise where there is no such library."""
    library, _, name = model.partition("/")
    if library not in BUILDERS:
        raise unknown("model", model, list_models())
    return library, name


def list_models() -> list[str]:
    """Return every name that ``build`` takes, torchvision's first."""
    names = {
        "torchvision": torchvision.list_models(),
        "timm": timm.list_models(),
        "ultralytics": yolo.list_models(),
    }
    return [f"{library}/{name}" for library, known in names.items() for name in known]
