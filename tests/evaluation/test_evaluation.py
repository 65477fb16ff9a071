"""All metrics together, on real images and on what is wrong with them; and the command."""

import hashlib
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
import sources
from PIL import Image
from rich.console import Console

from psgjax.commands import evaluate as command
from psgjax.data import dataset, idx, layout, tfds
from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation.score import BETWEEN, CLASSIFIED, beside_nearest, reference, score
from psgjax.evaluation.table import show


@pytest.fixture(scope="module")
def halves(packaged):
    """Real images never compared with themselves: 1,000 as samples, 1,000 as the reference, 2,500 to have been trained on."""
    order = np.random.default_rng(0).permutation(len(packaged.images))
    return [packaged.images[order[part]] for part in (slice(1000), slice(1000, 2000), slice(2000, None))], order


@pytest.fixture(scope="module")
def real(halves):
    (_, held_out, training), _ = halves
    return reference(held_out, training, classifiers.shipped(), "packaged images")


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
    assert 0.35 < floor["c2st"] < 0.65
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


def test_generators_that_differ_are_named(packaged, real):
    ones, threes = (packaged.images[packaged.labels == digit][:200] for digit in (1, 3))
    found = score(np.stack([ones, threes]), real)
    assert found["c2st"] > 0.97
    assert found["histogram_divergence"] > 0.6  # log 2 = 0.69
    assert [each["missing_classes"] for each in found["generators"]] > [6, 6]


def test_what_is_left_out_is_said_with_the_reason(halves, real, floor, capsys):
    (samples, held_out, training), _ = halves
    found = score(samples[None, :20], reference(held_out, training, None, "real images"))
    assert set(found["left_out"]) == {*CLASSIFIED, *BETWEEN}
    assert found["memorisation_rate"] is not None
    assert floor["left_out"] == {}
    alone = score(samples[None, :20], real)["left_out"]
    assert set(alone) == set(BETWEEN)
    assert "one generator" in alone["c2st"]
    eights = held_out[classifiers.apply(classifiers.shipped(), held_out)[1].argmax(1) == 8]
    found = score(samples[None, :20], reference(eights, None, classifiers.shipped(), "eights"))
    assert found["histogram_kl"] is None
    assert "lacks: 0, 1, 2, 3, 4, 5, 6, 7, 9" in found["left_out"]["histogram_kl"]
    assert set(found["left_out"]) == {"histogram_kl", "memorisation_rate", *BETWEEN}
    show(found, pathlib.Path("a [b]"), Console(width=80))
    out = capsys.readouterr().out
    assert "a [b]: 20 images" in out
    assert f"against eights: {len(eights)} images, SHA-256 {hashlib.sha256(eights.tobytes()).hexdigest()[:12]}" in out
    assert "left out: memorisation_rate: the reference has no training images" in out


