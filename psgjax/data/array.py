"""Images of a .npy or .npz file.

In a .npz the arrays are told by the words in their names: `images`, `imgs`, `x` or `data`, `labels`, `label`, `y` or `targets`, and
with `test`, `t10k`, `held`, `val` or `valid` what is held out, such as x_train, y_train, x_test, y_test. Of arrays with other names
(arr_0) the one of three dimensions or more holds the images and the one of one dimension the labels. What is held out is the part
called test where there are several.
"""

from __future__ import annotations

import re

import numpy as np

from psgjax import memory
from psgjax.config import Data
from psgjax.data import layout
from psgjax.data.dataset import Dataset
from psgjax.data.splits import DataError, checked_split, folder_name
from psgjax.sources import Tell, Track

_IMAGES, _LABELS = {"images", "image", "imgs", "x", "data"}, {"labels", "label", "y", "targets", "target"}
_PARTS = {"test": "test", "t10k": "test", "held": "test", "val": "val", "valid": "val", "validation": "val"}


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
        raise DataError(f"data.dir {path} is a folder; with --data.source array it must be a .npy or .npz file.")
    sorted_out: dict[tuple[str, str], str] = {}
    sizes = layout.arrays_in(path)
    for name, dimensions in sizes.items():
        key = _kind(name, dimensions)
        if key is None:
            tell(f"{path}: the array {name} of {dimensions} dimensions is not used")
        elif key in sorted_out:
            raise DataError(
                f"{path} holds the arrays {sorted_out[key]} and {name}, and either may be the {' '.join(key)}; call them images "
                "and labels, test_images and test_labels."
            )
        else:
            sorted_out[key] = name
    if ("train", "images") not in sorted_out:
        raise DataError(
            f"{path} holds {', '.join(sizes) or 'no array'}; one called images, of 3 or 4 dimensions, is needed."
        )

    def array(part: str, kind: str) -> np.ndarray | None:
        name = sorted_out.get((part, kind))
        return None if name is None else layout.read_array(path, name, memory.available() // 3)

    train, test, val = ((array(part, "images"), array(part, "labels")) for part in ("train", "test", "val"))
    apart = test if test[0] is not None else val
    assert train[0] is not None
    given = layout.range_of(train[0], str(path), config.range, "--data.range")
    split = checked_split(train[0], train[1], str(path), given, "--data.range")
    held_out = None
    if apart[0] is not None:
        held_out = checked_split(apart[0], apart[1], f"the held-out part of {path}", given, "--data.range")
    name = config.name or folder_name(path)
    return Dataset.of(config, "array", name, str(path), split, held_out)


def _kind(name: str, dimensions: int) -> tuple[str, str] | None:
    """Which part an array belongs to, and what of it it is; None for neither."""
    words = set(re.split(r"[^a-z0-9]+|(?<=[a-z])(?=[A-Z])", name.lower()))
    part = next((_PARTS[word] for word in sorted(words) if word in _PARTS), "train")
    if words & _LABELS and dimensions in (1, 2):
        return part, "labels"
    if dimensions in (3, 4):
        return part, "images"
    return (part, "labels") if dimensions == 1 else None
