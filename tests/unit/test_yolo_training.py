"""Ultralytics' trainer trains the backbone that it is given, and what it leaves behind is that backbone, trained."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from headstart import runs
from headstart.backbones import yolo
from headstart.backbones.given import initialise
from headstart.backbones.yolo_pixels import NORMALISATION, fold, framed_in_black, unfold
from headstart.config import Finetune
from headstart.data.loading import normalisation
from headstart.data.options import Options
from headstart.data.sources import open_data
from headstart.data.splits import Splits
from headstart.errors import UserError
from headstart.verbs import start
from headstart.verbs.exporting.ultralytics import checkpoint_of
from headstart.verbs.finetuning import yolo as verb
from headstart.verbs.finetuning.yolo_data import row_of, write_yolo_data
from headstart.verbs.finetuning.yolo_network import Draft, put
from headstart.verbs.finetuning.yolo_scores import look_at_test
from headstart.verbs.finetuning.yolo_trainer import Held, Replaced, secluded

THIN = {"width": 0.125, "depth": 0.33}
SUFFIXES = ("jpg", "png", "gif", "bmp")
COUNTS = {"train": 5, "val": 3, "test": 4}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a data set of squares on noise: wide images of four kinds, with one or two squares, or none."""
    folder, draws = tmp_path_factory.mktemp("squares"), np.random.default_rng(0)
    for split, count in COUNTS.items():
        for number in range(count):
            pixels, lines = draws.integers(0, 90, (48, 80, 3), dtype=np.uint8), []
            for label in range(number % 3):
                left, top, side = draws.integers(2, 50), draws.integers(2, 26), draws.integers(8, 20)
                pixels[top : top + side, left : left + side] = 255 * np.eye(3, dtype=np.uint8)[label]
                box = ((left + side / 2) / 80, (top + side / 2) / 48, side / 80, side / 48)
                lines.append(f"{label} {' '.join(f'{share:.8f}' for share in box)}\n")
            image = folder / "images" / split / f"same{number}.{SUFFIXES[number % 4]}"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(image)
            (folder / "labels" / split).mkdir(parents=True, exist_ok=True)
            (folder / "labels" / split / f"same{number}.txt").write_text("".join(lines))
    known = {"train": "images/train", "val": "images/val", "test": "images/test", "names": ["red", "green"]}
    (folder / "data.yaml").write_text(yaml.safe_dump(known))
    return open_data(str(folder), Options())


def splits_of(data):
    return Splits(*((data.splits == code).nonzero().squeeze(1) for code in range(4)))


def begun(init="none", seed=3, **given):
    return initialise(
        init,
        **{"model": "ultralytics/yolov8n", "model_args": THIN, "stem": "standard", "image_size": 64, **given},
        seed=seed,
    )


def settings_of(**given):
    settings = Finetune(
        data="squares", task="detect", detector="yolo", model="ultralytics/yolov8n", model_args=THIN, stem="standard"
    )
    known = {"image_size": 64, "batch_size": 3, "epochs": 2, "seed": 3, "precision": "fp32", "devices": 1}
    return settings.updated(**{**known, **given})


def train(data, folder, *, init="none", resume=False, lean=True, **given):
    settings, splits = settings_of(init=str(init), **given), splits_of(data)
    run = runs.create(folder, settings, {"verb": "finetune"}, resume=resume, overwrite=False)
    try:
        found = verb.run_yolo(
            settings, data, splits, splits.train, begun(str(init)), run, resume=resume, quiet=True, lean=lean
        )
        run.finish(settings, found.pop("scores"), **found)
    finally:
        run.release()
    return json.loads((folder / runs.RESULT).read_text())


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory):
    """Return a RUN whose batch normalisations have seen images."""
    folder = tmp_path_factory.mktemp("pretrained")
    made = begun(seed=8)
    with torch.no_grad():
        for _ in range(20):
            made.backbone.train()(torch.randn(8, 3, 64, 64))
    (folder / runs.CONFIG).write_text(settings_of().to_yaml())
    start.save_weights(folder / runs.BACKBONE, made.backbone.net)
    return folder


@pytest.fixture(scope="module")
def scratch(data, tmp_path_factory):
    """Return the run of a training from scratch, and what there was before it in the folder of the images."""
    folder = tmp_path_factory.mktemp("scratch") / "run"
    before = listing(data.root)
    result = train(data, folder, lean=False)
    return folder, result, before


def listing(folder):
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}


