"""A run that diverges stops at the update that did it, keeps it, and the same update fails again from its file alone."""

import dataclasses
import json
import math
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import IMAGE, SHAPE, first_state, same, tiny
from rich.console import Console
from updates import compiled_step, member, stacked

from experiments import mnist
from psgjax.commands import replay
from psgjax.config import Data, Optimizer
from psgjax.data.dataset import Dataset
from psgjax.evaluation import classifier
from psgjax.method import epochs
from psgjax.method import state as states
from psgjax.runs import divergence
from psgjax.runs.checkpoint import Checkpoints
from psgjax.runs.metrics import read_lines
from psgjax.training import loop

UNSTABLE = Optimizer(learning_rate=1.2e9)  # scores grow for an epoch or so until they overflow


def train(config, images, folder, stop=None):
    info = {"description": "noise", "sha256": "0" * 64, "source": "packaged", "warning": None}
    data = Dataset(images, np.zeros(32, np.int32), images[:8], np.zeros(8, np.int32), info)
    return loop.train(config, data, folder, console=Console(quiet=True), stop=stop or loop.Stop())


class StopAtOnce(loop.Stop):
    """As a signal would, after the first call to the device."""

    def __init__(self):
        self.looks = 0

    @property
    def signal(self):
        self.looks += 1
        return 2 if self.looks > 1 else 0


@pytest.fixture(scope="module")
def diverged(images, tmp_path_factory):
    """A run that was stopped, resumed and diverged: its configuration, its folder, and what was said."""
    config, folder = tiny(network=IMAGE, steps=40, optimizer=UNSTABLE), tmp_path_factory.mktemp("runs") / "psg"
    assert train(config, images, folder, StopAtOnce()).step == 1
    with pytest.raises(loop.Diverged) as raised:
        train(config, images, folder)
    return config, folder, str(raised.value)


def test_it_stops_at_the_first_update_that_fails_and_keeps_the_one_before(diverged, images):
    config, folder, told = diverged
    program, state = epochs.make_run(config, 32, SHAPE), first_state(config)
    while True:  # the same, one update a call
        before = jax.tree.map(jnp.copy, state)
        state, sums = program(state, jnp.asarray(images), jnp.int32(1))
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(sums)):
            break
    failed = int(state.step)
    assert failed > 8, "the run must fail after its first epoch"
    kept, kept_state, batch, report = divergence.read(folder / "diverged.safetensors")
    assert (kept, report["step"]) == (config, failed)
    assert same(kept_state, before)
    key = jax.random.fold_in(jax.random.fold_in(before.key, states.Stream.EPOCHS), (failed - 1) // 8)
    start = (failed - 1) % 8 * 4
    np.testing.assert_array_equal(batch[0], images[jax.random.permutation(key, 32)[start : start + 4]])
    names = [f"{part}.{side}" for part in ("loss", "gated_loss") for side in ("discriminator", "generators")]
    assert report["not_finite"] == [
        n for n in sorted(names) if not np.isfinite(sums[n.split(".")[0]][n.split(".")[1]]).all()
    ]
    assert all(name in told for name in report["not_finite"])
    assert f"at step {failed}" in told
    squares = [
        float(np.sum(np.square(leaf, dtype=np.float64))) for leaf in jax.tree.leaves(before.discriminator.params)
    ]
    assert math.isclose(report["parameter_norm"]["discriminator"], math.sqrt(sum(squares)), rel_tol=1e-12)
    # What came before stays, and nothing of what failed is among it.
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == list(range(8, failed, 8))
    assert "NaN" not in (folder / "metrics.jsonl").read_text()
    with Checkpoints(folder / "checkpoints") as checkpoints:
        assert int(checkpoints.restore(before)[0].step) == 1


def test_the_file_alone_shows_the_same_failure_again(diverged, tmp_path, monkeypatch, capsys):
    _, folder, told = diverged
    file = re.search(r"psgjax replay (\S+)", told)[1]
    monkeypatch.setenv("COLUMNS", "300")
    (folder / "diverged.safetensors").rename(tmp_path / "elsewhere")
    assert replay.main([str(tmp_path / "elsewhere")]) == 0
    report = divergence.read(tmp_path / "elsewhere")[3]
    (tmp_path / "elsewhere").rename(file)
    shown = capsys.readouterr().out
    assert "the same failure with the same numbers" in shown
    for side in ("discriminator", "generators"):
        row = next(line for line in shown.splitlines() if f"parameter_norm.{side}" in line)
        assert row.count(divergence._text(report["parameter_norm"][side])) == 2
    assert shown.count("  ".join(report["not_finite"])) == 2


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        (lambda state, names: (first_state(tiny(network=IMAGE)), []), "there is no failure"),
        (lambda state, names: (first_state(tiny(network=IMAGE)), names), "there is no failure"),
        (lambda state, names: (state, names[:1]), "with other numbers"),
    ],
    ids=["healthy", "said to fail", "failing otherwise"],
)
def test_what_does_not_fail_as_recorded_is_status_1(change, verdict, diverged, tmp_path, capsys):
    config, state, batch, report = divergence.read(diverged[1] / "diverged.safetensors")
    state, names = change(state, report["not_finite"])
    divergence.write(tmp_path / "file", config, state, batch, names)
    assert replay.main([str(tmp_path / "file")]) == 1
    assert verdict in capsys.readouterr().out


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


