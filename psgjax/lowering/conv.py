"""The strided convolution and its transpose, lowered to what each backend runs fast.

Three linear maps are closed under differentiation:

    down(images, kernel)          the strided convolution
    up(features, kernel)          its transpose with respect to the images: the "deconvolution" of generators
    correlate(images, features)   its transpose with respect to the kernel: the weight gradient

The gradient of each with respect to either argument is one of the other two. So derivatives of any order are made of these three,
and neither reverse mode nor `vmap` ever chooses a convolution. That matters on a CPU: reverse mode's own gradients of a convolution
are some thirty times slower inside a loop than outside (jax issue 12868). There, each map consists of convolutions of the one
kind that the backend runs well and of matrix products, with optimization barriers between them and with fewer multiplications
than the definition has (`conv_cpu.py`, `filtering.py`). On NVIDIA's GPUs each is one matrix product (`conv_products.py`). Other
platforms use the native convolutions. `docs/performance.md` has the measurements.

Layouts: images [B, H, W, C] with H, W divisible by the stride; features [B, H / stride, W / stride, D]; kernels [k, k, C, D]
with k a multiple of the stride. Padding is "SAME": `down` equals `lax.conv_general_dilated(images, kernel, strides, "SAME")`,
and `up` equals `lax.conv_transpose(features, kernel, strides, "SAME", transpose_kernel=True)`.
"""

from __future__ import annotations

import os
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from psgjax.lowering import conv_cpu, conv_products, traced
from psgjax.lowering.conv_cpu import LAYOUT, Map
from psgjax.lowering.conv_products import pads


