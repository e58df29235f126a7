"""The watch that looks at a pretraining's health, and the plot of what it saw."""

import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from headstart.backbones import build
from headstart.contracts import Backbone, Batch, Features, Method
from headstart.errors import UserError
from headstart.evaluation.health import health
from headstart.methods.simclr import SimCLR
from headstart.nets import mlp
from headstart.verbs.figures import health_panel
from headstart.verbs.health import CollapseError, Watch, is_collapsed, looks, smallest_rank

HEALTHY = {"health_std": 0.6, "health_rank": 40.0, "health_rank_limit": 128.0}
COMPLETE = {"health_std": 0.03, "health_rank": 30.0, "health_rank_limit": 128.0}
DIMENSIONAL = {"health_std": 0.9, "health_rank": 1.2, "health_rank_limit": 128.0}


class Toy(Method):
    """Digits through small layers with all that a look could disturb."""

    paper, views, remedy = "arXiv", ("none", "none"), "a predictor"

    def __init__(self, dims=16):
        super().__init__(Layers(nn.Flatten(), nn.Linear(64, 32)))
        self.projector = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.Dropout(), nn.Linear(32, dims))
        self.teacher = nn.Linear(32, dims).eval()
        self.seen = []

    def embed(self, images):
        torch.rand(3)  # a method may draw masks
        self.seen.append(images)
        return super().embed(images)

    def embed_target(self, images):
        return self.teacher(self.backbone(images))

    def losses(self, batch):
        first, second = (super(Toy, self).embed(view) for view in batch.views)
        return {"loss": -F.cosine_similarity(first, second).mean()}


class Layers(Backbone):
    def __init__(self, *layers):
        super().__init__()
        self.net, self.dim = nn.Sequential(*layers, nn.ReLU(), nn.Flatten()), 32

    def features(self, images):
        return Features(self.net(images), [])


def make_watch(method, **changes):
    said = []
    options = {"every": 10, "steps": 1000, "on_collapse": "warn", "say": said.append}
    fabric = Fabric(accelerator="cpu", devices=1, precision=changes.pop("precision", "32-true"))
    return Watch(method, fabric=fabric, **{**options, **changes}), said


def make_batch(count=32, sizes=(8, 8), seed=0):
    generator = torch.Generator().manual_seed(seed)
    views = tuple(torch.randn(count, 1, size, size, generator=generator) for size in sizes)
    return Batch(views, torch.zeros(count), torch.arange(count))


def past(*figures, every=50):
    return [{"step": every * number, "epoch": 1, "loss": 0.0, **look} for number, look in enumerate(figures, 1)]


def test_a_look_leaves_no_trace():
    method = Toy().train()
    method.teacher.eval()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    modes = [module.training for module in method.modules()]
    state = torch.get_rng_state()
    figures = make_watch(method)[0].look(10, make_batch())
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in method.modules()] == modes
    assert len(set(modes)) == 2
    assert all(torch.equal(value, before[name]) for name, value in method.state_dict().items())
    assert all(parameter.grad is None for parameter in method.parameters())
    assert 0 < figures["health_target_distance"] < 2


def test_modes_are_restored_after_an_error():
    method = Toy().train()
    with pytest.raises(RuntimeError):
        make_watch(method)[0].look(10, make_batch(sizes=(7, 7)))
    assert method.projector.training


def test_figures_are_those_of_the_method_in_evaluation():
    method, batch = Toy().train(), make_batch()
    figures = make_watch(method)[0].look(10, batch)
    method.eval()
    with torch.no_grad():
        embeddings, target = [method.embed(view) for view in batch.views], method.embed_target(batch.views[0])
        expected = health(embeddings, target, method.backbone(batch.views[0]))
    assert figures == pytest.approx(expected)


def test_the_arithmetic_of_the_training_is_used():
    torch.manual_seed(1)
    method = Toy()
    wide, narrow = (make_watch(method, precision=kind)[0].look(10, make_batch()) for kind in ("32-true", "bf16-mixed"))
    assert narrow["health_rank"] != wide["health_rank"]
    assert narrow["health_rank"] == pytest.approx(wide["health_rank"], rel=0.02)


