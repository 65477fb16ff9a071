"""IDX files, the format of MNIST and its kin: found, read, checked, put into the canonical order, and recognised.

A set is one to four files in a folder, gzipped or not, named after their content: [SET-]SPLIT-images-idx3-ubyte and
[SET-]SPLIT-labels-idx1-ubyte, the last dashes or dots; the split is train, or t10k or test for what is held out. Files of labels
may lack, or be QMNIST's (labels-idx2-int).
"""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from psgjax import memory
from psgjax.config import Data
from psgjax.data.dataset import INSTEAD, TITLES, Dataset
from psgjax.data.splits import DataError, Split, canonical_order, folder_name
from psgjax.sources import Tell, Track, untracked

# The names that LeCun, Cortes and Burges gave them: images and labels to train on, and held-out ones.
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
Files = dict[str, dict[str, Path]]  # {"train": {"images": path, "labels": path}, "test": likewise}; what lacks lacks

_NAME = re.compile(r"(?P<stem>.*?)[-._]?(?P<kind>images-idx3-ubyte|labels-idx1-ubyte|labels-idx2-int)(\.gz)?")
_STEM = re.compile(r"(?:(?P<set>.*?)[-._]?)(?P<split>train|t10k|test|)")

# SHA-256 of the published data sets (`fingerprint`).
_PUBLISHED = {
    "1f08e55ef58616522ef80fda38acf45337c424ab11968299ccab84abbbf631a1": "mnist",
    "7acdd5fd2e9992d8237898607d1c5c77f1bafa6586f0eb936e18d5784dab8bdd": "fashion_mnist",
}
_MOST_SIDE = 1024
_MOST_ITEMS = 1_000_000  # a header can claim four thousand million


def load(config: Data, tell: Tell, track: Track) -> Dataset:
    """The set in the folder `config.dir`, or of several there the one that `config.name` is; titled by its own name.

    Raises:
        DataError: If there is none, a file is malformed, or the images are not those of the published set that is asked for.
    """
    if config.dir is None:
        raise DataError(f"data.source idx without data.dir; {INSTEAD}.")
    found, files = _choose(config.dir, config.name)
    train, held_out = read_splits(config.dir, files, config.transpose, track)
    published = held_out and published_name(train, held_out)
    if config.name in TITLES and published != config.name:
        holds = f"holds {TITLES[published]}" if published else f"does not hold {TITLES[config.name]} as published"
        raise DataError(
            f"data.dir {config.dir} {holds}, and data.name is {config.name}; "
            + (
                f"use --data.name {published}"
                if published
                else "leave --data.name out, or give these images a name of their own"
            )
            + f", or the folder of {TITLES[config.name]}."
        )
    name = published or config.name or found or folder_name(config.dir)
    origin = f"the IDX files in {config.dir}"
    return Dataset.of(config, "idx", name, origin, train, held_out, canonical=bool(published), track=track)


def fingerprint(train: Split, held_out: Split) -> str:
    """SHA-256 of a whole data set: the bytes of both splits' images and labels."""
    digest = hashlib.sha256()
    for array in (*train, *held_out):
        digest.update(b"" if array is None else array.data)
    return digest.hexdigest()


def published_name(train: Split, held_out: Split) -> str | None:
    """`mnist` or `fashion_mnist` where the splits hold exactly the published files' images and labels; else None."""
    return _PUBLISHED.get(fingerprint(train, held_out))


def find_files(folder: Path, suffixes: Sequence[str] = ("", ".gz")) -> list[Path]:
    """The four files of a set without a name in `folder`, in the order of `FILES`, each with the first suffix that is there.

    Raises:
        DataError: If the folder is missing or empty, or a file is missing.
    """
    there = {path.name: path for path in _inside(folder, suffixes) if path.is_file()}
    paths = [[there[name + suffix] for suffix in suffixes if name + suffix in there] for name in FILES]
    if missing := [name for name, found in zip(FILES, paths, strict=True) if not found]:
        raise DataError(f"data.dir {folder} lacks {', '.join(missing)}; {_advice(suffixes)}")
    return [found[0] for found in paths]


def _advice(suffixes: Sequence[str]) -> str:
    accepted = f"{', '.join(FILES)}, each with {' or '.join(suffix or 'no suffix' for suffix in suffixes)}"
    return f"it must be a folder that holds {accepted}; correct --data.dir, or leave it out."


