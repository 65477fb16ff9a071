"""Each convolution of the step timed alone, inside a loop and outside: `experiments.bench --convolutions`."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.peers import Case, Failed, TooSlow, Worker
from experiments.peers.ours import Layer
from experiments.peers.race import spread
from psgjax.config import ConfigError
from psgjax.lowering import conv
from psgjax.switches import named_method

if TYPE_CHECKING:
    from experiments.bench import Options

_DIRECTIONS = ("forward", "input gradient", "weight gradient")
_LAYOUT = ("NHWC", "HWIO", "NHWC")


class Convolution:
    """One direction of one convolution of the step, at the step's sizes; psgjax's form, or JAX's own.

    A generator's layer is mapped over the K generators, D's takes all images of the tuples. One element of each result, scaled down
    until it does not matter, goes into the next call's operand, so that the compiler can neither drop a call nor move it out of the
    loop. Inside and outside do the same, in the memory of the previous call.
    """

    def __init__(self, case: Case, owner: str, layer: Layer, direction: str, plain: bool) -> None:
        count = named_method(case.method).generators
        apply = (self._plain if plain else self._ours)[layer.kind]
        lead = (count, case.batch_size) if owner == "generator" else (case.batch_size * (count + 1),)
        inputs, kernel, outputs = (*lead, *layer.inputs), (*lead[:-1], *layer.kernel), (*lead, *layer.outputs)

        def forward(inputs: jax.Array, kernel: jax.Array) -> jax.Array:
            call = partial(apply, stride=layer.stride)
            return jax.vmap(call)(inputs, kernel) if owner == "generator" else call(inputs, kernel)

        def input_gradient(cotangents: jax.Array, kernel: jax.Array) -> jax.Array:
            return jax.vjp(lambda x: forward(x, kernel), jnp.zeros(inputs))[1](cotangents)[0]

        def weight_gradient(cotangents: jax.Array, images: jax.Array) -> jax.Array:
            return jax.vjp(lambda x: forward(images, x), jnp.zeros(kernel))[1](cotangents)[0]

        operation, shapes, result = {
            "forward": (forward, (inputs, kernel), outputs),
            "input gradient": (input_gradient, (outputs, kernel), inputs),
            "weight gradient": (weight_gradient, (outputs, inputs), kernel),
        }[direction]
        changed = min((0, 1), key=lambda i: np.prod(shapes[i]))

        def once(carry: tuple[jax.Array, list[jax.Array]]) -> tuple[jax.Array, list[jax.Array]]:
            before, operands = carry
            corner = (0,) * operands[changed].ndim
            element = jnp.full((1,) * len(corner), before.ravel()[0] * 1e-30)
            operands = list(operands)
            operands[changed] = lax.dynamic_update_slice(operands[changed], element, corner)
            return operation(*operands), operands

        options = {} if plain else conv.compiler_options()

        def loop(carry: tuple[jax.Array, list[jax.Array]], count: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
            return lax.fori_loop(0, count, lambda _, carry: once(carry), carry)

        self.outside, self.inside = (jax.jit(f, donate_argnums=0, compiler_options=options) for f in (once, loop))
        keys = jax.random.split(jax.random.key(0))
        operands = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]
        self.carry = jnp.zeros(result), operands
        self.facts = {"operations": layer.operations * int(np.prod(lead)), "lead": lead}

    _ours = {"Down": conv.down, "Up": conv.up}  # noqa: RUF012

    _plain = {  # noqa: RUF012
        "Down": lambda images, kernel, stride: lax.conv_general_dilated(
            images, kernel, (stride, stride), "SAME", dimension_numbers=_LAYOUT
        ),
        "Up": lambda features, kernel, stride: lax.conv_transpose(
            features, kernel, (stride, stride), "SAME", dimension_numbers=_LAYOUT, transpose_kernel=True
        ),
    }

    def time(self, where: str, calls: int) -> float:
        """Seconds per call, over the given number of calls inside one loop or outside."""
        started = time.perf_counter()
        if where == "inside":
            self.carry = self.inside(self.carry, jnp.int32(calls))
        else:
            for _ in range(calls):
                self.carry = self.outside(self.carry)
        jax.block_until_ready(self.carry)
        return (time.perf_counter() - started) / calls


def time_all(machine: Worker, options: Options, report: Callable[[dict[str, Any]], None]) -> None:
    """Every direction of every convolution of the first method's step: psgjax's and flax's, of the contenders asked for.

    Raises:
        ConfigError: If neither is.
    """
    names = [name for name in ("psgjax", "flax") if name in options.contenders]
    if not names:
        given = " ".join(options.contenders)
        raise ConfigError(f"--convolutions times those of psgjax and flax; --contenders {given} names neither.")
    case = Case(
        options.methods[0],
        options.width,
        (options.batch_sizes or (128,))[0],
        precision=options.precision,
        network=options.network,
    )
    for owner, layer in machine.call("convolutions", case):
        for direction in _DIRECTIONS:
            for name in names:
                report(time_one(case, owner, layer, direction, name, options))


def time_one(case: Case, owner: str, layer: Any, direction: str, name: str, options: Options) -> dict[str, Any]:
    """One direction of one convolution, inside a loop and outside, alternating."""
    result: dict[str, Any] = {"contender": name, "owner": owner, "layer": layer.name, "direction": direction}
    times: dict[str, list[float]] = {"outside": [], "inside": []}
    try:
        arguments = (case, owner, layer, direction, name == "flax")
        worker = Worker("experiments.peers.convolutions:Convolution", *arguments, limit=options.limit)
        result |= worker.facts
        calls = {}
        for where in times:
            worker.call("time", where, 1, limit=options.limit)  # compiles
            once = worker.call("time", where, 2, limit=options.limit)
            calls[where] = max(1, round(options.seconds / 8 / once))
        spent = 0.0
        for _ in range(options.rounds):
            for where, taken in times.items():
                if spent < options.limit:
                    seconds = worker.call("time", where, calls[where], limit=options.limit)
                    taken.append(1e3 * seconds)
                    spent += seconds * calls[where]
        worker.close()
    except (TooSlow, Failed) as error:
        result["note"] = str(error)
    result |= {f"milliseconds_{where}": spread(taken) for where, taken in times.items() if taken}
    if times["inside"]:
        result["inside_to_outside"] = statistics.median(times["inside"]) / statistics.median(times["outside"])
    return result


def show(result: dict[str, Any]) -> str:
    """One line of the convolutions' table."""
    title = f"{result['contender']:8}{result['owner']:15}{result['layer']:18}{result['direction']:17}"
    if "inside_to_outside" not in result:
        return f"{title}{result['note']}"
    outside, inside = (result[f"milliseconds_{where}"]["median"] for where in ("outside", "inside"))
    rate = result["operations"] / inside / 1e6
    return f"{title}{outside:10.2f}{inside:10.2f}{result['inside_to_outside']:10.2f}{rate:10.1f}"