def pixels(channels=3):
    return torch.rand(2, channels, 64, 64, generator=torch.Generator().manual_seed(4))


def through(layers, images):
    for layer in layers:
        images = layer(images)
    return images.mean((2, 3))


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 3])
def test_unfolding_undoes_folding_and_both_keep_the_features(channels, pretrained):
    backbone = begun(str(pretrained), channels=channels).backbone.eval()
    mean, std = normalisation(channels)
    assert NORMALISATION[channels] == (mean, std)
    expected = framed_in_black(backbone, pixels(channels), mean, std).pooled
    state = {name: tensor.clone() for name, tensor in backbone.net.state_dict().items()}
    fold(backbone.net, mean, std)
    close(backbone(pixels(channels)), expected)
    unfold(backbone.net, mean, std)
    for name, tensor in backbone.net.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=1e-6, atol=1e-6)
        assert torch.equal(tensor, state[name]) or name in ("model.0.conv.weight", "model.0.bn.running_mean")


def test_the_folder_for_ultralytics_holds_the_same_boxes(data, tmp_path):
    splits = splits_of(data)
    write_yolo_data(data, {"train": splits.train, "val": splits.val, "test": splits.test}, tmp_path)
    found = open_data(str(tmp_path), Options())
    rows = torch.tensor([row_of(path) for path in found.paths.to_pylist()])
    assert sorted(rows.tolist()) == list(range(data.count))
    assert torch.equal(found.splits, data.splits[rows])
    assert torch.equal(found.sizes, data.sizes[rows])
    assert found.classes == data.classes
    own = data.objects.to_pylist()
    again = [{**box, "image": int(rows[box["image"]])} for box in found.objects.to_pylist()]
    for box, expected in zip(sorted(again, key=lambda box: box["image"]), own, strict=True):
        assert box == pytest.approx(expected, abs=1e-3)
    for row, path in zip(rows.tolist(), found.paths.to_pylist(), strict=True):
        source = data.paths[row].as_py()
        assert (tmp_path / path).is_symlink() != source.endswith(".gif")
        with Image.open(tmp_path / path) as image, Image.open(data.root / source) as original:
            assert np.array_equal(np.array(image.convert("RGB")), np.array(original.convert("RGB")))


def test_pixels_of_16_bits_are_written_by_their_range(tmp_path):
    values = np.linspace(1000, 5000, 40 * 30).reshape(30, 40).astype(np.uint16)
    for split in ("train", "val"):
        (tmp_path / "deep" / "images" / split).mkdir(parents=True)
        (tmp_path / "deep" / "labels" / split).mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / "deep" / "images" / split / "1.png")
        (tmp_path / "deep" / "labels" / split / "1.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    known = {"train": "images/train", "val": "images/val", "names": ["thing"]}
    (tmp_path / "deep" / "data.yaml").write_text(yaml.safe_dump(known))
    data = open_data(str(tmp_path / "deep"), Options())
    write_yolo_data(data, {"train": torch.tensor([0])}, tmp_path / "out")
    with Image.open(tmp_path / "out" / "images" / "train" / "000000000.png") as image:
        found = np.array(image)
    low, high = data.pixels.range[0]
    expected = np.clip((values.astype(float) - low) / (high - low), 0, 1) * 255
    assert found.dtype == np.uint8
    assert np.abs(found.reshape(30, 40, -1)[..., 0] - expected).max() <= 0.51
    assert yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())["channels"] == data.pixels.channels


def test_the_head_is_decided_by_the_seed_alone(pretrained):
    def drafted(init, seed):
        return Draft(begun(init, seed=seed), ("red", "green"), 3, seed)

    torch.manual_seed(0)
    first = drafted("none", 3).build().state_dict()
    torch.manual_seed(1)
    same, other = drafted(str(pretrained), 3).build().state_dict(), drafted("none", 4).build().state_dict()
    heads = [name for name in first if int(name.split(".")[1]) >= 10]
    assert all(torch.equal(first[name], same[name]) for name in heads)
    assert not all(torch.equal(first[name], other[name]) for name in heads)


def test_every_tensor_of_the_backbone_must_fit(pretrained):
    draft = Draft(begun(str(pretrained)), ("red",), 3, 0)
    net, state = draft.build(), draft.state()
    matched = put(state, net, draft.layers)
    assert (matched.matched, matched.total) == (len(state), len(state))
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in state.items())
    changed = {name: torch.zeros(2) if name.endswith("0.conv.weight") else tensor for name, tensor in state.items()}
    lacking = dict(list(state.items())[1:])
    for wrong in (lacking, changed, {**state, "model.3.extra": torch.zeros(1)}):
        with pytest.raises(UserError, match="init: the weights do not fit Ultralytics' network: backbone"):
            put(wrong, net, draft.layers)


