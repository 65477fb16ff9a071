"""The state that an update changes, what it is made of, and where it lives on a mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jax.tree_util import register_dataclass

from psgjax import networks, parts
from psgjax.config import Config, ConfigError
from psgjax.lowering import conv
from psgjax.method import objectives, schedules, spectral
from psgjax.method.packing import packed

Tree = Any


@register_dataclass
@dataclass(frozen=True)
class Generators:
    """K generators as one tree: every leaf has a leading axis K."""

    params: Tree
    batch_stats: Tree
    opt_state: Tree
    average: Tree  # `optax.EmaState`: updates that are in it, [K], and the averaged parameters; an empty tree where none is kept


@register_dataclass
@dataclass(frozen=True)
class Discriminator:
    """The one discriminator; its parameters are raw, never the normalised ones."""

    params: Tree
    opt_state: Tree
    spectral_vectors: spectral.Vectors  # empty without spectral normalisation


@register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Everything that an update changes, and the key from which all its random numbers follow."""

    step: jax.Array  # int32 []: generator updates so far
    key: jax.Array  # typed key []: never changes
    generators: Generators
    discriminator: Discriminator
    metrics: Tree  # sums over the updates of the current epoch


Begin = Callable[[jax.Array], TrainState]  # a seed's key -> the state before the first update


class Stream(IntEnum):
    """What random numbers are for: each use folds its own number into the key of a state."""

    INIT, STEPS, EPOCHS, JUDGE, GRID, SAMPLES, STATISTICS, FLIPS = range(8)


def optimizers(
    config: Config, step: schedules.Step = 0
) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """The generators' and D's as they are at a step of the run, but for the schedule of step sizes (`scheduled`)."""
    g_optimizer, d_optimizer = parts.OPTIMISERS[config.optimizer.name](config, step)
    return g_optimizer, d_optimizer


def adam(config: Config, step: schedules.Step) -> tuple[optax.GradientTransformation, optax.GradientTransformation]:
    """Adam, with the first step sizes of the run.

    With a schedule, its bias correction is that of a constant beta2 of the present value, as in PyTorch.
    """
    settings = config.optimizer
    rates = settings.learning_rate, settings.discriminator_learning_rate or settings.learning_rate
    b2: Any = schedules.beta2(config, step)
    g_optimizer, d_optimizer = (optax.adam(rate, b1=settings.beta1, b2=b2) for rate in rates)
    return g_optimizer, d_optimizer


def scheduled(config: Config, updates: Tree, step: schedules.Step) -> Tree:
    """An optimiser's updates at the step size that the schedule has for the run's step."""
    if config.optimizer.schedule == "constant":
        return updates
    left = schedules.step_size(config, step)
    return jax.tree.map(lambda update: left * update, updates)


def averaged(config: Config, average: Tree, params: Tree, step: schedules.Step) -> Tree:
    """The average with a generator's new parameters in it, if one is kept."""
    if not config.optimizer.averages:
        return average
    count = average.count + 1
    weight = schedules.average_weight(config, count, step)
    return optax.EmaState(count, optax.incremental_update(params, average.ema, weight))


def build(
    config: Config, image_shape: tuple[int, int, int], axis_name: str | None = None
) -> tuple[networks.Generator, networks.Discriminator]:
    """The generator and discriminator modules of a run.

    Raises:
        ConfigError: If the layers do not fit images of that size, or batch statistics would be those of single values.
    """
    dtype = jnp.bfloat16 if config.precision == "bfloat16" else None
    outputs = objectives.outputs_needed(config.method)
    generator, discriminator = networks.build(config.network, image_shape, outputs, dtype, axis_name)
    if config.method.pack > 1:
        height, width, colours = image_shape
        several = (height, width, config.method.pack * colours)
        _, discriminator = networks.build(config.network, several, outputs, dtype, axis_name)
    if config.batch_size == getattr(generator, "normalised", None) == 1:
        size = "x".join(map(str, image_shape[:2]))
        raise ConfigError(
            f"batch_size 1 with network.name {config.network.name} on images of {size}: batch statistics of a single value make a "
            "constant of it, so that the images would not depend on z; use a --batch-size of at least 2."
        )
    return generator, discriminator


