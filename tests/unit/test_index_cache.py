import hashlib
import multiprocessing
import os
import time
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pytest
import torch

from headstart.data import cache
from headstart.data.cache import cached, index_file
from headstart.data.facts import describe
from headstart.data.folders import open_folder
from headstart.data.index import OBJECTS, BadImage, DataSet, Pixels, fingerprint
from headstart.data.options import DEFAULT, Options
from headstart.data.splits import split
from headstart.errors import UserError


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HEADSTART_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "SETTLED", 0.0)  # the files of these tests are only just there
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path, save_image):
    for number in range(6):
        save_image(tmp_path / "data" / ("cat", "dog")[number % 2] / f"{number}.png", seed=number)
    (tmp_path / "data" / "cat" / "broken.png").write_text("no image")
    (tmp_path / "data" / "notes.txt").write_text("one")
    return tmp_path / "data"


class Opener:
    """Opens and counts, as what a user's program does once would."""

    def __init__(self, change=lambda data: data):
        self.calls, self.change, self.__qualname__ = 0, change, "Opener"

    def __call__(self, path, options):
        self.calls += 1
        return self.change(open_folder(path, options))


LENIENT = Options(max_bad=0.5)


def opened(folder, opener, options=LENIENT, **more):
    time.sleep(0.02)  # the kernel counts the times of files in steps of some milliseconds
    return cached(opener, folder, options, **more)


def is_same(one, other):
    for field in fields(DataSet):
        first, second = getattr(one, field.name), getattr(other, field.name)
        equal = first.equals(second, check_metadata=True) if isinstance(first, pa.Table) else first == second
        assert equal, field.name
    return True


def full(data):
    """Return the data set with something in every field that a folder leaves empty."""
    objects = pa.table([[0, 2], [1, 0], [0.5, 1], [1, 2], [3, 4], [5, 6.25]], schema=OBJECTS)
    index = data.index.append_column("group", pa.array([None, "ä", "b", "b", None, "c"], pa.string()))
    pixels, bad = Pixels(4, ((0.1, 1 / 3),) * 4), (*data.bad, BadImage("labels/a b.txt:3", "six columns"))
    return replace(data, index=index, objects=objects, pixels=pixels, bad=bad, mask_values=((0,), (255, 7)), ignored=7)


@pytest.mark.parametrize("change", [lambda data: data, full], ids=["plain", "full"])
def test_the_second_start_gives_what_the_first_gave(folder, change):
    opener = Opener(change)
    first, second = opened(folder, opener), opened(folder, opener)
    assert opener.calls == 1
    assert is_same(first, second)
    assert second.paths.to_pylist() == first.paths.to_pylist()
    for name in ("labels", "splits", "sizes", "groups"):
        one, other = getattr(first, name), getattr(second, name)
        assert (one is None and other is None) or torch.equal(one, other), name
    assert torch.equal(split(first).test, split(second).test)
    assert second.take(torch.tensor([1, 4])).count == 2


def test_full_leaves_no_field_of_a_data_set_untried(folder):
    empty = {field.name: field.default for field in fields(DataSet)}
    data = full(open_folder(folder, LENIENT))
    untried = {name for name, value in empty.items() if getattr(data, name) is value or getattr(data, name) == value}
    assert untried == {"images"}  # data that lie in memory are not kept


def change_a_pixel_file(folder):
    file = folder / "dog" / "1.png"
    file.write_bytes((folder / "dog" / "3.png").read_bytes())