@torch.no_grad()
def test_what_is_left_behind_is_what_was_trained(scratch, data):
    folder, result, before = scratch
    assert listing(data.root) == before
    assert result["transfer"].startswith(f"backbone {len(load_file(folder / runs.BACKBONE))}/")
    assert result["best_epoch"] in (1, 2)
    assert (result["optimizer"], result["classes"]) == ("AdamW", ["red", "green"])
    metrics = runs.read_metrics(folder)
    assert [(line["epoch"], line["step"]) for line in metrics] == [(1, 2), (2, 4)]
    best = metrics[result["best_epoch"] - 1]
    assert result["scores"]["val_map50_95"] == best["val_map50_95"]
    assert best["loss"] == pytest.approx(best["box_loss"] + best["cls_loss"] + best["dfl_loss"])
    net = yolo.library("engine.model").Model(str(folder / "detector.pt")).model.float().eval()
    assert net.names == {0: "red", 1: "green"}
    backbone = begun(str(folder)).backbone.eval()
    close(framed_in_black(backbone, pixels(), *normalisation(3)).pooled, through(net.model[:10], pixels()))
    moved, at_first = load_file(folder / runs.BACKBONE), begun().backbone.net.state_dict()
    assert not torch.equal(moved["model.9.cv2.bn.running_mean"], at_first["model.9.cv2.bn.running_mean"])
    head = load_file(folder / runs.HEAD)
    assert {name: tensor.shape for name, tensor in head.items()} == {
        name: tensor.shape for name, tensor in net.state_dict().items() if int(name.split(".")[1]) >= 10
    }


def test_boxes_are_those_that_ultralytics_writes_itself(scratch, tmp_path):
    folder, _, _ = scratch
    description = folder / verb.FOLDER / verb.DATA / "data.yaml"
    net = yolo.read_network(folder / "detector.pt", "weights")
    told = verb.arguments(settings_of(), tmp_path / "own")
    with secluded():
        seen = look_at_test(net, description, told)
        validator = yolo.library("models.yolo.detect").DetectionValidator(
            args={**told, "mode": "val", "split": "test", "rect": True, "data": str(description), "save_json": True}
        )
        validator.eval_json = lambda stats: stats
        validator(model=net)
    written = json.loads((tmp_path / "own" / "predictions.json").read_text())
    own = sorted((int(box["file_name"].split(".")[0]), round(box["score"], 4), *box["bbox"]) for box in written)
    sides = seen.detections.boxes
    boxes = torch.cat([sides[:, :2], sides[:, 2:] - sides[:, :2]], 1).tolist()
    confidences = seen.detections.scores.tolist()
    found = sorted(
        (row, round(score, 4), *box)
        for row, score, box in zip(seen.detections.images.tolist(), confidences, boxes, strict=True)
    )
    assert len(found) == len(own) > 10
    for one, other in zip(found, own, strict=True):
        assert one == pytest.approx(other, abs=2e-2)
    assert len(seen.rows) == COUNTS["test"]


def test_a_frozen_backbone_ends_as_it_began(data, pretrained, tmp_path):
    folder = tmp_path / "run"
    result = train(data, folder, init=pretrained, transfer="head")
    assert "features equal to" in result["transfer"]
    given, left = load_file(pretrained / runs.BACKBONE), load_file(folder / runs.BACKBONE)
    assert given.keys() == left.keys()
    assert all(torch.equal(given[name], left[name]) for name in given)
    net = yolo.read_network(folder / "detector.pt", "weights")
    folded = Draft(begun(str(pretrained)), ("red", "green"), 3, 3).state()
    assert all(torch.equal(net.state_dict()[name], tensor) for name, tensor in folded.items())
    assert {path.name for path in folder.iterdir()} >= {"detector.pt", runs.BACKBONE, runs.HEAD, runs.RESULT}
    assert not (folder / verb.FOLDER).exists()


def test_a_trainer_that_ignores_the_weights_is_stopped(data, pretrained, tmp_path, monkeypatch):
    whole = Replaced.get_model

    def ignoring(self, cfg=None, weights=None, verbose=False):
        whole(self, cfg, weights, verbose)
        return self.held.draft.build()

    monkeypatch.setattr(Replaced, "get_model", ignoring)
    with pytest.raises(UserError, match="init: the weights did not arrive"):
        train(data, tmp_path / "run", init=pretrained)


