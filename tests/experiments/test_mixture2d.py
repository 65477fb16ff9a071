import dataclasses
import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.image import imread
from rich.console import Console

from experiments import mixture2d, mixtures, tables
from psgjax.config import Config, Network, Optimizer
from psgjax.method import epochs
from psgjax.method import state as states
from psgjax.switches import METHODS

pytestmark = pytest.mark.usefixtures("in_a_folder_of_its_own")

TINY = ["--steps", "20", "--seeds", "2", "--points", "1000", "--samples", "200"]
TINY += ["--network.width", "8", "--batch-size", "16", "--out", "out"]
QUIET = Console(quiet=True)


def config(name, steps=80, **changes):
    network = Network("mlp", width=8, latent_size=2)
    optimizer = Optimizer(learning_rate=1e-3, schedule="linear")
    return Config(name, METHODS[name], network, optimizer, batch_size=16, steps=steps, **changes)


@pytest.mark.parametrize("name", mixtures.MIXTURES)
def test_the_mixtures_are_the_published_ones(name):
    mixture = mixtures.MIXTURES[name]
    points = np.asarray(mixtures.draw(mixture, 20_000, jax.random.key(1))).reshape(-1, 2)
    measured = mixtures.measure(points, mixture)
    assert measured["modes"] == len(mixture.centres) == {"ring": 8, "grid": 25}[name]
    assert measured["high_quality"] == pytest.approx(1 - math.exp(-4.5), abs=0.004)
    assert measured["reverse_kl"] < 2e-3
    if name == "ring":
        np.testing.assert_allclose(np.linalg.norm(mixture.centres, axis=1), 1)
        assert mixture.deviation == 0.01
    else:
        assert sorted({tuple(centre) for centre in mixture.centres}) == sorted(
            (x, y) for x in (-4, -2, 0, 2, 4) for y in (-4, -2, 0, 2, 4)
        )
        assert mixture.deviation == 0.05


def test_a_seed_of_many_is_the_run_of_that_seed_alone():
    """To 1e-4: the products of all seeds are batched, and add up the same numbers in another order.

    The generators are compared, which depend on all that D was. D's last bias is left out: it shifts all scores alike, a
    softmax does not see it, and Adam makes steps of the noise that is its gradient.
    """
    many, points = config("psg-sn", seed=5), mixtures.draw(mixtures.MIXTURES["ring"], 1000, jax.random.key(0))
    seen, trainer = [], mixtures.Trainer(many, seeds=2, points=1000, samples=200)
    for done, trained in trainer.checkpoints(points, QUIET, "psg-sn", every=30):
        assert trained.step.tolist() == [done] * 2
        seen.append(done)
    assert seen == [30, 60, 80]
    one = dataclasses.replace(many, seed=6)
    run, per_epoch = epochs.make_run(one, 1000, mixtures.SHAPE), one.steps_per_epoch(1000)
    begin = jax.jit(lambda: states.init(one, mixtures.SHAPE))()
    state, _ = run(begin, points, jnp.int32(per_epoch))
    state, _ = run(state, points, jnp.int32(one.steps - per_epoch))
    np.testing.assert_array_equal(jax.random.key_data(trained.key)[1], jax.random.key_data(state.key))
    leaves = [jax.tree.leaves(tree.generators.params) for tree in (trained, state)]
    for both, alone in zip(*leaves, strict=True):
        np.testing.assert_allclose(both[1], alone, rtol=1e-4, atol=1e-5)
        assert not np.allclose(both[0], alone, rtol=1e-2)


def test_the_presets():
    quick, pacgan = (mixture2d.configure(mixture2d.Options(preset=name)) for name in ("quick", "pacgan"))
    assert list(pacgan) == ["choice", "r3gan", "psg", "gan"]
    some, other = pacgan["gan"], quick["gan"]
    assert (some.network, some.batch_size) == (Network("maxout", width=200, latent_size=2), 100)
    assert (some.optimizer.learning_rate, some.optimizer.beta1, some.optimizer.schedule) == (1e-4, 0.8, "constant")
    assert (other.network.width, other.batch_size, other.steps) == (64, 64, 4000)
    given = mixture2d.Options(preset="pacgan", steps=7, optimizer=dataclasses.replace(some.optimizer, beta1=0.5))
    changed = mixture2d.configure(given)["gan"]
    assert (changed.steps, changed.optimizer.learning_rate, changed.optimizer.beta1) == (7, 1e-4, 0.5)


def test_samples_are_of_the_mixture_of_generators():
    trainer = mixtures.Trainer(config("psg-sn"), seeds=2, points=1000, samples=200)
    samples, which = trainer.sample(trainer._init(trainer._keys))
    assert samples.shape == (2, 2, 200, 2)
    assert which.shape == (2, 200)
    assert not np.array_equal(which[0], which[1])
    assert np.bincount(which[0]).tolist() == pytest.approx([100, 100], abs=30)


