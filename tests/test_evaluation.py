"""All metrics together, on real images and on what is wrong with them; and the command."""

import io
import json
import os
import pathlib
import pickle
import struct
import tracemalloc
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from psgjax.evaluation import __main__ as command
from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation.score import beside_nearest, reference, score


@pytest.fixture(scope="module")
def halves(packaged):
    """Real images never compared with themselves: 1,000 as samples, 1,000 as the reference, 2,500 to have been trained on."""
    order = np.random.default_rng(0).permutation(len(packaged.images))
    return [packaged.images[order[part]] for part in (slice(1000), slice(1000, 2000), slice(2000, None))], order


@pytest.fixture(scope="module")
def real(halves):
    (_, held_out, training), _ = halves
    return reference(held_out, training, classifiers.shipped())


@pytest.fixture(scope="module")
def floor(halves, real):
    return score(halves[0][0].reshape(2, 500, 28, 28, 1), real)


def numbers(tree):
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    return [number for value in tree for number in numbers(value)] if isinstance(tree, list) else [tree]


def test_real_images_have_the_values_of_real_images(floor):
    assert floor["samples"] == floor["reference"] == 1000
    assert abs(floor["kid"]) < 4 * floor["kid_standard_error"]
    assert floor["precision"] > 0.6
    assert floor["recall"] > 0.6
    assert 0.8 < floor["density"] < 1.2
    assert floor["coverage"] > 0.9
    assert floor["classifier_score"] > 9
    assert floor["missing_classes"] == 0
    assert floor["histogram_kl"] < 0.03
    assert floor["memorisation_rate"] < 0.05
    assert floor["histogram_divergence"] < 0.03
    assert 0.35 < floor["told_apart"] < 0.65
    assert all(each["fcd"] > floor["fcd"] for each in floor["generators"])  # fewer images, a larger bias
    json.dumps(floor, allow_nan=False)


def test_noise_moves_quality(floor, real):
    noise = np.random.default_rng(1).integers(0, 256, (1, 300, 28, 28, 1), dtype=np.uint8)
    found = score(noise, real)
    assert found["fcd"] > 20 * floor["fcd"]
    assert found["kid"] > 50 * floor["kid_standard_error"]
    assert found["recall"] < 0.05
    assert found["density"] < 0.5 * floor["density"]
    assert found["coverage"] < 0.05  # (precision need not fall: outliers of the real images have large balls)
    assert "generators" not in found


def test_one_digit_again_and_again_moves_coverage(floor, halves, real):
    found = score(np.repeat(halves[0][0][None, :1], 300, axis=1), real)
    assert found["missing_classes"] == 9
    assert found["coverage"] < 0.05
    assert found["recall"] < 0.05
    assert found["classifier_score"] == pytest.approx(1)
    assert found["fcd"] > 10 * floor["fcd"]
    assert None not in numbers(found)


def test_a_missing_class_is_named(floor, packaged, halves, real):
    _, order = halves
    kept = halves[0][0][packaged.labels[order[:1000]] != 7]
    found = score(kept[None], real)
    assert found["histogram_kl"] > 3 * floor["histogram_kl"]
    assert found["histogram"][7] < 0.01
    assert found["fcd"] > 1.2 * floor["fcd"]
    assert found["coverage"] < floor["coverage"]


def test_copies_of_training_images_are_memorised_and_shown(halves, real):
    copies = halves[0][2][None, :50]
    assert score(copies, real)["memorisation_rate"] == 1
    np.testing.assert_array_equal(beside_nearest(copies, real), np.concatenate([copies, copies]))


def test_generators_that_differ_are_told_apart(packaged, real):
    ones, threes = (packaged.images[packaged.labels == digit][:200] for digit in (1, 3))
    found = score(np.stack([ones, threes]), real)
    assert found["told_apart"] > 0.97
    assert found["histogram_divergence"] > 0.6  # log 2 = 0.69
    assert [each["missing_classes"] for each in found["generators"]] > [6, 6]


