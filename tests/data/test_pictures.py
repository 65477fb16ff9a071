"""Images of files and arrays: what is read is the image in its canonical form; what is not certain is refused."""

import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from psgjax.config import ConfigError
from psgjax.data import pictures
from psgjax.data.layout import grey as grey_of
from psgjax.data.layout import to_images

RANGES = {"0..1": (0, 1), "-1..1": (-1, 1), "0..255": (0, 255), "0..65535": (0, 65535)}
FOREIGN = {"-0.5..0.5": (-0.5, 0.5), "0..15": (0, 15), "standardised": (-0.42, 2.82), "-1..0": (-1, 0)}
FLOATS = ("float16", "float32", "float64", ">f4")
INTEGERS = ("uint8", "int8", "uint16", "int16", "int32", "uint32", "int64", ">u2")
LAYOUTS = ("NHW", "NHWC", "NCHW", "KNHWC", "KNCHW")


@st.composite
def canonical(draw):
    """Images uint8 [n, H, W, C]: of any greys, of few, dark or bright ones alone; grey, grey in three channels, or in colour."""
    channels = draw(st.sampled_from([1, 3]))
    least, most = draw(st.sampled_from([(0, 255), (0, 1), (0, 127), (128, 255), (0, 0), (255, 255), (100, 140)]))
    shape = (draw(st.sampled_from([2, 6])), draw(st.sampled_from([2, 8])), draw(st.sampled_from([2, 12])))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    images = random.integers(least, most, (*shape, channels), np.uint8, endpoint=True)
    if draw(st.booleans()):
        images = np.where(random.random((*shape, 1)) < 0.5, images, np.uint8(draw(st.sampled_from([0, 255]))))
    return np.repeat(images[..., :1], channels, -1) if draw(st.booleans()) else images


def laid_out(images, layout):
    """The array [n, H, W, C] in another layout; of two generators where there is a K."""
    array = images.reshape(2, -1, *images.shape[1:]) if layout.startswith("K") else images
    array = np.moveaxis(array, -1, -3) if layout.endswith("CHW") else array
    return array[..., 0] if layout == "NHW" else array


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(canonical(), st.sampled_from(LAYOUTS), st.sampled_from([*RANGES, *FOREIGN]), st.sampled_from(FLOATS), st.data())
def test_floats_are_read_as_what_they_are_or_refused(images, layout, name, dtype, data):
    low, high = (RANGES | FOREIGN)[name]
    with np.errstate(over="ignore"):
        array = (images / 255 * (high - low) + low).astype(dtype)
    said = data.draw(st.sampled_from([None, name] if name in RANGES else [None]))
    if np.isfinite(array).all():  # 65535 in float16 is not
        equal_or_refused(images, array, layout, said)


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(
    canonical(), st.sampled_from(LAYOUTS), st.sampled_from(["0..1", "-1..1", "0..255", "0..65535", "0..15"]), st.data()
)
def test_whole_numbers_are_read_as_what_they_are_or_refused(images, layout, name, data):
    low, high = (RANGES | FOREIGN)[name]
    steps = high - low
    images = (
        (images.astype(int) * min(steps, 255) // 255 * (255 / min(steps, 255))).round().astype(np.uint8)
    )  # that many greys
    values = np.rint(images / 255 * steps + low)
    kinds = [kind for kind in INTEGERS if values.min() >= np.iinfo(kind).min and values.max() <= np.iinfo(kind).max]
    array = values.astype(data.draw(st.sampled_from([*kinds, "bool"] if name == "0..1" else kinds)))
    said = data.draw(st.sampled_from([None, name] if name in RANGES else [None]))
    equal_or_refused(images, array, layout, said)


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(canonical(), st.sampled_from(["0..1", "-1..1", "0..255"]), st.floats(-3, 300), st.booleans())
def test_a_value_outside_its_range_does_not_change_how_the_others_are_read(images, name, stray, said):
    low, high = RANGES[name]
    array = (images / 255 * (high - low) + low).astype(np.float32)
    array[0, 0, 0, 0] = stray
    stray = float(array[0, 0, 0, 0])
    images = images.copy()
    images[0, 0, 0, 0] = np.rint(np.clip((stray - low) * (255 / (high - low)), 0, 255))
    equal_or_refused(images, array, "NHWC", name if said else None, may_refuse=True)


def equal_or_refused(images, array, layout, said, may_refuse=False):
    if layout == "NHW" and images.shape[-1] == 3:
        layout = "NHWC"
    wanted = grey_of(laid_out(images, "KNHWC") if layout.startswith("K") else images[None])
    try:
        found = to_images(laid_out(array, layout), "array", said)
    except ConfigError:
        assert said is None or may_refuse
        return
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "uint16", "int64", "bool"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_usual_is_read(dtype, layout):
    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), np.uint8)
    array = {"uint16": images * np.uint16(257), "int64": images.astype(np.int64), "bool": images > 127}.get(
        dtype, images
    )
    images = 255 * array.astype(np.uint8) if dtype == "bool" else images
    array = (images / 127.5 - 1).astype(dtype) if "float" in dtype else array
    found = to_images(laid_out(array, layout), "array")
    np.testing.assert_array_equal(found, images.reshape(found.shape))
    assert found.shape[-1] == 1


