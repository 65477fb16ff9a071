"""The classifier: the shipped one's accuracy, the same numbers for any chunk and order, files, refusals."""

import hashlib
import json
import os
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from bars import toy
from conftest import same

from psgjax.config import Data
from psgjax.data import dataset
from psgjax.evaluation import classifier as classifiers
from psgjax.evaluation.classifier import ClassifierError

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
    mnist = dataset.load(Data(source="idx", dir=Path(os.environ["PSGJAX_MNIST_DIR"])))
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
