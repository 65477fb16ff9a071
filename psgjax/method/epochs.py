"""Many updates as one jitted, donated program, which loops over the step on the device.

Batches are drawn there by a permutation for each epoch, from a data set that stays in uint8 and is an argument of the program.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from psgjax.config import Config
from psgjax.lowering import conv
from psgjax.method.sharding import Shards
from psgjax.method.state import Stream, TrainState, layout
from psgjax.method.step import Step, make_step

Tree = Any


def epoch_order(key: jax.Array, epoch: jax.Array | int, train_images: int) -> jax.Array:
    """The order in which an epoch visits the training images, int32 [N], from the key of the state."""
    return jax.random.permutation(jax.random.fold_in(jax.random.fold_in(key, Stream.EPOCHS), epoch), train_images)


def augmented(config: Config, state: TrainState, images: jax.Array, shards: Shards | None = None) -> jax.Array:
    """The images [n, b, H, W, C] of the state's next update, with `data.flip` each mirrored left to right or not, at random."""
    if not config.data.flip:
        return images
    key = jax.random.fold_in(jax.random.fold_in(state.key, Stream.FLIPS), state.step)
    mirrored = jax.random.bernoulli(key, shape=(len(images), config.batch_size, 1, 1, 1))
    return jnp.where((shards or Shards()).part(mirrored, 1, "data"), images[..., ::-1, :], images)


def make_run(
    config: Config,
    train_images: int,
    image_shape: tuple[int, int, int],
    replicas: bool = False,
    mesh: jax.sharding.Mesh | None = None,
) -> jax.stages.Wrapped:
    """Many updates as one program: `run(state, images, updates) -> (state, sums)`, jitted; the state given is donated.

    With `replicas`, mapped over a leading axis of states, and of sums.

    It stops after the first update with a metric that is not finite, and makes none from the state that this leaves, whose `step`
    counts that update. Replicas stop each for itself.

    `images` is the whole training set, uint8 [N, H, W, C], an argument that stays on the device. `updates`, int32 [], is the number
    to make, known at run time so that nothing is compiled twice; they must not cross the end of an epoch, whose order is a
    permutation that follows from seed and epoch. `sums` holds the metrics added up since the epoch's beginning, so that results do
    not depend on how an epoch is cut into calls.

    With a `mesh` (`sharding.make_mesh`), spread over its devices: the state lies as `layout` says, the images as
    `sharding.place_images` puts them. The results are those of one device, up to the rounding of sums.
    """
    shards = Shards() if mesh is None else Shards(mesh.shape["generator"], mesh.shape["data"])
    platform = None if mesh is None else mesh.devices.flat[0].platform
    step = make_step(config, image_shape, shards, platform)
    run = partial(_updates, step, config, shards, train_images)
    mapped = jax.vmap(run, in_axes=(0, None, None)) if replicas else run
    if mesh is not None:
        # Each device runs its own share as a whole: an axis that convolutions are unrolled over must not be cut under them.
        specs = jax.tree.map(lambda sharding: sharding.spec, layout(mesh, replicas))
        inputs, outputs = (specs, PartitionSpec("data"), PartitionSpec()), (specs, specs.metrics)
        mapped = jax.shard_map(mapped, mesh=mesh, in_specs=inputs, out_specs=outputs, check_vma=False)
    return jax.jit(mapped, donate_argnums=0, compiler_options=conv.compiler_options(platform))


def _updates(
    step: Step,
    config: Config,
    shards: Shards,
    train_images: int,
    state: TrainState,
    images: jax.Array,
    updates: jax.Array,
) -> tuple[TrainState, Tree]:
    """The program of `make_run`, of one run on one device of its mesh."""
    per_step = (config.method.discriminator_steps, config.batch_size)
    per_epoch = config.steps_per_epoch(train_images)
    order = epoch_order(state.key, state.step // per_epoch, train_images)
    last = state.step + updates

    def goes_on(state: TrainState) -> jax.Array:
        finite = [jnp.isfinite(total).all() for total in jax.tree.leaves(state.metrics)]
        return (state.step < last) & jnp.stack(finite).all()

    def body(state: TrainState) -> TrainState:
        position = state.step % per_epoch
        chosen = jax.lax.dynamic_slice_in_dim(order, position * math.prod(per_step), math.prod(per_step))
        batch = augmented(config, state, shards.pick(images, chosen.reshape(per_step)), shards)
        before = jax.tree.map(lambda total: jnp.where(position == 0, 0.0, total), state.metrics)
        state, metrics = step(state, batch)
        return dataclasses.replace(state, metrics=jax.tree.map(jnp.add, before, metrics))

    state = jax.lax.while_loop(goes_on, body, state)
    return state, jax.tree.map(jnp.copy, state.metrics)