DAMAGE = {
    "empty": lambda data: b"",
    "cut short": lambda data: data[:-1],
    "a bit of its arrays": lambda data: flipped(data, len(data) - 7),
    "a number of its report": lambda data: flipped(data, data.index(b"parameter_norm") + 40),
    "its header": lambda data: flipped(data, 3),
    "a classifier": lambda data: classifier.SHIPPED.read_bytes(),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_one_line_and_status_2(case, diverged, tmp_path, capsys):
    (tmp_path / "file").write_bytes(DAMAGE[case]((diverged[1] / "diverged.safetensors").read_bytes()))
    assert replay.main([str(tmp_path / "file")]) == 2
    error = capsys.readouterr().err.strip()
    assert "or a damaged one" in error
    assert "\n" not in error


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_file_that_is_none_is_one_line_and_status_2(name, tmp_path, capsys):
    assert replay.main([str(tmp_path / name)]) == 2
    error = capsys.readouterr().err.strip()
    assert str(tmp_path / name) in error
    assert "\n" not in error


@pytest.mark.uncovered
def test_gradient_norms_are_those_of_the_gradients(images):
    config = dataclasses.replace(tiny("stackelberg"), optimizer=Optimizer(beta1=0.9))
    program = epochs.make_run(config, 32, SHAPE)
    state, _ = program(jax.tree.map(jnp.copy, first_state(config)), jnp.asarray(images), jnp.int32(3))
    batch = divergence.next_batch(config, state, jnp.asarray(images))
    norms = divergence.examine(config, state, batch)["gradient_norm"]
    without = dataclasses.replace(config, optimizer=Optimizer(beta1=0.0))  # its first moment is the gradient
    after, _ = compiled_step(without)(state, batch)
    moments = after.generators.opt_state[0].mu, after.discriminator.opt_state[0].mu
    wanted = [divergence._norm(jax.tree.map(lambda leaf, i=i: leaf[i], moments[0])) for i in range(2)]
    np.testing.assert_allclose(norms["generators"], wanted, rtol=1e-4)
    np.testing.assert_allclose(norms["discriminator"], divergence._norm(moments[1]), rtol=1e-4)


@pytest.mark.uncovered
def test_flips_mirror_half_of_the_images_and_follow_from_seed_and_step(images):
    plain = tiny("gan", batch_size=16)
    config = dataclasses.replace(plain, data=Data(flip=True))
    program, step = epochs.make_run(config, 32, SHAPE), compiled_step(config)
    state, mirrored = first_state(config), []
    for count in (1, 2):
        batch, before = (
            np.asarray(divergence.next_batch(each, state, jnp.asarray(images))) for each in (config, plain)
        )
        same = (batch == before).all((0, 2, 3, 4))
        np.testing.assert_array_equal(batch[0, ~same], before[0, ~same, :, ::-1])
        mirrored.append(tuple(~same))
        state, _ = step(state, jnp.asarray(batch))
        run, _ = program(jax.tree.map(jnp.copy, first_state(config)), jnp.asarray(images), jnp.int32(count))
        chex.assert_trees_all_close(run.generators, state.generators, rtol=1e-4, atol=1e-6)
    assert all(0 < sum(each) < 16 for each in mirrored)
    assert mirrored[0] != mirrored[1]


def test_a_gradient_that_the_gate_left_out_has_no_norm(images):
    config = tiny(gate="mean")  # one branch for the whole batch: in each somebody does not learn
    batch = jnp.asarray(images[:4])[None]
    norms = divergence.examine(config, first_state(config), batch)["gradient_norm"]
    _, metrics = compiled_step(config)(first_state(config), batch)
    updated = [float(x) for x in (metrics["updates"]["discriminator"], *metrics["updates"]["generators"])]
    assert 0.0 in updated
    assert 1.0 in updated
    assert [float(norm > 0) for norm in (norms["discriminator"], *norms["generators"])] == updated


@pytest.mark.uncovered
def test_a_replica_that_fails_stops_alone_and_stays_as_it_is(images):
    config = tiny("stackelberg")
    states = [first_state(dataclasses.replace(config, seed=seed)) for seed in range(2)]
    bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.inf), states[1].discriminator.params)
    bad = dataclasses.replace(states[1], discriminator=dataclasses.replace(states[1].discriminator, params=bad))
    program, images = epochs.make_run(config, 32, SHAPE, replicas=True), jnp.asarray(images)
    ends = []
    for second in (states[1], bad):
        ends.append(program(stacked(states[0], second), images, jnp.int32(3)))
    (healthy, _), (mixed, sums) = ends
    assert mixed.step.tolist() == [3, 1]
    assert same(*(member(state, 0) for state in (healthy, mixed)))
    assert np.isfinite(sums["loss"]["discriminator"]).tolist() == [True, False]
    again, _ = program(jax.tree.map(jnp.copy, mixed), images, jnp.int32(2))
    assert again.step.tolist() == [5, 1]
    assert same(*(member(state, 1) for state in (mixed, again)))


