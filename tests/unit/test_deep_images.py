"""16-bit and float images, and images of any number of channels."""

import io
import struct
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps

from headstart.data.deep import scaled
from headstart.data.images import DecodeError, decode, inspect, raw
from headstart.data.index import DTYPES, Pixels
from headstart.data.loading import ViewLoader, images_at, normalisation
from headstart.data.options import Options
from headstart.data.sources import open_data
from headstart.errors import UserError
from headstart.views import PRESETS


def noise(*shape, dtype=np.uint16, high=4096, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype(dtype)


def write_tiff(path, array, **options):
    tifffile.imwrite(path, array, **options)


WRITERS = {
    "grey 16-bit png": (noise(9, 7), lambda path, a: Image.fromarray(a).save(path), ".png"),
    "colour 16-bit png": (noise(9, 7, 3), lambda path, a: path.write_bytes(imagecodecs.png_encode(a)), ".png"),
    "grey 16-bit tiff": (noise(9, 7), lambda path, a: write_tiff(path, a), ".tif"),
    "12-bit in lzw": (noise(9, 7), lambda path, a: write_tiff(path, a, compression="lzw"), ".tif"),
    "colour 16-bit tiff": (noise(9, 7, 3), lambda path, a: write_tiff(path, a, photometric="rgb"), ".tif"),
    "float tiff": (noise(9, 7, dtype=np.float32), lambda path, a: write_tiff(path, a), ".tiff"),
    "double tiff": (noise(9, 7, dtype=np.float64), lambda path, a: write_tiff(path, a), ".tiff"),
    "signed tiff": (noise(9, 7, dtype=np.int16) - 2000, lambda path, a: write_tiff(path, a), ".tif"),
    "big endian": (noise(9, 7), lambda path, a: write_tiff(path, a, byteorder=">"), ".tif"),
    "big tiff": (noise(9, 7), lambda path, a: write_tiff(path, a, bigtiff=True), ".tif"),
    "5 bands": (
        noise(9, 7, 5),
        lambda path, a: write_tiff(path, a, photometric="minisblack", planarconfig="contig"),
        ".tif",
    ),
    "13 bands of 8 bits, deflated": (
        noise(9, 7, 13, dtype=np.uint8, high=256),
        lambda path, a: write_tiff(path, a, photometric="minisblack", planarconfig="contig", compression="zlib"),
        ".tif",
    ),
    "4 bands that are no transparency": (
        noise(9, 7, 4, dtype=np.uint8, high=256),
        lambda path, a: write_tiff(path, a, photometric="minisblack", planarconfig="contig", extrasamples=[0, 0, 0]),
        ".tif",
    ),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_pixels_are_read_as_they_were_written(tmp_path, kind):
    array, write, suffix = WRITERS[kind]
    path = tmp_path / f"a{suffix}"
    write(path, array)
    expected = array if array.ndim == 3 else array[:, :, None]
    found = raw(path)
    assert found.dtype.name == array.dtype.name
    np.testing.assert_array_equal(found, expected)
    header = inspect(path)
    assert header[:2] == (9, 7)
    assert (header.channels, DTYPES[header.dtype]) == (expected.shape[2], array.dtype.name)
    np.testing.assert_array_equal(raw(io.BytesIO(path.read_bytes())), expected)
    assert inspect(io.BytesIO(path.read_bytes())) == header


@pytest.mark.parametrize("axes", ["CYX", "ZCYX", "TYX"])
def test_channels_of_a_microscope_and_the_first_of_other_axes(tmp_path, axes):
    shape = tuple({"C": 4, "Z": 3, "T": 5, "Y": 9, "X": 7}[axis] for axis in axes)
    stack = noise(*shape)
    tifffile.imwrite(tmp_path / "a.tif", stack, imagej=True, metadata={"axes": axes})
    expected = stack[0] if axes != "CYX" else stack
    expected = expected[..., None] if expected.ndim == 2 else expected.transpose(1, 2, 0)
    np.testing.assert_array_equal(raw(tmp_path / "a.tif"), expected)
    assert inspect(tmp_path / "a.tif").channels == expected.shape[2]


def test_planes_that_lie_one_after_the_other(tmp_path):
    bands = noise(6, 9, 7)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="separate")
    np.testing.assert_array_equal(raw(tmp_path / "a.tif"), bands.transpose(1, 2, 0))


def test_transparency_is_dropped(tmp_path):
    colours = noise(9, 7, 4, high=65536)
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(colours))
    tifffile.imwrite(tmp_path / "a.tif", colours, photometric="rgb", extrasamples=["unassalpha"])
    for name in ("a.png", "a.tif"):
        np.testing.assert_array_equal(raw(tmp_path / name), colours[:, :, :3])
        assert inspect(tmp_path / name).channels == 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_deep_tiffs(tmp_path, orientation):
    array = noise(5, 7, high=200)
    tifffile.imwrite(tmp_path / "deep.tif", array, extratags=[(274, "H", 1, orientation, True)])
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array.astype(np.uint8)).save(tmp_path / "plain.png", exif=exif)
    with Image.open(tmp_path / "plain.png") as image:
        expected = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(raw(tmp_path / "deep.tif")[:, :, 0], expected)
    assert inspect(tmp_path / "deep.tif")[:2] == expected.shape


