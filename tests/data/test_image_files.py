"""Image files of every kind: every pixel as an independent reader has it, broken ones named."""

import resource
import struct
import zlib

import numpy as np
import pytest
from picture_folders import RANDOM, everything, fill, read, rows
from PIL import Image
from sources import refused

pytestmark = pytest.mark.usefixtures("own_cache")

GREY, ALPHA = RANDOM.integers(0, 256, (6, 8), np.uint8), RANDOM.integers(1, 256, (6, 8), np.uint8)
RGB = RANDOM.integers(1, 256, (6, 8, 3), np.uint8)
DEEP = RANDOM.integers(0, 65536, (6, 8), np.uint16)
CMYK = RANDOM.integers(0, 256, (6, 8, 4), np.uint8)
PALETTE = RANDOM.integers(0, 256, (16, 3), np.uint8)
INDICES = RANDOM.integers(0, 16, (6, 8), np.uint8)


def laid(colour, alpha, background):
    """As compositing is defined, in real numbers."""
    share = alpha[..., None].astype(float) / 255
    return np.rint(colour * share + background * (1 - share))


def with_palette(transparent=None):
    image = Image.fromarray(INDICES, "P")
    image.putpalette(PALETTE.tobytes())
    return lambda path: image.save(path, **({} if transparent is None else {"transparency": transparent}))


