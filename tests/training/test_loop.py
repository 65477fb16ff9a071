"""Resumed equals uninterrupted, bit for bit; folders, checkpoints and data that do not belong are refused and left alone."""

import dataclasses
import functools
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import chex
import pytest
from conftest import IMAGE, SCHEDULES, like, same, tiny
from rich.console import Console
from small_runs import StopAfter, final_state, timeless, train

from psgjax.config import ConfigError
from psgjax.leaves import digest
from psgjax.runs import folder as runfolder
from psgjax.runs.checkpoint import CheckpointError, Checkpoints
from psgjax.training import loop


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        pytest.param("psg", {"network": IMAGE}, marks=pytest.mark.uncovered),
        pytest.param("sngan", {}, marks=pytest.mark.uncovered),
        ("choice", {"pack": 2, "optimizer": SCHEDULES}),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(name, changes, data, tmp_path):
    config = tiny(name, steps=20, **changes)  # two epochs and a half of 8 steps
    assert train(config, data, tmp_path / "whole") == loop.Outcome(20, finished=True)
    assert [line["step"] for line in timeless(tmp_path / "whole")] == [8, 16, 20]
    assert [line["epoch"] for line in timeless(tmp_path / "whole")] == [1, 2, 2.5]
    outcomes = []
    for looks in (2, 4, 3, 100):
        outcomes.append(train(config, data, tmp_path / "cut", StopAfter(looks)))
        if outcomes[-1].finished:
            break
    assert len(outcomes) > 2
    assert not outcomes[0].finished
    assert outcomes[-1] == loop.Outcome(20, finished=True)
    assert timeless(tmp_path / "cut") == timeless(tmp_path / "whole")
    assert same(final_state(config, tmp_path / "cut"), final_state(config, tmp_path / "whole"))
    assert digest(final_state(config, tmp_path / "cut")) == digest(final_state(config, tmp_path / "whole"))
    names = [sorted(p.name for p in (tmp_path / run / "samples").iterdir()) for run in ("cut", "whole")]
    assert names[0] == names[1] == [f"epoch-000{i}.png" for i in range(4)]
    for path in (tmp_path / "whole/samples").iterdir():
        assert path.read_bytes() == (tmp_path / "cut/samples" / path.name).read_bytes()
    environment = json.loads((tmp_path / "cut/env.json").read_text())
    assert len(environment["resumed"]) == len(outcomes) - 1
    assert environment["versions"]["jax"]


@pytest.mark.uncovered
@pytest.mark.parametrize("name", ["psg", "sngan"])
def test_seeds_in_one_program_equal_the_runs_of_each_bit_for_bit(name, data, tmp_path):
    config = tiny(name, steps=20)
    assert train(config, data, tmp_path / "together", seeds=(5, 3)) == loop.Outcome(20, finished=True)
    for seed in (3, 5):
        alone, together = tmp_path / f"{seed}", tmp_path / f"together/seed-{seed}"
        one = dataclasses.replace(config, seed=seed)
        train(one, data, alone)
        assert runfolder.read_config(together) == one
        assert timeless(together) == timeless(alone)
        assert same(final_state(one, together), final_state(one, alone))
        files = [{path.relative_to(run) for path in run.rglob("*.*")} for run in (together, alone)]
        assert files[0] == files[1]
        for path in alone.glob("samples/*"):
            assert path.read_bytes() == (together / "samples" / path.name).read_bytes()
    assert timeless(tmp_path / "3") != timeless(tmp_path / "5")
    assert train(config, data, tmp_path / "together", seeds=(5, 3)) == loop.Outcome(20, finished=True)


@pytest.mark.uncovered
def test_seeds_in_one_batch_equal_the_runs_of_each_up_to_rounding(data, tmp_path, monkeypatch):
    config = tiny("psg", network=IMAGE, steps=4, batch_size=8)  # one epoch
    train(config, data, tmp_path / "in-turn", seeds=(0, 1))
    monkeypatch.setattr(loop, "IN_TURN", ())
    train(config, data, tmp_path / "batched", seeds=(0, 1))
    for seed in ("seed-0", "seed-1"):
        (one,), (other,) = timeless(tmp_path / "batched" / seed), timeless(tmp_path / "in-turn" / seed)
        chex.assert_trees_all_close(one, other, atol=1e-5)
        states = [final_state(config, tmp_path / run / seed) for run in ("batched", "in-turn")]
        chex.assert_trees_all_close(*(s.generators.batch_stats for s in states), rtol=1e-5, atol=1e-6)
        assert states[0].step.shape == ()


