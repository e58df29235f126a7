"""The verb ``embed`` writes what ``extract`` gives, batch by batch."""

import csv
import json
import shutil
import weakref

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

import headstart
from headstart.backbones.given import initialise
from headstart.config.handing_over import Embed
from headstart.data.index import SPLITS
from headstart.data.loading import images_at
from headstart.data.options import Options
from headstart.data.sources import open_data
from headstart.errors import UserError
from headstart.evaluation.features import extract
from headstart.verbs import embedding_files, start
from headstart.verbs.embed import embed, run_embed
from headstart.verbs.embedding_files import WRITERS, Block, Columns

TINY = {"channels": [8, 8, 8, 8], "layers": [1, 1, 1, 1]}
KINDS = sorted(WRITERS)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return a pretrained RUN."""
    out = tmp_path_factory.mktemp("embed") / "run"
    model = {"model": "timm/resnet18", "model_args": TINY}
    headstart.pretrain(data="digits", limit=60, epochs=1, batch_size=20, image_size=16, out=out, quiet=True, **model)
    return out


@pytest.fixture
def folder(tmp_path, save_image):
    """Return a folder of 100 labelled images with splits, and 2 without labels."""
    for number in range(100):
        split, label = ("train", "test")[number % 5 == 0], ("cat", "dög, big")[number % 2]
        save_image(tmp_path / "data" / split / label / f"{number}.png", seed=number)
    for number in range(2):
        save_image(tmp_path / "data" / "unlabelled" / f"{number}.png", seed=200 + number)
    return tmp_path / "data"


def read(file):
    """Return image, label and split as lists, and the features."""
    if file.suffix == ".npz":
        found = np.load(file)
        columns = [[text or None for text in found[name].tolist()] for name in ("image", "label", "split")]
        return (*columns, found["features"])
    if file.suffix == ".csv":
        with file.open(newline="") as opened:
            head, *rows = csv.reader(opened)
        assert head[:5] == ["image", "label", "split", "f0000", "f0001"]
        texts = [[row[place] or None for row in rows] for place in range(3)]
        return (*texts, np.array([row[3:] for row in rows], np.float32))
    table = parquet.read_table(file)
    assert table.schema.field("features").type == pa.list_(pa.float32(), 8)
    return (*(table[name].to_pylist() for name in ("image", "label", "split")), np.stack(table["features"].to_numpy()))


def expected(run, data, rows, batch_size=256):
    backbone = initialise(str(run), channels=3).backbone
    batches = images_at(data, rows, 16, batch_size=batch_size)
    return extract(backbone, batches, device=torch.device("cpu"))


@pytest.mark.parametrize("kind", KINDS)
def test_features_names_labels_and_splits_are_those_of_the_data(kind, run, folder, tmp_path):
    result = embed(run, data=folder, out=tmp_path / f"out{kind}", batch_size=30, workers=0, quiet=True)
    data = open_data(str(folder), Options())
    images, labels, splits, features = read(tmp_path / f"out{kind}")
    assert images == data.paths.to_pylist()
    assert labels == [name.split("/")[1] if name.count("/") == 2 else None for name in images]
    assert splits == [name.split("/")[0] for name in images]
    assert set(splits) <= set(SPLITS)
    wanted = expected(run, data, torch.arange(data.count), 30).features
    assert features.dtype == np.float32
    assert np.array_equal(features, wanted.numpy())
    assert float(wanted.std(0).min()) > 0
    assert (result.images, result.dim, result.bad) == (102, 8, ())
    assert str(result) == f"{tmp_path / f'out{kind}'}: 102 images of data, 8 features of timm/resnet18 each"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_images_that_cannot_be_read_are_listed_and_left_out(kind, run, folder, tmp_path):
    (folder / "train" / "cat" / "broken.png").write_text("text")
    file = tmp_path / f"out{kind}"
    settings = Embed.create(data=str(folder), init=str(run), precision="fp32", workers=0)
    data = start.opened(settings)
    (folder / "train" / "cat" / "2.png").unlink()  # after the folder was read
    result = run_embed(settings, data, file, quiet=True)
    images, labels, splits, features = read(file)
    assert result.images == len(images) == len(labels) == len(splits) == len(features) == 101
    assert "train/cat/2.png" not in images
    left = [(bad.path, bad.reason) for bad in result.bad]
    assert left == [("train/cat/broken.png", "not an image"), ("train/cat/2.png", "the file is gone")]
    assert "left out: 2 images: train/cat/broken.png (not an image), train/cat/2.png (the file is gone)" in str(result)


def test_splits_are_chosen(run, folder, tmp_path):
    embed(run, data=folder, out=tmp_path / "a.npz", splits="test,unlabelled", workers=0, quiet=True)
    images, _, splits, features = read(tmp_path / "a.npz")
    assert (splits.count("test"), splits.count("unlabelled"), len(images)) == (20, 2, 22)
    data = open_data(str(folder), Options())
    rows = torch.isin(data.splits, torch.tensor([2, 3])).nonzero().squeeze(1)
    assert np.array_equal(features, expected(run, data, rows).features.numpy())
    with pytest.raises(UserError) as error:
        embed(run, data=folder, out=tmp_path / "b.npz", splits="val", workers=0, quiet=True)
    assert str(error.value) == "splits: no image is in val (allowed here: train, test, unlabelled, none)"
    assert not (tmp_path / "b.npz").exists()
    assert Embed.create(data="digits", init="none", splits="none").splits is None
    with pytest.raises(UserError, match="splits"):
        embed(run, data=folder, out=tmp_path / "b.npz", splits="all", quiet=True)


def test_images_in_memory_have_no_split_and_parquet_says_what_the_features_are(run, tmp_path):
    embed(run, data="digits", limit=60, out=tmp_path / "a.parquet", quiet=True)
    images, labels, splits, _ = read(tmp_path / "a.parquet")
    assert images[0].startswith("digits/")
    assert set(labels) == set("0123456789")
    assert set(splits) <= {None, *SPLITS}
    about = json.loads(parquet.read_schema(tmp_path / "a.parquet").metadata[b"headstart"])
    assert (about["model"], about["image_size"], about["channels"]) == ("timm/resnet18", 16, 3)
    assert about["mean"] == [0.485, 0.456, 0.406]


def test_a_weights_file_gives_the_same_as_its_run(run, folder, tmp_path):
    shutil.copy(run / "backbone.safetensors", tmp_path / "weights.safetensors")
    embed(run, data=folder, out=tmp_path / "a.npz", workers=0, quiet=True)
    model = {"model": "timm/resnet18", "model_args": TINY, "image_size": 16}
    embed(tmp_path / "weights.safetensors", data=folder, out=tmp_path / "b.npz", workers=0, quiet=True, **model)
    assert np.array_equal(np.load(tmp_path / "a.npz")["features"], np.load(tmp_path / "b.npz")["features"])
    embed("none", data=folder, out=tmp_path / "c.npz", workers=0, quiet=True, **model)
    assert not np.allclose(np.load(tmp_path / "a.npz")["features"], np.load(tmp_path / "c.npz")["features"])


def test_wrong_files_end_with_one_line_and_change_nothing(run, folder, tmp_path):
    def message(out, **given):
        with pytest.raises(UserError) as error:
            embed(run, **{"data": folder, "out": out, "workers": 0, "quiet": True, **given})
        return str(error.value)

    assert message(tmp_path / "a.txt").startswith("out: unknown 'a.txt'")
    (tmp_path / "a.csv").write_text("mine")
    assert (
        message(tmp_path / "a.csv")
        == f"out: {tmp_path / 'a.csv'} is there already (allowed: another file, or --overwrite)"
    )
    assert (tmp_path / "a.csv").read_text() == "mine"
    (tmp_path / "b.csv").mkdir()
    assert message(tmp_path / "b.csv") == f"out: {tmp_path / 'b.csv'} is a folder, not a file"
    assert "lies inside of the data" in message(folder / "a.csv")
    assert "out: " in message(tmp_path / "a.csv" / "b.csv")
    assert message(tmp_path / "c.csv", data=tmp_path / "gone").startswith("data: ")
    with pytest.raises(UserError, match=r"init: .* is no run"):
        embed(folder, data=folder, out=tmp_path / "c.csv", quiet=True)
    embed(run, data=folder, out=tmp_path / "a.csv", overwrite=True, workers=0, quiet=True)
    assert len(read(tmp_path / "a.csv")[0]) == 102


def test_nothing_is_left_when_too_many_images_cannot_be_read(run, folder, tmp_path):
    settings = Embed.create(data=str(folder), init=str(run), precision="fp32", workers=0, batch_size=8)
    data = start.opened(settings)
    shutil.rmtree(folder / "train" / "cat")
    (tmp_path / "a.npz").write_text("mine")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="cannot be decoded"):
        run_embed(settings, data, tmp_path / "a.npz", quiet=True)
    assert {path.name for path in tmp_path.iterdir()} == before
    assert (tmp_path / "a.npz").read_text() == "mine"


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_forgotten_when_they_are_written(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_files, "_GROUP", 40)
    alive, most = [], []

    def blocks():
        for number in range(50):
            features = np.full((5, 8), number, np.float32)
            alive.append(weakref.ref(features))
            most.append(sum(one() is not None for one in alive))
            yield Block([f"{number}-{place}" for place in range(5)], [None] * 5, [None] * 5, features)
            del features

    file = tmp_path / f"file{kind}"
    WRITERS[kind](file, Columns(8, {"image": 4, "label": 0, "split": 10}, "{}"), blocks())
    assert max(most) <= 4
    images, labels, _, features = read(file)
    assert (len(images), images[-1], set(labels)) == (250, "49-4", {None})
    assert features[:, 0].tolist() == [number for number in range(50) for _ in range(5)]
