"""Strict settings for every test, a compilation cache, the smallest run that has everything, and what several files begin with."""

import dataclasses
import functools
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

from jaxlib.version import __version_info__ as jaxlib_version

# Half of the suite's time is the compiler's. Its identities do not depend on how well, in how many parts or through which emitters
# it compiles.
# From jaxlib 0.12 on there is no choice of emitters, and a flag that XLA does not know ends the process.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1" + (
    " --xla_cpu_use_fusion_emitters=false" if jaxlib_version < (0, 12) else ""
)

import jax
import numpy as np
import programs
import pytest
from matplotlib.figure import Figure

from psgjax import own
from psgjax.config import Config, Data, Method, Network, Optimizer
from psgjax.data.dataset import Dataset, load
from psgjax.evaluation import classifier, fitting
from psgjax.lowering import conv
from psgjax.method import state as states
from psgjax.switches import METHODS
from psgjax.training import loop

# Whoever started the tests may have signals ignored, as a shell does for what runs in the background: the tests hear them.
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)

CACHE = Path(tempfile.gettempdir()) / f"psgjax-tests-{os.getuid()}"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(CACHE)  # for the commands that tests start, too
os.environ["LOKY_MAX_CPU_COUNT"] = "1"  # for more joblib, of scikit-learn, asks a command, which may not be there
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"  # jaxlib 0.10.0 writes lines to standard error when it loads from there
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
jax.config.update("jax_numpy_rank_promotion", "raise")
gc.set_threshold(100_000, 20, 20)  # the other half is tracing, a tenth of which went into looking for garbage

pytest.register_assert_rewrite("sources")  # its assertions tell what differs, as those of tests do

programs.share()

# What runs again and again for many epochs is worth its compiler's time.
OPTIMISED = {**conv.compiler_options(), "xla_backend_optimization_level": 1}
for module in (classifier, fitting):
    module.conv = types.SimpleNamespace(compiler_options=lambda: OPTIMISED)

SHAPE = (8, 8, 1)
IMAGE, POINTS = Network("dcgan", 4, 6), Network("mlp", 8, 6)
SCHEDULES = Optimizer(  # all of them at once
    schedule="cosine",
    schedule_end=0.25,
    schedule_share=0.5,
    beta1=0.0,
    beta2=0.9,
    beta2_end=0.99,
    penalty_end=0.1,
    early_share=0.5,
    average_half_life=16.0,
    average_warmup=0.5,
)


def tiny(name: str = "psg", **changes) -> Config:
    """A run on 8x8 images; keyword arguments are fields of Config or of its Method.

    Its network is the one that compiles fastest: what is about convolutions or batch statistics names IMAGE.
    """
    switches = {key: changes.pop(key) for key in list(changes) if key in {f.name for f in dataclasses.fields(Method)}}
    method = dataclasses.replace(METHODS[name], **switches)
    defaults = {"network": POINTS, "batch_size": 4, "steps": 12}
    return Config(method_name=name, method=method, **{**defaults, **changes})


def pytest_collection_modifyitems(items):
    """Long tests begin first: at the end no processor waits for one."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Tests of the experiments and those with the mark `uncovered` go without coverage: tracing takes longer with it.

    Nor is it in what these set up and in the processes that they start.
    """
    controller = getattr(item.config.pluginmanager.getplugin("_cov"), "cov_controller", None)
    if controller is None or not (item.get_closest_marker("uncovered") or item.path.parent.name == "experiments"):
        return (yield)
    controller.pause()
    os.environ.pop("COVERAGE_PROCESS_CONFIG", None)
    # In a worker of xdist, what has measured since the process began would go on.
    sys.settrace(None)
    threading.settrace(None)
    try:
        return (yield)
    finally:
        controller.resume()


@pytest.fixture(autouse=True)
def _own_parts_alone(monkeypatch):
    """What a test registers is forgotten at its end."""
    monkeypatch.setattr(own, "_loaded", {})
    before = [dict(table) for table in programs.TABLES]
    yield
    for table, entries in zip(programs.TABLES, before, strict=True):
        table.clear()
        table.update(entries)


@pytest.fixture(autouse=True)
def _figures_are_drawn_where_it_matters(request, monkeypatch):
    """In `report`, `experiments` and tests with the mark `drawn`; others make figures and do not draw them."""
    if request.path.parent.name not in ("report", "experiments") and not request.node.get_closest_marker("drawn"):
        monkeypatch.setattr(Figure, "savefig", lambda figure, file, **_: file.write(b"a figure"))


@pytest.fixture
def disk(tmp_path):
    """A disk of 4 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if not shutil.which("mount"):
        pytest.skip("a disk of its own cannot be mounted here: there is no mount")
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"a disk of its own cannot be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture(scope="session")
def images() -> np.ndarray:
    """[32, 8, 8, 1] uint8."""
    return np.random.default_rng(0).integers(0, 256, (32, *SHAPE), dtype=np.uint8)


@pytest.fixture
def data(images) -> Dataset:
    """Noise, said to be the packaged images."""
    info = {"description": "noise", "sha256": "0" * 64, "source": "packaged", "warning": None}
    labels = np.arange(32, dtype=np.int32) % 10
    return Dataset(images, labels, images[:8], labels[:8], info)


@pytest.fixture(scope="session")
def packaged() -> Dataset:
    """The 5,000 packaged images of MNIST."""
    return load(Data(source="packaged"), progress=lambda line: None)


@pytest.fixture(scope="session")
def halves(packaged):
    """Real images never compared with themselves: 1,000 as samples, 1,000 as the reference, 2,500 to have been trained on."""
    order = np.random.default_rng(0).permutation(len(packaged.images))
    return [packaged.images[order[part]] for part in (slice(1000), slice(1000, 2000), slice(2000, None))], order


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """What psgjax keeps for the user lies in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Whatever is prepared or left over lies in the test's own folder."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))


@pytest.fixture(scope="session")
def idx(tmp_path_factory) -> Path:
    """A folder with the four files of a small data set."""
    import sources

    return sources.write(tmp_path_factory.mktemp("idx"), sources.contents(train=64, test=16))


@pytest.fixture
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    """The current folder is the test's own."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def occupied(in_a_folder_of_its_own):
    """There, a file, and a folder with what is of no run; nothing is written into `out`."""
    Path("file").touch()
    Path("full").mkdir()
    Path("full/results.md").write_text("a letter")
    yield
    assert not Path("out").exists()


@pytest.fixture
def refusal(capsys):
    """`refusal(main, arguments)`: the one line with which a command ends that cannot do what it is asked for."""

    def of(main, arguments):
        capsys.readouterr()
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        return error

    return of


@pytest.fixture(scope="session")
def trained():
    """A classifier that knows bars."""
    import bars  # here, because most tests do without what makes it

    return bars.fit()


@functools.cache
def first_state(config: Config):
    """`state.init` on the test's images, compiled once a configuration, whatever its seed."""
    return loop.make_init(config, SHAPE)(jax.random.key(config.seed))


def like(config: Config, shape: tuple[int, int, int] = SHAPE):
    """What a checkpoint of the run holds, without its numbers."""
    return states.abstract(loop.make_init(config, shape))


def leaves(tree) -> list[np.ndarray]:
    """The leaves of a tree as numpy arrays, keys as their numbers."""
    data = [
        jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        for x in jax.tree.leaves(tree)
    ]
    return [np.asarray(x) for x in data]


def same(one, other) -> bool:
    """Whether two trees agree bit for bit."""
    return all(np.array_equal(a, b, equal_nan=True) for a, b in zip(leaves(one), leaves(other), strict=True))
