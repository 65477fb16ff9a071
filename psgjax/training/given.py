"""Parts that a call of `train` is given as functions or modules: in the tables while it lasts, under their own names."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from psgjax import parts
from psgjax.config import ConfigError, Method, Network, Optimizer
from psgjax.networks import table

OWN = "own"  # optax transformations have no names


@contextmanager
def lent(method: Method, network: Any, optimizer: Any, **given: Any) -> Iterator[tuple[Method, Network, Optimizer]]:
    """The method, the network and the optimiser with what was given in their places, in the tables until the end.

    Args:
        method: What is trained.
        network: A `Network`, a name, or a generator and a discriminator.
        optimizer: An `Optimizer`, a name, an optax transformation or a pair of them.
        given: `loss`, `gate` and `regularisers` as `train` takes them; None for the method's own.

    Raises:
        ConfigError: If a part has no name of its own, or one of the package's.
    """
    with ExitStack() as ends:
        lend = partial(_lend, ends)
        changes: dict[str, Any] = {}
        for name, entries, register in (
            ("loss", parts.LOSSES, parts.register_loss),
            ("gate", parts.GATES, parts.register_gate),
        ):
            if given[name] is not None:
                changes[name] = lend(entries, register, given[name])
        if given["regularisers"] is not None:
            changes["regularisers"] = tuple(
                (lend(parts.REGULARISERS, parts.register_regulariser, part), float(weight))
                for part, weight in _weighted(given["regularisers"])
            )
        if isinstance(network, str):
            network = Network(network)
        elif not isinstance(network, Network):
            network = Network(lend(table.NETWORKS, table.register, tuple(network)))
        if isinstance(optimizer, str):
            optimizer = Optimizer(optimizer)
        elif not isinstance(optimizer, Optimizer):
            parts.register_optimizer(OWN, optimizer)
            ends.callback(parts.OPTIMISERS.pop, OWN)
            optimizer = Optimizer(OWN)
        yield dataclasses.replace(method, **changes), network, optimizer


def _weighted(regularisers: Any) -> list[tuple[Any, float]]:
    """Regularisers with their weights: from a dictionary, or of a list of parts and of pairs; 1 where none is given."""
    if isinstance(regularisers, Mapping):
        return list(regularisers.items())
    if callable(regularisers) or isinstance(regularisers, str):
        regularisers = [regularisers]
    return [each if isinstance(each, tuple) else (each, 1.0) for each in regularisers]


def _lend(ends: ExitStack, entries: dict[str, Any], register: Callable[[str, Any], None], part: Any) -> str:
    """The name of a part, which is in its table until the end; one that is registered stays as it is."""
    if isinstance(part, str):
        return part
    for name, known in entries.items():
        if part is getattr(known, "function", None):
            return name
    known = part[0] if isinstance(part, tuple) else part
    name = getattr(known, "__name__", type(known).__name__)
    if not name.isidentifier():
        raise ConfigError(f"{name} has no name that can be recorded: define it with def, or register it under a name.")
    before = entries.get(name)
    register(name, part)
    ends.callback(entries.pop if before is None else entries.__setitem__, name, *([] if before is None else [before]))
    return name
