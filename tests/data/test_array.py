"""Arrays of images, in files and in Python: read in every usual layout and range, or asked about."""

import re

import numpy as np
import pytest
from sources import load, refused, same

from psgjax import memory, sources
from psgjax.config import ConfigError, Data
from psgjax.data import dataset
from psgjax.data.dataset import DataError, Dataset
from psgjax.method import sharding

RANDOM = np.random.default_rng(0)
IMAGES, LABELS = RANDOM.integers(0, 256, (40, 8, 8, 3), np.uint8), np.arange(40) % 4


def rows(*arrays):
    return {image.tobytes() for array in arrays for image in array}


@pytest.mark.parametrize(
    "array",
    [
        pytest.param(IMAGES, id="NHWC"),
        pytest.param(np.moveaxis(IMAGES, -1, 1), id="NCHW"),
        pytest.param((IMAGES / 127.5 - 1).astype(np.float32), id="floats from -1 to 1"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_colour_in_both_layouts_and_ranges_is_one_data_set(tmp_path, array, suffix):
    path = tmp_path / f"shapes{suffix}"
    np.save(path, array) if suffix == ".npy" else np.savez_compressed(path, array)
    loaded = load(source="array", dir=path)
    assert same(loaded, Dataset.from_arrays(IMAGES))
    assert same(loaded, load(dir=path))
    assert rows(loaded.images, loaded.held_out_images) == rows(IMAGES)
    assert (loaded.info["name"], loaded.info["source"], loaded.labels) == ("shapes", "array", None)


def test_a_range_that_could_be_two_things_is_asked_for(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, IMAGES / 255)
    refused(tmp_path, ["float64 from 0 to 1", "--data.range", "0..1, -1..1"], source="array", dir=path)
    assert same(load(source="array", dir=path, range="0..1"), Dataset.from_arrays(IMAGES))
    with pytest.raises(ConfigError, match=r"say it with range= \(0\.\.1"):
        Dataset.from_arrays(IMAGES / 255)
    assert same(Dataset.from_arrays(IMAGES / 255, range="0..1"), Dataset.from_arrays(IMAGES))


@pytest.mark.parametrize(
    "names",
    [
        ("images", "labels", "test_images", "test_labels"),
        ("x_train", "y_train", "x_test", "y_test"),
        ("train_images", "train_labels", "val_images", "val_labels"),
        ("imgs", "targets", "t10k-imgs", "t10k-targets"),
    ],
)
def test_arrays_are_told_by_their_names(tmp_path, names):
    arrays = dict(zip(names, (IMAGES[:30], LABELS[:30, None], IMAGES[30:], LABELS[30:, None]), strict=True))
    np.savez(tmp_path / "a.npz", **arrays)
    loaded = load(source="array", dir=tmp_path / "a.npz")
    assert same(loaded, Dataset.from_arrays(IMAGES[:30], LABELS[:30], held_out=(IMAGES[30:], LABELS[30:])))
    assert rows(loaded.held_out_images) == rows(IMAGES[30:])
    assert loaded.info["classes"] == ["0", "1", "2", "3"]


def test_without_names_dimensions_tell(tmp_path):
    np.savez(tmp_path / "a.npz", LABELS, IMAGES)
    assert same(load(source="array", dir=tmp_path / "a.npz"), Dataset.from_arrays(IMAGES, LABELS))


K49 = ("k49-train-imgs.npz", "k49-train-labels.npz", "k49-test-imgs.npz", "k49-test-labels.npz")


def put(folder, **arrays):
    """Files of one array each, called arr_0 in a .npz."""
    for name, array in arrays.items():
        np.save(folder / name, array) if name.endswith(".npy") else np.savez(folder / name, array)


@pytest.mark.parametrize(
    "names", [K49, ("X_train.npy", "y_train.npy", "X_val.npy", "y_val.npy"), ("images.npy", "labels.npy")]
)
def test_labels_and_held_out_images_beside_the_images_are_taken_and_told(tmp_path, names):
    arrays = (IMAGES[:30], LABELS[:30], IMAGES[30:], LABELS[30:])[: len(names)]
    put(tmp_path, **dict(zip(names, arrays, strict=True)))
    put(tmp_path, **{"other-labels.npy": LABELS, "notes.npy": LABELS})
    held_out = arrays[2:] or 0.1
    told = []
    loaded = dataset.load(Data(source="array", dir=tmp_path / names[0]), told.append)
    assert same(loaded, Dataset.from_arrays(*arrays[:2], held_out=held_out))
    roles = dict(zip(names[1:], ("labels", "held-out images", "held-out labels"), strict=False))
    assert sorted(told) == sorted(
        f"{tmp_path / names[0]}: {name} beside it is taken for the {role}" for name, role in roles.items()
    )


def test_what_lies_beside_is_refused_where_it_may_be_two_things_and_else_let_be(tmp_path):
    put(tmp_path, **{"a-imgs.npz": IMAGES, "a-labels.npz": LABELS, "a-targets.npy": LABELS})
    refused(tmp_path, ["a-labels.npz and a-targets.npy", "may be the labels"], dir=tmp_path / "a-imgs.npz")
    refused(tmp_path, ["is a folder", "a-imgs.npz, a-labels.npz, a-targets.npy"], dir=tmp_path)
    np.savez(tmp_path / "b-imgs.npz", images=IMAGES, labels=LABELS)
    np.savez(tmp_path / "b-labels.npz", 0 * LABELS, LABELS)  # the file has labels of its own
    assert same(load(source="array", dir=tmp_path / "b-imgs.npz"), Dataset.from_arrays(IMAGES, LABELS))
    put(tmp_path, **{"b-imgs.npz": IMAGES})
    refused(tmp_path, ["b-labels.npz beside", "arr_0, arr_1", "must hold one"], dir=tmp_path / "b-imgs.npz")
    put(tmp_path, **{"b-labels.npz": LABELS[1:]})
    refused(tmp_path, ["40 images, and labels [39]"], dir=tmp_path / "b-imgs.npz")


@pytest.mark.parametrize(
    ("save", "fragments"),
    [
        (lambda path: None, ["there is no file"]),
        (lambda path: path.write_text("text"), ["cannot be read as an array"]),
        (lambda path: np.savez(path, images=IMAGES, x=IMAGES), ["images and x", "call them images and labels"]),
        (lambda path: np.savez(path, labels=LABELS), ["labels; one called images"]),
        (lambda path: np.savez(path, images=IMAGES, labels=LABELS[1:]), ["40 images, and labels [39]"]),
        (lambda path: np.savez(path, images=IMAGES, labels=LABELS / 2), ["float64", "whole numbers or texts"]),
        (lambda path: np.savez(path, images=IMAGES[:, :3]), ["two axes may be the channels"]),
        (lambda path: np.savez(path, images=np.full((9, 8, 8), np.nan)), ["NaN"]),
        (lambda path: np.savez(path, images=np.full((9, 8, 8), None)), ["cannot be read", "Object arrays"]),
        (lambda path: path.mkdir(), ["is a folder", ".npy or .npz"]),
    ],
)
def test_what_is_not_certain_is_refused(tmp_path, save, fragments):
    path = tmp_path / "a.npz"
    save(path)
    refused(tmp_path, [str(path), *fragments], source="array", dir=path)


def test_an_array_that_memory_does_not_hold_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 30_000)
    np.savez_compressed(tmp_path / "a.npz", np.zeros((40, 32, 32), np.uint8))
    refused(tmp_path, ["unpacks to 41,", "at most 10,000"], source="array", dir=tmp_path / "a.npz")


def test_a_set_that_a_device_does_not_hold_is_refused_with_both_numbers(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 2**20)
    with pytest.raises(
        ConfigError, match=r"1,000 training images of 64x64x3 need 11\.7 MiB, and 1\.0 MiB of memory are free"
    ):
        sharding.place_images(np.zeros((1000, 64, 64, 3), np.uint8))


def test_a_container_is_asked_for_its_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_CONTAINER", tmp_path)
    whole = memory.available()
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 100\ninactive_file 50000\n")
    assert memory.available() == 150_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() == pytest.approx(whole, rel=0.5)


def test_a_share_of_each_class_is_held_out():
    loaded = Dataset.from_arrays(IMAGES, LABELS, held_out=0.2, name="mine")
    assert np.bincount(loaded.held_out_labels).tolist() == [2] * 4
    assert not rows(loaded.images) & rows(loaded.held_out_images)
    assert loaded.info["description"] == "mine, 32 training and 8 held-out images, from arrays in memory"
    shuffled = RANDOM.permutation(40)
    assert same(Dataset.from_arrays(IMAGES[shuffled], LABELS[shuffled], held_out=0.2), loaded)


def test_labels_are_numbered_without_a_gap():
    texts = np.array(["cat", "ant"])[LABELS % 2]
    loaded = Dataset.from_arrays(IMAGES, texts)
    assert loaded.info["classes"] == ["ant", "cat"]
    cats = IMAGES[texts == "cat"]
    assert rows(loaded.images[loaded.labels == 1], loaded.held_out_images[loaded.held_out_labels == 1]) == rows(cats)
    assert np.unique(Dataset.from_arrays(IMAGES, 5 * LABELS + 1000).labels).tolist() == [0, 1, 2, 3]
    assert Dataset.from_arrays(IMAGES, 0 * LABELS).labels is None  # one class tells nothing


def test_equal_channels_are_grey_and_grey_is_what_is_asked_for():
    grey = np.repeat(IMAGES[..., :1], 3, -1)
    assert same(Dataset.from_arrays(grey), Dataset.from_arrays(IMAGES[..., 0]))
    assert Dataset.from_arrays(grey).images.shape[-1] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES[:1],), "1 image(s); at least two"),
        ((IMAGES, LABELS[:3]), "labels [3]"),
        ((IMAGES, None, 1.5), "data.held_out is 1.5"),
        ((IMAGES, None, 0), "data.held_out is 0"),
        ((IMAGES[None],), "[N, H, W]"),
        ((IMAGES, None, IMAGES[:, :4]), "8x8 to train on and 4x8 held out"),
    ],
)
def test_what_makes_no_data_set_is_refused_in_python(arguments, message):
    images, labels, held_out = [*arguments, *(None, 0.1)[len(arguments) - 1 :]]
    with pytest.raises(ConfigError, match=re.escape(message)):
        Dataset.from_arrays(images, labels, held_out=held_out)


def test_images_handed_in_by_a_program_are_asked_for_again():
    assert Dataset.from_arrays(IMAGES).info["source"] == "python"
    with pytest.raises(DataError, match="hand them in again"):
        dataset.load(Data(source="python"))


@pytest.fixture
def _registry(monkeypatch):
    monkeypatch.setattr(sources, "SOURCES", dict(sources.SOURCES))
    monkeypatch.setattr(dataset, "SOURCES", sources.SOURCES)


@pytest.mark.usefixtures("_registry")
def test_a_source_of_ones_own_is_found_by_its_name():
    with pytest.raises(ConfigError, match="Did you mean"):
        Data(source="shapes")
    sources.register(
        "shapes", lambda config: Dataset.from_arrays(IMAGES, name=config.name or "shapes"), reads=("name",)
    )
    loaded = load(source="shapes", size=4, colour="grey", train_images=10)
    assert loaded.images.shape == (10, 4, 4, 1)
    assert loaded.info["source"] == "shapes"
    refused_with = pytest.raises(ConfigError, match="data.broken 0.5 with data.source shapes would be ignored")
    with refused_with:
        load(source="shapes", broken=0.5)
    with pytest.raises(ConfigError, match="one of psgjax's own"):
        sources.register("idx", lambda config: None)
