"""The leaves of a state by name, and one hash of them all."""

from __future__ import annotations

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def arrays(state: Any) -> dict[str, np.ndarray]:
    """Every leaf of a state by its name, such as generators.params.Dense_0.kernel, in the names' order; keys as their numbers."""
    found = {
        leaf_name(path): jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
        for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]
    }
    return {name: np.asarray(found[name]) for name in sorted(found)}


def digest(state: Any) -> str:
    """SHA-256 of a state: name, dtype, shape and bytes of every leaf. Equal where two states are equal bit for bit."""
    hashed = hashlib.sha256()
    for name, array in arrays(state).items():
        hashed.update(f"{name} {array.dtype} {array.shape}\n".encode() + array.tobytes())
    return hashed.hexdigest()


def leaf_name(path: tuple) -> str:
    """The dotted name of a leaf from its path in a tree, such as generators.params.Dense_0.kernel."""
    return ".".join(str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))) for entry in path)