class Stub:
    """In place of a trainer: seed 7 draws two modes of the ring, one a generator; seed 8 nothing near; seed 9 diverged."""

    seeds = (7, 8, 9)

    def sample(self, state):
        ring = mixtures.MIXTURES["ring"].centres
        own = np.broadcast_to(ring[:2, None], (2, 4, 2)).astype(np.float32)
        return np.stack([own, own + 9, np.full_like(own, np.nan)]), np.array([[0, 0, 0, 1]] * 3)


def test_figures_and_their_means_by_hand():
    result, first = mixtures.evaluate(Stub(), None, mixtures.MIXTURES["ring"])
    assert first.shape == (2, 4, 2)
    kl = 0.75 * math.log(6) + 0.25 * math.log(2)
    assert [seed["modes"] for seed in result["per_seed"]] == [2, 0, None]
    assert [seed["high_quality"] for seed in result["per_seed"]] == [1.0, 0.0, None]
    assert [seed["reverse_kl"] for seed in result["per_seed"]] == [pytest.approx(kl, abs=1e-6), None, None]
    assert result["per_seed"][0]["counts"] == [3, 1, 0, 0, 0, 0, 0, 0]
    assert [own["modes"] for own in result["per_seed"][0]["generators"]] == [1, 1]
    assert result["modes"] == {"mean": 1.0, "std": pytest.approx(math.sqrt(2)), "seeds": 2}
    assert result["reverse_kl"] == {"mean": pytest.approx(kl, abs=1e-6), "std": None, "seeds": 1}
    shown = ["1.0 ± 1.4 (2 of 3 seeds)", "50.0 ± 70.7 (2 of 3 seeds)", f"{kl:.2f} (1 of 3 seeds)"]
    assert mixtures.figures(result, 3) == shown
    json.dumps(result, allow_nan=False)
    assert tables.show_mean({"mean": None, "std": None, "seeds": 0}, 3) == "–"


def test_the_command_end_to_end(capsys):
    assert mixture2d.main([*TINY, "--methods", "psg", "wgan-gp"]) == 0
    shown = capsys.readouterr().out
    record = json.loads(Path("out/results.json").read_text())
    assert record["command"].startswith("python -m experiments.mixture2d --steps 20 --seeds 2")
    assert {"commit", "versions", "device", "processor", "seconds"} <= set(record)
    assert record["protocol"]["seeds"] == [0, 1]
    assert record["protocol"]["data_seed"] == 0
    assert record["settings"]["wgan-gp"]["method"]["discriminator_steps"] == 5
    text = Path("out/results.md").read_text()
    for name, modes in (("ring", 8), ("grid", 25)):
        assert record["results"][name]["real"]["modes"] == modes
        for method, generators in (("psg", 2), ("wgan-gp", 1)):
            result = record["results"][name]["methods"][method]
            assert [seed["seed"] for seed in result["per_seed"]] == [0, 1]
            assert all(len(seed["generators"]) == generators for seed in result["per_seed"])
            assert all(len(seed["counts"]) == modes for seed in result["per_seed"])
        for one in (shown, text):
            assert all(
                word in one for word in (f"modes (of {modes})", "wgan-gp", "GAN (published)", "PacGAN2 (published)")
            )
    assert "another protocol" in text
    assert imread("out/samples.png").shape[1] > 500


def test_the_same_command_gives_the_same_figures():
    arguments = [*TINY, "--methods", "psg", "--mixtures", "ring"]
    results = []
    for _ in range(2):  # the second call replaces the results of the first
        assert mixture2d.main(arguments) == 0
        results.append(
            json.loads(Path("out/results.json").read_text())["results"]["ring"]["methods"]["psg"]["per_seed"]
        )
    assert results[0] == results[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "gann"], "unknown method 'gann'"),
        (["--methods"], "--methods"),
        (["--mixtures"], "must each name at least one"),
        (["--seeds", "0"], "seeds is 0"),
        (["--samples", "0"], "samples is 0"),
        (["--points", "-3"], "points is -3"),
        (["--steps", "0"], "steps is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--seed", str(2**32 - 1)], "last seed is 4294967296"),
        (["--data-seed", "-1"], "data_seed is -1"),
        (["--batch-size", "2000"], "batch_size 2000"),
        (["--network.name", "dcgan28"], "network.name dcgan "),
        (["--method.generators", "1"], "method.generators 1 with method.loss mad-gan"),
        (["--out", "file"], "is a file"),
        (["--out", "full"], "full/results.md is of no run"),
    ],
)
def test_bad_options_are_one_line_and_exit_status_2(arguments, message, occupied, refusal):
    assert message in refusal(mixture2d.main, [*TINY, *arguments])