def _inside(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    """What lies in the folder, which must be there and not empty."""
    try:
        if not folder.is_dir():
            state = "is not a folder" if folder.exists() else "does not exist"
        elif inside := sorted(folder.iterdir()):
            return inside
        else:
            state = "is empty"
    except OSError as error:
        state = f"cannot be read ({error.strerror})"
    raise DataError(f"data.dir {folder} {state}; {_advice(suffixes)}")


def _choose(folder: Path, name: str | None) -> tuple[str, Files]:
    """The name of a set in the folder, empty where its files have none, and its files.

    Raises:
        DataError: If there is none, or several and `name` is none of them.
    """
    sets: dict[str, Files] = {}
    for path in sorted(_inside(folder, ("", ".gz")), key=lambda path: (path.suffix == ".gz", path.name)):
        match = _NAME.fullmatch(path.name.replace(".idx", "-idx").replace(".ubyte", "-ubyte"))
        if match and path.is_file():
            stem = _STEM.fullmatch(match["stem"])
            assert stem is not None  # it takes anything
            split = "train" if stem["split"] in ("train", "") else "test"
            files = sets.setdefault(stem["set"], {}).setdefault(split, {})
            files.setdefault(match["kind"].partition("-")[0], path)
    if len(sets) > 1 and name not in sets:
        raise DataError(f"data.dir {folder} holds the sets {', '.join(sorted(sets))}; say which one with --data.name.")
    chosen = name if name is not None and name in sets else next(iter(sets), "")
    files_of = sets.get(chosen, {})
    if missing := _missing(files_of, chosen):
        raise DataError(f"data.dir {folder} lacks {', '.join(missing)}; {_advice(('', '.gz'))}")
    return chosen, files_of


def _missing(files: Files, name: str) -> list[str]:
    """The files without which those that are there are no set: images to train on, images to labels, all labels or none."""
    if not files:
        return list(FILES)
    labelled = any("labels" in split for split in files.values())
    needed = [(split, kind) for split in {"train": 0, **files} for kind in ("images", "labels")[: 1 + labelled]]
    lacking = {(split, kind) for split, kind in needed if kind not in files.get(split, {})}
    standard = zip(((split, kind) for split in ("train", "test") for kind in ("images", "labels")), FILES, strict=True)
    return [f"{name}-{file}" if name else file for key, file in standard if key in lacking]


def read_splits(
    folder: Path, files: Files | None = None, transpose: bool = False, track: Track = untracked
) -> tuple[Split, Split | None]:
    """The training and, where there is one, the held-out split of the one set in `folder`, or of the given files.

    Raises:
        DataError: If a file is missing or malformed, or if the files do not belong together.
    """
    files = files or _choose(folder, None)[1]
    read = partial(_read_split, transpose=transpose, track=track)
    splits = {name: read(paths["images"], paths.get("labels")) for name, paths in files.items()}
    train, held_out = splits["train"], splits.get("test")
    if held_out and train[0].shape[1:] != held_out[0].shape[1:]:
        sizes = ["x".join(map(str, images.shape[1:3])) for images, _ in (train, held_out)]
        raise DataError(
            f"{files['train']['images']} has images of {sizes[0]} and {files['test']['images']} of {sizes[1]}; "
            "they must be of one size: put the files of one data set into the folder."
        )
    return train, held_out


def _read_split(images_path: Path, labels_path: Path | None, transpose: bool, track: Track) -> Split:
    images = read_idx(images_path, 3)[..., None]
    images = np.ascontiguousarray(images.swapaxes(1, 2)) if transpose else images
    if labels_path is None:
        return canonical_order(images, None, track)
    labels = read_idx(labels_path, 2)[:, 0] if "idx2" in labels_path.name else read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{images_path} has {len(images)} images and {labels_path} has {len(labels)} labels; "
            "there must be one label for each image: put the files of one data set into the folder."
        )
    return canonical_order(images, labels, track)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The array in an IDX file, gzipped or not: [N, H, W] uint8 for 3 dimensions, [N] uint8 for 1, QMNIST's [N, 8] int32 for 2.

    No more is read than the header announces, and one byte to see that nothing follows: a small gzip can hold a terabyte.

    Raises:
        DataError: If the file is unreadable, not IDX, truncated or too long, or holds images of an unsupported size.

    References:
        The format: LeCun, Cortes and Burges, "The MNIST database of handwritten digits", last section.
    """

    def check(holds: bool, given: str, accepted: str) -> None:
        if not holds:
            raise DataError(f"{path} {given}; it must {accepted}: get another copy, or correct --data.dir.")

    kind = np.dtype(">i4" if dimensions == 2 else np.uint8)
    magic = bytes([0, 0, 12 if dimensions == 2 else 8, dimensions])
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
                f"begin with 0x{magic.hex()} (IDX, {kind.newbyteorder('=')})",
            )
            count, *sides = shape = np.frombuffer(header, ">u4", offset=4).tolist()
            check(0 < count <= _MOST_ITEMS, f"announces {count} items", f"announce from 1 to {_MOST_ITEMS}")
            fits = all(0 < side <= _MOST_SIDE for side in sides)
            sizes = "x".join(map(str, sides))
            check(fits, f"has items of {sizes}", f"have sides from 1 to {_MOST_SIDE}")
            size = math.prod(shape) * kind.itemsize
            memory.check(2 * size, f"{count:,} images of {sizes} in {path}")
            body = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}): get another copy, or correct --data.dir.") from None
    length = f"more than {size}" if len(body) > size else f"{len(body)}"
    check(len(body) == size, f"has {length} bytes after its header", f"have {size}, as the header says")
    return np.frombuffer(body, kind).reshape(shape).astype(kind.newbyteorder("="), copy=False)
