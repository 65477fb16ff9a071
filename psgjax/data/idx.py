"""The four IDX files of MNIST and its kin: found, read, checked, put into the canonical order, and recognised.

The canonical order sorts the images of a split by the SHA-256 of an image's pixels and label. It follows from the content alone,
so it is the same for IDX files and for whatever TensorFlow Datasets made of them (it shuffles by a private hash and stores no
index), and it mixes the classes, so that the first n images are a fair sample.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psgjax.config import ConfigError

# The names that LeCun, Cortes and Burges gave them: images and labels to train on, and held-out ones.
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
INSTEAD = "give a folder of the four IDX files with --data.source idx --data.dir FOLDER"

Split = tuple[np.ndarray, np.ndarray]  # images uint8 [N, H, W, 1] and labels uint8 [N], in canonical order

# SHA-256 of the published data sets (`fingerprint`).
_PUBLISHED = {
    "1f08e55ef58616522ef80fda38acf45337c424ab11968299ccab84abbbf631a1": "mnist",
    "7acdd5fd2e9992d8237898607d1c5c77f1bafa6586f0eb936e18d5784dab8bdd": "fashion_mnist",
}
_SIDES = (28, 32)
_MOST_ITEMS = 1_000_000  # a header can claim four thousand million


class DataError(ConfigError):
    """Images that cannot be had as asked; one line says what was given, what is accepted and what to do."""


def canonical_order(images: np.ndarray, labels: np.ndarray) -> Split:
    """Sort images [N, H, W, 1] and labels [N], both uint8, by the SHA-256 of each image's bytes and label."""
    keys = [
        hashlib.sha256(image.tobytes() + bytes([label])).digest() for image, label in zip(images, labels, strict=True)
    ]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return images[order], labels[order]


def fingerprint(train: Split, held_out: Split) -> str:
    """SHA-256 of a whole data set: the bytes of both splits' images and labels."""
    digest = hashlib.sha256()
    for array in (*train, *held_out):
        digest.update(array.data)
    return digest.hexdigest()


def published_name(train: Split, held_out: Split) -> str | None:
    """`mnist` or `fashion_mnist` where the splits hold exactly the published files' images and labels; else None."""
    return _PUBLISHED.get(fingerprint(train, held_out))


def find_files(folder: Path, suffixes: Sequence[str] = ("", ".gz")) -> list[Path]:
    """The four files in `folder`, in the order of `FILES`, each with the first of the suffixes with which it is there.

    Raises:
        DataError: If the folder is missing or empty, or a file is missing.
    """
    accepted = f"{', '.join(FILES)}, each with {' or '.join(suffix or 'no suffix' for suffix in suffixes)}"
    advice = f"it must be a folder that holds {accepted}; correct --data.dir, or leave it out."
    try:
        if not folder.is_dir():
            raise DataError(f"data.dir {folder} {'is not a folder' if folder.exists() else 'does not exist'}; {advice}")
        paths = [[path for suffix in suffixes if (path := folder / (name + suffix)).is_file()] for name in FILES]
        missing = [name for name, found in zip(FILES, paths, strict=True) if not found]
        if missing:
            state = f"lacks {', '.join(missing)}" if any(folder.iterdir()) else "is empty"
            raise DataError(f"data.dir {folder} {state}; {advice}")
    except OSError as error:
        raise DataError(f"data.dir {folder} cannot be read ({error.strerror}); {advice}") from None
    return [found[0] for found in paths]


def read_splits(folder: Path) -> tuple[Split, Split]:
    """The training and the held-out split of the four files in `folder`.

    Raises:
        DataError: If a file is missing or malformed, or if the files do not belong together.
    """
    train_images, train_labels, test_images, test_labels = find_files(folder)
    train, held_out = _read_split(train_images, train_labels), _read_split(test_images, test_labels)
    if train[0].shape[1:] != held_out[0].shape[1:]:
        sizes = ["x".join(map(str, images.shape[1:3])) for images, _ in (train, held_out)]
        raise DataError(
            f"{train_images} has images of {sizes[0]} and {test_images} of {sizes[1]}; "
            "they must be of one size: put the files of one data set into the folder."
        )
    return train, held_out


def _read_split(images_path: Path, labels_path: Path) -> Split:
    images, labels = read_idx(images_path, 3)[..., None], read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} has {len(images)} images and {labels_path} has {len(labels)} labels; "
            "there must be one label for each image: put the files of one data set into the folder."
        )
    if labels.max() > 9:
        raise DataError(f"{labels_path} has the label {labels.max()}; labels must be from 0 to 9: get another copy.")
    return canonical_order(images, labels)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array in an IDX file, gzipped or not: [N, H, W] uint8 for 3 dimensions, [N] uint8 for 1.

    No more is read than the header announces, and one byte to see that nothing follows: a small gzip can hold a terabyte.

    Raises:
        DataError: If the file is unreadable, not IDX, truncated or too long, or holds images of an unsupported size.

    References:
        The format: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", last section.
    """

    def check(holds: bool, given: str, accepted: str) -> None:
        if not holds:
            raise DataError(f"{path} {given}; it must {accepted}: get another copy, or correct --data.dir.")

    magic = bytes([0, 0, 8, dimensions])
    try:
        with path.open("rb") as raw:
            opener: Any = gzip.open if raw.read(2) == b"\x1f\x8b" else open
        with opener(path, "rb") as file:
            header = file.read(4 + 4 * dimensions)
            check(
                len(header) == 4 + 4 * dimensions,
                f"ends after {len(header)} bytes",
                "be an IDX file, with a whole header",
            )
            check(
                header[:4] == magic,
                f"begins with the magic number 0x{header[:4].hex()}",
                f"begin with 0x{magic.hex()} (IDX, uint8)",
            )
            count, *sides = shape = np.frombuffer(header, ">u4", offset=4).tolist()
            check(0 < count <= _MOST_ITEMS, f"announces {count} items", f"announce from 1 to {_MOST_ITEMS}")
            fits = any(sides == [side] * (dimensions - 1) for side in _SIDES)
            check(fits, f"has images of {'x'.join(map(str, sides))}", "have images of 28x28 or 32x32")
            body = file.read(math.prod(shape) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): get another copy, or correct --data.dir.") from None
    size = math.prod(shape)
    length = f"more than {size}" if len(body) > size else f"{len(body)}"
    check(len(body) == size, f"has {length} bytes after its header", f"have {size}, as the header says")
    return np.frombuffer(body, np.uint8).reshape(shape)