def down(images: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """Strided convolution, padded "SAME": images [B, H, W, C], kernel [k, k, C, D] -> features [B, H / stride, W / stride, D].

    Raises:
        ValueError: If the image or kernel size is not a multiple of the stride, or the channels disagree.
    """
    _check(images.shape[1:3], images.shape[3], kernel, 2, stride)
    return _down(images, kernel, stride)


def up(features: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """Transposed convolution, padded "SAME": features [B, h, w, D], kernel [k, k, C, D] -> images [B, h * stride, w * stride, C].

    Raises:
        ValueError: If the kernel size is not a multiple of the stride, or the channels disagree.
    """
    _check((stride, stride), features.shape[3], kernel, 3, stride)
    return _up(features, kernel, stride)


def barrier(*arrays: jax.Array) -> Any:
    """`lax.optimization_barrier` on a CPU, with `compiler_options`: the arrays are written to memory once.

    Without it, that compiler repeats elementwise work in every operation that reads its result. On other platforms, and without
    the options, this does nothing. One array is returned as it is, several as a tuple.
    """
    return _barrier(arrays if len(arrays) > 1 else arrays[0])


@traced.once
def _barrier(given: Any) -> Any:
    return lax.platform_dependent(given, cpu=lax.optimization_barrier, default=lambda given: given)


def _check(size: tuple[int, ...], channels: int, kernel: jax.Array, axis: int, stride: int) -> None:
    if any(n % stride for n in (*size, *kernel.shape[:2])) or kernel.shape[0] != kernel.shape[1]:
        raise ValueError(
            f"image size {size} and square kernel {kernel.shape[:2]} must be multiples of the stride {stride}"
        )
    if kernel.shape[axis] != channels:
        raise ValueError(f"kernel {kernel.shape} takes {kernel.shape[axis]} channels, not {channels}")


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _down(images: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return barrier(_lowered("down", stride, kernel.shape[0])(images, kernel))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _up(features: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return barrier(_lowered("up", stride, kernel.shape[0])(features, kernel))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _correlate(images: jax.Array, features: jax.Array, stride: int, size: int) -> jax.Array:
    return barrier(_lowered("correlate", stride, size)(images, features))


def _down_forward(images: jax.Array, kernel: jax.Array, stride: int) -> tuple:
    return _down(images, kernel, stride), (images, kernel)


def _down_backward(stride: int, saved: tuple, cotangent: jax.Array) -> tuple:
    images, kernel = saved
    return _up(cotangent, kernel, stride), _correlate(images, cotangent, stride, kernel.shape[0])


def _up_forward(features: jax.Array, kernel: jax.Array, stride: int) -> tuple:
    return _up(features, kernel, stride), (features, kernel)


def _up_backward(stride: int, saved: tuple, cotangent: jax.Array) -> tuple:
    features, kernel = saved
    return _down(cotangent, kernel, stride), _correlate(cotangent, features, stride, kernel.shape[0])


def _correlate_forward(images: jax.Array, features: jax.Array, stride: int, size: int) -> tuple:
    return _correlate(images, features, stride, size), (images, features)


def _correlate_backward(stride: int, size: int, saved: tuple, cotangent: jax.Array) -> tuple:
    images, features = saved
    return _up(features, cotangent, stride), _down(images, cotangent, stride)


_down.defvjp(_down_forward, _down_backward)
_up.defvjp(_up_forward, _up_backward)
_correlate.defvjp(_correlate_forward, _correlate_backward)


@cache
def _lowered(name: str, stride: int, size: int) -> Map:
    """The named map in the form that the platform of the lowering runs fast, with its own batching rule.

    One object for all places that use it: so it is traced once.
    """
    forms = {
        "down": (conv_cpu.down, conv_products.down, _down_native),
        "up": (conv_cpu.up, conv_products.up, _up_native),
        "correlate": (conv_cpu.correlate, conv_products.correlate, _correlate_native),
    }
    cpu, products, native = (partial(form, stride=stride, size=size) for form in forms[name])

    @custom_vmap
    @traced.once
    def apply(a: jax.Array, b: jax.Array) -> jax.Array:
        # One barrier per array, as the other maps of the same arrays have: the compiler then merges what several maps compute from
        # one array, across the passes. None on kernels: what is computed from one is then computed once for all microbatches.
        a, b = barrier(a), barrier(b) if name == "correlate" else b
        return lax.platform_dependent(a, b, cpu=cpu, cuda=products, default=native)

    @apply.def_vmap
    def batched(axis_size: int, in_batched: list[bool], a: jax.Array, b: jax.Array) -> tuple[jax.Array, bool]:
        if name != "correlate" and in_batched == [True, False]:  # one kernel for all: a longer batch
            merged = apply(a.reshape(-1, *a.shape[2:]), b)
            return merged.reshape(axis_size, -1, *merged.shape[1:]), True

        def unrolled(a: jax.Array, b: jax.Array) -> jax.Array:
            pairs = [(a[i] if in_batched[0] else a, b[i] if in_batched[1] else b) for i in range(axis_size)]
            return jnp.stack([apply(*pair) for pair in pairs])

        axes = tuple(0 if mapped else None for mapped in in_batched)
        cuda, default = jax.vmap(products, axes), jax.vmap(native, axes)
        return lax.platform_dependent(a, b, cpu=unrolled, cuda=cuda, default=default), True

    return apply


# The native forms: reverse mode's own convolutions, which TPUs have fast kernels for.


def _down_native(images: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), [pads(stride, size)] * 2, dimension_numbers=LAYOUT
    )


def _up_native(features: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    before, after = pads(stride, size)
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    padding = [(size - 1 - before, size - 1 - after)] * 2
    return lax.conv_general_dilated(features, flipped, (1, 1), padding, (stride, stride), dimension_numbers=LAYOUT)


def _correlate_native(images: jax.Array, features: jax.Array, *, stride: int, size: int) -> jax.Array:
    padding = [pads(stride, size)] * 2
    layout = ("CHWN", "IHWO", "HWNC")
    return lax.conv_general_dilated(
        images, features, (1, 1), padding, (1, 1), (stride, stride), dimension_numbers=layout
    )


def compiler_options(platform: str | None = None, *, seldom: bool = False) -> dict[str, Any]:
    """Options of `jax.jit` for programs with convolutions on a CPU; empty on other platforms.

    XLA's own convolutions, since YNNPACK's, the default, take half as long again; and optimization barriers that last until
    operations are fused, before which they are dropped by default. Options that jaxlib does not know are left out.

    Args:
        platform: Of the program; the default one if None.
        seldom: For a program that runs seldom: less is optimised, which saves a third of the time to compile it. Where XLA_FLAGS
            say how much, that holds.
    """
    given = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    options: dict[str, Any] = {
        "xla_cpu_experimental_ynn_fusion_type": "",
        "xla_disable_hlo_passes": "cse_barrier_expander",
        **({"xla_backend_optimization_level": 1} if seldom and not given else {}),
    }
    wanted = options if (platform or jax.default_backend()) == "cpu" else {}
    return {name: value for name, value in wanted.items() if _accepted(name, value)}


@cache
def _accepted(name: str, value: Any) -> bool:
    try:
        jax.jit(lambda: lax.optimization_barrier(jnp.zeros(())), compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