RAMP = np.linspace(0, 1, 6 * 64).reshape(6, 8, 8)
STRAY = np.where(np.arange(384).reshape(6, 8, 8) == 0, -0.1, RAMP)


@pytest.mark.parametrize(
    ("array", "said", "message"),
    [
        (
            RAMP,
            None,
            "float64 from 0 to 1, and what is black and white is not certain: say it with --range (0..1, -1..1, ",
        ),
        (STRAY, None, "from -0.1 to 1, and what is black"),
        (STRAY, "0..1", "from -0.1 to 1, which does not lie in 0..1; correct --range"),
        (RAMP - 0.5, None, "from -0.5 to 0.5, and what is black"),
        ((RAMP > 0.5).astype(np.uint8), None, "uint8 from 0 to 1, and what is black"),
        ((RAMP * 15).astype(np.uint8), None, "uint8 from 0 to 15, and what is black"),
        ((RAMP * 4095).astype(np.uint16), None, "uint16 from 0 to 4095, and what is black"),
        (RAMP * 2 - 1 + 0.1, "-1..1", "does not lie in -1..1"),
        (RAMP.astype(complex), None, "holds complex128; images must be whole numbers or floats"),
        (
            RAMP[:, :3, :3, None] * np.ones(3),
            "0..1",
            "[6, 3, 3, 3]; its channels must be the last axis or the third from last",
        ),
        (RAMP[..., None] * np.ones(4), "0..1", "no axis has their length, 1 or 3"),
        (RAMP[:, :, :3], "0..1", "may be a single image"),
        (RAMP.reshape(6, 64), "0..1", "holds an array [6, 64]; it must be [n, H, W]"),
    ],
)
def test_what_is_not_certain_is_refused_with_what_to_say(array, said, message):
    with pytest.raises(ConfigError) as refusal:
        to_images(array, "array", said)
    assert message in str(refusal.value)


def test_a_rounding_error_beyond_an_end_is_no_other_range():
    array = (RAMP * 2 - 1).astype(np.float32) * np.float32(1.0000001)
    assert array.max() > 1
    np.testing.assert_array_equal(to_images(array, "array")[0, ..., 0], np.rint(RAMP * 255))


FILES = {
    "8 bits": ("png", lambda grey: Image.fromarray(grey)),
    "16 bits": ("png", lambda grey: Image.fromarray(grey.astype(np.uint16) * 257)),
    "16 bits, TIFF": ("tiff", lambda grey: Image.fromarray(grey.astype(np.uint16) * 257)),
    "8 bits, TIFF": ("tif", lambda grey: Image.fromarray(grey)),
    "RGB": ("png", lambda grey: Image.fromarray(grey).convert("RGB")),
    "RGB, BMP": ("bmp", lambda grey: Image.fromarray(grey).convert("RGB")),
    "WebP": ("webp", lambda grey: Image.fromarray(grey)),
    "GIF": ("gif", lambda grey: Image.fromarray(grey)),
    "palette": ("png", lambda grey: Image.fromarray(grey).convert("P")),
    "opaque": ("png", lambda grey: Image.fromarray(grey).convert("LA")),
    "white, its grey in alpha": ("png", lambda grey: Image.fromarray(np.stack([0 * grey + 255, grey], -1), "LA")),
    "white, RGBA": (
        "webp",
        lambda grey: Image.merge("RGBA", [Image.new("L", grey.shape[::-1], 255)] * 3 + [Image.fromarray(grey)]),
    ),
    "black, its grey in alpha": ("png", lambda grey: Image.fromarray(np.stack([0 * grey, grey], -1), "LA")),
    "32 bits": ("tiff", lambda grey: Image.fromarray(grey.astype(np.int32))),
    "floats": ("tiff", lambda grey: Image.fromarray(grey / np.float32(255))),
    "CMYK": ("tiff", lambda grey: Image.fromarray(grey).convert("CMYK")),
}
REFUSED = {"black, its grey in alpha", "32 bits", "floats", "CMYK"}