def test_at_most_so_many_images_of_the_first_two_views_of_one_size_are_seen():
    method, batch = Toy(), make_batch(count=90, sizes=(8, 4, 8, 8))
    make_watch(method, images=30)[0].look(10, batch)
    assert len(method.seen) == 2
    for seen, view in zip(method.seen, (batch.views[0], batch.views[2]), strict=True):
        assert torch.equal(seen, view[::3])


def test_one_view_and_figures_that_cannot_be_had():
    figures = make_watch(Toy())[0].look(10, make_batch(count=1, sizes=(8,)))
    assert figures.keys() == {
        "health_rank", "health_rank_limit", "health_features_rank", "health_target_distance"
    }  # fmt: skip


def test_looks_are_due_every_few_steps_and_after_the_last():
    watch, _ = make_watch(Toy(), every=30, steps=100)
    assert [step for step in range(1, 101) if watch.due(step)] == [30, 60, 90, 100]


def test_only_the_first_process_looks():
    watch, _ = make_watch(Toy())
    watch.fabric = type("Other", (), {"is_global_zero": False})()
    assert watch.look(10, make_batch()) == {}


@pytest.mark.parametrize(
    ("steps", "asked", "every"),
    [(10_000, "auto", 50), (200, "auto", 40), (100, "auto", 40), (5, "auto", 40), (100, 1, 1), (10_000, 500, 500)],
)
def test_how_often_to_look(steps, asked, every):
    assert looks(steps, asked) == every


@pytest.mark.parametrize("collapsed", [COMPLETE, DIMENSIONAL])
def test_two_looks_in_a_row_make_a_collapse(collapsed):
    def step_of(*figures, **changes):
        return make_watch(Toy(), past=past(*figures), **changes)[0].collapsed_at

    assert step_of(HEALTHY, HEALTHY, HEALTHY, collapsed, collapsed, HEALTHY) == 250
    assert step_of(HEALTHY, HEALTHY, HEALTHY, collapsed, HEALTHY, collapsed) is None
    assert step_of(collapsed, collapsed, collapsed, HEALTHY) is None  # the first two looks do not count
    assert step_of(collapsed, collapsed, collapsed, collapsed) == 200
    assert step_of(*[collapsed] * 10, steps=10_000) is None  # nor do the first 5 % of the steps
    assert step_of(*[collapsed] * 12, steps=10_000) == 600


@pytest.mark.parametrize("look", [COMPLETE, DIMENSIONAL])
def test_few_images_or_dimensions_prove_nothing(look):
    assert is_collapsed(look)
    assert not is_collapsed({**look, "health_rank_limit": 4.0})
    assert not is_collapsed({"health_rank_limit": 128.0})


def test_the_smallest_rank_grows_with_what_is_possible():
    assert smallest_rank(16) == 1.5
    assert smallest_rank(256) == pytest.approx(5.12)


def flat(method):
    nn.init.zeros_(method.projector[-1].weight)
    return method


def test_a_collapse_is_said_once_and_recorded():
    watch, said = make_watch(flat(Toy()), past=past(HEALTHY, HEALTHY))
    lines = [watch.look(step, make_batch(seed=step)) for step in (150, 200, 250)]
    assert [line.get("collapsed") for line in lines] == [None, True, None]
    assert len(said) == 1
    assert said[0].startswith("collapse at step 200: standard deviation of the embeddings ")
    assert said[0].endswith(" of 1, effective rank 1.0 of 16. Usual remedy for Toy: a predictor")
    assert watch.facts()["collapsed_at_step"] == 200
    assert watch.facts()["health"] == lines[-1]


def test_a_collapse_stops_the_training_when_asked():
    watch, said = make_watch(flat(Toy()), past=past(HEALTHY, HEALTHY), on_collapse="stop")
    watch.look(150, make_batch())
    watch.stop()
    assert watch.look(200, make_batch())["collapsed"]
    with pytest.raises(CollapseError, match="collapse at step 200") as caught:
        watch.stop()
    assert isinstance(caught.value, UserError)
    assert "\n" not in str(caught.value)
    assert not said


