"""Images to train on and to measure by, uint8 [N, H, W, C] in one canonical order, from any of the sources (`sources.py`).

Nothing heavier than numpy and Pillow is imported here; what a source needs besides loads where it is used, and TensorFlow never.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from psgjax import schema, sources
from psgjax.config import ConfigError, Data, RangeName
from psgjax.data import pictures, shaping
from psgjax.data.splits import DataError, Split, canonical_order, checked_split, compact, parted
from psgjax.sources import SOURCES, Tell, Track, untracked

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["DataError", "Dataset", "canonical_order", "fingerprints", "load"]

INSTEAD = "give a folder of the four IDX files with --data.source idx --data.dir FOLDER"
TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
TENTH = 0.1  # is held out where nothing else is said


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images, and labels where there are any, in canonical order: to train on, and held out.

    >>> import numpy, psgjax
    >>> images = numpy.random.default_rng(0).integers(0, 256, (40, 8, 8), numpy.uint8)
    >>> data = psgjax.Dataset.from_arrays(images, labels=numpy.arange(40) % 2, name="noise")
    >>> data.info["description"]
    'noise, 36 training and 4 held-out images, from arrays in memory'

    Attributes:
        images: [N, H, W, C] uint8, 0 (black) to 255, C 1 (grey) or 3 (red, green, blue).
        labels: [N] int32, from 0; None where there are none.
        held_out_images: [M, H, W, C] uint8, never trained on: the published test images, or a share of all.
        held_out_labels: [M] int32, or None.
        info: JSON-able: `source` (the one used), `dir` (the absolute path that was given, or None), `name`, `description` (a phrase
            for people), `classes` (their names, or None), `train_images` and `held_out_images` (counts), `canonical` (the source
            holds exactly the published images and labels), `sha256` and `held_out_sha256` (`fingerprints`), `warning` (one line, or
            None).
    """

    images: np.ndarray
    labels: np.ndarray | None
    held_out_images: np.ndarray
    held_out_labels: np.ndarray | None
    info: dict[str, Any]

    def check(self, classes: bool) -> None:
        """Refuse arrays that nothing can be trained on; the labels too where a classifier of their `classes` is wanted.

        Raises:
            ConfigError: With the array, what it is and what it must be.
        """
        for name in ("images", "held_out_images"):
            images = getattr(self, name)
            given = f"{images.dtype} {list(images.shape)}"
            right = images.dtype == np.uint8 and images.ndim == 4 and images.size > 0
            schema.check(right, name, given, "uint8 [N, H, W, C], N at least 1")
        sides = [list(images.shape[1:]) for images in (self.images, self.held_out_images)]
        schema.check(sides[0] == sides[1], "held_out_images", sides[1], f"of the training images' size, {sides[0]}")
        for images, name in ((self.images, "labels"), (self.held_out_images, "held_out_labels")):
            labels = getattr(self, name)
            if labels is not None and len(labels):
                schema.check(
                    labels.shape == images.shape[:1], name, list(labels.shape), f"one for each of {len(images)} images"
                )
        if classes and len(self.held_out_images) < 6:  # the metrics look at five neighbours of an image
            raise ConfigError(
                f"{len(self.held_out_images)} image(s) held out: the quality of samples is measured against at least 6; hold out "
                "more, or give --evaluation-epochs 0."
            )
        if classes and self.labels is not None and len(self.labels) and len(np.unique(self.labels)) < 2:
            raise ConfigError(
                f"labels are all {self.labels[0]}: the quality of samples is measured by a classifier, which needs two classes; "
                "give labels of at least two classes, no labels, or --evaluation-epochs 0."
            )
        for key in ("description", "sha256"):
            schema.check(isinstance(self.info.get(key), str), f"info[{key!r}]", self.info.get(key), "a text")

    @property
    def both_labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Those of the images to train on, and of those held out.

        Raises:
            DataError: If there are none.
        """
        if self.labels is None or self.held_out_labels is None:
            raise DataError(f"{self.info['description']}: without labels, which are needed here; give labelled images.")
        return self.labels, self.held_out_labels

    @classmethod
    def from_arrays(
        cls,
        images: ArrayLike,
        labels: ArrayLike | None = None,
        *,
        held_out: float | tuple[Any, Any] | np.ndarray = TENTH,
        name: str = "arrays",
        range: RangeName | None = None,
    ) -> Dataset:
        """The data set that arrays make, some of them held out: the same ones whatever their order.

        >>> data = Dataset.from_arrays(np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4) % 255, held_out=0.2)
        >>> data.images.shape, data.held_out_images.shape
        ((16, 4, 4, 1), (4, 4, 4, 1))

        Args:
            images: [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3, of any type of numbers.
            labels: [N] whole numbers or texts, one for each image, if there are any.
            held_out: Share of the images not to train on but to measure by, of each class; or images, or images and labels.
            name: What reports are to call it.
            range: What is black and what is white, where the values do not make it certain.

        Raises:
            DataError: If there are fewer than two images, or labels do not fit them.
            ConfigError: If the layout or the range of the values is not certain.
        """
        share = isinstance(held_out, int | float)
        config = Data(source="array", range=range, held_out=float(held_out) if share else None)  # type: ignore[arg-type]
        apart = None
        if not share:
            pixels, names = held_out if isinstance(held_out, tuple) else (held_out, None)
            apart = checked_split(pixels, names, f"the held-out part of {name}", range, "range=")
        train = checked_split(images, labels, name, range, "range=")
        return cls.of(config, "python", name, "arrays in memory", train, apart)

    @classmethod
    def of(
        cls,
        config: Data,
        source: str,
        name: str,
        origin: str,
        train: Split,
        held_out: Split | None = None,
        *,
        canonical: bool = False,
        warning: str | None = None,
        classes: Sequence[str] | None = None,
        track: Track = untracked,
    ) -> Dataset:
        """What a source makes of the images that it read, as the settings have it.

        Args:
            config: Whatever applies to images from anywhere.
            source: The one that was read.
            name: Of the data set.
            origin: Where the images were found, in words.
            train: In canonical order, as are
            held_out: Those set apart, where the source has any; otherwise a share of each class is.
            canonical: Whether they are the published images and labels.
            warning: What a user must know of them.
            classes: The labels' names, in their order.
            track: Shows how far resizing has come.

        Raises:
            DataError: If there are too few images.
        """
        train, held_out = _set_apart(config, origin, train, held_out)
        everything = len(train[0])
        images, labels = (None if array is None else array[: config.train_images or None] for array in train)
        assert images is not None
        shaped, held_out_shaped = shaping.shape(config, images, held_out[0], track=track)
        canonical = canonical and shaped.shape == images.shape
        labels, held_out_labels, classes = compact(labels, held_out[1], classes)
        description = f"{TITLES.get(name, name)}, {len(images):,} training and {len(held_out[0]):,} held-out images, from {origin}"
        if len(images) < everything:
            description += f" (the first of {everything:,} training images)"
        arrays = shaped, labels, held_out_shaped, held_out_labels
        info = {
            "source": source,
            "dir": config.dir and str(config.dir.absolute()),
            "name": name,
            "description": description,
            "classes": classes,
            "train_images": len(images),
            "held_out_images": len(held_out[0]),
            "canonical": canonical,
            **fingerprints(*arrays),
            "warning": warning,
        }
        return cls(*arrays, info)


def _set_apart(config: Data, origin: str, train: Split, held_out: Split | None) -> tuple[Split, Split]:
    """Images to train on and held out, of one size or to be brought to one."""
    if held_out is None:
        train, held_out = parted(train, config.held_out or TENTH, origin)
    elif config.held_out is not None:
        raise DataError(
            f"data.held_out {config.held_out} would be ignored: {origin} have held-out images among them; leave it out."
        )
    shapes = ["x".join(map(str, part[0].shape[1:3])) for part in (train, held_out)]
    if shapes[0] != shapes[1] and not config.size:
        raise DataError(
            f"{origin}: images of {shapes[0]} to train on and {shapes[1]} held out; bring them to one with --data.size."
        )
    return train, held_out


def fingerprints(
    images: np.ndarray, labels: np.ndarray | None, held_out_images: np.ndarray, held_out_labels: np.ndarray | None
) -> dict[str, str]:
    """What a data set is, wherever it lies: `sha256` of what is trained on, `held_out_sha256` of what it is measured by.

    The one is that of the bytes of `images`, the other of all the rest.
    """
    measured_by = hashlib.sha256()
    for array in (labels, held_out_images, held_out_labels):
        if array is not None:
            measured_by.update(np.ascontiguousarray(array).data)
    return {
        "sha256": hashlib.sha256(np.ascontiguousarray(images).data).hexdigest(),
        "held_out_sha256": measured_by.hexdigest(),
    }


def load(config: Data, progress: Tell = print, track: Track = untracked) -> Dataset:
    """The data set that the settings ask for. A source or folder named explicitly is never replaced by another.

    Args:
        config: The source, and what it reads.
        progress: Takes a line of text about anything slow.
        track: Shows how far a loop over items has come: `(items, how many, what they are) -> items`.

    Raises:
        DataError: If the images are missing, unreadable or not the ones asked for.
        ConfigError: If a setting would be ignored.
    """
    if config.dir is not None:
        place = schema.local_path("data.dir", config.dir)
        config = dataclasses.replace(
            config, dir=place, source=_found_in(place) if config.source == "auto" else config.source
        )
    source = sources.find(config)
    data = source.load(config, progress, track)
    if source.own:
        return data
    return Dataset.of(  # of a user's source
        dataclasses.replace(config, held_out=None),
        config.source,
        data.info["name"],
        f"the source {config.source}",
        (data.images, data.labels),
        (data.held_out_images, data.held_out_labels),
        classes=data.info.get("classes"),
        track=track,
    )


def load_nothing(config: Data, tell: Tell, track: Track) -> Dataset:
    """Of the images of `from_arrays` nothing is kept.

    Raises:
        DataError: Always.
    """
    raise DataError("these images were handed in by a program and are nowhere else: hand them in again, in Python.")


def load_best(config: Data, tell: Tell, track: Track) -> Dataset:
    """MNIST, or what TensorFlow Datasets has by the name that is given; of MNIST the packaged images where that cannot be had.

    Raises:
        DataError: If another data set cannot be had.
    """
    try:
        return SOURCES["tfds"].load(config, tell, track)
    except DataError as error:
        if config.name not in (None, "mnist"):
            raise
        from psgjax.data import packaged

        warning = f"Only the 5,000 packaged images are used, not all of MNIST: {error}"
        return packaged.load(config, tell, track, warning)


def _found_in(place: Path) -> str:
    """The source that reads what lies there: an array, IDX files, or image files in the folder or its subfolders."""
    if place.suffix in (".npy", ".npz"):
        return "array"
    try:
        names = [path.name for pattern in ("*", "*/*", "*/*/*") for path in place.glob(pattern)]
    except OSError:
        return "idx"  # which says what is wrong
    idx = any("-ubyte" in name or ".ubyte" in name for name in names)
    arrays = any(name.endswith((".npy", ".npz")) for name in names)
    return "folder" if not idx and any(map(pictures.is_picture, names)) else "array" if not idx and arrays else "idx"
