"""What TensorFlow Datasets (TFDS) downloads and prepares, without TensorFlow where its own code lets that be."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import http.client
import io
import os
import queue
import sys
import threading
import urllib.request
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from psgjax.data.dataset import INSTEAD
from psgjax.data.idx import find_files, read_idx
from psgjax.data.splits import DataError

_PATIENCE = 15.0  # seconds without a byte after which a download is given up


def verify(folder: Path, stock: Any) -> None:
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


def download(urls: Iterable[str], folder: Path) -> None:
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


class _Absent(SimpleNamespace):
    """What TFDS's data sets find in TensorFlow's place: its functions for files; any other is asked for in vain."""

    def __getattr__(self, name: str) -> Any:
        raise ModuleNotFoundError(f"tensorflow.{name}", name="tensorflow")


_TENSORFLOW = _Absent(
    compat=_Absent(as_text=os.fspath),
    io=_Absent(
        gfile=_Absent(
            GFile=open, exists=os.path.exists, isdir=os.path.isdir, listdir=os.listdir, glob=glob.glob, walk=os.walk
        )
    ),
)


def prepare(tfds: Any, builder: Any, files: Path | None, name: str) -> None:
    """Let TFDS download and prepare a data set, but hand it images as such: arrays it would give to TensorFlow."""
    import PIL.Image
    from tensorflow_datasets.core.download import extractor

    generate = builder._generate_examples

    def generate_examples(*args: Any, **kwargs: Any) -> Iterator[tuple[Any, Any]]:
        for key, example in generate(*args, **kwargs):
            pictures = {
                name: PIL.Image.fromarray(np.asarray(value).squeeze())
                for name, value in example.items()
                if isinstance(value, np.ndarray) and isinstance(builder.info.features[name], tfds.features.Image)
            }
            yield key, {**example, **pictures}

    builder._generate_examples = generate_examples
    settings = tfds.download.DownloadConfig(manual_dir=files, try_download_gcs=False)
    with contextlib.ExitStack() as patches:
        for module in (sys.modules[type(builder).__module__], extractor):
            if hasattr(module, "tf"):
                patches.enter_context(mock.patch.object(module, "tf", _TENSORFLOW))
        patches.enter_context(contextlib.redirect_stdout(io.StringIO()))
        builder.download_and_prepare(download_config=settings, file_format="array_record")


def for_want_of_tensorflow(error: BaseException | None) -> bool:
    """Whether it was raised because TensorFlow is not there."""
    while error is not None:
        if isinstance(error, ImportError) and (error.name or "").startswith("tensorflow"):
            return True
        error = error.__cause__ or error.__context__
    return False


def prepare_mnist(tfds: Any, stock: Any, data_dir: Path, files: Path, scratch: Path) -> None:
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
