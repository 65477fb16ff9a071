"""MNIST and Fashion-MNIST from TensorFlow Datasets (TFDS), downloaded, prepared and read without TensorFlow.

TFDS is imported where it is used, so that it stays optional.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import logging
import os
import queue
import tempfile
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from psgjax.config import Data
from psgjax.data.idx import INSTEAD, DataError, Split, canonical_order, find_files, published_name, read_idx

_PATIENCE = 15.0  # seconds without a byte after which a download is given up


def read_splits(config: Data, progress: Callable[[str], None]) -> tuple[Split, Split, Path]:
    """The training and the held-out split as TFDS prepared them (first prepared at need), and the folder they lie in.

    Reading example by example takes seconds, so the arrays are kept in one file beside the prepared data set.

    Args:
        config: `name` is TFDS's name of the data set; `dir`, where given, holds the files already downloaded.
        progress: Takes one line of text before anything slow.

    Raises:
        DataError: If TFDS is not installed, nothing can be downloaded, `dir` does not hold the files that TFDS registers, or
            what is prepared is not the published data set.
    """
    try:
        import importlib_resources  # noqa: F401 - TFDS needs it and does not name it
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f"TensorFlow Datasets cannot be used ({error}); run: pip install tensorflow-datasets importlib_resources; or {INSTEAD}."
        ) from None
    try:
        with _quiet(tensorflow_datasets):
            return _read_splits(tensorflow_datasets, config, progress)
    except DataError:
        raise
    except Exception as error:  # whatever the parts of TFDS raise, of any type and any number of lines
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"TensorFlow Datasets failed on {config.name} ({reason}); {INSTEAD}.") from error


@contextlib.contextmanager
def _quiet(tfds: Any) -> Iterator[None]:
    """Keep TFDS's bars and its advice to install OpenCV off a terminal that shows a progress of its own."""
    tfds.disable_progress_bar()
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _read_splits(tfds: Any, config: Data, progress: Callable[[str], None]) -> tuple[Split, Split, Path]:
    stock = tfds.builder_cls(config.name)
    if config.dir is not None:
        _verify(config.dir, stock)

    def open_builder() -> Any:
        return stock(data_dir=os.environ.get("TFDS_DATA_DIR"))  # TFDS itself looks only when it is imported

    builder = open_builder()
    folder = Path(builder.data_dir)
    cache = folder / "psgjax.npz"
    cached = _read_cache(cache)
    if cached and published_name(*cached) == config.name:
        return *cached, folder
    if not builder.is_prepared():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            files = config.dir or Path(scratch)
            if config.dir is None:
                progress(f"Downloading {config.name} for TensorFlow Datasets.")
                _download(stock.url_infos, files)
                _verify(files, stock)
            progress(f"Preparing {config.name} in {folder} with TensorFlow Datasets.")
            try:
                _prepare(tfds, stock, builder.data_dir_root, files, Path(scratch))
            except Exception:
                if not open_builder().is_prepared():  # or another process was faster
                    raise
        builder = open_builder()
    progress(f"Reading {config.name} from {folder}.")
    train, held_out = _read_split(builder, "train"), _read_split(builder, "test")
    if published_name(train, held_out) != config.name:
        raise DataError(
            f"{folder} does not hold {config.name} as published; delete that folder, and it is prepared again, or {INSTEAD}."
        )
    _write_cache(cache, train, held_out)
    return train, held_out, folder


def _verify(folder: Path, stock: Any) -> None:
    """Refuse, before TFDS creates anything, files that are not byte for byte the ones it registers."""
    checksums = {info.filename: info.checksum for info in stock.url_infos.values()}
    for path in find_files(folder, (".gz",)):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != checksums[path.name]:
            raise DataError(
                f"{path} has the SHA-256 {digest}; TensorFlow Datasets accepts {checksums[path.name]} alone: get that file, or use "
                f"--data.source idx, which also reads repacked ones."
            )


