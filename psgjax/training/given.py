"""Parts that a call of `train` is given as functions or modules: in the tables while it lasts, under their own names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from inspect import isfunction
from typing import Any

from psgjax import parts
from psgjax.config import ConfigError, Method, Network, Optimizer
from psgjax.networks import table

OWN = "own"  # optax transformations have no names
_TABLES: dict[str, tuple[dict[str, Any], Callable[[str, Any], None]]] = {
    "loss": (parts.LOSSES, parts.register_loss),
    "gate": (parts.GATES, parts.register_gate),
    "regulariser": (parts.REGULARISERS, parts.register_regulariser),
    "network": (table.NETWORKS, table.register),
}


@contextmanager
def lent(
    method: Method, network: Any, optimizer: Any, kept: bool = False, **given: Any
) -> Iterator[tuple[Method, Network, Optimizer]]:
    """The method, the network and the optimiser with what was given in their places, in the tables until the end.

    Args:
        method: What is trained.
        network: A `Network`, a name, a generator and a discriminator, or a function that makes them.
        optimizer: An `Optimizer`, a name, an optax transformation or a pair of them.
        kept: The run may be gone on with, so that each part must have a name to be known by.
        given: `loss`, `gate` and `regularisers` as `train` takes them; None for the method's own.

    Raises:
        ConfigError: If a part has no name of its own, or one of the package's.
    """
    with ExitStack() as ends:
        lend = partial(_lend, ends)
        changes: dict[str, Any] = {}
        for kind in ("loss", "gate"):
            if given[kind] is not None:
                changes[kind] = lend(kind, given[kind])
        if given["regularisers"] is not None:
            weighted = _weighted(given["regularisers"])
            changes["regularisers"] = tuple((lend("regulariser", part), float(weight)) for part, weight in weighted)
        if isinstance(network, str):
            network = Network(network)
        elif not isinstance(network, Network):
            pair = isinstance(network, tuple | list) and len(network) == 2
            if not (pair or isfunction(network)):
                raise ConfigError(
                    f"network is of type {type(network).__name__}; it must be a psgjax.Network, a name, a generator and a "
                    "discriminator, or a function that makes them."
                )
            network = Network(lend("network", tuple(network) if pair else network))
        if isinstance(optimizer, str):
            optimizer = Optimizer(optimizer)
        elif not isinstance(optimizer, Optimizer):
            parts.register_optimizer(OWN, optimizer)
            ends.callback(parts.OPTIMISERS.pop, OWN)
            if kept:
                raise ConfigError(
                    "optimizer= is an optax transformation, which has no name, so that nobody could say whether a run kept in out= "
                    'goes on with the same one; register it, psgjax.register_optimizer("mine", ...), and give optimizer="mine".'
                )
            optimizer = Optimizer(OWN)
        yield dataclasses.replace(method, **changes), network, optimizer


def _weighted(regularisers: Any) -> list[tuple[Any, float]]:
    """Regularisers with their weights: from a dictionary, or of a list of parts and of pairs; 1 where none is given."""
    if isinstance(regularisers, Mapping):
        return list(regularisers.items())
    if callable(regularisers) or isinstance(regularisers, str):
        regularisers = [regularisers]
    return [each if isinstance(each, tuple) else (each, 1.0) for each in regularisers]


def _lend(ends: ExitStack, kind: str, part: Any) -> str:
    """The name of a part, which is in its table until the end; one that is registered stays as it is."""
    entries, register = _TABLES[kind]
    if isinstance(part, str):
        return part
    for name, known in entries.items():
        if part is getattr(known, "function", None):
            return name
    known = part[0] if isinstance(part, tuple) else part
    name = getattr(known, "__name__", type(known).__name__)
    if not name.isidentifier() or isinstance(known, partial):
        raise ConfigError(
            f"{kind} {name} has no name that can be recorded: define it with def, or register it, "
            f'psgjax.register_{kind}("mine", ...), and give "mine".'
        )
    before = entries.get(name)
    register(name, part)
    ends.callback(entries.pop if before is None else entries.__setitem__, name, *([] if before is None else [before]))
    return name
