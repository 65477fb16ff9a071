"""The classifier: the shipped one's accuracy, the same numbers for any chunk and order, training, files, the cache, refusals."""

import dataclasses
import hashlib
import json
import os
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import same

from experiments import train_classifier
from psgjax import data
from psgjax.config import Data
from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation.classifier import ClassifierError

COUNT, EPOCHS = 64, 12  # the same in most tests: compiled once


def toy(count=COUNT + 20):
    """Bright bars, a column a class, in noise: images [n, 8, 8, 1] uint8 and labels 0 to 2."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, count, dtype=np.int32)
    images = random.integers(0, 60, (count, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] += 180
    return images, labels


@pytest.fixture(scope="module")
def packaged():
    return data.load(Data(source="packaged"), progress=lambda line: None)


@pytest.fixture(scope="module")
def trained():
    return fit()


def fit(**changes):
    images, labels = toy()
    held_out = images[COUNT:], labels[COUNT:]
    return classifiers.fit(images[:COUNT], labels[:COUNT], **{"epochs": EPOCHS, "held_out": held_out, **changes})


def dataset(**info):
    images, labels = toy()
    about = {"name": "bars", "canonical": False, "source": "idx"}
    about |= {"sha256": hashlib.sha256(images.data).hexdigest(), **info}
    return data.Dataset(images[:COUNT], labels[:COUNT], images[COUNT:], labels[COUNT:], about)


# The shipped one.


def test_the_shipped_classifier_knows_the_packaged_images(packaged):
    for images, labels in (
        (packaged.images, packaged.labels),
        (packaged.held_out_images, packaged.held_out_labels),
    ):
        assert classifiers.accuracy(classifiers.shipped(), images, labels) >= 0.985


def test_the_shipped_classifier_has_its_accuracy_on_the_test_images():
    if not os.environ.get("PSGJAX_MNIST_DIR"):
        pytest.skip("PSGJAX_MNIST_DIR names no folder with the four files of mnist")
    mnist = data.load(Data(source="idx", dir=Path(os.environ["PSGJAX_MNIST_DIR"])))
    shipped = classifiers.shipped()
    measured = classifiers.accuracy(shipped, mnist.held_out_images, mnist.held_out_labels)
    assert measured >= 0.99
    assert measured == pytest.approx(shipped.info["accuracy"], abs=2e-4)  # another processor may round two images' way
    assert shipped.info["data_sha256"] == mnist.info["sha256"]


def test_what_is_known_of_the_shipped_classifier():
    shipped, content = classifiers.shipped(), classifiers.SHIPPED.read_bytes()
    assert len(content) < 1_000_000
    assert hashlib.sha256(content).hexdigest() == shipped.info["sha256"] == classifiers.SHIPPED_SHA256
    assert shipped.info["accuracy"] >= 0.99
    assert (shipped.info["train_images"], shipped.info["held_out_images"]) == (60_000, 10_000)
    assert shipped.info["command"].startswith("python -m experiments.train_classifier")
    assert "/" not in json.dumps(shipped.info)  # no folder of the machine that made it
    assert (shipped.image_shape, shipped.classes) == ((28, 28, 1), 10)
    assert (
        f"{sum(leaf.size for leaf in jax.tree.leaves(shipped.params)):,} parameters"
        in Path(classifiers.__file__).read_text()
    )


def test_other_weights_in_the_place_of_the_shipped_ones_are_refused(trained, tmp_path, monkeypatch):
    classifiers.save(trained, tmp_path / "other.safetensors")
    monkeypatch.setattr(classifiers, "SHIPPED", tmp_path / "other.safetensors")
    with pytest.raises(ClassifierError, match="install psgjax again"):
        classifiers.shipped.__wrapped__()


# What it gives.


def test_the_same_for_any_chunk_and_order(trained):
    images, _ = toy()
    count = len(images)
    features, probabilities = classifiers.apply(trained, images, chunk=32)
    assert features.shape == (count, classifiers.FEATURES)
    assert probabilities.shape == (count, 3)
    assert features.dtype == probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-6)
    order = np.random.default_rng(1).permutation(count)
    for chunk in (count, 7):
        done = []
        shuffled = classifiers.apply(trained, images[order], chunk=chunk, progress=done.append)
        np.testing.assert_allclose(shuffled[0], features[order], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(shuffled[1], probabilities[order], rtol=1e-5, atol=1e-6)
        assert done == [*range(chunk, count, chunk), count]
    assert same(classifiers.apply(trained, images, chunk=32), (features, probabilities))


def test_one_program_serves_every_number_of_images(trained):
    images, _ = toy()
    classifiers.apply(trained, images, chunk=32)
    program = classifiers._program(trained.classes)
    before = program._cache_size()
    for count in (1, 31, 33, len(images)):
        assert len(classifiers.apply(trained, images[:count], chunk=32)[0]) == count
    assert program._cache_size() == before


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 28, 28, 1), np.uint8), r"shape \[2, 28, 28, 1\]; it must be \[N, 8, 8, 1\]"),
        (np.zeros((2, 8, 8), np.uint8), r"shape \[2, 8, 8\]; it must be \[N, 8, 8, 1\]"),
        (np.zeros((0, 8, 8, 1), np.uint8), "there are no images"),
        (np.zeros((2, 8, 8, 1)), "images are float64; they must be uint8"),
        (np.zeros((2, 8, 8, 1), np.int64), "images are int64; they must be uint8"),
        (np.full((2, 8, 8, 1), np.nan, np.float32), "images are float32 and hold NaN"),
    ],
)
def test_images_that_it_does_not_take(trained, images, message):
    with pytest.raises(ValueError, match=message):
        classifiers.apply(trained, images)


def test_a_chunk_of_nothing(trained):
    with pytest.raises(ValueError, match="chunk is 0"):
        classifiers.apply(trained, toy()[0], chunk=0)


# Training.


def test_it_learns_what_can_be_learnt(trained):
    assert trained.info["accuracy"] >= 0.9
    assert (trained.info["train_images"], trained.info["held_out_images"]) == (COUNT, 20)
    assert (trained.classes, trained.image_shape) == (3, (8, 8, 1))


def test_training_follows_from_the_seed(trained):
    losses = []
    again = fit(progress=lambda epoch, loss: losses.append((epoch, loss)))
    assert same(again.params, trained.params)
    assert again.info == trained.info
    assert [epoch for epoch, _ in losses] == list(range(1, EPOCHS + 1))
    assert losses[-1][1] < losses[0][1]
    assert not same(fit(seed=1).params, trained.params)


def test_without_held_out_images_a_tenth_is_held_out():
    images, labels = toy()
    info = classifiers.fit(images[: COUNT + 7], labels[: COUNT + 7], epochs=EPOCHS, held_out=None).info
    assert (info["train_images"], info["held_out_images"]) == (COUNT, 7)


def test_images_are_moved_by_up_to_two_pixels_of_28():
    images = np.zeros((500, 28, 28, 1), np.uint8)
    images[:, 10, 20] = 255
    moved = np.asarray(classifiers._shift(jax.numpy.asarray(images), jax.random.key(0)))
    _, rows, columns, _ = np.nonzero(moved)
    assert len(rows) == 500
    assert set(rows) == set(range(8, 13))
    assert set(columns) == set(range(18, 23))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"labels": np.zeros(COUNT, np.int32), "held_out": None}, "one class"),
        ({"labels": np.zeros(63, np.int32)}, r"64 images have labels of the shape \[63\]"),
        ({"labels": np.full(COUNT, -1)}, "whole numbers from 0"),
        ({"labels": np.zeros(COUNT)}, "labels are float64"),
        (
            {"images": np.zeros((COUNT, 10, 10, 1), np.uint8)},
            "10x10; the classifier takes sides that are multiples of 4",
        ),
    ],
)
def test_what_it_cannot_be_trained_on(change, message):
    images, labels = toy()
    with pytest.raises(ValueError, match=message):
        classifiers.fit(**{"images": images[:COUNT], "labels": labels[:COUNT], "epochs": 1, **change})


# Files.


def test_a_file_holds_all_of_it(trained, tmp_path):
    path = tmp_path / "c.safetensors"
    sha256 = classifiers.save(trained, path)
    assert sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    found = classifiers.read(path)
    assert same(found.params, trained.params)
    assert (found.image_shape, found.classes) == (trained.image_shape, trained.classes)
    assert found.info == {**trained.info, "sha256": sha256}
    assert classifiers.save(found, tmp_path / "again.safetensors") == sha256


def rewritten(path, tensors=None, **changes):
    """The file with another header, a new length before it."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    info = json.loads(header["__metadata__"]["classifier"]) | changes
    header["__metadata__"]["classifier"] = json.dumps(info)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + length :]