def _download(urls: Iterable[str], folder: Path) -> None:
    """Fetch every URL into `folder`, and give up after `_PATIENCE` seconds in which nothing arrives.

    TFDS's own downloader waits without limit. A thread waits here, and is left behind if need be: no timeout of a socket covers
    a name server that does not answer.
    """
    arrivals: queue.Queue[Exception | bool] = queue.Queue()  # True: more to come; False: done

    def fetch() -> None:
        try:
            for url in urls:
                path = folder / url.rpartition("/")[2]
                with urllib.request.urlopen(url, timeout=_PATIENCE) as answer, path.open("wb") as file:
                    while chunk := answer.read1(1 << 16):
                        file.write(chunk)
                        arrivals.put(True)
            arrivals.put(False)
        except (OSError, http.client.HTTPException) as error:
            arrivals.put(error)

    threading.Thread(target=fetch, daemon=True).start()
    try:
        while more := arrivals.get(timeout=_PATIENCE):
            if isinstance(more, Exception):
                raise more
    except (queue.Empty, OSError, http.client.HTTPException) as error:
        reason = f"nothing arrived for {_PATIENCE:g} s" if isinstance(error, queue.Empty) else str(error)
        raise DataError(f"{next(iter(urls))} and its kin cannot be downloaded ({reason}); {INSTEAD}.") from None


def _prepare(tfds: Any, stock: Any, data_dir: Path, files: Path, scratch: Path) -> None:
    """Let TFDS prepare its data set under `data_dir` from the downloaded `files`.

    TFDS calls TensorFlow to unpack gzip, to read IDX and to encode PNG; this subclass does not. It has the name and the module of
    the stock builder, which reads the result as its own.
    """
    import PIL.Image

    def split_generators(self: Any, manager: Any) -> Any:
        manager.download_and_extract = manager.download
        return stock._split_generators(self, manager)

    def generate_examples(self: Any, num_examples: int, data_path: Any, label_path: Any) -> Iterator[tuple[int, Any]]:
        images, labels = read_idx(Path(data_path), 3), read_idx(Path(label_path), 1)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": PIL.Image.fromarray(image), "label": int(label)}

    body = {
        "__module__": stock.__module__,
        "_split_generators": split_generators,
        "_generate_examples": generate_examples,
    }
    with tfds.core.registered.skip_registration():
        builder = type(stock.__name__, (stock,), body)(data_dir=data_dir)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints that the size is unknown
        builder.download_and_prepare(
            download_dir=scratch,
            download_config=tfds.download.DownloadConfig(manual_dir=files, try_download_gcs=False),
            file_format="array_record",
        )


def _read_split(builder: Any, name: str) -> Split:
    if builder.info.file_format.value == "tfrecord":  # TFDS's default, which it reads by TensorFlow alone
        decode = builder.info.features.deserialize_example_np
        examples = [decode(record) for path in builder.info.splits[name].filepaths for record in _records(Path(path))]
    else:
        source = builder.as_data_source(name)
        examples = source.__getitems__(range(len(source)))  # in one call: one by one takes more than twice as long
    images, labels = zip(*((example["image"], example["label"]) for example in examples), strict=True)
    return canonical_order(np.stack(images), np.array(labels, np.uint8))


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: each a length of 8 bytes, its CRC of 4, the record, and its CRC of 4."""
    with path.open("rb") as file:
        while head := file.read(12):
            yield file.read(int.from_bytes(head[:8], "little"))
            file.read(4)  # the fingerprint of the whole checks more than the CRCs


def _read_cache(path: Path) -> tuple[Split, Split] | None:
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return (file["images"], file["labels"]), (file["held_out_images"], file["held_out_labels"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _write_cache(path: Path, train: Split, held_out: Split) -> None:
    """Write the arrays, complete or not at all; a folder that cannot be written costs seconds at the next start, no more."""
    with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        complete = Path(scratch) / path.name
        np.savez(complete, images=train[0], labels=train[1], held_out_images=held_out[0], held_out_labels=held_out[1])
        complete.replace(path)
