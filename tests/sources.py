"""Small data sets as files, and what loading them gives or refuses."""

import gzip
import struct

import numpy as np
import pytest

from psgjax.config import ConfigError, Data
from psgjax.data import dataset, idx

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = idx.FILES
ARRAYS = ("images", "labels", "held_out_images", "held_out_labels")


def idx_bytes(array):
    """An array of uint8 as an IDX file."""
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.tobytes()


def contents(side=28, train=40, test=20):
    """The uncompressed bytes of four small files, by name."""
    random = np.random.default_rng(0)
    files = {}
    for count, images, labels in ((train, TRAIN_IMAGES, TRAIN_LABELS), (test, TEST_IMAGES, TEST_LABELS)):
        files[images] = idx_bytes(random.integers(0, 256, (count, side, side), np.uint8))
        files[labels] = idx_bytes(random.integers(0, 10, count, np.uint8))
    return files


def write(folder, files, suffix=""):
    """The folder, made if need be, with the files in it: as they are, or compressed where there is a suffix."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / (name + suffix)).write_bytes(gzip.compress(content, mtime=0) if suffix else content)
    return folder


def snapshot(folder):
    """Every path under a folder, with its bytes where it is a file."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def same(one, other):
    """Whether two data sets hold the same images and labels."""
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS)


def load(**settings):
    """`dataset.load` with these settings, in silence."""
    return dataset.load(Data(**settings), lambda line: None)


def refused(tmp_path, fragments, **settings):
    """Whether loading says no in one line, which holds the fragments, and leaves nothing in the folder."""
    before = snapshot(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(**settings)
    message = str(caught.value)
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert "\n" not in message
    assert snapshot(tmp_path) == before
