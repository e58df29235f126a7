"""A probe at every stage of a backbone: features by hand, scores, the table, the cache, and studies."""

import csv
import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

import headstart
from headstart.backbones import build
from headstart.backbones.given import initialise
from headstart.data.loading import images_at
from headstart.data.sources import open_data
from headstart.data.splits import limited, split
from headstart.errors import UserError
from headstart.evaluation.features import cached_stages, extract, extract_stages, stages
from headstart.studies.plan import Cell
from headstart.studies.results import collect
from headstart.verbs import probe as probe_module

NARROW = {"channels": [8, 8, 16, 24], "layers": [1, 1, 1, 1], "zero_init_last": False}
MODEL = {"model": "timm/resnet18", "model_args": NARROW}
DIGITS = {"data": "digits", "limit": 200}
PROBE = {**DIGITS, "labels": "1,5", "seeds": 2, "penalties": [0.1, 1.0], "neighbours": 5, "quiet": True}
STAGES = ["pooled", "1", "2", "3", "4", "5"]


@pytest.fixture(autouse=True)
def one_thread(seeded):
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits():
    return limited(open_data("digits"), 200)


@pytest.fixture
def run(tmp_path):
    """A run folder as it is left behind, without the training."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(json.dumps({**DIGITS, **MODEL, "stem": "small", "image_size": 8}))
    torch.manual_seed(1)
    net = build(image_size=8, **MODEL).net
    safetensors.torch.save_file(net.state_dict(), folder / "backbone.safetensors")
    return folder


@pytest.mark.parametrize(
    ("model", "count"), [("timm/test_vit", 4), ("torchvision/resnet18", 5), ("torchvision/mobilenet_v3_small", 5)]
)
def test_stages_are_the_means_of_the_maps(model, count, digits):
    backbone = build(model, image_size=8)
    rows = torch.arange(30)
    found = extract_stages(backbone, images_at(digits, rows, 8, batch_size=12), device=torch.device("cpu"))
    assert list(found) == stages(backbone) == STAGES[: count + 1]
    images = next(images_at(digits, rows, 8, batch_size=30)).views[0]
    with torch.no_grad():
        pooled, maps = backbone.features(images)
    torch.testing.assert_close(found["pooled"].features, pooled)
    for stage, level in zip(list(found)[1:], maps, strict=True):
        by_hand = [[float(channel.mean()) for channel in image] for image in level]
        torch.testing.assert_close(found[stage].features, torch.tensor(by_hand), rtol=1e-4, atol=1e-5)
        assert torch.equal(found[stage].rows, rows)


def test_pooled_features_are_those_of_an_ordinary_extraction(digits):
    backbone = build(image_size=8, **MODEL)
    batches = [list(images_at(digits, torch.arange(30), 8, batch_size=12)) for _ in range(2)]
    alone = extract(backbone, batches[0], device=torch.device("cpu"))
    together = extract_stages(backbone, batches[1], device=torch.device("cpu"))
    assert torch.equal(alone.features, together["pooled"].features)
    # the last map of a ResNet is what it pools
    torch.testing.assert_close(together["5"].features, alone.features)


def test_every_stage_is_probed_as_the_pooled_features_are(run, digits, monkeypatch):
    plain = headstart.probe(run, **PROBE)
    found = headstart.probe(run, **PROBE, stages=True)
    rows = found.scores["rows"]
    assert [row["stage"] for row in rows] == [stage for stage in STAGES for _ in range(4)]
    assert rows[:4] == plain.scores["rows"]
    assert [row["stage"] for row in plain.scores["rows"]] == ["pooled"] * 4
    with (found.out / "scores.csv").open() as file:
        assert [row["stage"] for row in csv.DictReader(file)] == [row["stage"] for row in rows]
    # the probe of one stage is the ordinary probe of a backbone that pools that stage
    backbone = initialise(str(run)).backbone
    monkeypatch.setattr(type(backbone), "forward", lambda self, images: self.features(images).maps[1].mean((2, 3)))
    monkeypatch.setattr(probe_module, "_files", lambda *arguments: {part: {} for part in ("train", "val", "test")})
    second = headstart.probe(run, **PROBE).scores["rows"]
    for mine, other in zip([row for row in rows if row["stage"] == "2"], second, strict=True):
        for name in ("labels", "seed", "images", "penalty"):
            assert mine[name] == other[name]
        assert mine["accuracy"] == pytest.approx(other["accuracy"], abs=0.03)  # the last bits of the means differ
        assert mine["val_accuracy"] == pytest.approx(other["val_accuracy"], abs=0.03)


def test_the_table_has_a_block_for_each_stage(run):
    lines = headstart.probe(run, **PROBE, stages=True).text.splitlines()
    assert lines[1].split()[:3] == ["stage", "labels", "images"]
    assert [line.split()[:2] for line in lines[2:14]] == [[stage, labels] for stage in STAGES for labels in ("1", "5")]
    assert lines[14].startswith("best stage by linear validation accuracy: ")
    plain = headstart.probe(run, **PROBE).text
    assert plain.splitlines()[1].split()[0] == "labels"
    assert "stage" not in plain


def test_the_best_stage_is_chosen_on_validation_images():
    def row(stage, labels, val, test):
        return {"stage": stage, "labels": labels, "val_accuracy": val, "accuracy": test}

    rows = [
        *(row("pooled", "1", 0.5, 0.9), row("pooled", "1", 0.5, 0.9), row("1", "1", 0.9, 0.1), row("1", "1", 0.2, 0.1)),
        *(row("pooled", "5", 0.6, 0.9), row("1", "5", 0.6, 1.0)),
        *(row("pooled", "all", 0.7, 0.9), row("1", "all", 0.5, 0.9)),
    ]
    expected = "best stage by linear validation accuracy: 1 at labels 1; pooled at labels 5, all"
    assert probe_module._best_stages(rows, ["1", "5", "all"]) == expected


def test_stages_are_computed_once_and_leave_the_pooled_features_behind(run, monkeypatch):
    first = headstart.probe(run, **PROBE, stages=True)

    def refuse(*arguments, **named):
        raise AssertionError("the features were kept")

    monkeypatch.setattr(probe_module, "extract", refuse)
    monkeypatch.setattr(probe_module, "extract_stages", refuse)
    assert headstart.probe(run, **PROBE, stages=True).scores == first.scores
    headstart.probe(run, **PROBE)
    headstart.probe(run, **{**PROBE, "labels": "2"}, stages=True)
    with pytest.raises(AssertionError, match="were kept"):
        headstart.probe(run, **{**PROBE, "limit": 180}, stages=True)


def test_pooled_features_alone_do_not_stand_for_the_stages(run):
    headstart.probe(run, **PROBE)
    assert len(list((run / "features").iterdir())) == 3
    assert len(headstart.probe(run, **PROBE, stages=True).scores["rows"]) == 24
    assert len(list((run / "features").iterdir())) == 3 * len(STAGES)


def test_kept_features_are_those_of_the_same_network(tmp_path):
    # test_resnet has weights of the same shapes with either stem, but other strides
    folder = tmp_path / "run"
    folder.mkdir()
    model = {"model": "timm/test_resnet", "model_args": {}}
    (folder / "config.yaml").write_text(json.dumps({**DIGITS, **model, "stem": "small", "image_size": 32}))
    safetensors.torch.save_file(
        build("timm/test_resnet", image_size=32).net.state_dict(), folder / "backbone.safetensors"
    )
    settings = {**PROBE, "labels": "1", "seeds": 1}
    small, standard = (headstart.probe(folder, **settings, stem=stem) for stem in ("small", "standard"))
    assert small.config["stem"] != standard.config["stem"]
    assert len(list((folder / "features").iterdir())) == 6
    assert small.scores != standard.scores


def test_a_part_that_is_missing_is_computed_with_all_others(tmp_path, digits):
    backbone, device = build(image_size=8, **MODEL), torch.device("cpu")
    rows = split(digits).val
    counted = []

    def compute():
        counted.append(1)
        return extract_stages(backbone, images_at(digits, rows, 8), device=device)

    paths = {stage: tmp_path / "features" / f"{stage}.safetensors" for stage in stages(backbone)}
    first = cached_stages(paths, compute)
    paths["3"].unlink()
    for _ in range(2):
        again = cached_stages(paths, compute)
        assert all(torch.equal(first[stage].features, again[stage].features) for stage in first)
        assert all(torch.equal(first[stage].rows, again[stage].rows) for stage in first)
    assert len(counted) == 2
    cached_stages({}, compute)
    assert len(counted) == 3


def test_a_study_takes_the_pooled_rows(run, tmp_path):
    cell = Cell(id="cell", kind="probe", arm="simclr", seed=0, settings={})
    plain = headstart.probe(run, out=tmp_path / "plain" / "cell", **PROBE)
    headstart.probe(run, out=tmp_path / "stages" / "cell", **PROBE, stages=True)
    found = collect([cell], tmp_path / "stages", "accuracy")
    assert found == collect([replace(cell)], tmp_path / "plain", "accuracy")
    assert [row["accuracy"] for row in found] == [row["accuracy"] for row in plain.scores["rows"]]
    assert all("stage" not in row for row in found)


def test_stages_is_yes_or_no(run):
    with pytest.raises(UserError, match=r"^stages: "):
        headstart.probe(run, **PROBE, stages="some")
