"""Three float64 steps of every method, as text. Rewritten by `pytest tests/golden --rewrite-golden`, never by hand."""

from pathlib import Path

import pytest
import torch
from lightning.fabric import Fabric

from headstart.contracts import Method
from headstart.data.loading import ViewLoader
from headstart.data.sampling import Anchored
from headstart.data.sources import open_data
from headstart.methods import METHODS
from headstart.training.fit import fit
from headstart.training.optim import build_optimizer, learning_rate
from headstart.verbs import resolve
from headstart.views import PRESETS


def trace(method: Method) -> list[float]:
    method = method.double()
    optimizer = build_optimizer(method, "sgd", weight_decay=5e-4)
    fabric = Fabric(accelerator="cpu", devices=1, precision="64-true")
    trained, set_up = fabric.setup(method, optimizer)
    views = resolve.recipe(type(method), 100_000, 8).views or method.views
    data, rows = open_data("digits"), torch.arange(100)
    anchors = getattr(method, "anchors", None)
    sampler = Anchored(data.labels[rows], 16, 0, anchors=anchors, background=None) if anchors else None
    loader = ViewLoader(
        dataset=data,
        rows=rows,
        augments=tuple(PRESETS["digits"] for _ in views),
        image_size=8,
        batch_size=16,
        sampler=sampler,
        seed=0,
        stop=3,
    )
    steps = fit(
        trained,
        (part._replace(views=tuple(view.double() for view in part.views)) for part in loader),
        set_up,
        fabric=fabric,
        learning_rates=lambda step: learning_rate(step, steps=3, warmup=0.0, peak=0.01),
        start=0,
        steps=3,
        parts=1,
        seed=0,
    )
    return [step.losses["loss"] for step in steps]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_trace_is_the_recorded_one(name, request, make_method):
    path = Path(__file__).with_name(f"{name}.txt")
    found = trace(make_method(name, size=8))
    if request.config.getoption("--rewrite-golden"):
        path.write_text("".join(f"{step} {loss:.15g}\n" for step, loss in enumerate(found, 1)))
    expected = [float(line.split()[1]) for line in path.read_text().splitlines()]
    # views are drawn in float32, whose last bits differ between processors
    assert found == pytest.approx(expected, rel=1e-6)
    assert len(set(found)) == 3
