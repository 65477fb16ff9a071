"""Labelled images that a classifier learns in a moment."""

import numpy as np

from psgjax.evaluation import fitting

COUNT, EPOCHS = 64, 12  # the same in most tests: compiled once


def toy(count=COUNT + 20):
    """Bright bars, a column a class, in noise: images [n, 8, 8, 1] uint8 and labels 0 to 2."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, count, dtype=np.int32)
    images = random.integers(0, 60, (count, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[:, 2 * label : 2 * label + 2] += 180
    return images, labels


def fit(**changes):
    """A classifier of the first COUNT bars, its accuracy taken on the others; keyword arguments are those of `fitting.fit`."""
    images, labels = toy()
    held_out = images[COUNT:], labels[COUNT:]
    return fitting.fit(images[:COUNT], labels[:COUNT], **{"epochs": EPOCHS, "held_out": held_out, **changes})
