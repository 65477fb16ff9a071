"""Images and labels of a part of a data set, put into the canonical order and parted.

The canonical order sorts images by the SHA-256 of an image's pixels and label. It follows from the content alone, so it is the same
for files of any kind, names and place, and it mixes the classes, so that the first n images are a fair sample.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from psgjax.config import ConfigError, RangeName
from psgjax.data import layout
from psgjax.sources import Track, untracked

Split = tuple[np.ndarray, np.ndarray | None]  # images uint8 [N, H, W, C], and labels [N] or None


class DataError(ConfigError):
    """Images that cannot be had as asked; one line says what was given, what is accepted and what to do."""


def canonical_order(images: np.ndarray, labels: np.ndarray | None = None, track: Track = untracked) -> Split:
    """Images [N, H, W, C] uint8, and labels [N] if there are any, sorted by the SHA-256 of each image's bytes and label."""

    def end(label: Any) -> bytes:
        return bytes([label]) if isinstance(label, int) and 0 <= label < 256 else str(label).encode()

    ends = [b""] * len(images) if labels is None else map(end, labels.tolist())
    items = track(zip(images, ends, strict=True), len(images), "ordering images")
    keys = [hashlib.sha256(image.tobytes() + end).digest() for image, end in items]
    order = sorted(range(len(keys)), key=keys.__getitem__)
    return images[order], None if labels is None else labels[order]


def folder_name(path: Path) -> str:
    """What a data set is called that a user's folder or file holds."""
    return path.absolute().stem or "images"


def checked_split(
    images: Any, labels: Any, name: str, given: RangeName | None, option: str, track: Track = untracked
) -> Split:
    """Arrays of a user's as images and labels in canonical order.

    Args:
        images: [N, H, W], [N, H, W, C] or [N, C, H, W], C 1 or 3, of any type of numbers.
        labels: [N] or [N, 1] whole numbers or texts, or None.
        name: Of the images, for messages.
        given: What is black and what is white, where it is said.
        option: How that is said, for messages.
        track: Shows how far it has come.

    Raises:
        DataError: If labels do not fit the images.
        ConfigError: If the layout or the range of the values is not certain.
    """
    images = np.asarray(images)
    if images.ndim == 5:
        raise DataError(
            f"{name} holds an array {list(images.shape)}; it must be [N, H, W], [N, H, W, C] or [N, C, H, W]."
        )
    pixels = layout.to_images(images, name, given, option, track)[0]
    if labels is None:
        return canonical_order(pixels, None, track)
    labels = np.asarray(labels)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iubU":
        raise DataError(
            f"{name} holds {len(pixels)} images, and labels {list(labels.shape)} of {labels.dtype}; they must be [N] whole numbers "
            "or texts, one for each image."
        )
    return canonical_order(pixels, labels, track)


def parted(everything: Split, share: float, origin: str) -> tuple[Split, Split]:
    """To train on, and held out: the last share of each class, at least one image, so that the first n stay a fair sample."""
    images, labels = everything
    classes = (
        [np.arange(len(images))] if labels is None else [np.flatnonzero(labels == one) for one in np.unique(labels)]
    )
    held = np.zeros(len(images), bool)
    for members in classes:
        if len(members) > 1:
            held[members[-min(max(1, round(share * len(members))), len(members) - 1) :]] = True
    if not held.any():
        raise DataError(
            f"{origin}: {len(images)} image(s); at least two are needed, to train on one and to hold out another."
        )
    parts = [(images[chosen], None if labels is None else labels[chosen]) for chosen in (~held, held)]
    return parts[0], parts[1]


def compact(
    labels: np.ndarray | None, held_out: np.ndarray | None, names: Sequence[str] | None
) -> tuple[np.ndarray | None, np.ndarray | None, list[str] | None]:
    """Labels as numbers from 0 without a gap, and the classes' names; none where there are fewer than two classes."""
    found = [array for array in (labels, held_out) if array is not None]
    classes = np.unique(np.concatenate(found)) if found else np.zeros(0)
    if labels is None or len(classes) < 2:
        return None, None, None
    texts = [str(one) if names is None else names[int(one)] for one in classes]
    numbered = [
        None if array is None else np.searchsorted(classes, array).astype(np.int32) for array in (labels, held_out)
    ]
    return numbered[0], numbered[1], texts
