import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torchvision.datasets.folder import default_loader

from headstart.data.images import DecodeError, decode, decode_all, inspect


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.webp", "a.gif", "a.jpg", "a.TIFF"])
def test_decode_gives_the_pixels_that_were_saved(tmp_path, name):
    pixels = noise(9, 13, 3) if not name.endswith("gif") else np.repeat(noise(9, 13, 1), 3, axis=2)
    options = {"lossless": True} if name.endswith("webp") else {}
    Image.fromarray(pixels).save(tmp_path / name, **options)
    image = decode(tmp_path / name)
    expected = np.array(default_loader(tmp_path / name)) if name.endswith("jpg") else pixels
    assert image.dtype == torch.uint8
    assert image.is_contiguous()
    np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_decode_converts_every_mode_as_pillow_does(tmp_path, mode):
    image = Image.fromarray(noise(8, 10, 3)).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    np.testing.assert_array_equal(decode(path).permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


def test_decode_drops_a_palettes_transparency_without_a_warning(tmp_path):
    image = Image.fromarray(noise(8, 10, 3)).quantize(16)
    image.save(tmp_path / "a.png", transparency=bytes(range(16)))
    np.testing.assert_array_equal(decode(tmp_path / "a.png").permute(1, 2, 0).numpy(), np.array(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_orientation_is_applied_to_pixels_and_size(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(noise(8, 12, 3)).save(tmp_path / name, exif=exif)
    with Image.open(tmp_path / name) as image:
        expected = np.array(ImageOps.exif_transpose(image))
    np.testing.assert_array_equal(decode(tmp_path / name).permute(1, 2, 0).numpy(), expected)
    header = inspect(tmp_path / name)
    assert (header.height, header.width) == expected.shape[:2] == ((8, 12) if orientation < 5 else (12, 8))


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.tif", "a.webp", "a.gif"])
def test_every_truncation_that_pillow_refuses_is_found_without_decoding(tmp_path, name):
    Image.fromarray(noise(48, 48, 3)).save(tmp_path / name)
    contents = (tmp_path / name).read_bytes()
    inspect(tmp_path / name)
    for share in (0.1, 0.5, 0.9):
        (tmp_path / name).write_bytes(contents[: int(len(contents) * share)])
        with pytest.raises(DecodeError):
            inspect(tmp_path / name)
        with pytest.raises(DecodeError):
            decode(tmp_path / name)


def test_compressed_tiff_truncated_is_found(tmp_path):
    Image.fromarray(noise(48, 48, 3)).save(tmp_path / "a.tif", compression="tiff_lzw")
    inspect(tmp_path / "a.tif")
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:2000])
    with pytest.raises(DecodeError):
        inspect(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.webp"])
def test_trailing_bytes_are_no_damage(tmp_path, name):
    Image.fromarray(noise(8, 8, 3)).save(tmp_path / name)
    with (tmp_path / name).open("ab") as file:
        file.write(b"\0" * 10_000)
    assert inspect(tmp_path / name)[:2] == (8, 8)
    assert decode(tmp_path / name).shape == (3, 8, 8)


def test_reasons_say_what_is_wrong(tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("hello")
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "cut.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:1500])
    names = {"empty": "an empty file", "text": "not an image", "cut": "a truncated file", "none": "the file is gone"}
    for name, reason in names.items():
        for look in (inspect, decode):
            with pytest.raises(DecodeError, match=f"^{reason}$"):
                look(tmp_path / f"{name}.jpg")


def test_pillows_own_word_counts_where_ultralytics_has_replaced_it(tmp_path, monkeypatch):
    def replaced(*arguments, **options):
        try:
            return original(*arguments, **options)
        except UnidentifiedImageError:
            import a_library_that_is_not_there  # noqa: F401

    original = Image.open
    monkeypatch.setattr(Image, "open", replaced)
    (tmp_path / "a.jpg").write_text("no image")
    with pytest.raises(DecodeError, match="not an image"):
        inspect(tmp_path / "a.jpg")
    bands = np.ones((8, 8, 5), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="contig")
    assert inspect(tmp_path / "a.tif").channels == 5


def test_decompression_bomb_is_a_bad_image(tmp_path, monkeypatch):
    Image.fromarray(noise(32, 32, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="decompression bomb"):
        inspect(tmp_path / "a.png")


def test_decode_all_puts_every_image_in_its_place_and_lists_failures(tmp_path):
    pixels = noise(5, 6, 7, 3)
    paths = [tmp_path / f"{number}.png" for number in range(5)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    paths[1].write_bytes(b"broken")
    Image.fromarray(noise(7, 6, 3)).save(paths[3])
    decoded = decode_all(paths, 5, 6, 7)
    for number in (0, 2, 4):
        np.testing.assert_array_equal(decoded.images[number].permute(1, 2, 0).numpy(), pixels[number])
    assert decoded.failures == {1: "not an image", 3: "7x6 pixels, but 6x7 when the folder was read"}


def test_a_tiff_of_many_channels_prints_nothing(tmp_path, capfd):
    tifffile.imwrite(tmp_path / "a.tif", noise(8, 6, 9), photometric="minisblack", planarconfig="contig")
    assert inspect(tmp_path / "a.tif").channels == 9
    assert capfd.readouterr() == ("", "")
