"""experiments/footprint.py: a run is watched to its end, and a run that fails is an error."""

import pytest

from experiments import footprint
from psgjax.config import ConfigError

TINY = ("--network.width", "4", "--batch-size", "16", "--data.train-images", "64")


def test_a_run_is_watched_until_its_last_line(tmp_path):
    seen = footprint.watch((*TINY, "--steps", "8"), tmp_path)
    seconds, steps, resident = zip(*seen, strict=True)
    assert list(seconds) == sorted(seconds)
    assert steps[0] == 0
    assert steps[-1] == 8
    assert set(steps) <= {0, 4, 8}
    assert max(resident) > 50e6


def test_a_run_that_fails_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="ended with status 2.*batch_size"):
        footprint.watch((*TINY, "--steps", "8", "--batch-size", "0"), tmp_path)
