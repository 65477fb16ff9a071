"""The choice of a mesh here; the update on eight simulated devices in `eight_devices.py`, in a process of its own."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import tiny
from hypothesis import given
from hypothesis import strategies as st

from psgjax.config import ConfigError, Mesh
from psgjax.method import sharding


@pytest.mark.long
@pytest.mark.uncovered
def test_eight_devices():
    options = ["-n", "0", "--no-cov"]  # the process is measured, not the tests in it
    root = Path(__file__).parents[
        2
    ]  # where pytest is given a path without brackets, which it would take for parameters
    command = [sys.executable, "-m", "pytest", *options, "tests/method/eight_devices.py"]
    devices = {**os.environ, "JAX_NUM_CPU_DEVICES": "8"}
    result = subprocess.run(command, cwd=root, env=devices, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


SIZES = st.sampled_from([0, 0, 0, 1, 2, 3, 4])


@given(st.builds(Mesh, SIZES, SIZES, SIZES), *(st.integers(1, most) for most in (8, 5, 4, 24)))
def test_a_mesh_that_is_chosen_or_named_works(settings, devices, generators, replicas, batch):
    config = tiny("stackelberg", generators=generators, batch_size=batch)

    def sizes_of(settings):
        return sharding.mesh_sizes(settings, config, replicas, devices)

    try:
        sizes = sizes_of(settings)
    except ConfigError as error:
        named = [int(text) for text in re.findall(r"--mesh\.\w+ (\d+)", str(error))]
        sizes = sizes_of(Mesh(*named))
        assert sizes == tuple(named)
        assert sizes != (settings.replica, settings.generator, settings.data)
    else:
        asked = (settings.replica, settings.generator, settings.data)
        assert all(wanted in (0, size) for wanted, size in zip(asked, sizes, strict=True))
        assert not any(asked) or math.prod(sizes) == (math.prod(asked) or devices)
    replica, generator, data = sizes
    assert replica * generator * data <= devices
    assert replicas % replica == generators % generator == batch % (generator * data) == 0


@pytest.mark.parametrize(
    ("settings", "devices", "replicas", "batch", "sizes"),
    [
        (Mesh(), 1, 1, 64, (1, 1, 1)),
        (Mesh(), 8, 1, 64, (1, 2, 4)),
        (Mesh(), 8, 4, 64, (4, 2, 1)),
        (Mesh(), 8, 10, 64, (2, 2, 2)),
        (Mesh(generator=1), 8, 1, 64, (1, 1, 8)),
        (Mesh(1, 1, 2), 8, 1, 64, (1, 1, 2)),
        (Mesh(), 3, 1, 64, (1, 2, 1)),  # the others idle
        (Mesh(), 5, 1, 64, (1, 2, 2)),
        (Mesh(), 6, 1, 64, (1, 2, 2)),
        (Mesh(), 7, 1, 64, (1, 2, 2)),
        (Mesh(), 8, 1, 10, (1, 1, 5)),
    ],
)
def test_devices_are_given_to_replicas_then_generators_then_data(settings, devices, replicas, batch, sizes):
    assert sharding.mesh_sizes(settings, tiny(batch_size=batch), replicas, devices) == sizes


@pytest.mark.parametrize(
    ("settings", "devices", "batch", "nearest"),
    [
        (Mesh(replica=1), 7, 64, "4 device(s): --mesh.replica 1 --mesh.generator 2 --mesh.data 2"),
        (Mesh(replica=1), 8, 10, "5 device(s): --mesh.replica 1 --mesh.generator 1 --mesh.data 5"),
        (Mesh(1, 4, 2), 8, 64, "8 device(s): --mesh.replica 1 --mesh.generator 2 --mesh.data 4"),
        (Mesh(data=3), 6, 64, "4 device(s): --mesh.replica 1 --mesh.generator 2 --mesh.data 2"),
        (Mesh(1, 1, 16), 8, 64, "8 device(s): --mesh.replica 1 --mesh.generator 1 --mesh.data 8"),
    ],
)
def test_an_impossible_mesh_is_refused_with_the_nearest_that_works(settings, devices, batch, nearest):
    with pytest.raises(ConfigError, match=re.escape(f"The nearest that works has {nearest}.")):
        sharding.mesh_sizes(settings, tiny(batch_size=batch), 1, devices)


def test_a_mesh_that_is_proposed_fits_every_method():
    configs = [tiny(name, batch_size=64) for name in ("psg", "sngan")]
    with pytest.raises(ConfigError) as caught:
        sharding.mesh_sizes(Mesh(data=3), configs[0], 1, 6, configs)
    named = Mesh(*(int(text) for text in re.findall(r"--mesh\.\w+ (\d+)", str(caught.value))))
    assert {sharding.mesh_sizes(named, config, 1, 6, configs) for config in configs} == {(1, 1, 4)}