def test_the_command_says_what_it_leaves_out(tmp_path, capsys):
    np.save(tmp_path / "a.npy", np.zeros((9, 8, 8), np.uint8))
    assert run(tmp_path / "a.npy", "--reference", tmp_path / "a.npy") == 0
    assert "metrics that need a classifier are left out" in " ".join(capsys.readouterr().out.split())


def test_without_a_classifier_what_needs_one_is_left_out(halves):
    found = score(halves[0][0][None, :20], reference(halves[0][1], halves[0][2], None))
    assert set(found) == {"samples", "reference", "memorisation_rate"}


def run(*arguments):
    try:
        return command.main([str(a) for a in arguments])
    except SystemExit as exit:
        return exit.code


def test_the_command_scores_any_array_or_folder(halves, tmp_path, capsys):
    (samples, held_out, _), _ = halves
    np.savez(tmp_path / "real.npz", held_out)
    np.save(tmp_path / "a.npy", samples[:60, ..., 0])
    np.savez(tmp_path / "b.npz", images=samples[:60].astype(np.float32) / 127.5 - 1)
    (tmp_path / "c").mkdir()
    for i, image in enumerate(samples[:60]):
        Image.fromarray(image[..., 0]).save(tmp_path / "c" / f"{i:03}.png")
    found = []
    for name in ("a.npy", "b.npz", "c"):
        arguments = (tmp_path / name, "--reference", tmp_path / "real.npz", "--json", tmp_path / "out.json")
        assert run(*arguments) == 0
        found.append(
            {
                k: v
                for k, v in json.loads((tmp_path / "out.json").read_text()).items()
                if k not in ("images", "environment")
            }
        )
    assert found[0] == found[1] == found[2]
    assert found[0]["samples"] == 60
    assert "fcd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 28, 28), np.uint8), "holds an array [0, 28, 28]"),
        (np.zeros((1, 28, 28), np.uint8), "at least 6 are needed"),
        (np.zeros((9, 28), np.uint8), "holds an array [9, 28]"),
        (np.zeros((9, 14, 14), np.uint8), "the reference needs uint8 [K, n, 28, 28, 1]"),
        (np.full((9, 28, 28), np.nan), "holds NaN or infinity"),
        (np.linspace(0, 1, 9 * 784).reshape(9, 28, 28), "they must lie in [-1, 1]"),
        (np.zeros((9, 28, 28), np.int64), "images must be uint8"),
        (np.array([{}]), "cannot be read as an array of images"),
    ],
)
def test_the_command_refuses_what_are_no_images(array, message, halves, tmp_path, capsys):
    np.savez(tmp_path / "real.npz", halves[0][1])
    np.save(tmp_path / "fake.npy", array, allow_pickle=True)
    assert run(tmp_path / "fake.npy", "--reference", tmp_path / "real.npz", "--json", tmp_path / "out.json") == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out.json").exists()


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