def test_high_values_stay_apart(tmp_path):
    Image.fromarray(np.array([[0, 300], [4000, 65535]], np.uint16)).save(tmp_path / "a.png")
    found = decode(tmp_path / "a.png", Pixels(3, ((0.0, 65535.0),) * 3))
    expected = torch.tensor([[0.0, 300.0], [4000.0, 65535.0]]).div(65535).expand(3, 2, 2)
    torch.testing.assert_close(found, expected)


def test_values_outside_of_the_range_and_no_numbers():
    array = np.array([[[-1.0], [0.0], [5.0], [20.0], [np.nan], [np.inf], [-np.inf]]])
    np.testing.assert_allclose(scaled(array, ((0.0, 10.0),)).ravel(), [0, 0, 0.5, 1, 0, 1, 0])


def test_the_range_is_made_of_the_percentiles_of_each_channel(tmp_path):
    images = [noise(32, 32, 5, seed=seed) * np.arange(1, 6, dtype=np.uint16) for seed in range(8)]
    for number, image in enumerate(images):
        tifffile.imwrite(tmp_path / f"{number}.tif", image, photometric="minisblack", planarconfig="contig")
    data = open_data(tmp_path)
    expected = np.percentile(np.stack(images).reshape(-1, 5), [0.1, 99.9], axis=0).T
    assert data.pixels.channels == 5
    np.testing.assert_allclose(data.pixels.range, expected)
    given = open_data(tmp_path, Options(pixel_range=((0.0, 4095.0),)))
    assert given.pixels.range == ((0.0, 4095.0),) * 5
    assert data.fingerprint == given.fingerprint


def test_test_images_do_not_decide_the_range(tmp_path):
    for part, high in (("train", 100), ("test", 60000)):
        (tmp_path / part).mkdir()
        for number in range(4):
            Image.fromarray(noise(16, 16, high=high, seed=number)).save(tmp_path / part / f"{number}.png")
    ((low, high),) = set(open_data(tmp_path).pixels.range)
    assert 0 <= low < high <= 100


@pytest.mark.parametrize(("channels", "expected"), [(1, 1), (3, 3), ("auto", 3)])
def test_grey_images_in_one_or_three_channels(tmp_path, channels, expected, save_image):
    for number in range(3):
        save_image(tmp_path / f"{number}.png", seed=number)
    data = open_data(tmp_path, Options(channels=channels))
    (batch,) = images_at(data, torch.arange(3), 8)
    assert batch.views[0].shape == (3, expected, 8, 8)
    if expected == 1:
        with Image.open(tmp_path / "0.png") as image:
            np.testing.assert_array_equal(
                decode(tmp_path / "0.png", data.pixels)[0].numpy(), np.array(image.convert("L"))
            )