def turned(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(path, exif=exif)


def png(width, height, depth, colour, body, extra=b""):
    """A PNG as no library here writes it."""
    header = struct.pack(">2I5B", width, height, depth, colour, 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", body), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        for kind, content in chunks
    )


def deep_colour(path):
    body = b"".join(b"\0" + row.astype(">u2").tobytes() for row in np.stack([DEEP] * 3, -1))
    path.write_bytes(png(8, 6, 16, 2, zlib.compress(body)))


def grey3(array):
    return np.stack([array] * 3, -1)


READ = {
    "8 bits.png": (lambda path: Image.fromarray(RGB).save(path), RGB),
    "grey.bmp": (lambda path: Image.fromarray(GREY).save(path), grey3(GREY)),
    "colour.webp": (lambda path: Image.fromarray(RGB).save(path, lossless=True), RGB),
    "colour.TIFF": (lambda path: Image.fromarray(RGB).save(path, "TIFF"), RGB),
    "16 bits.png": (lambda path: Image.fromarray(DEEP).save(path), grey3(np.rint(DEEP / 257))),
    "16 bits.tif": (lambda path: Image.fromarray(DEEP).save(path), grey3(np.rint(DEEP / 257))),
    "16 bits of colour.png": (deep_colour, grey3(DEEP // 256)),
    "palette.png": (with_palette(), PALETTE[INDICES]),
    "palette.gif": (with_palette(), PALETTE[INDICES]),
    "palette with a hole.png": (with_palette(3), np.where((INDICES == 3)[..., None], 0, PALETTE[INDICES])),
    "grey with alpha.png": (
        lambda path: Image.fromarray(np.stack([GREY, ALPHA], -1), "LA").save(path),
        laid(grey3(GREY), ALPHA, 0),
    ),
    "colour with alpha.png": (
        lambda path: Image.fromarray(np.concatenate([RGB, ALPHA[..., None]], -1)).save(path),
        laid(RGB, ALPHA, 0),
    ),
    "cmyk.tiff": (
        lambda path: Image.fromarray(CMYK, "CMYK").save(path),
        np.rint((255.0 - CMYK[..., :3]) * (255.0 - CMYK[..., 3:]) / 255),
    ),
    "turned.jpg.png": (turned, np.rot90(RGB, -1)),
    "first of two.gif": (
        lambda path: Image.fromarray(GREY).save(
            path, save_all=True, append_images=[Image.fromarray(255 - GREY)], loop=0
        ),
        grey3(GREY),
    ),
}


@pytest.mark.filterwarnings("ignore:.*mode.*:DeprecationWarning")
@pytest.mark.parametrize("name", READ)
def test_every_kind_of_file_is_read_as_it_is(tmp_path, name):
    save, expected = READ[name]
    place = tmp_path / "one"
    place.mkdir()
    save(place / name)
    Image.new("RGB", expected.shape[1::-1]).save(place / "black.png")
    loaded, _ = read(place, colour="rgb")
    found = np.concatenate([loaded.images, loaded.held_out_images]).astype(int)
    (image,) = [image for image in found if image.any()]
    tolerance = 1 if name.startswith("cmyk") else 0  # Pillow's formula rounds twice
    assert np.abs(image - expected).max() <= tolerance


@pytest.mark.parametrize(("background", "value"), [("black", 0), ("white", 255)])
def test_what_is_transparent_is_laid_on_the_background_that_is_asked_for(tmp_path, background, value):
    place = tmp_path / "a"
    fill(place, 2, 6)
    Image.fromarray(np.concatenate([RGB[:, :6], ALPHA[:, :6, None]], -1)).save(place / "alpha.png")
    loaded, told = read(place, background=background)
    assert rows([laid(RGB[:, :6], ALPHA[:, :6], value).astype(np.uint8)]) < everything(loaded)
    assert told == [f"{place}: 1 (alpha.png) transparent in places, laid on {background}"]


def test_a_jpeg_in_cmyk_is_no_negative(tmp_path):
    Image.new("CMYK", (8, 8), (0, 0, 0, 20)).save((tmp_path / "a").mkdir() or tmp_path / "a" / "a.jpg")
    Image.new("CMYK", (8, 8), (0, 0, 0, 250)).save(tmp_path / "a" / "b.jpg")
    loaded, _ = read(tmp_path / "a")
    found = sorted(image.mean() for image in (*loaded.images, *loaded.held_out_images))
    np.testing.assert_allclose(found, [5, 235], atol=3)


def test_the_largest_square_in_the_middle_is_resized_by_lanczos(tmp_path):
    place = tmp_path / "a"
    place.mkdir()
    wide, tall, small = (RANDOM.integers(0, 256, shape, np.uint8) for shape in ((20, 50, 3), (64, 16, 3), (4, 4, 3)))
    for name, image in (("wide", wide), ("tall", tall), ("small", small)):
        Image.fromarray(image).save(place / f"{name}.png")
    loaded, told = read(place, size=16)
    squares = [wide[:, 15:35], tall[24:40], small]
    expected = [np.asarray(Image.fromarray(square).resize((16, 16), Image.Resampling.LANCZOS)) for square in squares]
    np.testing.assert_array_equal(expected[1], tall[24:40])
    assert everything(loaded) == rows(expected)
    assert told == [f"{place}: 1 (small.png) smaller than 16x16 and enlarged"]
    refused(place, ["several sizes", "--data.size"], source="folder", dir=place)


@pytest.mark.parametrize(("colour", "channels"), [("as-is", 3), ("grey", 1), ("rgb", 3)])
def test_channels_are_as_asked_for(tmp_path, colour, channels):
    images = fill(tmp_path / "a", 4)
    loaded, _ = read(tmp_path / "a", colour=colour)
    assert loaded.images.shape[1:] == (8, 8, channels)
    if colour == "grey":
        expected = [np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in images]
        assert everything(loaded) == rows(expected)
    Image.fromarray(GREY[:4, :4]).save((tmp_path / "b").mkdir() or tmp_path / "b" / "a.png")
    Image.fromarray(grey3(GREY[:4, 4:])).save(tmp_path / "b" / "b.png")
    assert read(tmp_path / "b", colour=colour)[0].images.shape[-1] == {"rgb": 3}.get(colour, 1)


BROKEN = {
    "truncated.png": lambda path: path.write_bytes(path.with_name("000.png").read_bytes()[:-60]),
    "empty.png": lambda path: path.write_bytes(b""),
    "text.png": lambda path: path.write_text("<!DOCTYPE html>"),
    "lost.png": lambda path: path.symlink_to("nowhere"),
    "floats.tiff": lambda path: Image.fromarray(np.ones((8, 8), np.float32)).save(path),
    "claims 10^9.png": lambda path: path.write_bytes(png(31_623, 31_623, 8, 2, b"")),
    "bomb.png": lambda path: path.write_bytes(png(20_000, 20_000, 8, 0, zlib.compress(bytes(10**7), 9))),
    "claims 10^8.gif": lambda path: path.write_bytes(b"GIF89a" + struct.pack("<2H", 10_000, 10_000) + bytes(9)),
    "claims 2^28.webp": lambda path: path.write_bytes(
        b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + b"\xff\x3f\0" * 2
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named_and_ends_nothing_unless_there_are_many(tmp_path, name):
    place = tmp_path / "a"
    images = fill(place, 12)
    BROKEN[name](place / name)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded, told = read(place, broken=0.1)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB
    assert everything(loaded) == rows(images)
    (line,) = told
    assert line.startswith(f"{place}: 1 ({name} (")
    assert line.endswith("cannot be read and are left out")
    refused(place, [f"1 ({name} (", "of 13 image files", "more than --data.broken 0.01"], source="folder", dir=place)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5000)])
def test_odd_shapes_are_read_where_a_size_is_asked_for(tmp_path, shape):
    place = tmp_path / "a"
    images = fill(place, 4)
    odd = RANDOM.integers(0, 256, (*shape, 3), np.uint8)
    Image.fromarray(odd).save(place / "odd.png")
    loaded, told = read(place, size=8)
    assert len(everything(loaded) - rows(images)) == 1
    assert told == [f"{place}: 1 (odd.png) smaller than 8x8 and enlarged"]
    refused(place, ["several sizes", "odd.png"], source="folder", dir=place)
