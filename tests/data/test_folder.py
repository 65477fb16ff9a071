"""A folder of image files as people have them: every pixel as an independent reader has it, every refusal by name."""

import os
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image
from sources import load, refused, same

from psgjax import kept
from psgjax.config import Data
from psgjax.data import dataset, folder

RANDOM = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def colours(count=1, side=8):
    """Images [n, side, side, 3] uint8, in colour."""
    return RANDOM.integers(0, 256, (count, side, side, 3), np.uint8)


def fill(place, count=20, side=8):
    """A folder of PNGs in colour; their pixels."""
    place.mkdir(parents=True, exist_ok=True)
    images = colours(count, side)
    for i, image in enumerate(images):
        Image.fromarray(image).save(place / f"{i:03}.png")
    return images


def read(place, **settings):
    """The data set, and what was told."""
    told = []
    return dataset.load(Data(source="folder", dir=place, **settings), told.append), told


def rows(*arrays):
    """Images of all arrays as a set of bytes."""
    return {image.tobytes() for array in arrays for image in array}


def everything(loaded):
    return rows(loaded.images, loaded.held_out_images)


def test_what_is_read_is_what_lies_there_a_tenth_held_out_the_same_from_anywhere(tmp_path):
    images = fill(tmp_path / "a")
    loaded, told = read(tmp_path / "a")
    assert everything(loaded) == rows(images)
    assert (len(loaded.images), len(loaded.held_out_images)) == (18, 2)
    assert (loaded.labels, loaded.held_out_labels, loaded.info["classes"]) == (None, None, None)
    assert (loaded.info["name"], loaded.info["source"]) == ("a", "folder")
    assert told == []
    (tmp_path / "b").mkdir()
    for i, path in enumerate(sorted((tmp_path / "a").iterdir(), reverse=True)):
        path.rename(tmp_path / "b" / f"other {i}.png")
    assert same(read(tmp_path / "b")[0], loaded)
    assert same(dataset.Dataset.from_arrays(images), loaded)
    assert same(load(dir=tmp_path / "b"), loaded)


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


def test_subfolders_are_classes(tmp_path):
    images = {name: fill(tmp_path / "a" / name / "deeper", 10) for name in ("cat", "ant", "bee")}
    loaded, told = read(tmp_path / "a", held_out=0.2)
    assert loaded.info["classes"] == ["ant", "bee", "cat"]
    assert (np.bincount(loaded.labels).tolist(), np.bincount(loaded.held_out_labels).tolist()) == ([8] * 3, [2] * 3)
    for number, name in enumerate(loaded.info["classes"]):
        chosen = loaded.images[loaded.labels == number], loaded.held_out_images[loaded.held_out_labels == number]
        assert rows(*chosen) == rows(images[name])
    assert told == []
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "stray.png")
    loaded, told = read(tmp_path / "a")
    assert loaded.labels is None
    assert told == [f"{tmp_path / 'a'}: no labels, for which all images must lie in two or more subfolders"]


def test_folders_called_train_and_test_are_what_they_are_called(tmp_path):
    parts = {
        (part, name): fill(tmp_path / "a" / part / name, 6)
        for part in ("train", "test", "val")
        for name in ("cat", "dog")
    }
    loaded, told = read(tmp_path / "a")
    assert loaded.info["classes"] == ["cat", "dog"]
    assert rows(loaded.images) == rows(parts["train", "cat"], parts["train", "dog"])
    assert rows(loaded.held_out_images) == rows(parts["test", "cat"], parts["test", "dog"])
    assert told == [
        f"{tmp_path / 'a'}: train is trained on, test is held out",
        f"{tmp_path / 'a'}: 12 images in val are not used",
    ]
    refused(tmp_path / "a", ["data.held_out 0.5", "leave it out"], source="folder", dir=tmp_path / "a", held_out=0.5)


def test_what_is_no_image_is_skipped_and_counted(tmp_path):
    place = tmp_path / "a"
    images = fill(place, 6)
    for name in ("._0.png", ".hidden.png", "notes.txt", "d.heic"):
        (place / name).write_bytes(b"x")
    (place / ".git").mkdir()
    Image.new("RGB", (8, 8)).save(place / ".git" / "a.png")
    loaded, told = read(place)
    assert everything(loaded) == rows(images)
    (line,) = told
    assert "5 (" in line
    assert "and 2 more) skipped" in line