def test_a_training_that_goes_on_remembers_its_looks():
    whole, _ = make_watch(flat(Toy()), past=past(HEALTHY, HEALTHY))
    lines = [{"step": step, **whole.look(step, make_batch())} for step in (150, 200, 250)]
    resumed, said = make_watch(flat(Toy()), past=[*past(HEALTHY, HEALTHY), {"step": 149, "loss": 1.0}, *lines])
    assert resumed.facts() == whole.facts()
    resumed.look(300, make_batch())
    assert not said


# Real trainings


def digits(steps, size=32):
    images = torch.from_numpy(load_digits().images).float().unsqueeze(1).expand(-1, 3, -1, -1) / 16
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(images), (size,), generator=generator)
        views = images[rows] + torch.randn(2, size, 3, 8, 8, generator=generator) * 0.2
        yield Batch(tuple(views), torch.zeros(size), rows)


def convolutions():
    return Layers(
        nn.Conv2d(3, 16, 3, stride=2), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32)
    )  # fmt: skip


def resnet():
    model_args = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    return build("timm/resnet18", stem="small", image_size=8, model_args=model_args)


def train(make, rate, steps=120):
    """Train with a look every tenth step; return the watch and the figures."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    method = make()
    watch, _ = make_watch(method.train(), every=10, steps=steps)
    optimizer = torch.optim.SGD(method.parameters(), rate, momentum=0.9)
    seen = []
    for step, batch in enumerate(digits(steps), 1):
        optimizer.zero_grad()
        method.losses(batch)["loss"].backward()
        optimizer.step()
        if watch.due(step):
            seen.append(watch.look(step, batch))
    return watch, seen


class Attract(Method):
    """Views of an image attract each other, and nothing keeps images apart."""

    paper, views, remedy = "arXiv", ("none", "none"), "a predictor and a stop-gradient"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.projector = mlp([backbone.dim, backbone.dim, 32])

    def losses(self, batch):
        first, second = (self.embed(view) for view in batch.views)
        return {"loss": -F.cosine_similarity(first, second).mean()}


class Rotation(Method):
    """Which way up: four logits that are right to be alike for images that stand upright."""

    paper, views, remedy = "arXiv", ("none",), "none needed"

    def __init__(self, backbone):
        super().__init__(backbone)
        self.projector = nn.Linear(backbone.dim, 4)

    def losses(self, batch):
        view = batch.views[0]
        turned = torch.cat([view.rot90(quarter, (2, 3)) for quarter in range(4)])
        return {"loss": F.cross_entropy(self.embed(turned), torch.arange(4).repeat_interleave(len(view)))}


def test_simclr_stays_healthy():
    watch, seen = train(lambda: SimCLR(resnet()), 0.05, steps=60)
    assert watch.facts()["collapsed_at_step"] is None
    assert not any(is_collapsed(figures) for figures in seen)
    assert seen[-1]["health_positives"] > seen[-1]["health_negatives"] + seen[-1]["health_negatives_std"]


def test_attraction_alone_collapses():
    watch, seen = train(lambda: Attract(convolutions()), 1.0)
    assert watch.facts()["collapsed_at_step"] is not None
    assert is_collapsed(seen[-1])
    assert seen[-1]["health_negatives"] > 0.99


def test_predicting_rotations_is_no_collapse():
    watch, seen = train(lambda: Rotation(convolutions()), 0.05)
    assert watch.facts()["collapsed_at_step"] is None
    assert seen[-1]["health_rank_limit"] == 4


# The plot


def test_only_panels_that_have_data_are_drawn(tmp_path):
    def height(*names):
        path = tmp_path / "health.png"
        health_panel(path, [{"epoch": epoch, **dict.fromkeys(names, 0.5)} for epoch in range(1, 4)], "healthy")
        with Image.open(path) as image:
            return image.size[1]

    one = height("loss")
    every = height(
        "loss", "gradient_norm", "collapsed", "health_target_distance",
        *health([torch.randn(4, 2)] * 2, None, torch.randn(4, 2)),
    )  # fmt: skip
    assert every > 3 * one