def saved(folder):
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir())


@pytest.mark.uncovered
def test_seeds_cut_between_two_saves_go_on_from_the_last_common_one(data, tmp_path):
    config, cut, seeds = tiny("gan", steps=20), tmp_path / "cut", (0, 1)
    train(config, data, tmp_path / "whole", seeds=seeds)
    train(config, data, cut, StopAfter(2), seeds)
    first = saved(cut / "seed-0")
    shutil.rmtree(cut / f"seed-1/checkpoints/{first[0]}")  # killed in the very first save: all begin again
    for stop in (4, 4):
        train(config, data, cut, StopAfter(stop), seeds)
    assert saved(cut / "seed-0") == saved(cut / "seed-1") == [8, 16]
    assert [line["step"] for line in timeless(cut / "seed-0")] == [8, 16]
    shutil.rmtree(cut / "seed-1/checkpoints/16")  # killed after the save of the one and before that of the other
    assert train(config, data, cut, StopAfter(0), seeds).step == 8
    assert saved(cut / "seed-0") == saved(cut / "seed-1") == [8]
    assert [line["step"] for line in timeless(cut / "seed-0")] == [8]
    assert train(config, data, cut, seeds=seeds) == loop.Outcome(20, finished=True)
    for run in ("seed-0", "seed-1"):
        assert timeless(cut / run) == timeless(tmp_path / "whole" / run)
        assert same(final_state(config, cut / run), final_state(config, tmp_path / "whole" / run))
    shutil.rmtree(cut / "seed-1/checkpoints")
    with pytest.raises(CheckpointError, match=r"no checkpoint of the same step \(seed-0: \[.*20\]; seed-1: none\)"):
        train(config, data, cut, seeds=seeds)


def logged(method, calls):
    @functools.wraps(method)
    def call(*arguments):
        calls.append(method.__name__)
        return method(*arguments)

    return call


@pytest.mark.uncovered
def test_no_save_begins_before_every_seed_has_completed_the_one_before(data, tmp_path, monkeypatch):
    calls = []
    for name in ("wait", "save"):
        monkeypatch.setattr(Checkpoints, name, logged(getattr(Checkpoints, name), calls))
    monkeypatch.setattr(loop, "_SAVE_SECONDS", 0)
    train(tiny("gan", steps=4), data, tmp_path / "run", seeds=(0, 1))
    assert " ".join(["wait", "wait", "save", "wait", "save", "wait"] * 3) in " ".join(
        calls
    )  # (each also waits for its own)


