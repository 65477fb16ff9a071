"""The command that scores images: what it reads, what it refuses, and what it compares with."""

import hashlib
import json

import numpy as np
import pytest
import sources
from PIL import Image

from psgjax.commands import evaluate as command
from psgjax.data import dataset, idx, tfds
from psgjax.evaluation import fitting

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


def test_own_images_are_not_scored_as_digits_unasked(halves, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fitting, "_PIXELS", 1000)
    np.save(tmp_path / "a.npy", halves[0][0][:60])
    np.save(tmp_path / "b.npy", np.full((9, 8, 8), 255, np.uint8))
    for name, message in (
        ("a.npy", "digits as MNIST has them are compared with --classifier mnist"),
        ("b.npy", "useless"),
    ):
        error = refusal(capsys, tmp_path / "a.npy", "--reference", tmp_path / name, "--json", tmp_path / "out.json")
        assert "nothing can be measured" in error
        assert "useless" in error
        assert message in error
    assert "takes images of 28x28x1" in refusal(capsys, tmp_path / "b.npy", "--reference", tmp_path / "b.npy", *DIGITS)
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