def test_links_are_followed_but_not_in_circles(tmp_path):
    place, elsewhere = tmp_path / "a", tmp_path / "elsewhere"
    images, other = fill(place / "one", 4), fill(elsewhere, 4)
    (place / "two").symlink_to(elsewhere)
    (place / "one" / "up").symlink_to(place)
    (place / "one" / "here").symlink_to(".")
    (elsewhere / "back").symlink_to(place)
    (place / "one" / "file.png").symlink_to(elsewhere / "000.png")
    loaded, told = read(place)
    assert everything(loaded) == rows(images, other)
    assert loaded.info["classes"] == ["one", "two"]
    assert len(loaded.images) + len(loaded.held_out_images) == 9
    assert told == [f"{place}: 3 (one/here, one/up, two/back) not followed: links to folders that are read in any case"]


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


def test_the_second_start_reads_one_file(tmp_path, monkeypatch):
    place = tmp_path / "a"
    fill(place, 12)
    BROKEN["text.png"](place / "text.png")
    first, told = read(place, broken=0.1)
    decode = folder._decode
    monkeypatch.setattr(folder, "_decode", None)
    again, told_again = read(place, broken=0.1)
    assert same(first, again)
    assert told == told_again
    monkeypatch.setattr(folder, "_decode", decode)
    (path,) = (tmp_path / "cache").rglob("*.npz")
    whole = path.read_bytes()
    for damaged in (b"", whole[:500], whole.replace(whole[500:600], bytes(100))):
        path.write_bytes(damaged)
        assert same(read(place, broken=0.1)[0], first)
    times = os.stat(place / "000.png")
    other = (place / "001.png").read_bytes()
    (place / "000.png").write_bytes(other)
    os.utime(place / "000.png", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert not same(read(place, broken=0.1)[0], first)


def test_without_a_place_for_the_cache_it_goes_on_and_says_so_once(tmp_path, monkeypatch):
    images = fill(tmp_path / "a", 12)
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(kept, "cache_folder", lambda: tmp_path / "file")
    loaded, told = read(tmp_path / "a")
    assert everything(loaded) == rows(images)
    (line,) = told
    assert line.startswith("the images could not be kept, and will be read file by file again next time")


def test_of_many_files_those_that_are_asked_for_are_read(tmp_path):
    images = fill(tmp_path / "a", 60)
    loaded, _ = read(tmp_path / "a", train_images=18)
    again, _ = read(tmp_path / "a", train_images=18)
    assert same(loaded, again)
    assert len(loaded.images) == 18
    assert len(loaded.held_out_images) == 2
    assert everything(loaded) < rows(images)


def test_how_far_it_has_come_is_shown(tmp_path):
    fill(tmp_path / "a", 12)
    shown = []

    def track(items, count, what):
        shown.append((count, what))
        return items

    dataset.load(Data(source="folder", dir=tmp_path / "a"), print, track)
    assert shown == [(12, "reading images")]


@pytest.mark.parametrize(
    ("make", "fragments"),
    [
        (lambda place: None, ["does not exist"]),
        (lambda place: place.write_text(""), ["is not a folder"]),
        (lambda place: place.mkdir(), ["holds no image files", ".webp"]),
        (lambda place: (place.mkdir(), (place / "a.txt").write_text("")), ["no image files, but 1 (a.txt)"]),
        (lambda place: fill(place, 1), ["1 image(s)", "at least two"]),
    ],
)
def test_folders_without_images_are_refused(tmp_path, make, fragments):
    make(tmp_path / "a")
    refused(tmp_path / "a" if (tmp_path / "a").is_dir() else tmp_path, fragments, source="folder", dir=tmp_path / "a")


def test_images_that_memory_does_not_hold_are_refused_with_both_numbers(tmp_path, monkeypatch):
    fill(tmp_path / "a", 12)
    monkeypatch.setattr(folder.memory, "available", lambda: 1 << 20)
    refused(
        tmp_path / "a",
        ["12 images of 256x256 need 4.5 MiB, and 1.0 MiB of memory are free", "--data.size"],
        source="folder",
        dir=tmp_path / "a",
        size=256,
    )


def test_settings_that_would_be_ignored_are_refused(tmp_path):
    refused(tmp_path, ["data.transpose True", "data.source idx"], source="folder", dir=tmp_path, transpose=True)
    refused(tmp_path, ["data.dir", "tfds"], source="packaged", dir=tmp_path)


def test_ctrl_c_ends_it_at_once(tmp_path):
    fill(tmp_path / "a", 200)
    code = (
        "import sys, time; from psgjax.data import dataset, folder; from psgjax.config import Data; from pathlib import Path\n"
        "def slow(*args, **kwargs): time.sleep(0.5)\n"
        "folder._decode = slow\n"
        "def track(items, count, what):\n"
        "    for item in items: raise KeyboardInterrupt\n"
        "dataset.load(Data(source='folder', dir=Path(sys.argv[1])), print, track)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True, timeout=20)
    assert "KeyboardInterrupt" in done.stderr