@pytest.mark.parametrize("generators", [1, 2, 4, 6])
def test_a_table_fits_80_columns_and_cuts_no_name_and_no_number(generators, floor, capsys):
    each = {**floor["generators"][0], "fcd": -1.234e-5}
    show({**floor, "generators": [each] * generators, "kid": -1.2345e-5}, pathlib.Path("a.npz"), Console(width=60))
    out = capsys.readouterr().out
    words = out.split()
    names = {*floor, "gen.", str(generators), "-1.234e-05"} - {"generators", "left_out", "histogram"}
    assert names - {*words} == {"samples", "reference", "reference_description", "reference_sha256"} - {*words}
    assert words.count("fcd") == -(-generators // 3)
    assert "…" not in out
    assert max(map(len, out.splitlines()[4:])) <= 80


PACKAGED = ("--reference", "packaged")
DIGITS = ("--classifier", "mnist")


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
    np.save(tmp_path / "d.npy", np.moveaxis(np.repeat(samples[:60] / 255, 3, -1), -1, 1))
    (tmp_path / "c").mkdir()
    for i, image in enumerate(samples[:60, ..., 0]):
        kind = (image, image.astype(np.uint16) * 257, np.repeat(image[..., None], 3, -1))[i % 3]
        Image.fromarray(kind).save(tmp_path / "c" / f"{i:03}.{'tiff' if i % 2 else 'png'}")
    found = []
    for name in ("a.npy", "b.npz", "c", "d.npy"):
        arguments = (tmp_path / name, "--reference", tmp_path / "real.npz", "--json", tmp_path / "out.json", *DIGITS)
        assert run(*arguments, *(("--range", "0..1") if name == "d.npy" else ())) == 0
        found.append(
            {
                k: v
                for k, v in json.loads((tmp_path / "out.json").read_text()).items()
                if k not in ("images", "notes", "environment")
            }
        )
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0]["samples"] == 60
    assert "fcd" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((0, 28, 28), np.uint8), "holds an array [0, 28, 28]"),
        (np.full((1, 28, 28), 255, np.uint8), "at least 6 are needed"),
        (np.zeros((9, 28), np.uint8), "holds an array [9, 28]"),
        (np.full((9, 14, 14), 255, np.uint8), "holds images of 14x14x1 and the reference of 28x28x1"),
        (np.full((9, 28, 28), np.nan), "holds NaN or infinity"),
        (
            np.linspace(0, 1, 9 * 784).reshape(9, 28, 28),
            "from 0 to 1, and what is black and white is not certain: say it with --range (0..1, ",
        ),
        (np.zeros((9, 28, 28), complex), "images must be whole numbers or floats"),
        (np.array([{}]), "cannot be read as an array of images"),
    ],
)
def test_the_command_refuses_what_are_no_images(array, message, halves, tmp_path, capsys):
    np.savez(tmp_path / "real.npz", halves[0][1])
    np.save(tmp_path / "fake.npy", array, allow_pickle=True)
    arguments = (tmp_path / "fake.npy", "--reference", tmp_path / "real.npz", "--json", tmp_path / "out.json", *DIGITS)
    assert run(*arguments) == 2
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
    monkeypatch.setattr(layout, "MOST_BYTES", 10_000_000)
    (tmp_path / "c").mkdir()
    (tmp_path / path).write_bytes(make(tmp_path))
    given = tmp_path / path
    Image.init()  # Pillow imports its formats when it first fails to recognise a file: not that file's memory
    tracemalloc.start()
    status = run(given.parent if given.suffix == ".png" else given, *PACKAGED)
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
    monkeypatch.setattr(layout, "MOST_BYTES", 10 * 64 * 64 - 1)
    for i in range(10):
        Image.new("L", (64, 64)).save(tmp_path / f"{i}.png")
    assert run(tmp_path, *PACKAGED) == 2
    assert "unpacks to 40,960 bytes" in capsys.readouterr().err


def test_the_command_refuses_a_folder_of_what_do_not_go_together(tmp_path, capsys):
    for i, shape in enumerate([(28, 28), (28, 27)]):
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / f"{i}.png")
    assert run(tmp_path, *PACKAGED) == 2
    assert "1.png is 28x27 and 0.png 28x28; all must be of one size" in " ".join(capsys.readouterr().err.split())


def test_the_command_reads_one_array_or_the_one_called_images(tmp_path, capsys):
    images = np.arange(9 * 64, dtype=np.uint8).reshape(9, 8, 8, 1)
    for arrays in ({"labels": np.zeros(9), "images": images}, {"pictures": images[None]}):
        np.savez(tmp_path / "some.npz", **arrays)
        np.testing.assert_array_equal(command.read_images(tmp_path / "some.npz", None, "--range"), images[None])
    np.savez(tmp_path / "some.npz", a=images, b=images)
    assert run(tmp_path / "some.npz", *PACKAGED) == 2
    assert "holds the arrays a, b; it must hold one" in " ".join(capsys.readouterr().err.split())


def test_a_constant_batch_has_finite_scores(real):
    found = score(np.zeros((2, 20, 28, 28, 1), np.uint8), real)
    assert all(np.isfinite(number) for number in numbers(found) if not isinstance(number, str))


