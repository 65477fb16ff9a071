"""Images in: from a folder, the packaged ones, what `auto` takes; the full data sets where an environment variable names them."""

import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from sources import contents, load, refused, same, write

from psgjax.data import idx, tfds

pytestmark = pytest.mark.usefixtures("scratch")


# A folder.


@pytest.mark.parametrize(("asked", "kept"), [(0, 40), (7, 7), (40, 40), (99, 40)])
def test_train_images_keeps_the_first_of_the_canonical_order(tmp_path, asked, kept):
    folder = write(tmp_path / "d", contents())
    whole, part = load(source="idx", dir=folder), load(source="idx", dir=folder, train_images=asked)
    np.testing.assert_array_equal(part.images, whole.images[:kept])
    np.testing.assert_array_equal(part.labels, whole.labels[:kept])
    np.testing.assert_array_equal(part.held_out_images, whole.held_out_images)
    assert part.info["train_images"] == kept
    assert f"{kept} training" in part.info["description"]
    assert part.info["sha256"] == hashlib.sha256(whole.images[:kept].tobytes()).hexdigest()


@pytest.mark.parametrize("source", ["idx", "auto", "tfds"])
def test_folders_that_hold_no_data_are_refused(tmp_path, source):
    if source == "tfds":
        pytest.importorskip("tensorflow_datasets")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("text")
    for name, state in (
        ("missing", "does not exist"),
        ("empty", "is empty"),
        ("file", "is not a folder"),
        ("n" * 300, ""),
    ):
        refused(
            tmp_path,
            [f"data.dir {tmp_path / name} {state}", *idx.FILES, "--data.dir"],
            source=source,
            dir=tmp_path / name,
        )


def test_idx_needs_a_folder(tmp_path):
    refused(tmp_path, ["data.source idx without data.dir", "--data.dir FOLDER"], source="idx")


def test_another_published_data_set_is_refused(tmp_path, monkeypatch):
    folder = write(tmp_path / "d", contents())
    monkeypatch.setitem(idx._PUBLISHED, idx.fingerprint(*idx.read_splits(folder)), "fashion_mnist")
    for name in ("fashion_mnist", None):
        info = load(source="idx", dir=folder, name=name).info
        assert (info["canonical"], info["name"]) == (True, "fashion_mnist")
    refused(
        tmp_path,
        [str(folder), "holds Fashion-MNIST", "--data.name fashion_mnist"],
        source="idx",
        dir=folder,
        name="mnist",
    )


# The packaged images.


def test_packaged_images_are_split_evenly_and_the_same_every_time():
    loaded = load(source="packaged")
    assert loaded.images.shape == (4500, 28, 28, 1)
    assert loaded.images.max() == 255
    assert np.bincount(loaded.labels).tolist() == [450] * 10
    assert np.bincount(loaded.held_out_labels).tolist() == [50] * 10
    trained, held_out = ({image.tobytes() for image in part} for part in (loaded.images, loaded.held_out_images))
    assert (len(trained), len(held_out), len(trained & held_out)) == (4500, 500, 0)
    assert np.bincount(loaded.labels[:500], minlength=10).min() > 30  # the first n are a fair sample
    assert same(loaded, load(source="packaged"))
    assert loaded.info["sha256"] == "ac6266e5f1d96dacea81e9f709fbf4128d51fb4e0e1a4f12453a62f25db189f7"
    assert loaded.info["canonical"] is False
    assert loaded.info["warning"] is None


def test_fashion_mnist_is_not_packaged(tmp_path):
    refused(tmp_path, ["fashion_mnist", "only mnist", "--data.dir"], source="packaged", name="fashion_mnist")


# The ladder of `auto`.


def test_auto_takes_what_tfds_has(tmp_path, monkeypatch):
    splits = idx.read_splits(write(tmp_path / "d", contents()))
    monkeypatch.setattr(tfds, "read_splits", lambda config, progress: (*splits, tmp_path))
    loaded = load(source="auto")
    np.testing.assert_array_equal(loaded.images, splits[0][0])
    assert loaded.info["source"] == "tfds"
    assert loaded.info["warning"] is None


def test_auto_falls_back_to_the_packaged_images_with_a_warning(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    loaded = load(source="auto")
    assert same(loaded, load(source="packaged"))
    assert loaded.info["source"] == "packaged"
    assert "Only the 5,000 packaged images" in loaded.info["warning"]
    assert "pip install tensorflow-datasets importlib_resources" in loaded.info["warning"]


@pytest.mark.parametrize(("source", "name"), [("tfds", "mnist"), ("tfds", "fashion_mnist"), ("auto", "fashion_mnist")])
def test_nothing_else_falls_back(tmp_path, monkeypatch, source, name):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    refused(tmp_path, ["TensorFlow Datasets", "pip install", "--data.dir"], source=source, name=name)


# The full data sets.


@pytest.mark.long
@pytest.mark.uncovered
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_published_files_are_the_same_through_idx_and_tfds(tmp_path, name):
    variable = f"PSGJAX_{name.upper()}_DIR"
    if not os.environ.get(variable):
        pytest.skip(f"{variable} names no folder with the four files of {name}")
    folder = Path(os.environ[variable])
    read = load(source="idx", dir=folder, name=name)
    assert read.info["canonical"] is True
    assert read.images.shape == (60_000, 28, 28, 1)
    assert read.held_out_images.shape == (10_000, 28, 28, 1)
    if name == "mnist":
        pytest.importorskip("tensorflow_datasets", reason="TensorFlow Datasets (the extra tfds) is not installed")
        prepared = load(source="tfds", dir=folder)
        assert same(prepared, read)
        assert prepared.info["sha256"] == read.info["sha256"]
        packaged = load(source="packaged")
        genuine = {image.tobytes() for image in read.images}
        assert all(image.tobytes() in genuine for part in (packaged.images, packaged.held_out_images) for image in part)