@settings(
    max_examples=150,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(canonical(), st.lists(st.sampled_from(sorted(FILES)), min_size=1, max_size=3))
def test_files_are_read_as_what_they_are_or_refused(tmp_path_factory, images, kinds):
    folder = tmp_path_factory.mktemp("files")
    grey = images[..., 0]
    for i, image in enumerate(grey):
        suffix, make = FILES[kinds[i % len(kinds)]]
        save(make(image), folder / f"{i}.{suffix}")
    used = {kinds[i % len(kinds)] for i in range(len(grey))}
    try:
        found = pictures.read_folder(folder)
    except ConfigError:
        assert used & REFUSED
        return
    assert used & REFUSED <= {"black, its grey in alpha"}
    black = [kinds[i % len(kinds)] == "black, its grey in alpha" for i in range(len(grey))]
    assert not np.any(grey[black] % 255)  # all of it opaque, or nothing
    np.testing.assert_array_equal(found, np.where(np.array(black)[:, None, None], 0, grey)[..., None])


def save(image, path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        image.save(path, **({"lossless": True, "exact": True} if path.suffix == ".webp" else {}))


def test_colour_is_read_and_grey_files_beside_it_are_grey_in_three_channels(tmp_path):
    random = np.random.default_rng(0)
    colour, grey = random.integers(0, 256, (8, 8, 3), np.uint8), random.integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(colour).save(tmp_path / "a.png")
    Image.fromarray(grey).save(tmp_path / "b.tiff")
    np.testing.assert_array_equal(pictures.read_folder(tmp_path), np.stack([colour, np.repeat(grey[..., None], 3, -1)]))


def test_what_a_folder_holds_besides_is_counted_and_named(tmp_path):
    for name in ("a.png", "b.TIFF", "c.gif"):
        Image.new("L", (8, 8), 9).save(tmp_path / name)
    for name in ("labels.csv", "d.heic", ".hidden"):
        (tmp_path / name).write_text("")
    (tmp_path / "more").mkdir()
    Image.fromarray(np.full((8, 8, 2), (200, 100), np.uint8)).save(tmp_path / "e.png")
    told = []
    assert pictures.read_folder(tmp_path, told.append).shape == (4, 8, 8, 1)
    assert told == [
        f"{tmp_path}: 3 that are no image files were not read: d.heic, labels.csv, more",
        f"{tmp_path}: 1 of 4 images are transparent in places, which was laid on black",
    ]


def test_several_images_in_a_file_are_refused(tmp_path):
    frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 255)]
    for suffix in ("gif", "tiff", "png", "webp"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
        with pytest.raises(ConfigError, match="several images"):
            pictures.read_picture(tmp_path / f"a.{suffix}")


def test_a_picture_is_turned_as_it_is_shown(tmp_path):
    image, exif = np.arange(6, dtype=np.uint8).reshape(2, 3), Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    Image.fromarray(image).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pictures.read_picture(tmp_path / "a.png")[..., 0], np.rot90(image, -1))


@pytest.mark.parametrize(("bits", "white"), [(1, 1), (2, 3), (4, 15), (8, 255), (16, 65535)])
def test_every_depth_of_grey_png_has_its_own_white(bits, white, tmp_path):
    rows = [[0, white], [white // 3, white - white // 3]]
    (tmp_path / "a.png").write_bytes(png(bits, rows))
    expected = np.rint(np.array(rows) / white * 255)
    np.testing.assert_array_equal(pictures.read_picture(tmp_path / "a.png")[..., 0], expected)


def test_16_bits_of_colour_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(png(16, [[1, 2, 3], [4, 5, 6]], colour=2))
    with pytest.raises(ConfigError, match="16 bits a channel"):
        pictures.read_picture(tmp_path / "a.png")


def png(bits, rows, colour=0):
    """A PNG of samples of that many bits, grey or (colour 2) RGB, as no library here writes it."""
    lines = ["".join(format(value, f"0{bits}b") for value in row) for row in rows]
    packed = b"".join(
        b"\0" + int(line.ljust(-(-len(line) // 8) * 8, "0"), 2).to_bytes(-(-len(line) // 8), "big") for line in lines
    )
    header = struct.pack(">2I5B", len(rows[0]) // (3 if colour else 1), len(rows), bits, colour, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(packed)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def test_a_grid_puts_each_generator_in_rows_of_its_own(tmp_path):
    images = np.zeros((2, 3, 4, 5, 1)) - 1
    images[1, 2] = 1.0
    picture = pictures.image_grid(pictures.to_pixels(images), columns=2)
    assert picture.shape == (2 * 2 * 4, 2 * 5, 1)
    white = np.argwhere(picture[..., 0] == 255)
    assert white.min(0).tolist() == [12, 0]  # generator 2: rows 8 to 15, its third image below the first
    assert white.max(0).tolist() == [15, 4]
    pictures.write_png(tmp_path / "grid.png", picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "grid.png")), picture[..., 0])
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
