import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
import webdataset
from braceexpand import braceexpand
from PIL import Image
from webdataset import tariterators

from headstart.data.images import inspect
from headstart.data.index import SCHEMA
from headstart.data.loading import ViewLoader
from headstart.data.options import DEFAULT, Options
from headstart.data.remote import expand_braces
from headstart.data.scan import scan
from headstart.data.shards import open_shards
from headstart.errors import UserError
from headstart.views import PRESETS

ANY = Options(max_bad=1.0)


def encoded(seed, kind="PNG", size=(20, 16)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def write_tar(path, members):
    """Write a tar file of names and contents; a TarInfo instead of the contents is written as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
                continue
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path):
    """Return the pattern of three shards that webdataset has written, 30 labelled images in all."""
    with webdataset.ShardWriter(str(tmp_path / "train-%04d.tar"), maxcount=11, verbose=0) as writer:
        for number in range(30):
            writer.write({"__key__": f"{number:05}", "png": encoded(number), "cls": number % 12, "txt": "a caption"})
    return f"{tmp_path}/train-{{0000..0002}}.tar"


def samples(path):
    """Yield the samples of a shard as webdataset finds them, as bytes."""
    with Path(path).open("rb") as file:  # webdataset itself leaves the file open
        members = [{"__url__": path, **member} for member in tariterators.tar_file_iterator(file)]
    yield from tariterators.group_by_keys(members)


def message(pattern, options=DEFAULT):
    with pytest.raises(UserError) as error:
        open_shards(str(pattern), options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_shards_are_read_as_webdataset_reads_them(shards):
    data = open_shards(shards, DEFAULT)
    expected = {sample["__key__"]: sample for path in braceexpand(shards) for sample in samples(path)}
    assert data.count == len(expected) == 30
    assert data.classes == tuple(str(number) for number in range(12))
    for row, path in enumerate(data.paths.to_pylist()):
        sample = expected[path.rpartition("/")[2].removesuffix(".png")]
        assert data.file(row).getvalue() == sample["png"]
        assert data.classes[data.labels[row]] == sample["cls"].decode()
    assert data.ignored == 30  # captions
    assert data.splits.tolist() == [0] * 30
    assert data.paths[0].as_py() == "train-0000.tar/00000.png"


def test_members_are_inspected_as_files_are(shards, tmp_path):
    data = open_shards(shards, DEFAULT)
    for row, path in enumerate(data.paths.to_pylist()):
        (tmp_path / "files" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "files" / path).write_bytes(data.file(row).getvalue())
    files = scan(tmp_path / "files", data.paths.to_pylist()).columns
    same = [name for name in SCHEMA.names if name not in ("label", "split")]
    assert data.index.select(same).to_pylist() == files.select(same).to_pylist()


def loader(data, start):
    rows = torch.arange(data.count)
    return ViewLoader(dataset=data, rows=rows, augments=(PRESETS["simclr"],) * 2, image_size=8, batch_size=7, stop=9,
                      start=start, seed=3)  # fmt: skip


@pytest.mark.parametrize("sizes", ["equal", "differing"])  # in memory, or decoded as they are needed
def test_shuffling_resumes_exactly(tmp_path, sizes):
    for shard in range(3):
        members = [(f"{key}.png", encoded(10 * shard + key, size=(20 + key * (sizes == "differing"), 16)))
                   for key in range(8)]  # fmt: skip
        write_tar(tmp_path / f"{shard}.tar", members)
    data = open_shards(f"{tmp_path}/*.tar", DEFAULT)
    whole = list(loader(data, 0))
    assert any(len({row // 8 for row in batch.rows.tolist()}) == 3 for batch in whole)  # shuffled over all shards
    for start in (1, 4, 8):
        for one, two in zip(whole[start:], loader(open_shards(f"{tmp_path}/*.tar", DEFAULT), start), strict=True):
            assert torch.equal(one.rows, two.rows)
            assert all(torch.equal(a, b) for a, b in zip(one.views, two.views, strict=True))


def test_labels_come_from_cls_or_json_in_any_order(tmp_path):
    write_tar(tmp_path / "a.tar", [
        ("./1.cls", b"duck\n"), ("./1.png", encoded(1)), ("2.png", encoded(2)), ("2.json", b'{"label": "cat"}'),
        ("sub/2.jpg", encoded(3, "JPEG")), ("4.JPEG", encoded(4, "JPEG")), ("4.json", b'{"width": 1}'), ("5.cls", b"x"),
        ("6.seg.png", encoded(6)), ("._1.png", b"x"), ("a.b/1.webp", encoded(7, "WEBP")), ("a.b/1.cls", b" cat "),
    ])  # fmt: skip
    data = open_shards(f"{tmp_path}/a.tar", DEFAULT)
    found = dict(zip(data.paths.to_pylist(), data.labels.tolist(), strict=True))
    assert data.classes == ("cat", "duck")
    assert found == {
        "a.tar/1.png": 1,
        "a.tar/2.png": 0,
        "a.tar/4.JPEG": -1,
        "a.tar/a.b/1.webp": 0,
        "a.tar/sub/2.jpg": -1,
    }
    assert data.ignored == 2
    assert data.splits.tolist() == [-1] * 5


def test_classes_beside_the_shards_name_the_numbers(tmp_path):
    (tmp_path / "classes.txt").write_text("zebra\nape\n")
    members = []
    for number, label in enumerate([b"1", b"0", b"2", b"ape"]):
        members += [(f"{number}.png", encoded(number)), (f"{number}.cls", label)]
    write_tar(tmp_path / "a.tar", members)
    data = open_shards(f"{tmp_path}/a.tar", ANY)
    assert data.classes == ("zebra", "ape")
    assert data.labels.tolist() == [1, 0, 1]
    assert [(bad.path, bad.reason) for bad in data.bad] == [("a.tar/2.png", "a label that is not in classes.txt")]
    assert "1 of 4 images" in message(f"{tmp_path}/a.tar")


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train-0.tar", "val_0.tar", "test.tar"], [2, 0, 1]),
        (["training-0.tar", "val-0.tar"], [-1, -1]),
        (["data-0.tar", "val-0.tar"], [-1, -1]),
        (["Unlabeled000.tar", "train000.tar"], [3, 0]),
    ],
)
def test_splits_come_from_names_that_all_have_one(tmp_path, names, splits):
    for number, name in enumerate(names):
        write_tar(tmp_path / name, [("1.png", encoded(number))])
    assert open_shards(f"{tmp_path}/*.tar", DEFAULT).splits.tolist() == splits


def test_broken_members_are_bad(tmp_path):
    bomb = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)), (b"IEND", b"")):
        bomb += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    link, hard = tarfile.TarInfo("link.png"), tarfile.TarInfo("hard.png")
    link.type, link.linkname, hard.type, hard.linkname = tarfile.SYMTYPE, "/etc/passwd", tarfile.LNKTYPE, "good.png"
    write_tar(tmp_path / "a.tar", [
        ("good.png", encoded(1)), ("", link), ("", hard), ("bomb.png", bomb), ("empty.png", b""), ("text.jpg", b"text"),
        ("cut.jpg", encoded(2, "JPEG")[:-99]), ("list.png", encoded(3)), ("list.json", b'{"label": [1]}'),
        ("bits.png", encoded(3)), ("bits.cls", b"\xff\xfe"), ("deep.png", encoded(4)), ("deep.json", b"[" * 99999),
        ("line\nbreak.png", b"x"),
    ])  # fmt: skip
    data = open_shards(f"{tmp_path}/a.tar", ANY)
    assert data.paths.to_pylist() == ["a.tar/good.png"]
    assert {bad.path.removeprefix("a.tar/"): bad.reason for bad in data.bad} == {
        "link.png": "a link, or another thing that is not a file",
        "hard.png": "a link, or another thing that is not a file",
        "bomb.png": "more than 178,956,970 pixels, which may be a decompression bomb",
        "empty.png": "an empty file",
        "text.jpg": "not an image",
        "cut.jpg": "a truncated file",
        "list.json": "a label that is neither a number nor a name",
        "bits.cls": "a label that cannot be read",
        "deep.json": "a label that cannot be read",
        "line\\nbreak.png": "not an image",
    }
    assert "data: 10 of 11 images" in message(f"{tmp_path}/a.tar")


@pytest.mark.parametrize("name", ["../1.png", "a/../../1.png", "/etc/1.png", "a/..", "..\n/../x"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    write_tar(tmp_path / "a.tar", [("1.png", encoded(1)), (name, b"x")])
    assert message(tmp_path / "a.tar", ANY).startswith("data: a.tar: the member")
    assert "leads out of the archive" in message(tmp_path / "a.tar", ANY)


def test_a_damaged_archive_is_refused_wherever_it_ends(tmp_path):
    path = write_tar(tmp_path / "a.tar", [(f"{number}.png", encoded(number)) for number in range(3)])
    whole = path.read_bytes()
    used = 3 * (512 + -(-len(encoded(0)) // 512) * 512)
    for length in (0, 100, 512, 600, used // 3, used // 3 + 100, used - 1, used, used + 100):
        path.write_bytes(whole[:length])
        assert message(path, ANY).startswith("data: a.tar is damaged or not an uncompressed tar file"), length
    flipped = bytearray(whole)
    flipped[used // 3 + 20] ^= 1  # in the second header
    path.write_bytes(flipped)
    assert message(path, ANY).startswith("data: a.tar is damaged")
    path.write_bytes(whole[: used + 512])
    assert open_shards(str(path), DEFAULT).count == 3


def test_compressed_and_other_archives_are_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as archive:
        archive.add(__file__, "x")
    assert "data: a.tar is damaged or not an uncompressed tar file" in message(tmp_path / "a.tar")
    (tmp_path / "a.tgz").touch()
    assert "data: a.tgz is no shard (allowed: tar files whose names end with .tar)" in message(tmp_path / "a.tgz")
    assert message(tmp_path / "none-*.tar").startswith(f"data: no file {tmp_path}/none-*.tar (allowed: wds:")
    write_tar(tmp_path / "b.tar", [("1.txt", b"x")])
    assert message(tmp_path / "b.tar").startswith("data: no images")


@pytest.mark.parametrize(
    "pattern",
    ["a", "{00..11}", "x-{8..12}.tar", "{train,val}-{08..10}", "{a,b{1..3}}", "{3..1}", "{,x}y", "{098..102}"],
)
def test_braces_are_expanded_as_bash_does(pattern):
    assert list(expand_braces(pattern)) == list(braceexpand(pattern))


def test_remote_shards_are_copied_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path / "cache"))
    memory = fsspec.filesystem("memory")
    for number in range(2):
        memory.pipe(
            f"/bucket/train-{number}.tar", write_tar(tmp_path / "a.tar", [("1.png", encoded(number))]).read_bytes()
        )
    data = open_shards("memory://bucket/train-{0..1}.tar", DEFAULT)
    assert open_shards("memory://bucket/train-*.tar", DEFAULT).fingerprint == data.fingerprint
    assert data.count == 2
    memory.rm("/bucket", recursive=True)
    assert open_shards("memory://bucket/train-{0..1}.tar", DEFAULT).fingerprint == data.fingerprint
    assert "memory://other/a.tar cannot be copied to" in message("memory://other/a.tar")
    assert message("nothing://a.tar").startswith("data: nothing://a.tar cannot be copied")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name.endswith(".part")]


def test_json_numbers_and_names_are_labels(tmp_path):
    members = []
    for number, label in enumerate([10, 9, None, ""]):
        content = json.dumps({"label": label}).encode()
        members += [(f"{number}.png", encoded(number)), (f"{number}.json", content)]
    data = open_shards(str(write_tar(tmp_path / "a.tar", members)), DEFAULT)
    assert (data.classes, data.labels.tolist()) == (("9", "10"), [1, 0, -1, -1])
    assert inspect(data.file(0)).width == 20


def test_names_of_classes_that_are_no_text(shards):
    (Path(shards).parent / "classes.txt").write_bytes(b"\xff\n")
    assert message(shards).endswith("classes.txt is not a text file (allowed: a class name in each line)")
