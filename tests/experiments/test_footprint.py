"""experiments/footprint.py: a run is watched to its end, and a run that fails is an error; and memory given back."""

import ctypes
import subprocess
import sys

import pytest

from experiments import footprint
from psgjax.config import ConfigError
from psgjax.training import loop

TINY = ("--network.name", "mlp", "--network.width", "4", "--batch-size", "16", "--data.train-images", "64")


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


GLIBC = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="another C library than glibc")
HOARD = """
import ctypes, os
from experiments.footprint import _resident
from psgjax.lowering.heaps import trim_heaps

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
size, resident = 100_000, [_resident(os.getpid())]
blocks = [libc.malloc(size) for _ in range(500)]
for block in blocks:
    ctypes.memset(block, 1, size)
last = libc.malloc(size)  # what lies below it cannot be given back by itself
for block in blocks:
    libc.free(block)
resident.append(_resident(os.getpid()))
trim_heaps()
print(*resident, _resident(os.getpid()))
"""


@GLIBC
def test_freed_memory_is_given_back():
    before, freed, trimmed = map(int, printed(HOARD))
    assert freed - before > 40e6
    assert trimmed - before < 10e6


AGAIN = """
import ctypes, resource, sys
from psgjax.lowering.heaps import keep_heaps, limit_heaps

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]

def use(size, count):
    blocks = [libc.malloc(size) for _ in range(count)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        libc.free(block)

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

if sys.argv[1] == "kept":
    limit_heaps(2_000_000)
    keep_heaps()
use(1_000_000, 1)  # by which glibc would decide how much it keeps
use(900_000, 20)
before = faults()
for _ in range(10):
    use(900_000, 20)
print((faults() - before) * resource.getpagesize())
"""


@GLIBC
def test_memory_that_is_asked_for_again_is_kept():
    (kept,), (given_back,) = (map(int, printed(AGAIN, how)) for how in ("kept", "left alone"))
    assert kept < 5e6 < 100e6 < given_back  # bytes zeroed by the operating system, of 180 MB asked for


APART = """
import ctypes, os, sys
from experiments.footprint import _resident
from psgjax.lowering.heaps import keep_heaps, limit_heaps

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
limit_heaps(32_000_000)
keep_heaps()
if sys.argv[1] == "limited":
    limit_heaps()
before = _resident(os.getpid())
block = libc.malloc(30_000_000)
ctypes.memset(block, 1, 30_000_000)
libc.free(block)
print(_resident(os.getpid()) - before)
"""


@GLIBC
def test_a_large_block_is_given_back_where_heaps_are_limited():
    (limited,), (left,) = (map(int, printed(APART, how)) for how in ("limited", "left alone"))
    assert limited < 1e6 < 29e6 < left


def test_what_stands_before_the_first_update_is_measured_in_the_run_itself(tmp_path):
    before, most = footprint.memory((*TINY, "--steps", "8"), tmp_path)
    assert 100e6 < before < most < 1e9


def test_memory_is_noted_when_the_program_is_there_and_no_update_has_been_made(tmp_path, monkeypatch):
    noted, events = tmp_path / "before", []

    class Watched:
        """Stands for a program, lowered and compiled, and tells whether memory had been noted when it was."""

        def __init__(self, program):
            self.program = program

        def __getattr__(self, name):
            return getattr(self.program, name)

        def lower(self, *arguments):
            return Watched(self.program.lower(*arguments))

        def compile(self):
            compiled = Watched(self.program.compile())
            events.append(("compiled", noted.exists()))
            return compiled

        def __call__(self, *arguments):
            events.append(("called", noted.exists()))
            return self.program(*arguments)

    make_run = loop.make_run
    monkeypatch.setattr(loop, "make_run", lambda *arguments: Watched(make_run(*arguments)))
    arguments = (*footprint._COMMON, *TINY, "--steps", "1", "--out", str(tmp_path / "run"))
    assert footprint.noting(str(noted), *arguments) == 0
    assert events == [("compiled", False), ("called", True)]
    assert 50e6 < int(noted.read_text()) < 50e9


def test_activations_are_those_of_one_update():
    few, more = (footprint.activations((*TINY, "--batch-size", size, "--steps", "8")) for size in ("16", "32"))
    assert 1e4 < few < more < 50e6


def printed(script, *arguments):
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    ).stdout.split()