def test_a_moving_average_of_other_weights_is_stopped(data, pretrained, tmp_path, monkeypatch):
    begin = Held.begin

    def moved(self, training, *given):
        with torch.no_grad():
            training.ema.ema.model[0].conv.weight.mul_(1.01)
        begin(self, training, *given)

    monkeypatch.setattr(Held, "begin", moved)
    with pytest.raises(UserError, match="init: the weights did not arrive"):
        train(data, tmp_path / "run", init=pretrained)


def test_an_interrupted_training_goes_on(data, pretrained, tmp_path, monkeypatch):
    show = Held.show

    def interrupted(self, training):
        if training.epoch + 1 == 2:
            raise KeyboardInterrupt
        show(self, training)

    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Held, "show", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(data, folder, init=pretrained)
    assert [line["epoch"] for line in runs.read_metrics(folder)] == [1]
    result = train(data, folder, init=pretrained, resume=True)
    assert [line["epoch"] for line in runs.read_metrics(folder)] == [1, 2]
    assert result["transfer"].startswith("backbone")
    assert "(new)" in result["transfer"]


def test_a_finished_training_is_only_looked_at(data, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verb, "look_at_test", killed)
        with pytest.raises(KeyboardInterrupt):
            train(data, tmp_path / "run")
    monkeypatch.setattr(verb, "trainer", killed)
    assert train(data, tmp_path / "run", resume=True)["scores"].keys() >= {"map50_95", "ultralytics_map50_95"}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"devices": 2}, r"devices: 2 \(allowed"),
        ({"precision": "fp16"}, "precision: fp16"),
        ({"image_size": 100}, "image_size: 100 .*multiples of 32"),
        ({"image_size": 32, "batch_size": 2}, "batch_size: 2 leaves a batch of one"),
        ({"optimizer": "lars"}, "optimizer: lars"),
        ({"learning_rate": 0.1}, "learning_rate: 0.1, but optimizer auto"),
        ({"accumulate": 3}, "accumulate: "),
        ({"clip_gradient": 1.0}, "clip_gradient: "),
        ({"schedule": "plateau"}, "schedule: YOLO networks are trained with Ultralytics' own"),
        ({"min_steps": 10}, "min_steps: "),
    ],
)
def test_what_ultralytics_would_ignore_ends_with_one_line(data, wrong, message):
    with pytest.raises(UserError, match=message):
        verb.check(settings_of(**wrong), data, 5)


def test_given_settings_reach_ultralytics(tmp_path):
    told = verb.training_arguments(
        settings_of(optimizer="sgd", weight_decay=0.1, transfer="head", patience=4), tmp_path / "ultralytics", 10
    )
    expected = {"optimizer": "SGD", "lr0": 0.01, "weight_decay": 0.1, "freeze": 10, "patience": 4, "amp": False}
    assert {name: told[name] for name in expected} == expected
    assert (told["epochs"], told["batch"], told["imgsz"], told["seed"]) == (2, 3, 64, 3)
    rate = verb.training_arguments(settings_of(optimizer="adamw", learning_rate=0.5), tmp_path, 10)
    assert (rate["lr0"], "freeze" in rate, "weight_decay" in rate) == (0.5, False, False)


@torch.no_grad()
def test_a_file_of_ultralytics_gives_features_of_normalised_pixels(pretrained, tmp_path):
    file = tmp_path / "yolov8n.pt"
    draft = Draft(begun(str(pretrained)), ("red",), 3, 0)
    net = draft.build()
    put(draft.state(), net, draft.layers)
    torch.save(checkpoint_of(net, {"task": "detect"}), file)
    made = begun(str(file))
    assert made.matched.matched == made.matched.total
    assert made.matched.unused[0].startswith("model.10") or made.matched.unused[0].startswith("model.12")
    found = framed_in_black(made.backbone.eval(), pixels(), *normalisation(3))
    close(found.pooled, through(net.eval().model[:10], pixels()))
    with pytest.raises(UserError, match=r"init: .*yolov8n\.pt"):
        initialise(str(file), model="timm/resnet18")
    net.model[0].conv.bias = torch.nn.Parameter(torch.zeros(8))
    torch.save(checkpoint_of(net, {"task": "detect"}), file)
    with pytest.raises(UserError, match="has no batch normalisation in its first layer"):
        begun(str(file))
