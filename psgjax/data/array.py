"""Images of a .npy or .npz file.

In a .npz the arrays are told by the words in their names: `images`, `imgs`, `x` or `data`, `labels`, `label`, `y` or `targets`, and
with `test`, `t10k`, `held`, `val` or `valid` what is held out, such as x_train, y_train, x_test, y_test. Of arrays with other names
(arr_0) the one of three dimensions or more holds the images and the one of one dimension the labels. What is held out is the part
called test where there are several.

Where a file holds images alone, the same words tell what lies beside it: k49-train-labels.npz has the labels of k49-train-imgs.npz,
and k49-test-imgs.npz and k49-test-labels.npz are held out.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from psgjax import memory
from psgjax.config import Data
from psgjax.data import layout
from psgjax.data.dataset import Dataset
from psgjax.data.splits import DataError, checked_split, folder_name
from psgjax.sources import Tell, Track

_IMAGES, _LABELS = {"images", "image", "imgs", "img", "x", "data"}, {"labels", "label", "y", "targets", "target"}
_TRAIN = {"train", "training"}
_PARTS = {"test": "test", "t10k": "test", "held": "test", "val": "val", "valid": "val", "validation": "val"}

Found = dict[tuple[str, str], tuple[Path, str]]  # by part, and images or labels: a file, and an array's name


def load(config: Data, tell: Tell, track: Track) -> Dataset:
    """The images, and labels if there are any, of the file `config.dir`.

    Raises:
        DataError: If it is none, or it is not clear which array is what.
        ConfigError: If the layout of the images or the range of their values is not certain.
    """
    path = config.dir
    if path is None:
        raise DataError("data.source array without data.dir; give a .npy or .npz file with --data.dir FILE.")
    if path.is_dir():
        inside = ", ".join(each.name for each in sorted(path.glob("*.np[yz]"))[:4])
        raise DataError(
            f"data.dir {path} is a folder; with --data.source array it must be a .npy or .npz file"
            f"{f', of those in it ({inside}) the one of the images to train on' if inside else ''}."
        )
    found = _inside(path, tell)
    if found.keys() == {("train", "images")}:
        found |= _beside(path, tell)

    def array(part: str, kind: str) -> np.ndarray | None:
        place = found.get((part, kind))
        return None if place is None else layout.read_array(*place, memory.available() // 3)

    train, test, val = ((array(part, "images"), array(part, "labels")) for part in ("train", "test", "val"))
    apart = test if test[0] is not None else val
    assert train[0] is not None
    given = layout.range_of(train[0], str(path), config.range, "--data.range")
    split = checked_split(train[0], train[1], str(path), given, "--data.range", track)
    held_out = None
    if apart[0] is not None:
        held_out = checked_split(*apart, f"the held-out part of {path}", given, "--data.range", track)
    name = config.name or folder_name(path)
    return Dataset.of(config, "array", name, str(path), split, held_out, track=track)


def _inside(path: Path, tell: Tell) -> Found:
    """What the arrays in the file are.

    Raises:
        DataError: If there are no images, or it is not clear which array is what.
    """
    found: Found = {}
    sizes = layout.arrays_in(path)
    for name, dimensions in sizes.items():
        key = _kind(name, dimensions)
        if key is None:
            tell(f"{path}: the array {name} of {dimensions} dimensions is not used")
        elif key in found:
            raise DataError(
                f"{path} holds the arrays {found[key][1]} and {name}, and either may be the {' '.join(key)}; call them images "
                "and labels, test_images and test_labels."
            )
        else:
            found[key] = path, name
    if ("train", "images") not in found:
        raise DataError(
            f"{path} holds {', '.join(sizes) or 'no array'}; one called images, of 3 or 4 dimensions, is needed."
        )
    return found


def _beside(path: Path, tell: Tell) -> Found:
    """The labels and the held-out images that lie beside a file of images, and are called like it but for the words for these.

    Raises:
        DataError: If two files may be one of them, or one holds several arrays.
    """
    found: Found = {}
    for other in sorted(path.parent.glob("*.np[yz]")):
        key = _relation(_words(path.stem), _words(other.stem))
        if key is None or key == ("train", "images"):
            continue
        what = _called(*key)
        if key in found:
            raise DataError(
                f"beside {path} lie {found[key][0].name} and {other.name}, and either may be the {what}; move one away."
            )
        names = list(layout.arrays_in(other))
        if len(names) != 1:
            raise DataError(
                f"{other} beside {path} is taken for the {what} and holds the arrays {', '.join(names) or 'none'}; it must hold "
                "one, or lie elsewhere."
            )
        found[key] = other, names[0]
    apart = next((part for part in ("test", "val") if (part, "images") in found), None)
    taken = {key: place for key, place in found.items() if key[0] in ("train", apart)}
    for (part, kind), (other, _) in taken.items():
        tell(f"{path}: {other.name} beside it is taken for the {_called(part, kind)}")
    return taken


def _relation(words: list[str], others: list[str]) -> tuple[str, str] | None:
    """Which part a file belongs to, and what of it it is, by its name beside that of the images to train on; None for neither."""
    part, kind = "train", "images"
    if len(words) != len(others):
        return None
    for own, other in zip(words, others, strict=True):
        if own in _IMAGES and other in _LABELS:
            kind = "labels"
        elif own in _TRAIN and other in _PARTS:
            part = _PARTS[other]
        elif own != other:
            return None
    return part, kind


def _called(part: str, kind: str) -> str:
    return kind if part == "train" else f"held-out {kind}"


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.split(r"[\W_]+|(?<=[a-z])(?=[A-Z])", name)]


def _kind(name: str, dimensions: int) -> tuple[str, str] | None:
    """Which part an array belongs to, and what of it it is; None for neither."""
    words = set(_words(name))
    part = next((_PARTS[word] for word in sorted(words) if word in _PARTS), "train")
    if words & _LABELS and dimensions in (1, 2):
        return part, "labels"
    if dimensions in (3, 4):
        return part, "images"
    return (part, "labels") if dimensions == 1 else None
