"""Segmentation of generated squares: what is looked at, what is left behind, and that it learns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightning.fabric import Fabric
from PIL import Image
from sklearn.metrics import f1_score, jaccard_score

from headstart.backbones import build
from headstart.config import Finetune
from headstart.data.options import Options
from headstart.data.sources import open_data
from headstart.data.splits import split
from headstart.errors import UserError
from headstart.tasks.segmentation import Segmenter
from headstart.verbs import overlays
from headstart.verbs.finetuning.segment import SegmentJob, extremes

TINY = {"channels": [8, 16, 16, 16], "layers": [1, 1, 1, 1]}
CLASSES = ("background", "square")
METRICS = "".join(
    f'{{"step": {step}, "epoch": {step}, "loss": 1.0, "train_pixel_accuracy": 0.5, "val_loss": 0.9, "val_iou": 0.4}}\n'
    for step in (1, 2)
)


def write_squares(folder, count=24, *, sizes=((24, 32), (32, 24)), channels=3):
    """Bright squares on dark noise, and their masks of 0 and 1, of which every tenth row is void."""
    generator = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        height, width = sizes[number % len(sizes)]
        side = int(generator.integers(8, 14))
        top, left = (int(generator.integers(0, limit - side)) for limit in (height, width))
        image = generator.integers(0, 90, (height, width, channels), dtype=np.uint8)
        mask = np.zeros((height, width), np.uint8)
        image[top : top + side, left : left + side] += 150
        mask[top : top + side, left : left + side] = 1
        mask[::10] = 255
        Image.fromarray(image if channels == 3 else image[:, :, 0]).save(folder / "images" / f"{number:02d}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{number:02d}.png")
    (folder / "classes.txt").write_text("\n".join((*CLASSES, "other")[: 2 + (channels == 1)]))


@pytest.fixture(scope="module")
def squares(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder)
    return open_data(str(folder), Options())


def job_of(data, *, classes=2, **settings):
    splits = split(data)
    settings = Finetune.create(
        data="x", image_size=32, batch_size=8, views="segment", workers=0, **{"task": "segment", **settings}
    )
    torch.manual_seed(0)
    task = Segmenter(
        build("timm/resnet18", stem="standard", image_size=32, model_args=TINY), classes=classes, loss=settings.loss
    )
    return SegmentJob(settings, data, splits, splits.train, task, Fabric(accelerator="cpu", devices=1))


def answers_by_hand(job, rows):
    """Labels and predictions of all pixels that have a class, one image after the other, with nothing but PIL."""
    job.task.eval()
    found = []
    for row in rows.tolist():
        path = job.data.root / job.data.paths[row].as_py()
        with Image.open(path) as image:
            native = torch.from_numpy(np.array(image.convert("RGB"))).movedim(2, 0)
        with Image.open(str(path).replace("images", "masks")) as image:
            truth = np.array(image).astype(np.int64)
        height, width = truth.shape
        scale = 32 / max(height, width)
        size = (round(height * scale), round(width * scale))
        assert size == (height, width)  # so that the canvas is the image itself, continued
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        canvas = F.pad((native / 255 - mean) / std, (0, 32 - width, 0, 32 - height))
        with torch.no_grad():
            chances = job.task.probabilities(canvas[None])[0, :, :height, :width].numpy()
        known = truth != 255
        found.append((truth[known], chances.argmax(0)[known], chances[:, known]))
    return found


def train(job, steps, rate=0.01):
    optimizer = torch.optim.Adam(job.task.parameters(), rate)
    losses = []
    for batch in job.batches(0, steps):
        job.task.train()
        loss = job.task.losses(batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_batches_are_views_with_the_classes_of_their_pixels(squares):
    (batch,) = job_of(squares).batches(0, 1)
    assert batch.views[0].shape == (8, 3, 32, 32)
    assert batch.labels.shape == (8, 32, 32)
    assert batch.labels.dtype == torch.int64
    assert set(batch.labels.unique(sorted=True).tolist()) == {-1, 0, 1}
    bright = batch.views[0].mean(1) > 0.3
    known = batch.labels >= 0
    assert float((bright == (batch.labels == 1))[known].float().mean()) > 0.95


def test_a_look_is_the_iou_and_the_cross_entropy_of_all_pixels(squares):
    job = job_of(squares)
    train(job, 4)
    found = answers_by_hand(job, job.splits.val)
    truth, guess = (np.concatenate([one[part] for one in found]) for part in (0, 1))
    chances = np.concatenate([one[2] for one in found], axis=1)
    look = job.look()
    assert look.score == pytest.approx(jaccard_score(truth, guess), abs=1e-9)
    assert look.loss == pytest.approx(-np.log(chances[truth, np.arange(len(truth))].clip(1e-7)).mean(), rel=1e-5)
    assert job.task.training


def test_a_look_draws_no_random_number_and_repeats(squares):
    job = job_of(squares)
    before = torch.random.get_rng_state()
    assert job.look() == job.look()
    assert torch.equal(before, torch.random.get_rng_state())


def test_what_is_finished_has_the_scores_of_the_test_images(squares, tmp_path):
    job = job_of(squares)
    (tmp_path / "metrics.jsonl").write_text(METRICS)
    train(job, 4)
    found = job.finish(tmp_path, lean=True)
    by_hand = answers_by_hand(job, job.splits.test)
    truth, guess = (np.concatenate([one[part] for one in by_hand]) for part in (0, 1))
    scores = found["scores"]
    assert scores["iou"] == pytest.approx(jaccard_score(truth, guess), abs=1e-9)
    assert scores["dice"] == scores["f1"] == pytest.approx(f1_score(truth, guess), abs=1e-9)
    assert scores["image_iou"] == pytest.approx(np.mean([jaccard_score(*one[:2]) for one in by_hand]), abs=1e-9)
    assert found["classes"] == list(CLASSES)
    assert found["mask_values"] == [[0], [1]]
    assert np.sum(found["confusion"]) == len(truth)
    assert found["per_class"]["iou"][1] == pytest.approx(scores["iou"], abs=1e-6)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["predictions.png"]  # small, and worth looking at


def test_training_on_squares_finds_them(squares, tmp_path):
    job = job_of(squares, loss="bce+dice")
    untrained = job.look()
    losses = train(job, 30)
    trained = job.look()
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])
    assert trained.score > max(0.6, untrained.score + 0.3)
    assert trained.loss < untrained.loss
    (tmp_path / "metrics.jsonl").write_text(METRICS)
    found = job.finish(tmp_path, lean=False)
    assert found["scores"]["iou"] > 0.6
    with Image.open(tmp_path / "plots" / "predictions.png") as picture:
        assert min(picture.size) > 200
    assert (tmp_path / "plots" / "curves.png").exists()


def test_batches_do_not_depend_on_the_first_step(squares):
    job = job_of(squares)
    *_, whole = job.batches(0, 5)
    (resumed,) = job.batches(4, 5)
    assert torch.equal(whole.views[0], resumed.views[0])
    assert torch.equal(whole.labels, resumed.labels)


def test_images_of_other_sizes_are_scored_in_their_own_pixels(tmp_path):
    write_squares(tmp_path / "data", 12, sizes=((50, 97), (70, 41)))
    job = job_of(open_data(str(tmp_path / "data"), Options()))
    found = job.finish(tmp_path, lean=True)
    known = sum((height - -(-height // 10)) * width for height, width in job.data.sizes[job.splits.test].tolist())
    assert np.sum(found["confusion"]) == known


def test_three_classes_in_grey_are_segmented_and_drawn(tmp_path):
    write_squares(tmp_path / "data", 12, channels=1)
    data = open_data(str(tmp_path / "data"), Options())
    job = job_of(data, classes=3)
    (tmp_path / "metrics.jsonl").write_text(METRICS)
    found = job.finish(tmp_path, lean=False)
    assert len(found["per_class"]["iou"]) == 3
    assert (tmp_path / "plots" / "predictions.png").exists()


def test_masks_without_foreground_are_no_reason_to_stop(tmp_path):
    write_squares(tmp_path / "data", 12)
    for path in (tmp_path / "data" / "masks").iterdir():
        with Image.open(path) as mask:
            size = mask.size
        Image.new("L", size).save(path)
    job = job_of(open_data(str(tmp_path / "data"), Options()), loss="bce+dice+focal")
    assert all(np.isfinite(train(job, 2)))
    assert 0 <= job.look().score <= 1
    (tmp_path / "metrics.jsonl").write_text(METRICS)
    scores = job.finish(tmp_path, lean=False)["scores"]
    assert all(np.isfinite(value) for value in scores.values())


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_that_are_gone_are_said_in_one_line(tmp_path, kind):
    write_squares(tmp_path / "data", 12)
    job = job_of(open_data(str(tmp_path / "data"), Options()))
    path = job.data.paths[int(job.splits.val[0])].as_py().replace("images", kind)
    (tmp_path / "data" / path).unlink()
    with pytest.raises(UserError, match=r"^data: 1 of \d+ images cannot be read \(allowed: 1%\): images/") as caught:
        job.look()
    assert "\n" not in str(caught.value)


def test_one_unreadable_image_in_a_hundred_is_left_out(squares, monkeypatch):
    job = job_of(squares)
    rows = torch.cat([job.splits.val[:1]] * 100)
    calls = iter([True] + [False] * 99)
    real = SegmentJob._mask
    monkeypatch.setattr(SegmentJob, "_mask", lambda self, row: "broken" if next(calls) else real(self, row))
    assert len(list(job._answers(rows))) == 99


def test_extremes_are_the_worst_the_median_and_the_best():
    shares = torch.rand(50, generator=torch.Generator().manual_seed(0))
    chosen = shares[extremes(shares, 8)]
    ordered = shares.sort().values
    assert torch.equal(chosen, ordered[[0, 1, 2, 24, 25, 47, 48, 49]])
    assert extremes(torch.full((3,), torch.nan), 8) == [0, 1, 2]


def test_an_overlay_shows_the_image_where_there_is_background():
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    classes = torch.zeros(20, 30, dtype=torch.int64)
    classes[5:15, 5:15] = 1
    drawn = overlays.overlay(image, classes, overlays.palette(CLASSES))
    assert drawn.dtype == torch.uint8
    assert torch.equal(drawn[:, classes == 0], image[:, classes == 0])
    colour = (255 * overlays.palette(CLASSES)[1, :3]).round().to(torch.uint8)
    assert (drawn[:, 5, 5:15] == colour[:, None]).all()  # the contour is opaque
    inside = drawn[:, 8:12, 8:12].float()
    expected = image[:, 8:12, 8:12] * 0.55 + 0.45 * colour.float()[:, None, None]
    torch.testing.assert_close(inside, expected, atol=1.0, rtol=0)


@pytest.mark.parametrize("channels", [1, 2, 3, 9])
def test_overlays_of_any_number_of_channels(channels):
    image = torch.rand(channels, 8, 9)
    drawn = overlays.overlay(image, torch.zeros(8, 9, dtype=torch.int16), overlays.palette(("background", "a")))
    seen = image[:3] if channels >= 3 else image[:1].expand(3, -1, -1)
    assert torch.equal(drawn, (255 * seen).round().to(torch.uint8))


def test_void_is_white_and_a_first_class_that_is_no_background_has_a_colour():
    image, void = torch.zeros(3, 8, 8), torch.full((8, 8), -1)
    assert (overlays.overlay(image, void, overlays.palette(("a", "b"))) == round(0.7 * 255)).all()
    assert float(overlays.palette(("a", "b"))[0, 3]) > 0
    assert float(overlays.palette(("Background", "b"))[0, 3]) == 0


def test_colours_of_many_classes_differ():
    colours = overlays.palette([str(number) for number in range(40)])[:, :3]
    apart = (colours[:, None] - colours[None]).norm(dim=2) + torch.eye(len(colours))
    assert float(apart.min()) > 0.05