@pytest.mark.uncovered
@pytest.mark.drawn
def test_after_one_method_has_diverged_the_others_are_trained_and_the_report_is_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--network.name", "mlp", "--network.width", "2", "--evaluation-epochs", "0", "--batch-size", "8"]
    arguments = [*small, "--data.source", "packaged", "--data.train-images", "64", "--epochs", "2"]
    real = divergence.not_finite
    failed = iter([["loss.discriminator"]])
    monkeypatch.setattr(divergence, "not_finite", lambda total: next(failed, None) or real(total))
    monkeypatch.setattr(divergence, "advance", lambda config, state, images, step: state)
    assert mnist.main([*arguments, "--methods", "gan", "sngan"]) == 1
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "error: gan: loss.discriminator not finite at step 1;" in captured.err
    assert "report: runs/mnist/report.html" in captured.out
    methods = json.loads((tmp_path / "runs/mnist/summary.json").read_text())["methods"]
    assert (methods["gan"]["finished"], methods["sngan"]["finished"]) == (False, True)
    page = (tmp_path / "runs/mnist/report.html").read_text()
    assert "training diverged at step" in page
    assert "gan: the run is unfinished" not in page


def test_a_run_that_was_stopped_before_its_first_step_is_not_said_to_be_saved():
    assert (
        loop.Outcome(0, finished=False).stopped("psg", 9)
        == "stopped before the first step of psg; run the same command again to begin"
    )
    told = loop.Outcome(8, finished=False).stopped("psg", 9)
    assert told == "stopped at step 8 of 9 of psg and saved; run the same command again to go on"
