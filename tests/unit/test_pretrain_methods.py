"""Every method pretrains, repeats itself, sees the labels it may see, says when it collapses, and leaves a backbone."""

import pytest
import safetensors.torch
import torch

import headstart
from headstart import runs
from headstart.cli import main
from headstart.data.loading import ViewLoader
from headstart.data.sources import open_data
from headstart.data.splits import label_subset, limited, split
from headstart.errors import UserError
from headstart.methods import METHODS
from headstart.methods.simclr import SimCLR
from headstart.verbs import figures, pretraining
from headstart.verbs.health import CollapseError

RESNET = {"model": "timm/resnet18", "model_args": {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}}
TRANSFORMER = {
    "model": "timm/vit_tiny_patch16_224",
    "model_args": {"depth": 1, "embed_dim": 24, "num_heads": 3},
}
DIGITS = {"data": "digits", "limit": 100}
SMALL = {  # what would only cost time
    "barlow-twins": {"projection_dim": 32},
    "byol": {"hidden_dim": 32},
    "dino": {"hidden_dim": 32, "prototypes": 64},
    "mae": {"decoder_dim": 24, "decoder_depth": 1},
    "nnclr": {"projector_dim": 32, "predictor_dim": 32},
    "simsiam": {"projection_dim": 32, "predictor_dim": 16},
    "swav": {"hidden_dim": 32},
    "vicreg": {"projection_dim": 32},
    "visreg": {"hidden_dim": 32, "slices": 32},
}


@pytest.fixture(autouse=True)
def one_thread(seeded):
    torch.set_num_threads(1)


@pytest.fixture
def no_plots(monkeypatch):
    for name in ("curves", "health_panel", "view_sheet"):
        monkeypatch.setattr(figures, name, lambda *arguments, **named: None)


def settings_of(name, teacher, **changes):
    model = TRANSFORMER if "vit" in METHODS[name].needs else RESNET
    more = {"teacher": teacher, "teacher_size": 8} if name == "distill" else {}
    shared = {**DIGITS, **model, "method": name, "epochs": 1, "batch_size": 20, "quiet": True}
    return {**shared, "method_args": {**SMALL.get(name, {}), **more}, **changes}


def losses_of(folder):
    return [line["loss"] for line in runs.read_metrics(folder)]


def equal(first, second):
    states = [safetensors.torch.load_file(folder / runs.BACKBONE) for folder in (first, second)]
    return all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_leaves_a_finished_run_that_probe_reads(name, teacher, no_plots, tmp_path):
    found = headstart.pretrain(out=tmp_path / "run", **settings_of(name, teacher))
    assert len(losses_of(found.out)) == 3
    assert "auto" not in {*found.config["method_args"].values()} | {found.config["optimizer"]}
    again = headstart.pretrain(out=tmp_path / "run", resume=True, **settings_of(name, teacher))
    assert (again.scores, again.text) == (found.scores, found.text)
    options = {"labels": "1", "seeds": 1, "penalties": [1.0], "neighbours": 5, "quiet": True}
    (row,) = headstart.probe(found.out, **DIGITS, **options).scores["rows"]
    assert 0 <= row["accuracy"] <= 1


@pytest.mark.parametrize("name", ["moco", "supcon-anchor", "dino", "mae"])
def test_the_config_of_a_run_repeats_it(name, teacher, no_plots, tmp_path):
    first = headstart.pretrain(out=tmp_path / "first", **settings_of(name, teacher))
    again = headstart.pretrain(out=tmp_path / "again", config=first.out / "config.yaml", quiet=True)
    assert losses_of(first.out) == losses_of(again.out)
    assert equal(first.out, again.out)
    assert (first.out / "config.yaml").read_text() == (again.out / "config.yaml").read_text()


# Labels


@pytest.fixture
def seen(monkeypatch, no_plots):
    """Return what a training is shown: the labels of each row."""
    shown = {}

    class Spy(ViewLoader):
        def __iter__(self):
            for batch in super().__iter__():
                shown.update(zip(batch.rows.tolist(), batch.labels.tolist(), strict=True))
                yield batch

    monkeypatch.setattr(pretraining.Pretraining, "draw_views", lambda self, run: None)
    monkeypatch.setattr(pretraining, "ViewLoader", Spy)
    return shown


