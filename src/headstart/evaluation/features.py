"""Features of images, extracted once per backbone."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from headstart.contracts import Backbone, Batch
from headstart.runs import replace

POOLED = "pooled"  # the name of the features that a backbone gives for the whole image


class Extracted(NamedTuple):
    """Features ``[n d]`` (float32) and their images' rows ``[n]``; an image that cannot be read is left out."""

    features: Tensor
    rows: Tensor


def extract(
    backbone: Backbone, batches: Iterable[Batch], *, device: torch.device, precision: str = "fp32"
) -> Extracted:
    """Return the pooled features of the batches' first views, on the CPU, in their order."""
    seen = _look(backbone, lambda images: {POOLED: backbone(images)}, batches, device, precision)
    return seen[POOLED]


def extract_stages(
    backbone: Backbone, batches: Iterable[Batch], *, device: torch.device, precision: str = "fp32"
) -> dict[str, Extracted]:
    """Return the features of every stage of the backbone as `extract` does, all of them from one pass.

    Returns:
        By the names of `stages`: the pooled features ``[n d]``, and each map averaged over its places, ``[n c]``.
    """

    def averaged(images: Tensor) -> dict[str, Tensor]:
        pooled, maps = backbone.features(images)
        return dict(zip(stages(backbone), [pooled, *(level.float().mean((2, 3)) for level in maps)], strict=True))

    return _look(backbone, averaged, batches, device, precision)


def stages(backbone: Backbone) -> list[str]:
    """Return the names of a backbone's stages: ``pooled``, then its maps from the finest, ``1``, to the coarsest."""
    return [POOLED, *(str(number) for number in range(1, len(backbone.dims) + 1))]


def hash_weights(backbone: Backbone) -> str:
    """Return 16 hex digits of the library's module: equal weights, equal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cached(path: Path | None, compute: Callable[[], Extracted]) -> Extracted:
    """Return the features in a file, or compute them and keep them there; without a path only compute them."""
    paths = {POOLED: path} if path is not None else {}
    return cached_stages(paths, lambda: {POOLED: compute()})[POOLED]


def cached_stages(paths: Mapping[str, Path], compute: Callable[[], dict[str, Extracted]]) -> dict[str, Extracted]:
    """Return the features of each stage in its file, or compute those of all stages and keep them there.

    Args:
        paths: a file for each stage; empty to keep nothing.
        compute: gives the features of the same stages.
    """
    if paths and all(path.exists() for path in paths.values()):
        return {stage: Extracted(**safetensors.torch.load_file(path)) for stage, path in paths.items()}
    found = compute()
    for stage, path in paths.items():
        replace(path, partial(safetensors.torch.save_file, found[stage]._asdict()))
    return found


def _look(
    backbone: Backbone,
    see: Callable[[Tensor], dict[str, Tensor]],
    batches: Iterable[Batch],
    device: torch.device,
    precision: str,
) -> dict[str, Extracted]:
    """Return what is seen in the batches' first views by the frozen backbone, by name and one after the other."""
    backbone.to(device).eval()
    found: dict[str, list[Tensor]] = {}
    rows = []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for batch in batches:
            for name, features in see(batch.views[0].to(device)).items():
                found.setdefault(name, []).append(features.float().cpu())
            rows.append(batch.rows.cpu())
    return {name: Extracted(torch.cat(features), torch.cat(rows)) for name, features in found.items()}
