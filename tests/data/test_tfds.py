"""TensorFlow Datasets, on small files that it is told to accept: prepared, read, kept, downloaded, refused."""

import functools
import hashlib
import http.server
import io
import socket
import struct
import sys
import tarfile
import threading

import numpy as np
import pytest
from sources import TEST_LABELS, contents, load, refused, same, write

from psgjax.config import Data
from psgjax.data import dataset, idx, tfds, tfds_prepare

pytestmark = pytest.mark.usefixtures("scratch")


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
        try:
            socket.create_connection(server.server_address, timeout=5).close()
        except OSError as error:
            pytest.skip(f"a server on this machine cannot be reached: {error}")
        stock = tensorflow_datasets.builder_cls("mnist")
        monkeypatch.setattr(stock, "URL", f"http://127.0.0.1:{server.server_port}/")
        register(monkeypatch, stock, checksums.UrlInfo, small)
        lines = []
        loaded = dataset.load(Data(source="auto"), lines.append)
        server.shutdown()
    assert same(loaded, load(source="idx", dir=small))
    assert loaded.info["source"] == "tfds"
    assert [line.split()[0] for line in lines] == ["Downloading", "Preparing", "Reading"]


@pytest.mark.parametrize("failure", ["refused", "silent", "name server"])
def test_a_download_that_nothing_answers_is_given_up(tmp_path, small, monkeypatch, failure):
    import tensorflow_datasets
    from tensorflow_datasets.core.download import checksums

    monkeypatch.setattr(tfds_prepare, "_PATIENCE", 0.3)
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
        with pytest.raises(dataset.DataError, match=r"cannot be downloaded .*--data\.dir"):
            load(source="tfds")
    released.set()
    assert "cannot be downloaded" in warning
    assert not (tmp_path / "tfds").exists()


# Other data sets than MNIST.


def cifar(monkeypatch, folder, per_file=6):
    """The one file of CIFAR-10, small, in a folder and registered; the images and labels in it, train and test."""
    import tensorflow_datasets
    from tensorflow_datasets.core.download import checksums

    random = np.random.default_rng(0)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    images = random.integers(0, 256, (6, per_file, 32, 32, 3), np.uint8)
    labels = np.arange(6 * per_file).reshape(6, per_file).astype(np.uint8) % 10
    folder.mkdir()
    path = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, pixels, numbers in zip(names, images, labels, strict=True):
            rows = [bytes([n]) + image.transpose(2, 0, 1).tobytes() for image, n in zip(pixels, numbers, strict=True)]
            add(archive, f"cifar-10-batches-bin/{name}", b"".join(rows))
        add(archive, "cifar-10-batches-bin/batches.meta.txt", b"\n".join(b"class %d" % i for i in range(10)))
    content = path.read_bytes()
    url = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
    info = checksums.UrlInfo(len(content), hashlib.sha256(content).hexdigest(), path.name)
    monkeypatch.setattr(tensorflow_datasets.builder_cls("cifar10"), "url_infos", {url: info})
    return [(images[:5].reshape(-1, 32, 32, 3), labels[:5].ravel()), (images[5], labels[5])]


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def test_cifar10_is_prepared_and_read_without_tensorflow(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    train, test = cifar(monkeypatch, tmp_path / "files")
    loaded = load(source="tfds", name="cifar10", dir=tmp_path / "files")
    assert same(loaded, dataset.Dataset.from_arrays(*train, held_out=test))
    assert (loaded.info["name"], loaded.info["canonical"]) == ("cifar10", False)
    monkeypatch.setattr(tfds, "_read_split", None)
    assert same(load(source="tfds", name="cifar10"), loaded)  # from the array file
    assert "tensorflow" not in sys.modules


def test_what_needs_tensorflow_is_said_in_one_line(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_datasets")
    from tensorflow_datasets.image_classification import cifar as module

    cifar(monkeypatch, tmp_path / "files")
    monkeypatch.setattr(module, "_load_data", lambda *args: module.tf.image.decode_image(b""))
    fragments = [
        "prepares cifar10 by means of TensorFlow",
        "tfds build cifar10 --data_dir FOLDER",
        "TFDS_DATA_DIR=FOLDER",
    ]
    refused(tmp_path / "files", fragments, source="tfds", name="cifar10", dir=tmp_path / "files")


@pytest.mark.parametrize(
    ("name", "fragments"),
    [
        ("cifar11", ["none that TensorFlow Datasets has", "Did you mean 'cifar10_1'?"]),
        ("titanic", ["by means of TensorFlow"]),
        ("cats_vs_dogs", ["several sizes", "--data.size"]),
    ],
)
def test_data_sets_that_are_none_of_images_of_one_size_are_refused(tmp_path, name, fragments):
    pytest.importorskip("tensorflow_datasets")
    refused(tmp_path / "tfds", [name, *fragments], source="tfds", name=name)
