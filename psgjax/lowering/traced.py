"""Functions that are traced once for arguments of the same shapes and types, not at each of the dozens of places that call them."""

from __future__ import annotations

from functools import partial

import jax

# Inlined: the program is that of plain calls. Outside any program the function is one itself, without `conv.compiler_options`.
once = partial(jax.jit, inline=True)
