"""Gaussian mixtures in the plane, the training of many seeds at once on one of them, and the modes that their samples cover."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from typing_extensions import Doc

from experiments.command import check_counts
from experiments.tables import mean, show_mean
from psgjax.config import Config, ConfigError, Network
from psgjax.evaluation import modes
from psgjax.schema import check_seed

if TYPE_CHECKING:
    import jax

    from psgjax.method.state import TrainState

SHAPE = (1, 1, 2)  # a point of the plane as an image
_CALL_SECONDS = 1.0  # the length of one call to the device: how often progress is shown
_FEWEST = 64  # updates of a call: each draws the epoch's order anew, which costs as much as many updates
_SAMPLES_STREAM, _DATA_STREAM = 10, 11  # other streams of random numbers than those of training (state.py)
# Programs that run once: compiling them well takes longer than it saves.
_ONCE: Any = {"xla_backend_optimization_level": 0}


@dataclass(frozen=True, eq=False)
class Mixture:
    """Gaussians of equal weight and deviation, and the modes that others report (Lin et al. 2018, table of synthetic mixtures)."""

    centres: NDArray[np.float64]  # [M, 2]
    deviation: float
    published: dict[str, str]


_ANGLES = np.arange(8) * np.pi / 4
_LINE = np.arange(-4.0, 5.0, 2.0)
MIXTURES = {
    "ring": Mixture(
        np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1), 0.01, {"GAN": "6.3 ± 0.5", "PacGAN2": "7.9 ± 0.1"}
    ),
    "grid": Mixture(
        np.array([(x, y) for x in _LINE for y in _LINE]), 0.05, {"GAN": "17.3 ± 0.8", "PacGAN4": "24.8 ± 0.2"}
    ),
}


@dataclass(frozen=True)
class Protocol:
    """Seeds, training points of the mixture, and samples on which each seed is evaluated."""

    seeds: Annotated[int, Doc("Number of seeds, trained at once, from --seed on.")] = 10
    seed: Annotated[int, Doc("The first seed.")] = 0
    data_seed: Annotated[int, Doc("The training points follow from it: the same for all methods and seeds.")] = 0
    points: Annotated[int, Doc("Points of the training set.")] = 25_000
    samples: Annotated[int, Doc("Samples that a run is evaluated on.")] = 2500

    def __post_init__(self) -> None:
        """Refuse counts below one and seeds that are none."""
        check_counts(seeds=self.seeds, points=self.points, samples=self.samples)
        for name, value in (
            ("seed", self.seed),
            ("last seed", self.seed + self.seeds - 1),
            ("data_seed", self.data_seed),
        ):
            check_seed(value, name)


def check_network(network: Network) -> None:
    """Refuse networks for images.

    Raises:
        ConfigError: With the network's name.
    """
    if network.name not in ("mlp", "maxout"):
        raise ConfigError(
            f"network.name {network.name} works on images, not on points in the plane; use mlp or maxout."
        )


def draw(mixture: Mixture, count: int, key: jax.Array) -> jax.Array:
    """The given number of points of the mixture as images, [count, 1, 1, 2] float32."""
    import jax
    import jax.numpy as jnp

    which, noise = jax.random.split(jax.random.fold_in(key, _DATA_STREAM))
    centres = jnp.asarray(mixture.centres, jnp.float32)
    modes = jax.random.randint(which, (count,), 0, len(centres))
    return (centres[modes] + mixture.deviation * jax.random.normal(noise, (count, 2))).reshape(-1, *SHAPE)


class Trainer:
    """One method's programs for many seeds at once; the mixture is an argument, so that nothing is compiled for each."""

    def __init__(self, config: Config, seeds: int, points: int, samples: int) -> None:
        """The given number of seeds, from `config.seed` on, of training points, and of samples to evaluate each seed on."""
        import jax
        import jax.numpy as jnp

        from psgjax.method import epochs, inference, step
        from psgjax.method import state as states

        sampler = inference.make_sampler(config, SHAPE)

        def sample(state: TrainState) -> tuple[jax.Array, jax.Array]:
            latents, which = jax.random.split(jax.random.fold_in(state.key, _SAMPLES_STREAM))
            images = sampler(state, step.draw_latents(config, latents, samples))
            return images.reshape(-1, samples, 2), jax.random.randint(which, (samples,), 0, config.method.generators)

        self.config, self.seeds = config, [config.seed + i for i in range(seeds)]
        self._per_epoch = config.steps_per_epoch(points)
        self._keys = jax.vmap(jax.random.key)(jnp.asarray(self.seeds, jnp.uint32))
        self._init = jax.jit(jax.vmap(lambda key: states.init(config, SHAPE, key)), compiler_options=_ONCE)
        self._run = epochs.make_run(config, points, SHAPE, replicas=True)
        self._sample = jax.jit(jax.vmap(sample), compiler_options=_ONCE)

    def train(self, points: jax.Array, console: Console, title: str) -> TrainState:
        """All seeds' states, every leaf with a leading axis of seeds, after `config.steps` updates on points [N, 1, 1, 2]."""
        ((_, state),) = self.checkpoints(points, console, title, self.config.steps)
        return state

    def checkpoints(
        self, points: jax.Array, console: Console, title: str, every: int
    ) -> Iterator[tuple[int, TrainState]]:
        """The number of updates and all seeds' states, every `every` updates and at the end; a state is good until the next."""
        import jax
        import jax.numpy as jnp

        from psgjax.progress import ProgressDisplay

        steps, done, count = self.config.steps, 0, 1
        points_per_step = len(self.seeds) * self.config.batch_size * self.config.method.discriminator_steps
        with ProgressDisplay(console, title, steps, 0, points_per_step) as display:
            state: TrainState = self._init(self._keys)
            while done < steps:
                called = time.monotonic()
                count = min(count, self._per_epoch - done % self._per_epoch, every - done % every, steps - done)
                state, _ = self._run(state, points, jnp.int32(count))
                jax.block_until_ready(state.step)
                done += count
                display.update(done, None)
                if done % every == 0 or done == steps:
                    yield done, state
                # The first call is of one update and waits for the compiler: it says nothing of the second.
                took = (time.monotonic() - called) / count if done > 1 else 0.0
                count = max(_FEWEST, min(16 * count, int(_CALL_SECONDS / max(took, 1e-6))))

    def sample(self, state: TrainState) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """Samples of every seed and generator, [S, K, n, 2], and which generator the mixture takes each one from, [S, n]."""
        images, which = self._sample(state)
        return np.asarray(images), np.asarray(which)


