"""A training that diverged: the update that did it as one file, what it looked like, and the same update made again.

The file, diverged.safetensors, holds the state before the update and its images; its metadata, as JSON, the configuration, the
image shape, the key, the versions and the report. Reading it executes nothing.
"""

from __future__ import annotations

import hashlib
import json
import math
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from rich.console import Console
from rich.table import Table

from psgjax import networks, schema
from psgjax.config import Config, ConfigError
from psgjax.environment import versions
from psgjax.files import write_atomically
from psgjax.leaves import arrays, digest, leaf_name
from psgjax.method import objectives, spectral
from psgjax.method.epochs import augmented, epoch_order, make_run
from psgjax.method.packing import packed
from psgjax.method.state import TrainState, abstract, build, make_init
from psgjax.method.step import draw_latents, make_step, pass_keys, scale
from psgjax.shell import tell

Tree = Any
Report = dict[str, Any]

_TOLERANCE = 1e-3  # of numbers made again, perhaps on another machine


def not_finite(metrics: Tree) -> list[str]:
    """Names of the metrics that hold a number that is not finite, such as loss.generators."""
    return [name for name, value in _flat(metrics).items() if not np.isfinite(value).all()]


def advance(config: Config, state: TrainState, images: jax.Array, step: int) -> TrainState:
    """Make the updates up to `step` again from a state before it, which is donated; `images` [N, H, W, C] is the training set."""
    run, per_epoch = make_run(config, len(images), _image_shape(images)), config.steps_per_epoch(len(images))
    first = int(state.step)
    ends = [*range(first - first % per_epoch + per_epoch, step, per_epoch), step]  # no call crosses the end of an epoch
    for start, end in pairwise([first, *ends]):
        state, _ = run(state, images, jnp.int32(end - start))
    return state


def next_batch(config: Config, state: TrainState, images: jax.Array) -> jax.Array:
    """The images [n, B, H, W, C] of a state's next update, n = `method.discriminator_steps`, from the training set [N, H, W, C]."""
    per_step = (config.method.discriminator_steps, config.batch_size)
    epoch, position = divmod(int(state.step), config.steps_per_epoch(len(images)))
    count = math.prod(per_step)
    chosen = epoch_order(state.key, epoch, len(images))[position * count : (position + 1) * count]
    return augmented(config, state, images[chosen].reshape(*per_step, *images.shape[1:]))


def examine(config: Config, state: TrainState, images: jax.Array) -> Report:
    """Make one update and say what it looked like.

    Args:
        config: Of the run.
        state: Before the update.
        images: [n, B, H, W, C] uint8, n = `method.discriminator_steps`.

    Returns:
        `step`, the state's after the update; `not_finite`, the names of such metrics; `gradient_norm` and `parameter_norm` (before
        the update) of the discriminator and of each generator: global L2 norms in float64; `scores`: least, mean and greatest that
        D gave the images of each generator and the real ones in the update's first pass. A gradient is what Adam's first moment
        took in, nan of another optimiser: 0 where the gate left the update out, a weighted mean where D was updated several times.
    """
    after, metrics = jax.jit(make_step(config, _image_shape(images)))(state, images)
    before, after = (
        jax.device_get((state.generators, state.discriminator)),
        jax.device_get((after.generators, after.discriminator)),
    )
    scores = np.asarray(jax.jit(partial(_scores, config))(state, images))
    count = config.method.generators

    def each(function: Any) -> dict[str, Any]:
        """`function` of every generator, before and after, and of the discriminator."""
        one = [[jax.tree.map(lambda leaf, i=i: leaf[i], side[0]) for side in (before, after)] for i in range(count)]
        return {"discriminator": function(before[1], after[1]), "generators": [function(*pair) for pair in one]}

    with np.errstate(all="ignore"):
        summary = [[float(f(row)) for f in (np.min, np.mean, np.max)] for row in scores.astype(np.float64)]
        return {
            "step": int(state.step) + 1,
            "not_finite": not_finite(jax.device_get(metrics)),
            "gradient_norm": each(partial(_gradient_norm, config)),
            "parameter_norm": each(lambda old, _: _norm(old.params)),
            "scores": {"generators": summary[:-1], "real": summary[-1]},
        }


def write(path: Path, config: Config, state: TrainState, images: jax.Array, names: list[str]) -> Report:
    """Keep an update that failed: the state before it, its images [n, B, H, W, C] and the report, in which `names` failed."""
    report = {**examine(config, state, images), "not_finite": names}
    tensors = {**{f"state.{name}": array for name, array in arrays(state).items()}, "images": np.asarray(images)}
    record = {
        "config": json.loads(schema.to_json(config)),
        "image_shape": _image_shape(images),
        "key": tensors["state.key"].tolist(),
        "versions": versions(),
        "report": report,
    }
    text = json.dumps({**record, "sha256": _seal(record, tensors)})
    write_atomically(path, safetensors.numpy.save(tensors, metadata={"divergence": text}))
    return report


