"""IDX files: every image with its label, in one canonical order; every bad file refused in one line."""

import contextlib
import gzip
import json
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sources import TEST_IMAGES, TEST_LABELS, TRAIN_IMAGES, TRAIN_LABELS, contents, idx_bytes, load, refused, write

from psgjax import memory
from psgjax.data import dataset, idx
from psgjax.data.idx import FILES

pytestmark = pytest.mark.usefixtures("scratch")


@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_keeps_every_image_with_its_label(tmp_path, suffix, side):
    files = contents(side)
    loaded = load(source="idx", dir=write(tmp_path / "d", files, suffix))
    for images, labels, stem in (
        (loaded.images, loaded.labels, "train"),
        (loaded.held_out_images, loaded.held_out_labels, "t10k"),
    ):
        assert images.dtype == np.uint8
        assert labels.dtype == np.int32
        assert images.shape[1:] == (side, side, 1)
        assert images.flags.c_contiguous
        pixels, digits = files[f"{stem}-images-idx3-ubyte"][16:], files[f"{stem}-labels-idx1-ubyte"][8:]
        written = {(pixels[i * side**2 : (i + 1) * side**2], digit) for i, digit in enumerate(digits)}
        assert {(image.tobytes(), label) for image, label in zip(images, labels, strict=True)} == written
    assert json.loads(json.dumps(loaded.info)) == loaded.info
    assert loaded.info["source"] == "idx"
    assert loaded.info["canonical"] is False
    assert (loaded.info["name"], loaded.info["warning"]) == ("d", None)


