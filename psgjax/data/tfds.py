"""Images from TensorFlow Datasets (TFDS), downloaded, prepared and read without TensorFlow where TFDS's own code lets that be.

What is prepared is read without it in any case. TFDS is imported where it is used, so that it stays optional.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from psgjax import kept, schema
from psgjax.config import Data
from psgjax.data import shaping, tfds_prepare
from psgjax.data.dataset import INSTEAD, TITLES, Dataset
from psgjax.data.idx import published_name
from psgjax.data.splits import DataError, Split, canonical_order
from psgjax.sources import Tell, Track


def load(config: Data, tell: Tell, track: Track) -> Dataset:
    """The data set of that name: its training images, and those of its split test, or validation, or a share, held out.

    Raises:
        DataError: If it cannot be had (`read_splits`).
    """
    train, held_out, folder = read_splits(config, tell)
    name = _name(config)
    origin = f"TensorFlow Datasets in {folder}"
    return Dataset.of(config, "tfds", name, origin, train, held_out, canonical=name in TITLES, track=track)


def _name(config: Data) -> str:
    return config.name or "mnist"


def read_splits(config: Data, progress: Callable[[str], None]) -> tuple[Split, Split | None, Path]:
    """The training and the held-out split as TFDS prepared them (first prepared at need), and the folder they lie in.

    Reading example by example takes seconds, so the arrays are kept in one file beside the prepared data set.

    Args:
        config: `name` is TFDS's name of the data set; `dir`, where given, holds the files already downloaded; images of several
            sizes are brought to `size`.
        progress: Takes one line of text before anything slow.

    Raises:
        DataError: If TFDS is not installed or has no such data set, it has no images or images of several sizes and none is asked
            for, nothing can be downloaded, `dir` does not hold the files that TFDS registers, preparing needs TensorFlow, or what
            is prepared is not the published data set.
    """
    try:
        import importlib_resources  # noqa: F401 - TFDS needs it and does not name it
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f"TensorFlow Datasets cannot be used ({error}); run: pip install tensorflow-datasets importlib_resources; or {INSTEAD}."
        ) from None
    name = _name(config)
    try:
        schema.known(
            "data.name",
            name.partition("/")[0].partition(":")[0],
            tuple(tensorflow_datasets.list_builders(with_community_datasets=False)),
        )
    except schema.ConfigError as error:
        nearest = str(error).rpartition(". ")[2]
        raise DataError(f"data.name {name} is none that TensorFlow Datasets has. {nearest}") from None
    try:
        with _quiet(tensorflow_datasets):
            return _read_splits(tensorflow_datasets, config, progress)
    except DataError:
        raise
    except Exception as error:  # whatever the parts of TFDS raise, of any type and any number of lines
        if tfds_prepare.for_want_of_tensorflow(error):
            raise DataError(
                f"TensorFlow Datasets prepares {name} by means of TensorFlow, which psgjax does not use. Prepare it once where "
                f"that is installed (tfds build {name} --data_dir FOLDER) and set TFDS_DATA_DIR=FOLDER: what is prepared is read "
                "without it."
            ) from None
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"TensorFlow Datasets failed on {name} ({reason}); {INSTEAD}.") from error


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


def _read_splits(tfds: Any, config: Data, progress: Callable[[str], None]) -> tuple[Split, Split | None, Path]:
    name = _name(config)
    like_mnist = name in TITLES
    stock = tfds.builder_cls(name.partition("/")[0])
    if like_mnist and config.dir is not None:
        tfds_prepare.verify(config.dir, stock)

    def open_builder() -> Any:
        root = os.environ.get("TFDS_DATA_DIR")  # TFDS itself looks only when it is imported
        return stock(data_dir=root) if like_mnist else tfds.builder(name, data_dir=root)

    builder = open_builder()
    folder = Path(builder.data_dir)
    image, label = _columns(tfds, name, builder.info.features)
    varies = None in builder.info.features[image].shape
    if varies and not config.size:
        raise DataError(f"the images of {name} are of several sizes; bring them to one with --data.size.")
    cache = folder / (f"psgjax-{config.size}.npz" if varies else "psgjax.npz")
    cached = _read_cache(cache)
    if cached and (not like_mnist or (cached[1] and published_name(cached[0], cached[1]) == name)):
        return *cached, folder
    if not builder.is_prepared():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
            files = config.dir
            if like_mnist and files is None:
                files = Path(scratch)
                progress(f"Downloading {name} for TensorFlow Datasets.")
                tfds_prepare.download(stock.url_infos, files)
                tfds_prepare.verify(files, stock)
            progress(f"Preparing {name} in {folder} with TensorFlow Datasets.")
            try:
                if like_mnist:
                    assert files is not None
                    tfds_prepare.prepare_mnist(tfds, stock, builder.data_dir_root, files, Path(scratch))
                else:
                    tfds_prepare.prepare(tfds, builder, files, name)
            except Exception:
                if not open_builder().is_prepared():  # or another process was faster
                    raise
        builder = open_builder()
    progress(f"Reading {name} from {folder}.")
    splits = [split for split in ("train", "test", "validation") if split in builder.info.splits][:2]
    if splits[:1] != ["train"]:
        raise DataError(f"{name} has no split train, but {', '.join(builder.info.splits)}; choose another data set.")
    train, held_out, *_ = [_read_split(builder, split, image, label, config.size * varies) for split in splits] + [None]
    assert train is not None
    if like_mnist and (held_out is None or published_name(train, held_out) != name):
        raise DataError(
            f"{folder} does not hold {name} as published; delete that folder, and it is prepared again, or {INSTEAD}."
        )
    _write_cache(cache, train, held_out)
    return train, held_out, folder


def _columns(tfds: Any, name: str, features: Any) -> tuple[str, str | None]:
    """The names of the images and of their labels, if any.

    Raises:
        DataError: If it is not clear which are the images.
    """

    def one(kind: Any, usual: str) -> list[str]:
        found = [key for key, feature in features.items() if isinstance(feature, kind)]
        return [usual] if usual in found else found

    images, labels = one(tfds.features.Image, "image"), one(tfds.features.ClassLabel, "label")
    if len(images) != 1:
        holds = f"the images {', '.join(images)}, of which none is called image" if images else "no images"
        raise DataError(f"{name} has {holds}; choose another data set.")
    return images[0], labels[0] if len(labels) == 1 else None


def _read_split(builder: Any, name: str, image: str, label: str | None, size: int) -> Split:
    if builder.info.file_format.value == "tfrecord":  # TFDS's default, which it reads by TensorFlow alone
        decode = builder.info.features.deserialize_example_np
        examples = [decode(record) for path in builder.info.splits[name].filepaths for record in _records(Path(path))]
    else:
        source = builder.as_data_source(name)
        examples = source.__getitems__(range(len(source)))  # in one call: one by one takes more than twice as long
    images = [shaping.fit(example[image], size) if size else example[image] for example in examples]
    labels = None if label is None else np.array([example[label] for example in examples])
    if labels is not None and labels.min() >= 0 and labels.max() < 256:
        labels = labels.astype(np.uint8)
    return canonical_order(np.stack(images), labels)


def _records(path: Path) -> Iterator[bytes]:
    """The records of a TFRecord file: each a length of 8 bytes, its CRC of 4, the record, and its CRC of 4."""
    with path.open("rb") as file:
        while head := file.read(12):
            yield file.read(int.from_bytes(head[:8], "little"))
            file.read(4)  # the fingerprint of the whole checks more than the CRCs


def _read_cache(path: Path) -> tuple[Split, Split | None] | None:
    arrays = kept.read(path) or {}
    train, held_out = ((arrays.get(part + "images"), arrays.get(part + "labels")) for part in ("", "held_out_"))
    if train[0] is None:
        return None
    return (train[0], train[1]), None if held_out[0] is None else (held_out[0], held_out[1])


def _write_cache(path: Path, train: Split, held_out: Split | None) -> None:
    """Keep the arrays; a folder that cannot be written costs seconds at the next start, no more."""
    named = zip(("images", "labels", "held_out_images", "held_out_labels"), (*train, *(held_out or ())), strict=False)
    kept.write(path, **{name: array for name, array in named if array is not None})
