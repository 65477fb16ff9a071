"""Where a run happens: what git, jax's settings, the home folder and the terminal have to do with it, and what they have not."""

import io
import json
import logging
import os
import pwd
import shutil
import subprocess
import sys
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console
from small_runs import StopAfter, train

import psgjax
from experiments import mnist
from psgjax import environment
from psgjax.commands import sample
from psgjax.config import ConfigError
from psgjax.shell import run_command
from psgjax.training import loop

ROOT = Path(psgjax.__file__).parents[1]
RUN = [
    "--methods",
    "gan",
    "--data.source",
    "packaged",
    "--data.train-images",
    "64",
    "--steps",
    "3",
    "--batch-size",
    "8",
]
RUN += ["--network.name", "mlp", "--network.width", "2", "--network.latent-size", "3", "--evaluation-epochs", "0"]


@pytest.fixture(autouse=True)
def settings_come_back():
    """Those of jax, after the test."""
    names = (*environment.SETTINGS, "jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: jax.config.values[name] for name in names}
    level = logging.getLogger("matplotlib").level
    yield
    logging.getLogger("matplotlib").setLevel(level)
    for name, value in before.items():
        jax.config.update(name, value)


def git(folder, *arguments):
    settings = ("-c", "user.name=n", "-c", "user.email=e", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *settings, *arguments], cwd=folder, check=True, capture_output=True)


def test_without_git_there_is_no_commit_and_all_else(monkeypatch):
    monkeypatch.setenv("PATH", "")
    found = environment.provenance()
    assert found["commit"] is None
    assert found["cores"] == len(os.sched_getaffinity(0))
    assert f"({found['cores']} cores)" in found["device"]


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_is_that_of_the_repository_that_holds_the_package_and_of_no_other(tmp_path):
    for package in (tmp_path / "psgjax", tmp_path / "venv/lib/psgjax"):
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
    git(tmp_path, "init")
    git(tmp_path, "add", "venv")
    git(tmp_path, "commit", "-m", "an environment in somebody's repository")
    assert environment._commit(tmp_path / "venv/lib/psgjax") is None  # tracked, but not at the top
    assert environment._commit(tmp_path / "psgjax") is None  # at the top, but not tracked
    git(tmp_path, "add", "psgjax")
    git(tmp_path, "commit", "-m", "ours")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert environment._commit(tmp_path / "psgjax") == head.stdout.strip()
    assert environment._commit(tmp_path / "venv/lib/psgjax") is None


def test_the_command_is_what_a_person_types(monkeypatch):
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", ModuleSpec("psgjax.__main__", None))
    monkeypatch.setattr(sys, "argv", ["x", "evaluate", "runs/a b"])
    assert environment.provenance()["command"] == "python -m psgjax evaluate 'runs/a b'"


def test_a_run_that_goes_on_elsewhere_says_that_its_bits_differ():
    two, four = {"device": "cpu (2 cores)"}, {"device": "cpu (4 cores)"}
    assert environment.other_bits(two, two) is None
    assert environment.other_bits({**two, "resumed": [four]}, four) is None
    assert environment.other_bits({**four, "resumed": [two]}, four).startswith(
        "so far this run was on cpu (2 cores), from here on it is on cpu (4 cores): the last bits"
    )