def header(shape, dtype="|u1"):
    """A .npy file that announces an array and holds none of it."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text.encode()


def zipped(content, name="images.npy"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


def png(width, height):
    """A PNG that announces so many pixels, and holds one."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, format="PNG")
    ihdr = b"IHDR" + struct.pack(">2I", width, height) + buffer.getvalue()[24:29]
    return buffer.getvalue()[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + buffer.getvalue()[33:]


def archived(path, array):
    np.savez(path, images=array)
    return path.read_bytes()


HOSTILE = {
    "a pickle": ("a.npz", lambda path: pickle.dumps(Trap(path / "trapped")), "pickle"),
    "a pickled .npy": (
        "a.npy",
        lambda path: header("(1,)", "|O") + pickle.dumps(Trap(path / "trapped")),
        "allow_pickle",
    ),
    "a pickled member": (
        "a.npz",
        lambda path: archived(path / "a.npz", np.array([Trap(path / "trapped")], object)),
        "allow_pickle",
    ),
    "code as a header": ("a.npy", lambda path: header(f"__import__('os').mkdir('{path}/trapped')"), "cannot be read"),
    "announced and not there": ("a.npy", lambda path: header("(99999999, 28, 28)"), "cannot be read"),
    "announced: an exabyte": ("a.npz", lambda path: zipped(header(f"({2**60},)")), "cannot be read"),
    "a bomb": (
        "a.npz",
        lambda path: zipped(header("(20000, 28, 28)") + bytes(20000 * 784)),
        "unpacks to 15,680,128 bytes",
    ),
    "no array": ("a.npz", lambda path: zipped(b"text"), "something else"),
    "a path upwards": ("a.npz", lambda path: zipped(b"text", "../../trapped"), "something else"),
    "a damaged archive": ("a.npz", lambda path: zipped(bytes(9999))[:-40], "cannot be read"),
    "flipped bits": (
        "a.npz",
        lambda path: zipped(bytes(range(256))).replace(bytes([7, 8]), bytes([9, 9])),
        "cannot be read",
    ),
    "a huge PNG": ("c/a.png", lambda path: png(100_000, 100_000), "cannot be read as an image"),
    "a large PNG": ("c/a.png", lambda path: png(12_000, 12_000), "is 12000x12000; at most 16,777,216 pixels are read"),
    "a cut PNG": ("c/a.png", lambda path: png(28, 28), "cannot be read as an image"),
    "PostScript": ("c/a.png", lambda path: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot identify"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_before_they_run_or_fill_memory(name, tmp_path, monkeypatch, capsys):
    path, make, message = HOSTILE[name]
    monkeypatch.setattr(command, "_MOST_BYTES", 10_000_000)
    (tmp_path / "c").mkdir()
    (tmp_path / path).write_bytes(make(tmp_path))
    given = tmp_path / path
    Image.init()  # Pillow imports its formats when it first fails to recognise a file: not that file's memory
    tracemalloc.start()
    status = run(given.parent if given.suffix == ".png" else given)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    error = capsys.readouterr().err
    assert status == 2
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == sorted({"c", path.split("/")[0]})
    if "announced" not in name:  # numpy reserves what is announced, and the system hands out no page of it
        assert peak < 5_000_000


def test_a_folder_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "_MOST_BYTES", 10 * 64 * 64 - 1)
    for i in range(10):
        Image.new("L", (64, 64)).save(tmp_path / f"{i}.png")
    assert run(tmp_path) == 2
    assert "unpacks to 40,960 bytes" in capsys.readouterr().err


@pytest.mark.parametrize("other", [(28, 27), (28, 28, 3)])
def test_the_command_refuses_a_folder_of_what_do_not_go_together(other, tmp_path, capsys):
    for i, shape in enumerate([(28, 28), other]):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{i}.png")
    assert run(tmp_path) == 2
    message = f"1.png is {list(other)} and 0.png [28, 28]; all must have one size and kind"
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_command_reads_one_array_or_the_one_called_images(tmp_path, capsys):
    images = np.arange(9 * 64, dtype=np.uint8).reshape(9, 8, 8, 1)
    for arrays in ({"labels": np.zeros(9), "images": images}, {"pictures": images[None]}):
        np.savez(tmp_path / "some.npz", **arrays)
        np.testing.assert_array_equal(command.read_images(tmp_path / "some.npz"), images[None])
    np.savez(tmp_path / "some.npz", a=images, b=images)
    assert run(tmp_path / "some.npz") == 2
    assert "holds the arrays a, b; it must hold one" in " ".join(capsys.readouterr().err.split())


def test_a_constant_batch_has_finite_scores(real):
    found = score(np.zeros((2, 20, 28, 28, 1), np.uint8), real)
    found.pop("classifier")
    assert all(np.isfinite(number) for number in numbers(found))


def test_missing_paths_are_one_line(tmp_path, capsys):
    for path in (tmp_path / "none", tmp_path / "none.npz", tmp_path):
        assert run(path) == 2
        assert capsys.readouterr().err.startswith("error: ")
