"""Perceptual hashes and the search among them, against scipy, Pillow and a loop over all pairs."""

import hashlib

import numpy as np
import pytest
import scipy.fft
import torch
from PIL import Image

from headstart.data.duplicates import groups, near_pairs, perceptual_hashes, thumbnail
from headstart.data.examination import equal_files, examine, pixels, rows_to_decode
from headstart.data.index import array_data
from headstart.data.sources import open_data


def photograph(seed: int, side: int = 96) -> np.ndarray:
    """Return a made-up photograph, uint8 [h w 3]: light and shade of all sizes, as real ones have them."""
    generator = np.random.default_rng(seed)
    image = np.zeros((side, side, 3))
    for cells in (3, 6, 12, 24):
        coarse = Image.fromarray(generator.integers(0, 256, (cells, cells, 3), np.uint8))
        image += np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC), float) * 3 / cells
    return (255 * (image - image.min()) / np.ptp(image)).astype(np.uint8)


def hash_of(image: np.ndarray) -> int:
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)
    return int(perceptual_hashes(thumbnail(tensor)[None])[0])


def test_hashes_are_those_of_scipys_cosine_transform():
    thumbnails = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (20, 32, 32), np.uint8))
    for image, found in zip(thumbnails.numpy(), perceptual_hashes(thumbnails), strict=True):
        low = scipy.fft.dctn(image.astype(float))[1:9, 1:9].ravel()
        assert int(found) == int("".join("1" if value > np.median(low) else "0" for value in low), 2)


def test_a_thumbnail_is_the_mean_of_areas():
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 64, 96), np.uint8))
    grey = np.einsum("chw,c->hw", image.numpy().astype(float), [0.299, 0.587, 0.114])
    means = grey.reshape(32, 2, 32, 3).mean(axis=(1, 3))
    assert np.abs(thumbnail(image).numpy() - means).max() <= 0.51


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 8, 300), (5, 40, 40)])
def test_any_image_has_a_thumbnail(size):
    image = torch.from_numpy(np.random.default_rng(2).integers(0, 256, size, np.uint8))
    assert thumbnail(image).shape == (32, 32)
    assert (thumbnail(image).int() - thumbnail(image.float() / 255).int()).abs().max() <= 1


def test_changes_that_keep_the_image_change_fewer_bits_than_another_image(tmp_path):
    different = [(hash_of(photograph(seed)) ^ hash_of(photograph(seed + 1))).bit_count() for seed in range(10)]
    assert min(different) > 12
    for seed in range(10):
        image = photograph(seed)
        Image.fromarray(image).save(tmp_path / "small.jpg", quality=40)
        Image.fromarray(image).resize((50, 50), Image.Resampling.LANCZOS).save(tmp_path / "half.png")
        darker = (image * 0.7).astype(np.uint8)
        for other in (np.asarray(Image.open(tmp_path / name)) for name in ("small.jpg", "half.png")):
            assert (hash_of(image) ^ hash_of(other)).bit_count() <= 8
        assert (hash_of(image) ^ hash_of(darker)).bit_count() <= 8


def test_other_images_differ_in_many_bits():
    hashes = [hash_of(photograph(seed)) for seed in range(40)]
    distances = [(a ^ b).bit_count() for place, a in enumerate(hashes) for b in hashes[:place]]
    assert min(distances) > 12
    assert 28 < np.mean(distances) < 36


@pytest.mark.parametrize("near", [0, 1, 3, 4, 5, 8, 12])
def test_near_pairs_are_those_of_a_loop_over_all_pairs(near):
    generator = np.random.default_rng(near)
    hashes = generator.integers(0, 2**64, 60, np.uint64)
    copies = hashes.repeat(5)
    for place in range(len(copies)):
        for bit in generator.choice(64, generator.integers(0, 15), replace=False):
            copies[place] ^= np.uint64(1) << np.uint64(bit)
    hashes = np.unique(np.concatenate([hashes, copies]))
    expected = [
        (i, j) for j in range(len(hashes)) for i in range(j) if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= near
    ]
    assert sorted(map(tuple, near_pairs(hashes, near).tolist())) == sorted(expected)
    assert near == 0 or len(expected) > 5


