"""An ONNX file: normalised images in, pooled features out, and a finetuned classifier's probabilities."""

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from headstart.contracts import Backbone
from headstart.errors import UserError
from headstart.verbs.exporting.libraries import quoted
from headstart.verbs.exporting.source import Source, difference


class Network(nn.Module):
    """A backbone and, if there is one, its classifier."""

    def __init__(self, backbone: Backbone, head: nn.Linear | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return features ``[b d]`` and, with a head, probabilities ``[b classes]``."""
        features = self.backbone(images)
        return (features,) if self.head is None else (features, self.head(features).softmax(1))


def write_onnx(source: Source, file: Path) -> None:
    """Write one file with its weights in it, for batches of any size and images of the RUN's."""
    for needed in ("onnx", "onnxscript", "onnxruntime"):
        library(needed)
    program = torch.onnx.export(
        Network(source.begun.backbone, source.head).eval(),
        (source.images(),),
        dynamo=True,
        dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
        input_names=["images"],
        output_names=outputs(source),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props.update(source.texts())
    program.save(file, external_data=False)


@torch.no_grad()
def check_onnx(source: Source, file: Path) -> float:
    """Return the largest difference of what onnxruntime computes, for a batch of another size than was exported."""
    session = library("onnxruntime").InferenceSession(str(file), providers=["CPUExecutionProvider"])
    images = source.images(3)
    found = session.run(outputs(source), {"images": images.numpy()})
    expected = Network(source.begun.backbone, source.head).eval()(images)
    return max(difference(own, torch.from_numpy(theirs)) for own, theirs in zip(expected, found, strict=True))


def load_onnx(source: Source, file: str) -> list[str]:
    """Return the lines of Python that load the file."""
    names = ", ".join(outputs(source))
    size = source.begun.image_size
    return [
        "import onnxruntime",
        f"session = onnxruntime.InferenceSession({quoted(file)})",
        f"# images: float32 [b, {source.channels}, {size}, {size}], normalised",
        f'{names}{"," if "," not in names else ""} = session.run(None, {{"images": images}})',
    ]


def outputs(source: Source) -> list[str]:
    """Return the names of what the network gives."""
    return ["features"] if source.head is None else ["features", "probabilities"]


def library(name: str) -> Any:
    """Return a library, or raise a UserError that says how to install it."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != name:
            raise
        raise UserError(f"format: {name} is not installed: pip install 'headstart[onnx]'") from None