def test_mistakes_in_one_line(tmp_path, save_image):
    save_image(tmp_path / "flat" / "a.png")
    with pytest.raises(UserError, match=r"channels: 5, but the images of flat have 3 \(allowed: 1, 3, auto\)"):
        open_data(tmp_path / "flat", Options(channels=5))
    with pytest.raises(UserError, match=r"pixel_range: flat has 8-bit pixels"):
        open_data(tmp_path / "flat", Options(pixel_range=((0.0, 1.0),)))
    (tmp_path / "bands").mkdir()
    tifffile.imwrite(tmp_path / "bands" / "a.tif", noise(8, 8, 5), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match=r"channels: 3, but the images of bands have 5 \(allowed: 5, auto\)"):
        open_data(tmp_path / "bands", Options(channels=3))
    with pytest.raises(UserError, match=r"pixel_range: 2 ranges for 5 channels \(allowed: 1 or 5\)"):
        open_data(tmp_path / "bands", Options(pixel_range=((0.0, 1.0), (0.0, 1.0))))
    tifffile.imwrite(tmp_path / "bands" / "b.tif", noise(8, 8, 4), photometric="minisblack", planarconfig="contig")
    with pytest.raises(UserError, match=r"several kinds: 1 of uint16 in 4 channels, 1 of uint16 in 5 channels"):
        open_data(tmp_path / "bands")


def test_decompression_bombs_are_refused_unread(tmp_path):
    side = 30_000
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b""))
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    bands = np.zeros((16, 16, 5), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="contig")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as tiff:
        tiff.pages[0].tags["ImageWidth"].overwrite(side)
        tiff.pages[0].tags["ImageLength"].overwrite(side)
    for name in ("a.png", "a.tif"):
        for read in (inspect, lambda path: decode(path, Pixels(5, ((0.0, 1.0),) * 5))):
            with pytest.raises(DecodeError, match=r"decompression bomb"):
                read(tmp_path / name)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
def test_truncated_deep_tiffs(tmp_path, compression):
    tifffile.imwrite(tmp_path / "a.tif", noise(64, 64), compression=compression)
    contents = (tmp_path / "a.tif").read_bytes()
    for share in (0.2, 0.9):
        (tmp_path / "a.tif").write_bytes(contents[: int(len(contents) * share)])
        with pytest.raises(DecodeError):
            inspect(tmp_path / "a.tif")


def test_streamed_and_resident_views_of_deep_pixels_are_equal(tmp_path, monkeypatch):
    for number in range(6):
        tifffile.imwrite(
            tmp_path / f"{number}.tif", noise(20, 24, 5, seed=number), photometric="minisblack", planarconfig="contig"
        )
    data = open_data(tmp_path)

    def batches():
        augments = (PRESETS["simclr"], PRESETS["simclr"])
        loader = ViewLoader(dataset=data, rows=torch.arange(6), augments=augments, image_size=16, batch_size=3, stop=4)
        return list(loader)

    resident = batches()
    monkeypatch.setattr("headstart.data.loading.resident", lambda *_: None)
    streamed = batches()
    mean, std = normalisation(5)
    for one, other in zip(resident, streamed, strict=True):
        assert one.rows.tolist() == other.rows.tolist()
        for view, same in zip(one.views, other.views, strict=True):
            assert view.shape == (3, 5, 16, 16)
            torch.testing.assert_close(view, same, atol=1e-4, rtol=0)
            pixels = view * torch.tensor(std).view(-1, 1, 1) + torch.tensor(mean).view(-1, 1, 1)
            assert pixels.min() > -1e-5
            assert pixels.max() < 1 + 1e-5
            assert pixels.std() > 0.1
