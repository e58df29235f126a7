"""Three float64 steps of every method, as text. Rewritten by `pytest tests/golden --rewrite-golden`, never by hand."""

from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric

from headstart.backbones import build
from headstart.data.loading import ViewLoader
from headstart.data.sources import open_data
from headstart.methods import METHODS
from headstart.methods import build as build_method
from headstart.training.fit import fit
from headstart.training.optim import build_optimizer, learning_rate
from headstart.views import PRESETS


def trace(name: str) -> list[float]:
    torch.manual_seed(0)
    backbone = build("timm/resnet18", image_size=8, model_args={"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]})
    method = build_method(name, backbone, {}).double()
    optimizer = build_optimizer(method, "sgd", weight_decay=5e-4)
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    trained, set_up = fabric.setup(method, optimizer)
    loader = ViewLoader(
        dataset=open_data("digits"),
        rows=torch.arange(100),
        augments=tuple(PRESETS["digits"] for _ in method.views),
        image_size=8,
        batch_size=16,
        seed=0,
        stop=3,
    )
    steps = fit(
        trained,
        (part._replace(views=tuple(view.double() for view in part.views)) for part in loader),
        set_up,
        fabric=fabric,
        learning_rates=lambda step: learning_rate(step, steps=3, warmup=0.0, peak=0.1),
        start=0,
        steps=3,
        parts=1,
        seed=0,
    )
    return [step.losses["loss"] for step in steps]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_trace_is_the_recorded_one(name, request):
    path = Path(__file__).with_name(f"{name}.txt")
    found = trace(name)
    if request.config.getoption("--rewrite-golden"):
        path.write_text("".join(f"{step} {loss:.15g}\n" for step, loss in enumerate(found, 1)))
    expected = [float(line.split()[1]) for line in path.read_text().splitlines()]
    # views are drawn in float32, whose last bits differ between processors
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(set(found)) == 3
