"""Backbones of timm: every model that gives feature maps through ``forward_intermediates``."""

from collections.abc import Mapping, Sequence
from inspect import signature
from typing import Any

import timm
import torch
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from headstart.backbones import stems
from headstart.contracts import Backbone, Features, TokenBackbone
from headstart.errors import UserError, unknown

ISOTROPIC_LEVELS = 4  # maps taken from a network whose blocks all have one size
SMALLEST_PATCH = 2  # pixels; single pixels as tokens would cost 16 times the attention of patches of 2


class TimmBackbone(Backbone):
    """A timm model: all levels of a pyramid, or four evenly spaced blocks of a network of one size."""

    net: Any  # timm's models share methods, but no class

    def __init__(self, net: nn.Module, strides: Sequence[int]) -> None:
        """Take a model without classifier, and the stride of each of its levels."""
        super().__init__()
        self.net = net
        self.levels = evenly_spaced(len(strides)) if len(set(strides)) == 1 else list(range(len(strides)))
        self.dim = int(self.net.head_hidden_size)
        self.dims = tuple(int(levels(net)[level]["num_chs"]) for level in self.levels)
        self.strides = tuple(strides[level] for level in self.levels)

    def features(self, images: Tensor) -> Features:
        """Return the features of images, float ``[b c h w]``, normalised."""
        final, maps = self.net.forward_intermediates(images, indices=self.levels)
        return Features(self.net.forward_head(final, pre_logits=True), maps)


class TimmTokenBackbone(TimmBackbone, TokenBackbone):
    """A plain vision transformer of timm, which also gives the tokens of a part of the patches."""

    def __init__(self, net: nn.Module, strides: Sequence[int], image_size: int) -> None:
        """Take a model without classifier for which ``gives_tokens`` holds, and the side of its images in pixels."""
        super().__init__(net, strides)
        rows, columns = self.net.patch_embed.dynamic_feat_size((image_size, image_size))
        self.grid = (rows, columns)
        self.patch_size = int(self.net.patch_embed.patch_size[0])

    def tokens(self, images: Tensor, keep: Tensor) -> Tensor:
        """Return the tokens of the patches that are kept, as ``forward_features`` of the library gives them.

        Patches are embedded and get their positions first; then only those kept, and the class and register tokens, go
        through the blocks, as in the encoder of masked autoencoders (arXiv:2111.06377, section 3).

        Args:
            images: float ``[b c h w]``, normalised.
            keep: numbers of patches, row by row from the upper left, int64 ``[b n]``.

        Returns:
            ``[b n d]``: in the order of ``keep``, without class or register tokens.
        """
        net = self.net
        tokens = net._pos_embed(net.patch_embed(images))
        extra, patches = tokens[:, : net.num_prefix_tokens], tokens[:, net.num_prefix_tokens :]
        kept = patches.take_along_dim(keep.unsqueeze(2), dim=1)
        seen: Tensor = net.norm(net.blocks(net.norm_pre(torch.cat([extra, kept], dim=1))))
        return seen[:, net.num_prefix_tokens :]


