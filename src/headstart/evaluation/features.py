"""Features of images, extracted once per backbone."""

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from headstart.contracts import Backbone, Batch
from headstart.runs import replace


class Extracted(NamedTuple):
    """Features ``[n d]`` (float32) and their images' rows ``[n]``; an image that cannot be read is left out."""

    features: Tensor
    rows: Tensor


def extract(
    backbone: Backbone, batches: Iterable[Batch], *, device: torch.device, precision: str = "fp32"
) -> Extracted:
    """Return the pooled features of the batches' first views, on the CPU, in their order."""
    backbone.to(device).eval()
    features, rows = [], []
    with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        for batch in batches:
            features.append(backbone(batch.views[0].to(device)).float().cpu())
            rows.append(batch.rows.cpu())
    return Extracted(torch.cat(features), torch.cat(rows))


def hash_weights(backbone: Backbone) -> str:
    """Return 16 hex digits of the library's module: equal weights, equal digits."""
    digest = hashlib.sha256()
    for name, value in sorted(backbone.net.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cached(path: Path | None, compute: Callable[[], Extracted]) -> Extracted:
    """Return the features in a file, or compute them and keep them there; without a path only compute them."""
    if path is not None and path.exists():
        return Extracted(**safetensors.torch.load_file(path))
    found = compute()
    if path is not None:
        replace(path, lambda temporary: safetensors.torch.save_file(found._asdict(), temporary))
    return found