@pytest.mark.parametrize(("budget", "seed"), [("2", 0), ("2", 1), ("30%", 0), ("all", 0)])
def test_only_the_labels_of_the_budget_are_shown(budget, seed, teacher, seen, tmp_path):
    more = {"include": "val,test", "labels": budget, "seed": seed, "epochs": 1}
    headstart.pretrain(out=tmp_path / "run", **settings_of("supcon", teacher, **more))
    data = limited(open_data("digits"), 100)
    allowed = set(label_subset(data.labels, split(data).train, budget, seed).tolist())
    assert seen == {row: int(data.labels[row]) if row in allowed else -1 for row in range(100)}
    assert len(allowed) == {"2": 20, "30%": 18, "all": 60}[budget]


def test_a_method_without_labels_is_shown_none(teacher, seen, tmp_path):
    headstart.pretrain(out=tmp_path / "run", **settings_of("simclr", teacher))
    assert set(seen.values()) == {-1}
    assert len(seen) == 60


# Collapse


@pytest.fixture
def constant(monkeypatch):
    embed = SimCLR.embed
    monkeypatch.setattr(SimCLR, "embed", lambda self, images: 0 * embed(self, images) + 1)


def test_a_collapse_stops_the_training_with_one_line(constant, no_plots, tmp_path, capfd):
    model = [f"--model-args.{name}={value}" for name, value in RESNET["model_args"].items()]
    words = ["--data", "digits", "--limit", "100", "--model", "timm/resnet18", *model, "--quiet", "--out"]
    steps = ["--epochs", "4", "--batch-size", "20", "--health-every", "1", "--on-collapse", "stop"]
    assert main(["pretrain", *words, str(tmp_path / "run"), *steps]) == 2
    said = capfd.readouterr().err
    assert said.startswith("headstart: collapse at step 4: standard deviation of the embeddings ")
    assert said.count("\n") == 1
    lines = runs.read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["collapsed"] is True
    assert lines[-1]["health_std"] < 0.1
    assert runs.read_result(tmp_path / "run") is None


def test_a_collapse_is_said_and_recorded(constant, teacher, no_plots, tmp_path, capfd):
    settings = settings_of("simclr", teacher, epochs=4, health_every=1)
    found = headstart.pretrain(out=tmp_path / "run", **settings)
    assert runs.read_result(found.out)["collapsed_at_step"] == 4
    assert len(losses_of(found.out)) == 12
    assert capfd.readouterr().err.count("collapse at step") == 1
    with pytest.raises(CollapseError):
        headstart.pretrain(out=tmp_path / "stopped", **{**settings, "on_collapse": "stop"})


def test_the_health_of_a_stopped_run_is_drawn(constant, teacher, tmp_path):
    settings = settings_of("simclr", teacher, epochs=4, health_every=1, on_collapse="stop")
    with pytest.raises(CollapseError):
        headstart.pretrain(out=tmp_path / "run", **settings)
    assert (tmp_path / "run" / "plots" / "health.png").exists()


# Arguments


def test_a_background_that_only_test_images_have_is_none(tmp_path, save_image, teacher, no_plots):
    for folder in ("train/cat", "train/dog", "test/cat", "test/background"):
        for number in range(4):
            save_image(tmp_path / "data" / folder / f"{number}.png", size=(8, 8), seed=number)
    changes = {"data": tmp_path / "data", "limit": None, "batch_size": 5}
    found = headstart.pretrain(out=tmp_path / "run", **settings_of("supcon-anchor", teacher, **changes))
    assert found.config["method_args"]["background"] == "any other"


def test_classes_may_be_called_by_numbers(teacher, no_plots, tmp_path):
    settings = settings_of("supcon-anchor", teacher, method_args={"background": 3})
    found = headstart.pretrain(out=tmp_path / "run", **settings)
    assert found.config["method_args"]["background"] == "3"


def test_a_teacher_that_does_not_fit_is_refused(teacher, tmp_path):
    args = {"teacher": teacher, "teacher_model": "torchvision/mobilenet_v2"}
    with pytest.raises(UserError, match=r"method_args\.teacher: .*does not fit"):
        headstart.pretrain(out=tmp_path / "run", **settings_of("distill", teacher, method_args=args))
    assert not (tmp_path / "run").exists()