def init(config: Config, image_shape: tuple[int, int, int], key: jax.Array | None = None) -> TrainState:
    """The state before the first update: everything follows from `config.seed`, or from `key` (mapped over, for many seeds)."""
    generator, discriminator = build(config, image_shape)
    g_optimizer, d_optimizer = optimizers(config)
    key = jax.random.key(config.seed) if key is None else key
    g_key, d_key, u_key = jax.random.split(jax.random.fold_in(key, Stream.INIT), 3)
    latents = jnp.zeros((2, config.network.latent_size))
    variables = jax.vmap(lambda k: generator.init(k, latents))(jax.random.split(g_key, config.method.generators))
    padded = networks.pad_to(jnp.zeros((config.method.pack, *image_shape)), config.network)
    d_params = discriminator.init(d_key, packed(config.method.pack, padded))["params"]
    vectors: spectral.Vectors = {}
    if config.method.spectral_norm:
        vectors = spectral.init(d_params, u_key)
        _, vectors = spectral.normalise(d_params, vectors, config.method.warmup_iterations)
    g_params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        key=key,
        generators=Generators(
            g_params,
            variables.get("batch_stats", {}),
            jax.vmap(g_optimizer.init)(g_params),
            _no_average(config, g_params),
        ),
        discriminator=Discriminator(d_params, d_optimizer.init(d_params), vectors),
        metrics=_zero_metrics(config),
    )


def _no_average(config: Config, params: Tree) -> Tree:
    """Of K generators, before any update: the parameters that there are; an empty tree where none is kept."""
    if not config.optimizer.averages:
        return {}
    return optax.EmaState(jnp.zeros(config.method.generators, jnp.int32), jax.tree.map(jnp.copy, params))


def make_init(config: Config, image_shape: tuple[int, int, int]) -> Begin:
    """`begin(key) -> state`: `init`, compiled as all do who begin a run or begin it again, so that they get the same bits."""
    return jax.jit(partial(init, config, image_shape), compiler_options=conv.compiler_options(seldom=True))


def layout(mesh: jax.sharding.Mesh, replicas: bool = False) -> Any:
    """Where a state lives on a mesh: a `TrainState` with one `NamedSharding` in place of each of its parts.

    It is what `jax.device_put` and `jax.jit` take to put a state on a mesh; `jit(init, out_shardings=...)` makes one there, on
    several processes too. With `replicas`, of states with a leading axis of replicas.
    """
    lead = ("replica",) if replicas else ()
    replicated, own = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (lead, (*lead, "generator")))
    return TrainState(step=replicated, key=replicated, generators=own, discriminator=replicated, metrics=replicated)  # type: ignore[arg-type]


@jax.jit
def copied(state: TrainState) -> TrainState:
    """The same in memory of its own, for when the state itself is donated; one program for all its parts."""
    return jax.tree.map(jnp.copy, state)


def with_key_data(state: TrainState) -> TrainState:
    """A state with its key as key data, uint32 [..., 2]: plain arrays alone, which any process can save and any mesh take."""
    return dataclasses.replace(state, key=jax.random.key_data(state.key))


def with_typed_key(state: TrainState) -> TrainState:
    """The reverse of `with_key_data`."""
    return dataclasses.replace(state, key=jax.random.wrap_key_data(state.key))


def placed(state: TrainState, mesh: jax.sharding.Mesh, replicas: bool = False) -> TrainState:
    """A state put on a mesh as `layout` says; with several processes the first one's, whatever the others give."""
    arrays = jax.tree.map(np.asarray, with_key_data(state))
    if jax.process_count() > 1:
        arrays = multihost_utils.broadcast_one_to_all(arrays)
    return jax.jit(with_typed_key, out_shardings=layout(mesh, replicas))(arrays)


def abstract(begin: Begin, mesh: jax.sharding.Mesh | None = None, replicas: int | None = None) -> TrainState:
    """What `begin`, of `make_init`, makes, without its numbers: shapes and dtypes, traced once for both.

    With where it lives on a mesh and a leading axis of replicas, if given.
    """
    state = jax.eval_shape(begin, jax.random.key(0))
    if replicas is not None:
        state = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((replicas, *leaf.shape), leaf.dtype), state)
    if mesh is None:
        return state

    def place(sharding: NamedSharding, part: Tree) -> Tree:
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), part)

    return jax.tree.map(place, layout(mesh, replicas is not None), state)


def _zero_metrics(config: Config) -> Tree:
    count = config.method.generators
    outputs = jnp.zeros((count + 1, 1, objectives.outputs_needed(config.method)))
    *_, metrics = jax.eval_shape(partial(objectives.evaluate, config.method), outputs, jax.random.key(0))
    penalties = {name: jnp.zeros(()) for name, _ in config.method.regularisers}
    metrics = {**metrics, **({"regularisers": penalties} if penalties else {})}
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), metrics)
