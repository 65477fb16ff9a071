"""Tests train the same runs again and again: each program is traced and compiled once a process."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from psgjax import parts
from psgjax import switches as methods
from psgjax.config import Config, Optimizer
from psgjax.method import objectives
from psgjax.method import state as states
from psgjax.networks.table import NETWORKS
from psgjax.runs import divergence, run, saved
from psgjax.sources import SOURCES
from psgjax.training import loop, observer

# What tests register lies beside these; a program is of the parts that were there when it was made.
TABLES = [methods.NAMED, methods.METHODS, parts.LOSSES, parts.GATES, parts.REGULARISERS, parts.OPTIMISERS]
TABLES += [NETWORKS, SOURCES]
_PACKAGED = [dict(table) for table in TABLES]
_kept = {}  # all parts that a test ever registered: alive, none leaves its number to another


def registered():
    """The tests' own parts, by what they are and not by their names: the same name may be another part's tomorrow."""
    own = [
        (name, entry)
        for table, packaged in zip(TABLES, _PACKAGED, strict=True)
        for name, entry in table.items()
        if packaged.get(name) is not entry
    ]
    _kept.update((id(entry), entry) for _, entry in own)
    return tuple((name, id(entry)) for name, entry in own)


def shared(config):
    """What a program is made from: where nothing is scheduled, it does not see how long the run is, nor ever its seed."""
    return dataclasses.replace(config, seed=0, **({"steps": 12} if config.optimizer == Optimizer() else {}))


def cached(maker):
    @functools.lru_cache(32)
    def made(arguments, own):
        return maker(*arguments)

    @functools.wraps(maker)
    def make(*arguments):
        return made(tuple(shared(each) if isinstance(each, Config) else each for each in arguments), registered())

    return make


@dataclasses.dataclass(frozen=True)
class Begun:
    """A configuration as its initialisation sees it: equal to all that begin with the same networks and optimisers."""

    seen: Any
    config: Config = dataclasses.field(compare=False)

    @classmethod
    def of(cls, config, own):
        if own:  # a user's network or optimiser may see all
            return cls(shared(config), config)
        method = config.method
        networks = config.network, config.precision, config.batch_size == 1
        outputs = method.generators, method.pack, objectives.outputs_needed(method)
        vectors = method.spectral_norm, method.spectral_norm and method.warmup_iterations
        return cls((networks, outputs, vectors, config.optimizer), config)


@functools.lru_cache(32)
def begun(one, image_shape, own):
    begin = states.make_init(one.config, image_shape)
    return begin, jax.jit(begin.__wrapped__)  # within another program a compiler is given no options


@functools.cache
def _zero_metrics(method, own):
    return jax.device_get(states._zero_metrics(Config(method=method)))


def make_init(config, image_shape):
    """`state.make_init`, compiled once for all methods that begin with the same networks, whatever they log."""
    own = registered()
    (program, traced), metrics = begun(Begun.of(config, own), image_shape, own), _zero_metrics(config.method, own)

    def begin(key):
        made = traced if isinstance(key, jax.core.Tracer) else program
        return dataclasses.replace(made(key), metrics=jax.tree.map(jnp.array, metrics))

    return begin


MAKERS = [
    *((loop, name) for name in ("make_run", "make_init", "seconds_per_operation")),
    (saved, "make_init"),
    *((observer, name) for name in ("make_accuracy", "make_grid", "make_batch_sampler")),
    (run, "make_batch_sampler"),
    *((divergence, name) for name in ("make_init", "make_run", "make_step")),
]


def share():
    """Put the shared programs where the package makes its own."""
    makers = {getattr(module, name) for module, name in MAKERS} - {states.make_init}
    made = {states.make_init: make_init, **{maker: cached(maker) for maker in makers}}
    for module, name in MAKERS:
        setattr(module, name, made[getattr(module, name)])
