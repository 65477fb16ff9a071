"""experiments/footprint.py: a run is watched to its end, and a run that fails is an error; and memory given back."""

import ctypes
import os

import pytest

from experiments import footprint
from psgjax import environment
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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
def test_freed_memory_is_given_back():
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
    environment.trim_heaps()  # what others freed
    size, before = 100_000, footprint._resident(os.getpid())
    blocks = [libc.malloc(size) for _ in range(500)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    last = libc.malloc(size)  # what lies below it cannot be given back by itself
    for block in blocks:
        libc.free(block)
    assert footprint._resident(os.getpid()) - before > 40e6
    environment.trim_heaps()
    assert footprint._resident(os.getpid()) - before < 10e6
    libc.free(last)