def test_other_seeds_in_the_folder_are_refused(data, tmp_path):
    config = tiny("gan", steps=1)
    train(config, data, tmp_path / "one")
    train(config, data, tmp_path / "three", seeds=(0, 1, 2))
    listing = sorted(tmp_path.rglob("*"))
    for folder, seeds, message in (
        ("one", (0, 1), "one holds a run of seed 0, asked for is 0 1: .* Choose another --out, or the same seeds"),
        ("three", (0, 1, 3), "three holds the seeds 0 1 2, asked for is 0 1 3"),
        ("three", (0, 1), "three holds the seeds 0 1 2, asked for is 0 1:"),
        ("three", (0, 1, 2, 3), "three holds the seeds 0 1 2, asked for is 0 1 2 3"),
        ("three", (), "three holds the seeds 0 1 2, asked for is 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(config, data, tmp_path / folder, seeds=seeds)
    with pytest.raises(ConfigError, match="seed-0 holds a run with other settings: batch_size: 4 -> 8"):
        train(dataclasses.replace(config, batch_size=8), data, tmp_path / "three", seeds=(0, 1, 2))
    assert sorted(tmp_path.rglob("*")) == listing
    for seed in (0, 1):
        shutil.rmtree(tmp_path / f"three/seed-{seed}/checkpoints")
    shutil.rmtree(tmp_path / "three/seed-2")  # killed before the last folder was made
    assert train(config, data, tmp_path / "three", seeds=(0, 1, 2)).finished


def test_a_finished_run_is_left_as_it_is(data, tmp_path):
    config = tiny("gan", steps=3)
    train(config, data, tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert train(config, data, tmp_path / "run") == loop.Outcome(3, finished=True)
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_other_settings_or_something_else_in_the_folder_are_refused(data, tmp_path):
    config = tiny("gan", steps=1)
    train(config, data, tmp_path / "run")
    listing = sorted((tmp_path / "run").rglob("*"))
    with pytest.raises(ConfigError, match="other settings: batch_size: 4 -> 8; seed: 0 -> 5"):
        train(dataclasses.replace(config, seed=5, batch_size=8), data, tmp_path / "run")
    assert sorted((tmp_path / "run").rglob("*")) == listing
    (tmp_path / "other/samples").mkdir(parents=True)
    (tmp_path / "other/samples/thesis.tex").touch()
    with pytest.raises(ConfigError, match="other/samples is of no run and would be overwritten"):
        train(config, data, tmp_path / "other")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        train(config, data, tmp_path / "file")
    (tmp_path / "run/config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config.json is not a configuration .* not JSON"):
        train(config, data, tmp_path / "run")


def test_other_data_than_the_run_began_with_are_refused(data, tmp_path):
    config = tiny("gan", steps=2)
    train(config, data, tmp_path / "run", StopAfter(1))
    changed = dataclasses.replace(data, info={**data.info, "sha256": "1" * 64, "description": "other noise"})
    before = (tmp_path / "run/env.json").read_bytes()
    with pytest.raises(ConfigError, match="then noise .* now other noise"):
        train(config, changed, tmp_path / "run")
    assert (tmp_path / "run/env.json").read_bytes() == before
    for content in ("{", "[]", '{"data": 3}', "[" * 100_000):
        (tmp_path / "run/env.json").write_text(content)
        with pytest.raises(ConfigError, match=r"env\.json is damaged"):
            train(config, data, tmp_path / "run")


def test_a_folder_in_use_is_refused_and_taken_over_from_the_dead(data, tmp_path):
    config = tiny("gan", steps=1)
    folder = tmp_path / "run"
    folder.mkdir()
    hold = "import sys, time, pathlib; from psgjax.runs import folder as runfolder\n"
    hold += "with runfolder.alone(pathlib.Path(sys.argv[1]), print): print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", hold, folder], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    with pytest.raises(ConfigError, match=f"in use by process {process.pid} on {socket.gethostname()}; wait"):
        train(config, data, folder)
    assert [path.name for path in folder.iterdir()] == ["lock"]
    process.kill()
    process.communicate()
    assert train(config, data, folder).finished


def test_a_second_signal_does_not_wait(monkeypatch):
    def leave(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    before, stop = signal.getsignal(signal.SIGINT), loop.Stop()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        assert stop.signal == signal.SIGINT
        with pytest.raises(SystemExit) as left:
            signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.uncovered
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_process_at_once(number):
    wait = "import time; from psgjax.shell import Stop\n"
    wait += (
        "with Stop().listening(): print('ready', flush=True); time.sleep(1); print('asked', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", wait], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.readline() == "asked\n"  # the first one ends nothing
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number


def test_a_checkpoint_of_another_shape_is_refused_not_cast(data, tmp_path):
    config = tiny("gan", steps=1)
    train(config, data, tmp_path / "run")
    wider = dataclasses.replace(config, network=dataclasses.replace(config.network, width=9))
    with (
        Checkpoints(tmp_path / "run/checkpoints") as checkpoints,
        pytest.raises(CheckpointError, match=r"holds float32\[.*this run needs"),
    ):
        checkpoints.restore(like(wider))


def test_the_forecast_is_of_a_processor_that_does_not_compile(data, tmp_path, monkeypatch):
    before, done = loop.make_run, []
    monkeypatch.setattr(loop, "seconds_per_operation", lambda: done.append("measured") or 1e-9)
    monkeypatch.setattr(loop, "make_run", lambda *arguments: done.append("made") or before(*arguments))
    for quiet in (False, True):  # to which nobody listens
        console, folder = Console(quiet=quiet, file=io.StringIO()), tmp_path / f"{quiet}"
        loop.train(tiny("gan", steps=1), data, folder, console=console, stop=loop.Stop())
    assert done == ["measured", "made", "made"]


@pytest.mark.uncovered
def test_a_run_whose_checkpoints_were_deleted_begins_again(data, tmp_path):
    config = tiny("gan", steps=9)
    train(config, data, tmp_path / "run")
    whole = timeless(tmp_path / "run")
    shutil.rmtree(tmp_path / "run/checkpoints")
    train(config, data, tmp_path / "run")
    assert timeless(tmp_path / "run") == whole
