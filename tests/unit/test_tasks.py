"""The three tasks from one pretrained backbone, from the verbs' own front doors."""

import csv
import json

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

import headstart
from headstart import runs
from headstart.backbones.yolo import read_network
from headstart.data.sources import open_data
from headstart.data.splits import split
from headstart.errors import UserError
from headstart.verbs.finetuning.segment import SegmentJob

MODEL = {"model": "timm/resnet18", "model_args": {"channels": [8, 8, 16, 16], "layers": [1, 1, 1, 1]}}
YOLO = {"model": "ultralytics/yolov8n", "model_args": {"width": 0.125}}
SHORT = {"epochs": 1, "min_steps": 3, "evaluations": 1, "batch_size": 4, "quiet": True}


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    """Bright squares on noise, as masks and as boxes of the same images."""
    folder = tmp_path_factory.mktemp("squares")
    for kind in ("masks/images", "masks/masks", "boxes/images", "boxes/labels"):
        (folder / kind).mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(20):
        image = draw.integers(0, 120, (48, 64, 3), dtype=np.uint8)
        mask = np.zeros((48, 64), np.uint8)
        top, left, side = draw.integers(0, 24), draw.integers(0, 40), draw.integers(10, 24)
        image[top : top + side, left : left + side] = draw.integers(180, 255, 3)
        mask[top : top + side, left : left + side] = 1
        box = (left + side / 2) / 64, (top + side / 2) / 48, side / 64, side / 48
        for kind in ("masks", "boxes"):
            Image.fromarray(image).save(folder / kind / "images" / f"{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / "masks" / f"{number:02d}.png")
        (folder / "boxes" / "labels" / f"{number:02d}.txt").write_text(" ".join(["0", *map(str, box)]) + "\n")
    (folder / "boxes" / "data.yaml").write_text("train: images\nnames: [square]\n")
    return folder


@pytest.fixture(scope="module")
def pretrained(squares, tmp_path_factory):
    out = tmp_path_factory.mktemp("pretrained") / "run"
    headstart.pretrain(
        data=squares / "masks", out=out, image_size=64, epochs=1, batch_size=6, stem="standard", quiet=True, **MODEL
    )
    return out


def test_a_pretraining_on_masks_leaves_out_what_the_task_is_scored_on(squares, pretrained):
    data = open_data(squares / "masks")
    cut = split(data)
    assert [len(rows) for rows in (cut.train, cut.val, cut.test)] == [12, 4, 4]
    parts = json.loads((pretrained / runs.ENVIRONMENT).read_text())["data"]["parts"]
    assert {name: part["images"] for name, part in parts.items()}["pretrain"] == 12


def test_a_backbone_arrives_in_a_segmenter_and_in_a_detector(squares, pretrained, tmp_path, capsys):
    head = {**SHORT, "transfer": "head", "init": pretrained, "image_size": 64, "quiet": False}
    headstart.finetune(task="segment", data=squares / "masks", out=tmp_path / "masks", decoder="fpn", **head)
    headstart.finetune(task="detect", data=squares / "boxes" / "data.yaml", out=tmp_path / "boxes", **head)
    said = capsys.readouterr().err + capsys.readouterr().out
    before = safetensors.torch.load_file(pretrained / runs.BACKBONE)
    for name in ("masks", "boxes"):
        found = runs.read_result(tmp_path / name)
        assert found["transfer"].startswith("backbone ")
        assert float(found["transfer"].rpartition(" ")[2]) <= 1e-5
        assert found["transfer"] in said
        after = safetensors.torch.load_file(tmp_path / name / runs.BACKBONE)
        assert all(torch.equal(after[key], tensor) for key, tensor in before.items())
    assert runs.read_result(tmp_path / "boxes")["config"]["detector"] == "retinanet"


def test_weights_that_a_wrapper_changes_are_noticed(squares, pretrained, tmp_path, monkeypatch):
    def rebuilt(module, fabric):
        torch.nn.init.normal_(module.backbone.net.conv1.weight)
        return module

    monkeypatch.setattr("headstart.verbs.finetuning.loop.prepared", rebuilt)
    with pytest.raises(UserError, match=r"init: the weights did not arrive: the features .* differ by"):
        headstart.finetune(
            task="segment", data=squares / "masks", out=tmp_path / "run", init=pretrained, image_size=64, **SHORT
        )
    assert runs.read_result(tmp_path / "run") is None


@pytest.mark.parametrize("task", ["segment", "detect"])
def test_a_study_compares_masks_or_boxes(task, squares, tmp_path):
    result = headstart.study(
        out=tmp_path / "study",
        data=squares / "masks" if task == "segment" else squares / "boxes" / "data.yaml",
        task=task,
        image_size=64,
        arms={"scratch": "none", "simclr": {"method": "simclr"}},
        labels=[4, "all"],
        seeds=2,
        pretrain={"epochs": 1, "batch_size": 6},
        finetune={"epochs": 1, "min_steps": 2, "evaluations": 1, "batch_size": 4},
        workers=1,
        quiet=True,
        **MODEL,
    )
    with (tmp_path / "study" / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    score = "iou" if task == "segment" else "map50_95"
    assert (len(rows), {row["transfer"] for row in rows}) == (8, {"finetune"})
    assert {row["images"] for row in rows} == {"4", "12"}
    assert all(0 <= float(row[f"val_{score}"]) <= 1 for row in rows)
    assert result.scores["score"] == score
    assert result.scores["unit"] == "labelled images"
    page = (tmp_path / "study" / "report.html").read_text()
    assert ("Where the arms differ" in page) == (task == "segment")


def test_a_study_of_yolo_networks(squares, tmp_path):
    result = headstart.study(
        out=tmp_path / "study",
        data=squares / "boxes" / "data.yaml",
        task="detect",
        image_size=64,
        transfers=["head", "finetune"],
        arms={"scratch": "none", "simclr": {"method": "simclr", "stem": "standard"}},
        labels=["all"],
        seeds=1,
        pretrain={"epochs": 1, "batch_size": 6},
        finetune={"epochs": 1, "batch_size": 4},
        score="map50",
        workers=1,
        quiet=True,
        **YOLO,
    )
    assert not result.scores["unfinished"]
    assert {(row["arm"], row["transfer"]) for row in result.scores["scores"]} == {
        (arm, transfer) for arm in ("scratch", "simclr") for transfer in ("head", "finetune")
    }


def test_a_trained_yolo_network_is_handed_over_whole_and_predicts(squares, tmp_path):
    data = squares / "boxes" / "data.yaml"
    settings = {"task": "detect", "data": data, "image_size": 64, "epochs": 1, "batch_size": 4, "quiet": True}
    headstart.finetune(out=tmp_path / "run", **settings, **YOLO)
    headstart.export(tmp_path / "run", format="ultralytics", out=tmp_path / "whole.pt", quiet=True)
    handed, trained = (read_network(path, "x") for path in (tmp_path / "whole.pt", tmp_path / "run" / runs.DETECTOR))
    assert handed.names == {0: "square"}
    ours, theirs = handed.state_dict(), trained.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
    found = headstart.predict(tmp_path / "run", squares / "boxes" / "images", out=tmp_path / "found", quiet=True)
    assert found.images == 20
    assert len(list((tmp_path / "found" / "labels").glob("*.txt"))) == 20


def test_an_interrupted_segmenter_ends_as_one_that_was_not(squares, tmp_path, monkeypatch):
    settings = {**MODEL, **SHORT, "task": "segment", "data": squares / "masks", "image_size": 64, "min_steps": 4}
    settings |= {"evaluations": 2, "schedule": "plateau", "plateau_patience": 1, "checkpoint_every": 1e-9}
    whole = headstart.finetune(out=tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        look, looks = SegmentJob.look, []

        def stop(job):
            looks.append(None)
            if len(looks) == 2:
                raise KeyboardInterrupt
            return look(job)

        patch.setattr(SegmentJob, "look", stop)
        with pytest.raises(KeyboardInterrupt):
            headstart.finetune(out=tmp_path / "run", **settings)
    again = headstart.finetune(out=tmp_path / "run", resume=True, **settings)
    assert again.scores == whole.scores
    for name in (runs.BACKBONE, runs.HEAD):
        assert (again.out / name).read_bytes() == (whole.out / name).read_bytes()


@pytest.mark.parametrize(
    ("task", "kind", "message"),
    [
        ("segment", "boxes/data.yaml", "data: .* has no masks whose values are classes"),
        ("detect", "masks", "data: .* has no boxes .*data.yaml .YOLO., instances.json .COCO., a folder of VOC XML"),
        ("classify", "masks", "data: masks has no labels"),
    ],
)
def test_data_that_a_task_cannot_be_learned_from_are_refused(task, kind, message, squares, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        headstart.finetune(task=task, data=squares / kind, out=tmp_path / "run", **MODEL, **SHORT)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