def read(path: Path) -> tuple[Config, TrainState, jax.Array, Report]:
    """What `write` kept.

    Raises:
        ConfigError: If the file holds none of this version, or is damaged.
        OSError: If it cannot be read.
    """
    with path.open("rb"):
        pass
    try:
        with safetensors.safe_open(path, framework="np") as file:
            record = json.loads(file.metadata()["divergence"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is no dictionary
        if record.pop("sha256") != _seal(record, tensors):
            raise ValueError("its contents are not those that were written")
        config = schema.from_json(Config, json.dumps(record["config"]))
        height, width, channels = record["image_shape"]
        like = abstract(make_init(config, (height, width, channels)))
        state = _fill(like, tensors)
        return config, state, jnp.asarray(tensors["images"]), record["report"]
    except (
        Exception
    ) as error:  # a damaged or hostile file makes the library and the configuration raise one of many types
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ConfigError(f"{path} is no update that psgjax of this version kept, or a damaged one: {reason}") from None


def replay(path: Path, console: Console) -> bool:
    """Make the update of a file again, show both reports, and say whether the failure is the same.

    Raises:
        ConfigError: If the file holds none of this version, or is damaged.
        OSError: If it cannot be read.
    """
    config, state, images, recorded = read(path)
    again = examine(config, state, images)
    table = Table("", "recorded", "again", title=f"{config.method_name}, step {recorded['step']:,}")
    was, now = _flat(recorded), _flat(again)
    for name in {**was, **now}:
        table.add_row(name, *(_text(values.get(name)) for values in (was, now)))
    console.print(table, highlight=False)
    names = was.pop("not_finite"), now.pop("not_finite")
    same = names[0] == names[1] and all(np.allclose(was[name], now[name], _TOLERANCE, equal_nan=True) for name in now)
    if not names[1]:
        verdict = "no metric of this update is infinite or no number: there is no failure"
    else:
        verdict = "the same failure with the same numbers" if same else "a failure, but with other numbers"
    tell(console)(verdict)
    return bool(names[1]) and same


def _image_shape(images: jax.Array) -> tuple[int, int, int]:
    *_, height, width, channels = images.shape
    return height, width, channels


def _scores(config: Config, state: TrainState, images: jax.Array) -> jax.Array:
    """The scores [K + 1, B] that D gives in the first pass of an update."""
    generator, discriminator = build(config, _image_shape(images))
    g, d = state.generators, state.discriminator
    real = networks.pad_to(scale(images[0]), config.network)
    latents = draw_latents(config, pass_keys(state, 0)[0], len(real))

    def draw(params: Tree, batch_stats: Tree, latents: jax.Array) -> Any:
        return generator.apply({"params": params, "batch_stats": batch_stats}, latents, mutable=["batch_stats"])[0]

    tuples = jnp.concatenate([jax.vmap(draw)(g.params, g.batch_stats, latents), real[None]])
    tuples = packed(config.method.pack, tuples)
    params, _ = spectral.normalise(d.params, d.spectral_vectors, config.method.power_iterations)
    outputs: Any = discriminator.apply({"params": params}, tuples.reshape(-1, *tuples.shape[2:]))
    return objectives.read_scores(config.method, outputs.reshape(*tuples.shape[:2], -1))


def _gradient_norm(config: Config, before: Any, after: Any) -> float:
    """Of the gradient that Adam took in, from its first moments: mu' = beta1 mu + (1 - beta1) g; nan of others."""
    if config.optimizer.name != "adam":
        return math.nan
    (old, *_), (new, *_) = before.opt_state, after.opt_state
    updates = int(new.count - old.count)
    decay = config.optimizer.beta1**updates
    return (
        _norm(jax.tree.map(lambda a, b: (b - decay * a.astype(np.float64)) / (1 - decay), old.mu, new.mu))
        if updates
        else 0.0
    )


def _norm(tree: Tree) -> float:
    return float(np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree))))


def _flat(tree: Tree) -> dict[str, Any]:
    """Leaves by dotted names; a list of numbers or of names is one leaf."""
    found = jax.tree_util.tree_flatten_with_path(
        tree, is_leaf=lambda x: isinstance(x, list) and not isinstance((*x, 0)[0], list)
    )
    return {leaf_name(path): leaf for path, leaf in found[0]}


def _text(value: Any) -> str:
    if isinstance(value, list):
        return "  ".join(map(_text, value)) or "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _fill(like: TrainState, tensors: dict[str, np.ndarray]) -> TrainState:
    """A state of the shapes and dtypes of `like` with the arrays of a file."""

    def one(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        array = jnp.asarray(tensors[f"state.{leaf_name(path)}"])
        value = jax.random.wrap_key_data(array) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else array
        if (value.shape, value.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"{leaf_name(path)} is {value.dtype}{list(value.shape)}, not {leaf.dtype}{list(leaf.shape)}"
            )
        return value

    return jax.tree_util.tree_map_with_path(one, like)


def _seal(record: dict[str, Any], tensors: dict[str, np.ndarray]) -> str:
    """SHA-256 of all that a file holds."""
    return hashlib.sha256(f"{json.dumps(record)}\n{digest(tensors)}".encode()).hexdigest()