def test_training_says_so_and_records_it(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(environment, "cores", lambda: 64)
        train(tiny("gan", steps=16), data, tmp_path / "run", StopAfter(1))
    said = io.StringIO()
    stop, console = loop.Stop(), Console(file=said)
    assert loop.train(tiny("gan", steps=16), data, tmp_path / "run", console=console, stop=stop).finished
    here = environment.device_name()
    assert f"so far this run was on cpu (64 cores), from here on it is on {here}: the last" in said.getvalue()
    recorded = json.loads((tmp_path / "run/env.json").read_text(encoding="utf-8"))
    assert (recorded["cores"], recorded["resumed"][0]["cores"]) == (64, environment.cores())


OTHERS = {
    "jax_enable_x64": [True],
    "jax_threefry_partitionable": [False],
    "jax_default_prng_impl": ["rbg", "unsafe_rbg"],
    "jax_random_seed_offset": [1, 7],
    "jax_default_matmul_precision": ["bfloat16", "float32", "highest"],
    "jax_numpy_dtype_promotion": ["strict"],
    "jax_high_dynamic_range_gumbel": [True],
    "jax_disable_jit": [True],
    "jax_disable_most_optimizations": [True],
    "jax_debug_nans": [True],
    "jax_debug_infs": [True],
    "jax_debug_key_reuse": [True],
    "jax_check_tracer_leaks": [True],
    "jax_transfer_guard": ["disallow", "log", "disallow_explicit"],
}


def test_every_setting_of_jax_that_changes_numbers_has_its_value_in_a_command_and_is_recorded_elsewhere():
    assert OTHERS.keys() == environment.SETTINGS.keys()
    for name, values in OTHERS.items():
        for value in values:
            jax.config.update(name, value)
            assert environment.provenance()["flags"][name] == value
            environment.settle()
            assert all(jax.config.values[each] == usual for each, usual in environment.SETTINGS.items())


@pytest.mark.parametrize("error", [RuntimeError("Unable to initialize backend 'cuda': none.\nmore"), AssertionError()])
def test_no_device_is_one_line(error, monkeypatch, capsys):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    assert run_command(environment.settle) == 2
    assert capsys.readouterr().err.count("\n") == 1
    with pytest.raises(
        ConfigError, match=r"^jax finds no device.*: (Unable .*none|nothing for it is installed)\. Unset JAX_P"
    ):
        environment.settle()


def test_without_a_home_nothing_is_kept_and_a_line_says_so(monkeypatch, capsys):
    def nobody(uid):
        raise KeyError(uid)

    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    environment.use_compilation_cache()
    assert jax.config.values["jax_compilation_cache_dir"] is None
    assert capsys.readouterr().err.startswith("compiled programs are not kept, and will be compiled again next time: ")


def test_a_cache_that_cannot_be_written_is_none(tmp_path, monkeypatch, disk, capsys):
    (tmp_path / "file").touch()
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    for folder in (tmp_path / "file", tmp_path / "file/x", disk, disk / "x"):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(folder))
        environment.use_compilation_cache()
        assert jax.config.values["jax_compilation_cache_dir"] is None
        assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    environment.use_compilation_cache()
    assert jax.config.values["jax_compilation_cache_dir"] is None
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "new"))
    environment.use_compilation_cache()
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "new")
    assert capsys.readouterr().err == ""


def test_a_program_that_another_process_is_writing_is_compiled_without_a_word(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    compilation_cache.reset_cache()  # of the tests: jax asks for the folder once
    try:
        with warnings.catch_warnings(action="error"):
            environment.use_compilation_cache()
            for _ in range(2):
                assert jax.jit(lambda x: 3 * x + 1)(np.float32(2)) == 7
                entries = list(tmp_path.glob("*-cache"))
                assert entries
                for entry in entries:
                    entry.write_bytes(b"")
    finally:
        compilation_cache.reset_cache()


def program(*arguments, **variables):
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )


def verified(folder, capsys):
    capsys.readouterr()
    assert sample.main([str(folder), "--verify"]) == 0
    return capsys.readouterr().out.split()[0]


@pytest.mark.uncovered
def test_a_run_has_the_same_bits_whatever_the_environment_says_of_jax(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert mnist.main([*RUN, "--out", "usual"]) == 0
    said = {name.upper(): str(values[0]) for name, values in OTHERS.items()}
    said |= {"JAX_NUMPY_RANK_PROMOTION": "raise", "JAX_COMPILATION_CACHE_DIR": "/dev/null", "PATH": "", "TERM": "dumb"}
    said |= {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null"}
    done = program("experiments.mnist", *RUN, "--out", "한글 :smile:", **said)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("compiled programs are not kept")
    assert done.stdout.endswith(r"report: \ud55c\uae00 :smile:/report.html" + "\n")
    assert verified("한글 :smile:/gan", capsys) == verified("usual/gan", capsys)


@pytest.mark.uncovered
@pytest.mark.parametrize(
    ("command", "variable", "value", "line"),
    [
        (
            ["psgjax", "sample", "run"],
            "JAX_RANDOM_SEED_OFFSET",
            "many",
            "error: a JAX_... variable of the environment has a value",
        ),
        (
            ["experiments.mnist", *RUN],
            "JAX_PLATFORMS",
            "nonsense",
            "error: jax finds no device for JAX_PLATFORMS=nonsense: ",
        ),
        (
            ["experiments.mnist", *RUN],
            "XLA_FLAGS",
            "--nonsense=1",
            "Unknown flag in XLA_FLAGS: --nonsense=1",
        ),  # XLA's own
    ],
)
def test_what_jax_does_not_take_is_one_line_and_writes_nothing(command, variable, value, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = program(*command, **{variable: value})
    assert done.returncode in (1, 2)
    assert line in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=st.text(st.characters(min_codepoint=32, exclude_categories=("Cs",)), max_size=9))
def test_any_text_in_a_variable_of_jax_is_a_value_or_one_line(value, monkeypatch, capsys):
    from jax._src import config

    monkeypatch.setenv("JAX_PSGJAX_TEST", value)
    for read in (config.bool_env, config.int_env):
        capsys.readouterr()
        status = run_command(lambda read=read: read("JAX_PSGJAX_TEST", 0) and None)
        error = capsys.readouterr().err
        assert (status, error.count("\n")) in ((0, 0), (2, 1))
