"""Spectral normalisation by power iteration (Miyato et al. 2018, section 2.1 and appendix A), a pure function on a parameter tree.

A kernel of any rank is read as a matrix W with one row for each output, (out, everything else); sigma = u' W v estimates its
largest singular value. The normalised kernel is W / sigma. Gradients flow through sigma with u and v held constant. The raw
parameters are never changed: the caller keeps them, and the vectors u, from step to step. (The reshaped kernel's norm is what
the paper means; the convolution's operator norm is another number.)
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

Tree = Any
Vectors = dict[str, jax.Array]

_EPSILON = 1e-12


def init(params: Tree, key: jax.Array) -> Vectors:
    """A vector u ~ N(0, I), scaled to length one, for each kernel of the tree: {path: [out] float32}."""
    kernels = _kernels(params)
    keys = jax.random.split(key, max(len(kernels), 1))
    return {
        path: _unit(jax.random.normal(k, kernel.shape[-1:], jnp.float32))
        for (path, kernel), k in zip(kernels.items(), keys, strict=False)
    }


def normalise(params: Tree, vectors: Vectors, iterations: int = 1) -> tuple[Tree, Vectors]:
    """Divide each kernel by its spectral norm.

    Args:
        params: A tree of parameters; leaves named `kernel`, [..., out], of rank two or more are normalised, others pass through.
        vectors: {path: [out] float32}, from `init` or from the call before.
        iterations: Power iterations before sigma is taken, in float32 whatever the parameters are. With 0 the vectors stay as they
            are, as in evaluation and in the generators' own pass.

    Returns:
        The normalised tree, of the parameters' dtypes, and the new vectors (no gradient flows through these). A kernel of zeros
        stays one, and keeps its vector.
    """
    updated = dict(vectors)

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if name not in vectors:
            return leaf
        matrix = leaf.astype(jnp.float32).reshape(-1, leaf.shape[-1])  # transposed: outputs are columns
        constant = jax.lax.stop_gradient(matrix)
        u = vectors[name]
        v = _unit(constant @ u)
        for i in range(iterations):
            next_u = _unit(constant.T @ v)
            u = jnp.where(
                next_u.any(), next_u, u
            )  # a kernel of zeros has no direction: the next one is found from here
            if i + 1 < iterations:
                v = _unit(constant @ u)
        updated[name] = u
        sigma = v @ (matrix @ u)
        return (leaf.astype(jnp.float32) / jnp.where(sigma == 0, 1.0, sigma)).astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, params), updated


def _kernels(params: Tree) -> Vectors:
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves if path[-1].key == "kernel" and leaf.ndim >= 2}


def _unit(vector: jax.Array) -> jax.Array:
    return vector / jnp.maximum(jnp.linalg.norm(vector), _EPSILON)