def refusal(capsys, *arguments):
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def test_the_published_test_set_is_never_replaced_by_another(halves, tmp_path, monkeypatch, capsys):
    def fail(*_):
        raise dataset.DataError("https://example.org cannot be downloaded.")

    np.save(tmp_path / "a.npy", halves[0][0][:60])
    arguments = (tmp_path / "a.npy", "--reference", "mnist-test", "--json", tmp_path / "out.json")
    monkeypatch.setattr(tfds, "read_splits", fail)
    error = refusal(capsys, *arguments)
    assert "--reference mnist-test: https://example.org cannot be downloaded. Or compare with 500" in error
    folder = sources.write(tmp_path / "idx", sources.contents())
    assert "does not hold MNIST as published" in refusal(capsys, *arguments, "--data.dir", folder)
    assert not (tmp_path / "out.json").exists()

    monkeypatch.setattr(idx, "published_name", lambda *_: "mnist")
    assert run(*arguments, "--data.dir", folder) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    real = sources.load(source="idx", dir=folder).held_out_images
    assert found["reference_description"] == "mnist's published test images"
    assert (found["reference"], found["reference_sha256"]) == (20, hashlib.sha256(real.tobytes()).hexdigest())


def test_a_stand_in_is_asked_for_by_name_and_recorded(halves, packaged, tmp_path, capsys):
    np.save(tmp_path / "a.npy", halves[0][0][:60])
    assert run(tmp_path / "a.npy", *PACKAGED, "--json", tmp_path / "out.json") == 0
    found = json.loads((tmp_path / "out.json").read_text())
    sha256 = hashlib.sha256(packaged.held_out_images.tobytes()).hexdigest()
    assert found["reference_description"] == "mnist's held-out images (packaged)"
    assert (found["reference"], found["reference_sha256"]) == (500, sha256)
    assert f"against mnist's held-out images (packaged): 500 images, SHA-256 {sha256[:12]}" in capsys.readouterr().out
    assert "nothing says what" in refusal(capsys, tmp_path / "a.npy")


def test_own_images_are_not_scored_as_digits_unasked(halves, tmp_path, capsys):
    np.save(tmp_path / "a.npy", halves[0][0][:60])
    np.save(tmp_path / "b.npy", np.full((9, 8, 8), 255, np.uint8))
    for name, message in (("a.npy", "give --classifier mnist"), ("b.npy", "the one for MNIST takes 28x28x1")):
        error = refusal(capsys, tmp_path / "a.npy", "--reference", tmp_path / name, "--json", tmp_path / "out.json")
        assert "nothing can be measured" in error
        assert message in error
    assert "takes 28x28x1" in refusal(capsys, tmp_path / "b.npy", "--reference", tmp_path / "b.npy", *DIGITS)
    assert not (tmp_path / "out.json").exists()


def test_what_is_not_read_of_a_folder_is_in_the_numbers(halves, tmp_path, capsys):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "labels.csv").write_text("")
    for i, image in enumerate(halves[0][0][:9, ..., 0]):
        Image.fromarray(image).save(tmp_path / "c" / f"{i}.png")
    assert run(tmp_path / "c", *PACKAGED, "--json", tmp_path / "out.json") == 0
    note = f"{tmp_path / 'c'}: 1 that are no image files were not read: labels.csv"
    assert json.loads((tmp_path / "out.json").read_text())["notes"] == [note]
    assert note in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--samples", 60, *PACKAGED), "--samples would be ignored: it applies to a run alone"),
        (("--seed", 0, *PACKAGED), "--seed would be ignored"),
        (("--checkpoint", "best", *PACKAGED), "--checkpoint would be ignored"),
        (("--data.dir", "x", "--reference", "b.npy"), "--data.dir would be ignored: it applies to a data set"),
        (("--data.source", "idx", *PACKAGED), "--data.source would be ignored"),
        (
            ("--classifier", "mnist", *PACKAGED),
            "--classifier would be ignored: it applies to a --reference that is a file",
        ),
        (("--reference-range", "0..1", "--reference", "mnist-test"), "--reference-range would be ignored"),
        (("--range", "0..1", *PACKAGED), "files, which say themselves what is white"),
    ],
)
def test_options_that_do_not_apply_are_refused(options, message, tmp_path, capsys):
    Image.new("L", (28, 28)).save(tmp_path / "a.png")
    assert message in refusal(capsys, tmp_path, *options)


def test_missing_paths_are_one_line(tmp_path, capsys):
    for path in (tmp_path / "none", tmp_path / "none.npz", tmp_path):
        assert run(path, *PACKAGED) == 2
        assert capsys.readouterr().err.startswith("error: ")
