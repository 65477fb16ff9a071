"""The main command: what it writes, and that a killed run ends as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import leaves, like, same
from PIL import Image
from small_mnist import SMALL, main

from experiments import mnist
from psgjax.commands import sample
from psgjax.config import Config, Method
from psgjax.runs import folder as runfolder
from psgjax.runs.checkpoint import Checkpoints
from psgjax.runs.metrics import read_lines
from psgjax.schema import from_json, to_json
from psgjax.switches import METHODS

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")


def timeless(folder):
    return [
        {key: value for key, value in line.items() if key != "seconds"} for line in read_lines(folder / "metrics.jsonl")
    ]


def final_state(folder):
    config = runfolder.read_config(folder)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        return checkpoints.restore(like(config, (28, 28, 1)))[0]


def test_trains_both_methods_and_writes_everything(idx, tmp_path, capsys):
    arguments = ("--epochs", "2", "--data.dir", idx, *SMALL, "--network.name", "dcgan")
    assert main(*arguments) == 0
    out = tmp_path / "runs/mnist"
    for name in (
        "report.html",
        "summary.json",
        *(f"figures/{figure}.png" for figure in ("loss", "accuracy", "samples")),
    ):
        assert (out / name).stat().st_size > 0
    summary = json.loads((out / "summary.json").read_text())
    assert set(summary["methods"]) == {"psg", "sngan"}
    for method in ("psg", "sngan"):
        folder = out / method
        config = from_json(Config, (folder / "config.json").read_text())
        assert (config.method, config.steps) == (METHODS[method], 16)
        assert [(line["epoch"], line["step"], line["images"]) for line in read_lines(folder / "metrics.jsonl")] == [
            (1, 8, 64),
            (2, 16, 128),
        ]
        found = json.loads((folder / "env.json").read_text())["data"]
        assert (found["source"], found["dir"], found["train_images"]) == ("idx", str(idx), 64)
        assert {path.name for path in (folder / "samples").iterdir()} == {f"epoch-000{i}.png" for i in range(3)}
    told = capsys.readouterr().out
    assert "psg: training 16 steps (2 epochs) at batch size 8 on cpu" in told
    assert re.search(r"^psg: training .*; about \d", told, re.MULTILINE)
    assert "warning" not in told
    assert "MNIST" not in told  # which these are not

    for name in ("some.png", "some.npz"):  # a saved run can be sampled
        assert sample.main([str(out / "psg"), "--count", "5", "--out", name]) == 0
    with np.load("some.npz", allow_pickle=False) as saved:
        assert saved["images"].shape == (2, 5, 28, 28, 1)
        more = sample.sample(*sample.load(out / "psg"), count=7, seed=0)
        np.testing.assert_array_equal(more[:, :5], saved["images"])
    with Image.open("some.png") as picture:
        assert picture.size == (8 * 28, 2 * 28)

    (out / "report.html").unlink()  # a finished run says so and redraws the report
    lines = timeless(out / "psg")
    assert main(*arguments) == 0
    assert "psg: finished already, 16 steps" in capsys.readouterr().out
    assert (out / "report.html").exists()
    assert timeless(out / "psg") == lines

    listing = {path: path.stat().st_mtime_ns for path in out.rglob("*")}  # other settings touch nothing
    assert main(*arguments, "--seed", "1") == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err
    assert main(*arguments, "--methods", "gan", "--optimizer.beta1", "0.1") == 2  # nor does another method beside these
    assert "optimizer.beta1: 0.5 -> 0.1" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == listing


def test_every_seed_leaves_what_a_run_of_its_own_leaves(idx, tmp_path, capsys):
    arguments = (
        "--epochs",
        "1",
        "--data.dir",
        idx,
        *SMALL,
        "--evaluation-epochs",
        "1",
        "--evaluation-samples",
        "24",
    )
    assert main(*arguments, "--methods", "gan", "--seeds", "7", "3") == 0
    assert main(*arguments, "--methods", "gan", "--seeds", "3", "--out", "one") == 0  # one seed: no folder for it
    together, alone = tmp_path / "runs/mnist/gan/seed-3", tmp_path / "one/gan"
    assert {path.relative_to(together) for path in together.rglob("*.*")} == {
        path.relative_to(alone) for path in alone.rglob("*.*")
    }
    assert timeless(together) == timeless(alone)
    assert timeless(together)[0]["evaluation"]["samples"] == 24
    assert (together / "neighbours.png").read_bytes() == (alone / "neighbours.png").read_bytes()
    assert same(final_state(together), final_state(alone))
    assert list(json.loads((tmp_path / "runs/mnist/summary.json").read_text())["methods"]["gan"]["seeds"]) == ["3", "7"]
    assert sample.main([str(together), "--count", "5", "--out", "some.png"]) == 0
    capsys.readouterr()
    for seeds in (["--seeds", "3", "8"], ["--seed", "3"]):
        assert main(*arguments, "--methods", "psg", *seeds) == 2  # nor does another method beside these
        error = capsys.readouterr().err.strip()
        assert "gan holds the seeds 3 7, asked for is 3" in error
        assert "\n" not in error
    assert not (tmp_path / "runs/mnist/psg").exists()


def test_every_switch_is_in_help_with_its_sentence(capsys):
    assert main("--help") == 0
    told = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for name, hint in typing.get_type_hints(Method, include_extras=True).items():
        assert f"--method.{name.replace('_', '-')}" in told
        assert " ".join(hint.__metadata__[0].documentation.split()) in told
    for option in (
        "--methods",
        "--steps",
        "--epochs",
        "--batch-size",
        "--seed",
        "--out",
        "--data.source",
        "--data.dir",
        "--preset",
    ):
        assert option in told


def test_overrides_reach_every_method(idx, tmp_path):
    arguments = (
        "--steps",
        "1",
        "--data.dir",
        idx,
        *SMALL,
        "--methods",
        "psg",
        "--method.generators",
        "3",
        "--out",
        "k3",
    )
    assert main(*arguments) == 0
    config = runfolder.read_config(tmp_path / "k3/psg")
    assert (config.method.generators, config.method.gate) == (3, "triplet")
    assert len(read_lines(tmp_path / "k3/psg/metrics.jsonl")[0]["branches"]) == 4


def arguments(idx, out, *more):
    return "--data.dir", idx, "--out", out, "--methods", "psg", *SMALL, *more


def start(idx, out, *more):
    command = [sys.executable, "-m", "experiments.mnist", *arguments(idx, out, *more)]
    environment = {**os.environ, "PYTHONPATH": str(Path(mnist.__file__).parents[1])}
    return subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for_lines(process, path, count):
    deadline = time.monotonic() + 400
    while len(read_lines(path)) < count:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.long
def test_killed_anywhere_or_stopped_a_run_ends_with_the_same_numbers(idx, tmp_path):
    epochs = ("--epochs", "200")
    before = 0
    for number, status in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):  # saves, says how to go on
        process = start(idx, tmp_path / "cut", *epochs)
        wait_for_lines(process, tmp_path / "cut/psg/metrics.jsonl", before + 3)
        process.send_signal(number)
        out, error = process.communicate(timeout=400)
        assert process.returncode == status, error
        assert "run the same command again to go on" in out
        assert error == ""
        before = len(read_lines(tmp_path / "cut/psg/metrics.jsonl"))
        config = runfolder.read_config(tmp_path / "cut/psg")
        with Checkpoints(tmp_path / "cut/psg/checkpoints") as checkpoints:  # nothing is lost, not an update
            state, progress = checkpoints.restore(like(config, (28, 28, 1)))
        assert f"stopped at step {int(state.step):,} of" in out
        assert progress["config"] == json.loads(to_json(config))
        assert progress["versions"]["jax"] == jax.__version__
    assert before < 200, "the run must be stopped in its middle"
    process = start(idx, tmp_path / "cut", *epochs)
    wait_for_lines(process, tmp_path / "cut/psg/metrics.jsonl", before + 3)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    process = start(idx, tmp_path / "cut", *epochs)
    out, error = process.communicate(timeout=400)
    assert process.returncode == 0, error
    assert "continuing at step" in out
    assert main(*arguments(idx, tmp_path / "whole", *epochs)) == 0
    assert timeless(tmp_path / "cut/psg") == timeless(tmp_path / "whole/psg")
    cut, whole = final_state(tmp_path / "cut/psg"), final_state(tmp_path / "whole/psg")
    assert int(cut.step) == 1600
    assert len(leaves(cut)) > 20
    assert same(cut, whole)