def build(
    name: str, *, stem: stems.ResolvedStem, image_size: int, model_args: Mapping[str, object], channels: int = 3
) -> Backbone:
    """Build a backbone of timm with random weights; see ``headstart.backbones.build``.

    Networks made for one image size are built for ``image_size``. Where the library takes other sizes later on (the
    plain vision transformers), it is told to. The small stem of a network that cuts images into patches has patches of
    a quarter of the side, at least 2 pixels. Residual branches start alive, as torchvision's do: timm starts ResNets
    with branches that give zero, and what is left of the image then is one pixel in a few. Random features are worth
    next to nothing so (18 against 84 % for a linear probe on digits), and few steps of training do not get far.
    """
    draft = sketch(name, model_args)
    arguments = {**own_arguments(draft, stem, image_size), **model_args}
    if channels != 3:
        arguments["in_chans"] = channels
    try:
        net = create(name, arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        asked = f"{image_size} pixels" + (f" of {channels} channels" if channels != 3 else "")
        raise UserError(f"image_size: timm/{name} does not take {asked}: {' '.join(str(error).split())}") from error
    strides = [int(level["reduction"]) for level in levels(net)]
    if stem == "small" and "patch_size" not in arguments:
        stems.shrink(net, early_modules(net, name))
        strides = list(stems.reduced(strides))
    elif stem == "small" and "patch_size" not in model_args and strides[0] == levels(draft)[0]["reduction"]:
        raise no_small_stem(name)
    return TimmTokenBackbone(net, strides, image_size) if gives_tokens(net) else TimmBackbone(net, strides)


def has_tokens(name: str, model_args: Mapping[str, object]) -> bool:
    """Say whether ``build`` would return a ``TokenBackbone``; raise as it would for a wrong name or arguments."""
    return gives_tokens(sketch(name, model_args))


def gives_tokens(net: nn.Module) -> bool:
    """Say whether a network can be run on a part of the patches of an image.

    It can when it is timm's plain vision transformer, whatever its blocks, pooling and additional tokens; when its
    patches are square and each is embedded by itself, so that nothing is seen of those left out; and when it drops none
    of its own accord.
    """
    return (
        isinstance(net, VisionTransformer)
        and type(net).forward_features is VisionTransformer.forward_features
        and isinstance(net.patch_embed, PatchEmbed)
        and net.patch_embed.patch_size[0] == net.patch_embed.patch_size[1]
        and isinstance(net.patch_drop, nn.Identity)
    )


def sketch(name: str, model_args: Mapping[str, object]) -> nn.Module:
    """Return a model without memory for weights, to see what it is and what its class takes.

    Raises:
        UserError: timm does not know the model or does not take the arguments, or it gives no feature maps.
    """
    check_name(name)
    try:
        with torch.device("meta"):  # no memory, no random numbers
            net = create(name, model_args)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise UserError(f"model_args: timm/{name} does not take them: {' '.join(str(error).split())}") from error
    if not hasattr(net, "forward_intermediates"):
        raise UserError(f"model: timm/{name} gives no feature maps (allowed: models with forward_intermediates)")
    return net


def create(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Create a model without classifier and with random weights."""
    return timm.create_model(name, pretrained=False, num_classes=0, **arguments)


def list_models() -> list[str]:
    """Return the names of all architectures of timm."""
    return list(timm.list_models())


def check_name(name: str) -> None:
    """Raise unless timm knows the architecture and, where the name has one, the tag of its published weights."""
    if not timm.is_model(name):
        raise unknown("model", f"timm/{name}", [f"timm/{known}" for known in list_models()])
    architecture, _, tag = name.partition(".")
    tagged = list(timm.list_pretrained(f"{architecture}.*"))
    if tag and name not in tagged:
        raise unknown("model", f"timm/{name}", [f"timm/{known}" for known in [architecture, *tagged]])


def own_arguments(draft: nn.Module, stem: stems.ResolvedStem, image_size: int) -> dict[str, object]:
    """Return our arguments for the constructor, as far as its class takes them."""
    takes = {parameter for base in type(draft).__mro__ for parameter in signature(base).parameters}
    arguments: dict[str, object] = {}
    if "zero_init_last" in takes:
        arguments["zero_init_last"] = False
    if "img_size" in takes:
        arguments["img_size"] = image_size
    arguments |= {name: True for name in ("dynamic_img_size", "dynamic_img_pad") if name in takes}
    if stem == "small" and "patch_size" in takes and hasattr(draft, "patch_embed"):
        arguments["patch_size"] = max(SMALLEST_PATCH, levels(draft)[0]["reduction"] // stems.REDUCTION)
    return arguments


def levels(net: Any) -> list[dict[str, Any]]:
    """Return what timm says about each feature map: ``num_chs``, ``reduction`` and ``module``, from fine to coarse."""
    return list(getattr(net.feature_info, "info", net.feature_info))


def evenly_spaced(blocks: int) -> list[int]:
    """Return the numbers of four blocks out of many, evenly spaced, the last one among them.

    >>> evenly_spaced(12), evenly_spaced(6), evenly_spaced(3)
    ([2, 5, 8, 11], [0, 2, 3, 5], [0, 1, 2])
    """
    count = min(blocks, ISOTROPIC_LEVELS)
    return [(part + 1) * blocks // count - 1 for part in range(count)]


def early_modules(net: nn.Module, name: str) -> list[str]:
    """Return the names of the modules up to the end of the level that a small stem does not downsample."""
    ends = [str(level["module"]) for level in levels(net) if level["reduction"] == stems.REDUCTION]
    names = [module for module, _ in net.named_modules()]
    inside = [index for index, module in enumerate(names) for end in ends if f"{module}.".startswith(f"{end}.")]
    if not inside:
        raise no_small_stem(name)
    return names[: inside[-1] + 1]


def no_small_stem(name: str) -> UserError:
    """Return the error for a model whose early downsampling cannot be taken out."""
    return UserError(f"stem: timm/{name} has no small stem (allowed: standard)")