DAMAGES = {
    "empty": lambda path: b"",
    "cut": lambda path: path.read_bytes()[:-100],
    "noise": lambda path: b"\x01" * 100,
    "a bit": lambda path: path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1]),
    "shape": lambda path: rewritten(path, image_shape=[28, 28, 1]),
    "odd shape": lambda path: rewritten(path, image_shape=[8, 8]),
    "classes": lambda path: rewritten(path, classes=7),
    "hash": lambda path: rewritten(path, weights_sha256="0"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(trained, tmp_path, damage):
    path = tmp_path / "c.safetensors"
    classifiers.save(trained, path)
    path.write_bytes(DAMAGES[damage](path))
    with pytest.raises(ClassifierError, match="not a classifier, or a damaged one"):
        classifiers.read(path)


def test_a_file_of_other_arrays_is_refused(tmp_path):
    import safetensors.numpy

    path = tmp_path / "c.safetensors"
    safetensors.numpy.save_file({"x": np.zeros(3)}, path)
    with pytest.raises(ClassifierError):
        classifiers.read(path)


# By data set.


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(classifiers, "_LEAST_EPOCHS", EPOCHS)
    monkeypatch.setattr(classifiers, "_IMAGES", 0)
    return tmp_path / "cache" / "psgjax" / "classifiers"


def test_mnist_has_the_shipped_one_and_images_without_labels_have_none(packaged, cache):
    assert classifiers.for_data(packaged) is classifiers.shipped()
    assert classifiers.for_data(dataclasses.replace(dataset(), labels=np.zeros(0, np.int32))) is None
    assert not cache.exists()


def test_other_data_have_one_of_their_own_trained_once(cache, monkeypatch):
    told = []
    first = classifiers.for_data(dataset(), told.append)
    assert "training a classifier for bars on 64 images, 12 epochs" in told[0]
    assert first.info["held_out_images"] == 20
    assert first.info["data"] == "bars"
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(classifiers, "fit", None)
    again = classifiers.for_data(dataset(), told.append)
    assert same(again.params, first.params)
    assert again.info == first.info


def test_what_calls_itself_mnist_and_is_not_has_one_of_its_own(cache):
    own = classifiers.for_data(dataset(name="mnist"), lambda line: None)
    assert own.image_shape == (8, 8, 1)


def test_other_labels_are_other_data(cache):
    data = dataset()
    classifiers.for_data(data, lambda line: None)
    classifiers.for_data(dataclasses.replace(data, labels=data.labels[::-1].copy()), lambda line: None)
    assert len(list(cache.iterdir())) == 2


def test_a_damaged_file_in_the_cache_is_set_aside_and_replaced(cache):
    first = classifiers.for_data(dataset(), lambda line: None)
    (path,) = cache.iterdir()
    whole, cut = path.read_bytes(), path.read_bytes()[:-9]
    path.write_bytes(cut)
    told = []
    again = classifiers.for_data(dataset(), told.append)
    assert "Set aside" in told[0]
    assert same(again.params, first.params)
    assert path.read_bytes() == whole
    assert path.with_suffix(".damaged").read_bytes() == cut


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in the way")
    told = []
    assert classifiers.for_data(dataset(), told.append).classes == 3
    assert "could not be kept" in told[-1]


# The command.


@pytest.mark.parametrize(
    ("given", "recorded"),
    [
        ("--epochs 3 --data.source idx --data.dir /some/where", "--epochs 3 --data.source idx --data.dir FOLDER"),
        ("--data.dir=/some/where --out=/else/x.safetensors --seed 1", "--data.dir FOLDER --seed 1"),
        ("--out /else/x.safetensors --seed 1", "--seed 1"),
        ("", ""),
    ],
)
def test_the_recorded_command_names_no_folder(given, recorded):
    assert train_classifier.public(given.split()) == f"python -m experiments.train_classifier {recorded}".strip()


def test_the_command_end_to_end(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "load", lambda config, progress: dataset(description="bars", warning=None))
    out = tmp_path / "new" / "c.safetensors"
    assert train_classifier.main(["--epochs", str(EPOCHS), "--out", str(out)]) == 0
    found = classifiers.read(out)
    shown = capsys.readouterr().out
    assert found.info["sha256"] in shown
    assert f"{out.stat().st_size:,} bytes" in shown
    assert found.info["command"] == "python -m experiments.train_classifier --epochs 12"
    assert found.info["epochs"] == EPOCHS
    assert {"jax", "flax"} <= set(found.info["versions"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "epochs is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--out", "weights.bin"], "weights.bin must be a file whose name ends in .safetensors"),
        (["--data.source", "idx", "--data.dir", "nowhere"], "nowhere does not exist"),
    ],
)
def test_bad_options_are_one_line_and_exit_status_2(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train_classifier.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())
