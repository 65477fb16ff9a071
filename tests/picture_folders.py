"""Folders of image files, and what reading them gives."""

import numpy as np
from PIL import Image

from psgjax.config import Data
from psgjax.data import dataset

RANDOM = np.random.default_rng(0)


def colours(count=1, side=8):
    """Images [n, side, side, 3] uint8, in colour."""
    return RANDOM.integers(0, 256, (count, side, side, 3), np.uint8)


def fill(place, count=20, side=8):
    """A folder of PNGs in colour; their pixels."""
    place.mkdir(parents=True, exist_ok=True)
    images = colours(count, side)
    for i, image in enumerate(images):
        Image.fromarray(image).save(place / f"{i:03}.png")
    return images


def read(place, **settings):
    """The data set, and what was told."""
    told = []
    return dataset.load(Data(source="folder", dir=place, **settings), told.append), told


def rows(*arrays):
    """Images of all arrays as a set of bytes."""
    return {image.tobytes() for array in arrays for image in array}


def everything(loaded):
    return rows(loaded.images, loaded.held_out_images)