def test_near_pairs_of_many_hashes_are_found_in_the_memory_of_a_few_columns():
    hashes = np.unique(np.random.default_rng(0).integers(0, 2**64, 100_000, np.uint64))
    planted = np.setdiff1d(hashes[:50] ^ np.uint64(0x8000400000100001), hashes)
    pairs = near_pairs(np.concatenate([hashes, planted]), 4)
    assert len(pairs) == 50
    assert (pairs[:, 1] >= len(hashes)).all()
    assert sorted(pairs[:, 0]) == list(range(50))


def test_no_hashes_have_no_pairs():
    assert near_pairs(np.zeros(0, np.uint64), 4).shape == (0, 2)
    assert near_pairs(np.zeros(1, np.uint64), 4).shape == (0, 2)


def test_groups_join_what_pairs_connect():
    found = groups(np.array([[0, 3], [3, 5], [1, 2]]), 6)
    parts = {tuple(np.flatnonzero(found == number)) for number in set(found.tolist())}
    assert parts == {(0, 3, 5), (1, 2), (4,)}
    assert len(set(groups(np.zeros((0, 2), np.int64), 4).tolist())) == 4


def test_examined_are_the_pixels(tmp_path):
    Image.fromarray(photograph(0)).save(tmp_path / "a.png")
    Image.fromarray(photograph(0)).save(tmp_path / "b.bmp")  # other bytes, the same pixels
    Image.fromarray(photograph(1)).convert("L").save(tmp_path / "c.png")
    Image.new("RGB", (40, 30), (9, 9, 200)).save(tmp_path / "d.png")
    data = open_data(tmp_path)
    found = examine(data, torch.arange(4))
    assert found.rows.tolist() == [0, 1, 2, 3]
    assert found.grey.tolist() == [False, False, True, False]
    assert found.constant.tolist() == [False, False, False, True]
    assert [a.tobytes() == found.digests[0].tobytes() for a in found.digests] == [True, True, False, False]
    assert found.hashes[0] == found.hashes[1] == hash_of(photograph(0))
    assert found.digests[0].tobytes() == hashlib.sha256(b"(3, 96, 96)" + pixels(data, 0).numpy().tobytes()).digest()


def test_a_file_that_breaks_later_is_a_failure(tmp_path):
    for name in "ab":
        Image.fromarray(photograph(0)).save(tmp_path / f"{name}.jpg")
    data = open_data(tmp_path)
    (tmp_path / "b.jpg").write_bytes(b"")
    found = examine(data, torch.arange(2))
    assert found.rows.tolist() == [0]
    assert [(file.path, file.reason) for file in found.failures] == [("b.jpg", "an empty file")]


def test_equal_files_have_equal_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 1), ("c", 0), ("d", 0)):
        Image.fromarray(photograph(seed, 32)).save(tmp_path / f"{name}.bmp")  # of one size in bytes
    assert equal_files(open_data(tmp_path)).tolist() == [[0, 2], [0, 3]]
    assert equal_files(array_data("x", torch.zeros(3, 3, 2, 2, dtype=torch.uint8), [0] * 3, [-1] * 3, "a")).size == 0


def test_files_that_differ_in_the_middle_are_not_equal(tmp_path):
    content = np.random.default_rng(0).integers(0, 256, (80, 80, 3), np.uint8)
    Image.fromarray(content).save(tmp_path / "a.bmp")
    content[40] = 0
    Image.fromarray(content).save(tmp_path / "b.bmp")
    data = open_data(tmp_path)
    assert data.index["crc"][0] == data.index["crc"][1]
    assert equal_files(data).size == 0


def test_large_sets_are_sampled_by_their_pixels():
    def rows(count: int, side: int) -> torch.Tensor:
        data = array_data("x", torch.zeros(count, 1, 1, 1, dtype=torch.uint8), [-1] * count, [-1] * count, [])
        data.__dict__["sizes"] = torch.full((count, 2), side)
        return rows_to_decode(data, 0)

    assert rows(20_000, 5000).tolist() == list(range(20_000))
    assert rows(60_000, 32).tolist() == list(range(60_000))
    large = rows(30_000, 3000)
    assert len(large) == 20_000
    assert (large.diff() > 0).all()