def test_canonical_order_is_that_of_the_content_alone():
    random = np.random.default_rng(1)
    images, labels = random.integers(0, 256, (50, 28, 28, 1), np.uint8), random.integers(0, 10, 50, np.uint8)
    images[10], labels[9], labels[10] = images[9], 3, 7  # one image twice, with two labels
    shuffle = random.permutation(50)
    for one, other in zip(
        idx.canonical_order(images, labels), idx.canonical_order(images[shuffle], labels[shuffle]), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def damage(change):
    """A case of bad input: the name of the file to change, and how."""
    return {
        "lacks": lambda folder, path: path.unlink(),
        "truncated gzip": lambda folder, path: path.write_bytes(gzip.compress(path.read_bytes())[:-200]),
        "corrupt gzip": lambda folder, path: path.write_bytes(
            (packed := bytearray(gzip.compress(path.read_bytes())))[:300] + b"\xff" * 50 + packed[350:]
        ),
        "wrong checksum": lambda folder, path: path.write_bytes(gzip.compress(path.read_bytes())[:-8] + bytes(8)),
        "empty": lambda folder, path: path.write_bytes(b""),
        "web page": lambda folder, path: path.write_bytes(b"<!DOCTYPE html><title>Not found</title>"),
        "truncated": lambda folder, path: path.write_bytes(path.read_bytes()[:-1]),
        "too long": lambda folder, path: path.write_bytes(path.read_bytes() + b"\0"),
        "no images": lambda folder, path: path.write_bytes(struct.pack(">4I", 0x803, 0, 28, 28)),
        "too many": lambda folder, path: path.write_bytes(struct.pack(">4I", 0x803, 2**32 - 1, 28, 28)),
        "2000x1": lambda folder, path: path.write_bytes(idx_bytes(np.zeros((40, 2000, 1), np.uint8))),
        "32x32": lambda folder, path: path.write_bytes(idx_bytes(np.zeros((40, 32, 32), np.uint8))),
        "39 images": lambda folder, path: path.write_bytes(idx_bytes(np.zeros((39, 28, 28), np.uint8))),
        "folder": lambda folder, path: (path.unlink(), path.mkdir()),
    }[change]


@pytest.mark.parametrize("source", ["idx", "auto"])
@pytest.mark.parametrize(
    ("name", "change", "fragments"),
    [
        (TEST_LABELS, "lacks", ["lacks", "no suffix or .gz", "correct --data.dir"]),
        (TEST_LABELS, "folder", ["lacks", "correct --data.dir"]),
        (TRAIN_IMAGES, "truncated gzip", ["cannot be read", "ended before", "get another copy"]),
        (TRAIN_IMAGES, "corrupt gzip", ["cannot be read", "get another copy"]),
        (TRAIN_IMAGES, "wrong checksum", ["cannot be read", "CRC", "get another copy"]),
        (TRAIN_IMAGES, "empty", ["ends after 0 bytes", "whole header", "get another copy"]),
        (TEST_IMAGES, "web page", ["0x3c21444f", "0x00000803", "get another copy"]),
        (TRAIN_IMAGES, "truncated", ["31359 bytes", "31360", "get another copy"]),
        (TRAIN_IMAGES, "too long", ["more than 31360 bytes", "31360", "get another copy"]),
        (TRAIN_IMAGES, "no images", ["0 items", "from 1 to 1000000", "get another copy"]),
        (TRAIN_IMAGES, "too many", ["4294967295 items", "from 1 to 1000000", "get another copy"]),
        (TRAIN_IMAGES, "2000x1", ["2000x1", "sides from 1 to 1024", "get another copy"]),
        (TRAIN_IMAGES, "32x32", ["32x32", "28x28", "one data set"]),
        (TRAIN_IMAGES, "39 images", ["39 images", "40 labels", "one data set"]),
    ],
)
def test_malformed_files_are_refused(tmp_path, source, name, change, fragments):
    folder = write(tmp_path / "d", contents())
    damage(change)(folder, folder / name)
    refused(tmp_path, [str(folder), name, *fragments], source=source, dir=folder)


def test_a_gzip_bomb_is_refused_before_it_fills_memory(tmp_path):
    path = tmp_path / TRAIN_IMAGES
    path.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 10, 28, 28) + bytes(100_000_000), compresslevel=1))
    tracemalloc.start()
    with pytest.raises(dataset.DataError, match="more than 7840 bytes after its header"):
        idx.read_idx(path, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "file"


word = st.one_of(st.sampled_from([0x801, 0x803, 1, 28, 32, 2**32 - 1]), st.integers(0, 2**32 - 1))
header = st.lists(word, max_size=5).map(lambda words: struct.pack(f">{len(words)}I", *words))
plain = st.one_of(st.binary(max_size=40), st.builds(bytes.__add__, header, st.binary(max_size=1600)))
packed = st.builds(
    lambda content, at, flip: bytes(byte ^ (flip if i == at else 0) for i, byte in enumerate(gzip.compress(content))),
    plain,
    st.integers(0, 60),
    st.integers(0, 255),
)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(content=st.one_of(plain, packed), dimensions=st.sampled_from([1, 3]))
def test_any_bytes_are_read_or_refused(fuzzed, content, dimensions):
    fuzzed.write_bytes(content)
    with contextlib.suppress(dataset.DataError):
        array = idx.read_idx(fuzzed, dimensions)
        assert array.dtype == np.uint8
        assert array.ndim == dimensions


# Sets of other names, sizes and classes.


def small_set(folder, names, classes, count=30, shape=(28, 28)):
    """Files of those names: images, labels, and the same of what is held out; what was written."""
    random = np.random.default_rng(3)
    folder.mkdir()
    arrays = [
        random.integers(0, 256, (n, *shape), np.uint8) if kind == "images" else np.arange(n, dtype=np.uint8) % classes
        for n in (count * 2, count)
        for kind in ("images", "labels")
    ]
    for name, array in zip(names, arrays, strict=False):
        if name:
            content = idx_bytes(array)
            (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return arrays


def pairs(images, labels):
    return {(image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)}


@pytest.mark.parametrize(
    ("names", "title"),
    [
        ([name.replace("-idx", ".idx") for name in FILES], "d"),
        ([f"emnist-letters-{name}.gz".replace("t10k", "test") for name in FILES], "emnist-letters"),
        ([f"k49-{name}" for name in FILES], "k49"),
    ],
)
def test_any_set_is_read_and_titled_by_its_own_name(tmp_path, names, title):
    train, labels, test, test_labels = small_set(tmp_path / "d", names, classes=49)
    loaded = load(source="idx", dir=tmp_path / "d")
    assert pairs(loaded.images, loaded.labels) == pairs(train, labels)
    assert pairs(loaded.held_out_images, loaded.held_out_labels) == pairs(test, test_labels)
    assert loaded.info["name"] == title
    assert loaded.info["classes"] == [str(i) for i in range(49)]
    assert "MNIST" not in loaded.info["description"].replace(str(tmp_path), "")
    turned = load(source="idx", dir=tmp_path / "d", transpose=True)
    assert pairs(turned.images, turned.labels) == pairs(np.ascontiguousarray(train.swapaxes(1, 2)), labels)
    assert load(source="idx", dir=tmp_path / "d", name="mine").info["name"] == "mine"
    refused(
        tmp_path,
        ["does not hold MNIST as published", "leave --data.name out"],
        source="idx",
        dir=tmp_path / "d",
        name="mnist",
    )


def test_labels_from_one_on_are_numbered_from_zero(tmp_path):
    folder = write(tmp_path / "d", contents())
    (folder / TRAIN_LABELS).write_bytes(idx_bytes((np.arange(40) % 26 + 1).astype(np.uint8)))
    (folder / TEST_LABELS).write_bytes(idx_bytes((np.arange(20) % 26 + 1).astype(np.uint8)))
    loaded = load(source="idx", dir=folder)
    assert (loaded.labels.min(), loaded.labels.max()) == (0, 25)
    assert loaded.info["classes"] == [str(i) for i in range(1, 27)]


def test_labels_of_qmnist_are_its_first_column(tmp_path):
    folder = tmp_path / "d"
    images, labels, *_ = small_set(folder, ["qmnist-train-images-idx3-ubyte"], classes=10)
    table = np.zeros((60, 8), ">i4")
    table[:, 0], table[:, 1:] = labels, 70_000
    (folder / "qmnist-train-labels-idx2-int").write_bytes(struct.pack(">3I", 0xC02, 60, 8) + table.tobytes())
    loaded = load(source="idx", dir=folder)
    assert pairs(loaded.images, loaded.labels) | pairs(loaded.held_out_images, loaded.held_out_labels) == pairs(
        images, labels
    )


@pytest.mark.parametrize("kept", [("train-images-idx3-ubyte",), ("train-images-idx3-ubyte", "t10k-images-idx3-ubyte")])
def test_labels_and_a_held_out_part_may_lack(tmp_path, kept):
    small_set(tmp_path / "d", [name if name in kept else "" for name in FILES], 10, shape=(12, 20))
    loaded = load(source="idx", dir=tmp_path / "d")
    assert (loaded.labels, loaded.held_out_labels, loaded.info["classes"]) == (None, None, None)
    assert loaded.images.shape[1:] == (12, 20, 1)
    if len(kept) == 2:
        assert (len(loaded.images), len(loaded.held_out_images)) == (60, 30)
        refused(tmp_path, ["data.held_out 0.5", "leave it out"], source="idx", dir=tmp_path / "d", held_out=0.5)
    else:
        assert (len(loaded.images), len(loaded.held_out_images)) == (54, 6)
        assert len(load(source="idx", dir=tmp_path / "d", held_out=0.5).images) == 30


def test_of_several_sets_one_is_asked_for(tmp_path):
    small_set(tmp_path / "d", [f"emnist-digits-{name}" for name in FILES], 10)
    small_set(tmp_path / "e", [f"emnist-letters-{name}" for name in FILES], 26)
    for path in (tmp_path / "e").iterdir():
        path.rename(tmp_path / "d" / path.name)
    refused(tmp_path, ["the sets emnist-digits, emnist-letters", "--data.name"], source="idx", dir=tmp_path / "d")
    assert len(load(source="idx", dir=tmp_path / "d", name="emnist-letters").info["classes"]) == 26


def test_images_that_memory_does_not_hold_are_refused_with_both_numbers(tmp_path, monkeypatch):
    folder = write(tmp_path / "d", contents())
    monkeypatch.setattr(memory, "available", lambda: 50_000)
    refused(tmp_path, [TRAIN_IMAGES, "40 images of 28x28", "need 0.1 MiB, and 0.0 MiB"], source="idx", dir=folder)