CHANGES = {
    "new image": lambda folder: (folder / "dog/new.png").write_bytes((folder / "dog/1.png").read_bytes()),
    "image gone": lambda folder: (folder / "dog/1.png").unlink(),
    "renamed": lambda folder: (folder / "dog/1.png").rename(folder / "dog/11.png"),
    "moved": lambda folder: (folder / "dog/1.png").rename(folder / "cat/1.png"),
    "new class": lambda folder: (folder / "emu").mkdir(),
    "class renamed": lambda folder: (folder / "dog").rename(folder / "wolf"),
    "image overwritten": change_a_pixel_file,
    "labels overwritten": lambda folder: (folder / "notes.txt").write_text("two"),
    "mtime put back": lambda folder: (
        (folder / "notes.txt").write_text("two"),
        os.utime(folder / "notes.txt", ns=(1, 1)),
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_noticed_and_the_new_data_are_kept(folder, change):
    opener = Opener()
    os.utime(folder / "notes.txt", ns=(1, 1))
    opened(folder, opener)
    time.sleep(0.02)
    change(folder)
    assert is_same(opened(folder, opener), open_folder(folder, LENIENT))
    opened(folder, opener)
    assert opener.calls == 2


def test_in_a_large_folder_only_labels_and_folders_are_looked_at(folder, monkeypatch):
    monkeypatch.setattr(cache, "FEW", 6)  # there are seven
    opener = Opener()
    opened(folder, opener)
    time.sleep(0.02)
    change_a_pixel_file(folder)
    opened(folder, opener)
    assert opener.calls == 1
    CHANGES["labels overwritten"](folder)
    opened(folder, opener)
    CHANGES["image gone"](folder)
    opened(folder, opener)
    assert opener.calls == 3


def test_watched_files_and_folders_are_looked_at(folder, tmp_path):
    opener, watched = Opener(), (tmp_path / "annotations.json", tmp_path / "elsewhere")
    watched[1].mkdir()
    for change in (lambda: None, lambda: watched[0].write_text("{}"), lambda: (watched[1] / "a.txt").write_text("a")):
        change()
        opened(folder, opener, watched=watched)
        opened(folder, opener, watched=watched)
    assert opener.calls == 3


def test_data_that_changed_just_now_are_not_trusted(folder, monkeypatch, cache_folder):
    monkeypatch.setattr(cache, "SETTLED", 60.0)
    opener = Opener()
    opened(folder, opener)
    assert not cache_folder.exists()


def test_a_change_while_the_folder_is_read_is_not_lost(folder):
    def change(data):
        time.sleep(0.02)
        (folder / "notes.txt").write_text("changed meanwhile")
        return data

    opener = Opener(change)
    opened(folder, opener)
    opened(folder, opener)
    assert opener.calls == 2


def flip(file):
    contents = bytearray(file.read_bytes())
    contents[len(contents) // 2] ^= 1
    file.write_bytes(contents)


DAMAGES = {
    "empty": lambda file: file.write_bytes(b""),
    "three bytes": lambda file: file.write_bytes(b"abc"),
    "truncated": lambda file: file.write_bytes(file.read_bytes()[:-100]),
    "a bit flipped": flip,
    "text": lambda file: file.write_text("no index" * 1000),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_index_is_made_anew(folder, damage):
    opener = Opener()
    first = opened(folder, opener)
    damage(index_file(opener, folder, LENIENT))
    assert is_same(opened(folder, opener), first)
    assert opener.calls == 2


def test_an_index_of_other_code_is_made_anew(folder, monkeypatch):
    opener = Opener()
    opened(folder, opener)
    monkeypatch.setattr(cache, "_code", lambda: "another")
    opened(folder, opener)
    opened(folder, opener)
    assert opener.calls == 2


def test_options_have_indexes_of_their_own_but_classes_share_one(folder):
    opener = Opener()
    names = {index_file(opener, folder, options).name for options in (LENIENT, DEFAULT, Options(channels=1))}
    assert len(names) == 3
    assert index_file(opener, folder, Options(classes={"a": ("cat",)})) == index_file(opener, folder, DEFAULT)
    assert index_file(open_folder, folder, DEFAULT) != index_file(opener, folder, DEFAULT)


def test_errors_are_those_of_the_opener_and_leave_nothing(folder, cache_folder):
    for _ in range(2):
        with pytest.raises(UserError, match=r"1 of 7 images .* broken"):
            opened(folder, open_folder, DEFAULT)
    assert not cache_folder.exists()


def test_an_unwritable_cache_does_without(folder, cache_folder):
    cache_folder.write_text("a file where the folder should be")
    opener = Opener()
    assert opened(folder, opener).count == opened(folder, opener).count == 6
    assert opener.calls == 2


def test_the_root_is_as_the_data_are_named(folder, monkeypatch, tmp_path):
    opener = Opener()
    opened(folder, opener)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)
    for name in (folder.relative_to(tmp_path), tmp_path / "link", folder / ".." / "data"):
        data = opened(name, opener)
        assert data.root == name
        assert data.file(0).is_file()
    assert opener.calls == 1


def test_a_file_of_annotations_has_its_folder_as_root(folder):
    (folder / "data.yaml").write_text("names: [a]")
    opener = lambda path, options: open_folder(path.parent / "dog", options)  # noqa: E731
    time.sleep(0.02)
    first, second = (opened(folder / "data.yaml", opener) for _ in range(2))
    assert second.root == folder / "dog"
    assert is_same(first, second)


def test_names_that_are_no_utf8_and_hidden_files_do_no_harm(folder):
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "a.txt").write_text("a")
    os.close(os.open(os.fsencode(folder) + b"/odd\xff.txt", os.O_CREAT))
    (folder / "loop").symlink_to(folder)
    (folder / "dangling.txt").symlink_to(folder / "nothing")
    opener = Opener()
    opened(folder, opener)
    (folder / ".hidden" / "b.txt").write_text("b")
    opened(folder, opener)
    assert opener.calls == 1


def _open_many(folder, count):
    for _ in range(count):
        assert cached(open_folder, folder, LENIENT).count == 6


def test_several_processes_at_once(folder, cache_folder):
    time.sleep(0.02)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_open_many, args=(folder, 5)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert [file.suffix for file in (cache_folder / "index").iterdir()] == [".arrow"]


def test_columns_are_mapped_and_not_read(folder):
    opened(folder, Opener())
    before = pa.total_allocated_bytes()
    data = opened(folder, Opener())
    assert pa.total_allocated_bytes() - before < 1000
    assert not np.from_dlpack(data.index["bytes"].chunk(0)).flags.writeable


def test_the_index_is_a_stream_that_arrow_reads(folder):
    first = opened(folder, Opener())
    with pa.OSFile(str(index_file(Opener(), folder, LENIENT))) as file:
        assert pa.ipc.open_stream(file).read_all().equals(first.index)


def test_hashes_do_not_depend_on_how_much_is_read_at_once(folder, monkeypatch):
    data = full(open_folder(folder, LENIENT))
    texts = [value or "" for value in data.index["group"].to_pylist()]
    digest = hashlib.sha256(b"x" + "\0".join([*data.classes, ""]).encode())
    digest.update("\0".join([*data.paths.to_pylist(), ""]).encode())
    for name in ("label", "split", "bytes", "crc"):
        digest.update(data.index[name].to_numpy().astype("<i8").tobytes())
    digest.update("\0".join(texts).encode())
    chunked = pa.concat_tables([data.index.slice(0, 2), data.index.slice(2)])
    assert fingerprint(chunked, data.classes, b"x") == digest.hexdigest()[:16]

    rows = torch.tensor([0, 2, 3, 5])
    expected = hashlib.sha256("\0".join(data.paths.to_pylist()[row] for row in rows).encode()).hexdigest()[:16]
    for block in (1, 3, 4, 100):
        monkeypatch.setattr("headstart.data.facts._BLOCK", block)
        assert describe(data, {"train": rows})["parts"]["train"]["hash"] == expected