def measure(points: NDArray[np.float32], mixture: Mixture) -> dict[str, Any]:
    """Modes, quality and reverse KL of samples [n, 2]; None if they are not finite, and for a reverse KL that is infinite."""
    if not np.isfinite(points).all():
        return {"modes": None, "high_quality": None, "reverse_kl": None, "counts": None}
    counts = modes.mode_counts(points, mixture.centres, mixture.deviation)
    divergence = modes.reverse_kl(counts)
    return {
        "modes": modes.mixture_modes(counts),
        "high_quality": modes.high_quality_share(counts, len(points)),
        "reverse_kl": round(divergence, 6) if np.isfinite(divergence) else None,
        "counts": counts.tolist(),
    }


MEASURES = ("modes", "high_quality", "reverse_kl")


def evaluate(trainer: Trainer, state: TrainState, mixture: Mixture) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Every figure of every seed and its means, ready for JSON; and the samples of the first seed, [K, n, 2]."""
    samples, which = trainer.sample(state)
    per_seed = []
    for seed, generators, chosen in zip(trainer.seeds, samples, which, strict=True):
        mixed = generators[chosen, np.arange(len(chosen))]
        own = [measure(points, mixture) for points in generators]
        per_seed.append({"seed": seed, **measure(mixed, mixture), "generators": own})
    means = {name: mean([seed[name] for seed in per_seed]) for name in MEASURES}
    alone = [
        {name: mean([seed["generators"][k][name] for seed in per_seed]) for name in MEASURES}
        for k in range(samples.shape[1])
    ]
    return {**means, "generators": alone, "per_seed": per_seed}, samples[0]


def figures(result: dict[str, Any], seeds: int) -> list[str]:
    """A result's part of a row: modes, share of high-quality samples in percent, reverse KL."""
    return [
        show_mean(result["modes"], seeds),
        show_mean(result["high_quality"], seeds, scale=100),
        show_mean(result["reverse_kl"], seeds, digits=2),
    ]
