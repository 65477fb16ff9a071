"""The strided convolution and its transpose, lowered to what each backend runs fast.

Three linear maps close under differentiation, and no others are needed:

    down(images, kernel)     the strided convolution
    up(features, kernel)     its transpose (the adjoint in the images): the "deconvolution" of generators
    correlate(images, features)   its adjoint in the kernel: the weight gradient

The gradient of each with respect to either argument is one of the other two, so derivatives of any order stay among them,
and neither reverse mode nor `vmap` ever chooses a convolution. That matters on a CPU, where the gradients that reverse mode makes
of a convolution inside a loop are some thirty times slower than outside it (jax issue 12868). There, each map is written as
a convolution of the one kind that the backend runs well, or as one matrix product, between arrays that are held in memory.
Elsewhere the native convolutions are used. `docs/performance.md` has the measurements.

Layouts: images [B, H, W, C] with H, W divisible by the stride; features [B, H / stride, W / stride, D]; kernels [k, k, C, D]
with k a multiple of the stride. Padding is "SAME": `down` equals `lax.conv_general_dilated(images, kernel, strides, "SAME")`,
and `up` equals `lax.conv_transpose(features, kernel, strides, "SAME", transpose_kernel=True)`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

# Below so many image channels one product with gathered patches beats a convolution: the patches are small then.
_NARROW = 16
# Up to so many, adding up the products that make a transposed convolution costs less than a convolution for each phase.
_SLIM = 64
_LAYOUT = ("NHWC", "HWIO", "NHWC")

_Map = Callable[[jax.Array, jax.Array], jax.Array]


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


def held(*arrays: jax.Array) -> Any:
    """On a CPU, keep the arrays in memory: left alone, its compiler computes elementwise work anew in each operation that reads it.

    So with `compiler_options`; elsewhere, and without them, this does nothing. One array, or a tuple of several.
    """
    given = arrays if len(arrays) > 1 else arrays[0]
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
    return held(_lowered("down", stride, kernel.shape[0])(images, kernel))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _up(features: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return held(_lowered("up", stride, kernel.shape[0])(features, kernel))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _correlate(images: jax.Array, features: jax.Array, stride: int, size: int) -> jax.Array:
    return held(_lowered("correlate", stride, size)(images, features))


def _down_forward(images: jax.Array, kernel: jax.Array, stride: int) -> tuple:
    return _down(images, kernel, stride), (images, kernel)


def _down_backward(stride: int, saved: tuple, grad: jax.Array) -> tuple:
    images, kernel = saved
    return _up(grad, kernel, stride), _correlate(images, grad, stride, kernel.shape[0])


def _up_forward(features: jax.Array, kernel: jax.Array, stride: int) -> tuple:
    return _up(features, kernel, stride), (features, kernel)


def _up_backward(stride: int, saved: tuple, grad: jax.Array) -> tuple:
    features, kernel = saved
    return _down(grad, kernel, stride), _correlate(grad, features, stride, kernel.shape[0])


def _correlate_forward(images: jax.Array, features: jax.Array, stride: int, size: int) -> tuple:
    return _correlate(images, features, stride, size), (images, features)


def _correlate_backward(stride: int, size: int, saved: tuple, grad: jax.Array) -> tuple:
    images, features = saved
    return _up(features, grad, stride), _down(images, grad, stride)


_down.defvjp(_down_forward, _down_backward)
_up.defvjp(_up_forward, _up_backward)
_correlate.defvjp(_correlate_forward, _correlate_backward)


def _lowered(name: str, stride: int, size: int) -> _Map:
    """The named map in the form that the platform of the lowering runs fast, with its own batching rule."""
    forms = {
        "down": (_down_cpu, _down_native),
        "up": (_up_cpu, _up_native),
        "correlate": (_correlate_cpu, _correlate_native),
    }
    cpu, native = (partial(form, stride=stride, size=size) for form in forms[name])

    @custom_vmap
    def apply(a: jax.Array, b: jax.Array) -> jax.Array:
        return lax.platform_dependent(*held(a, b), cpu=cpu, default=native)

    @apply.def_vmap
    def batched(axis_size: int, in_batched: list[bool], a: jax.Array, b: jax.Array) -> tuple[jax.Array, bool]:
        if name != "correlate" and in_batched == [True, False]:  # one kernel for all: a longer batch
            merged = apply(a.reshape(-1, *a.shape[2:]), b)
            return merged.reshape(axis_size, -1, *merged.shape[1:]), True

        def unrolled(a: jax.Array, b: jax.Array) -> jax.Array:
            pairs = [(a[i] if in_batched[0] else a, b[i] if in_batched[1] else b) for i in range(axis_size)]
            return jnp.stack([apply(*pair) for pair in pairs])

        axes = tuple(0 if mapped else None for mapped in in_batched)
        return lax.platform_dependent(a, b, cpu=unrolled, default=jax.vmap(native, axes)), True

    return apply


# The native forms: reverse mode's own convolutions, which GPUs and TPUs have fast kernels for.


def _down_native(images: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    return lax.conv_general_dilated(
        images, kernel, (stride, stride), [_pads(stride, size)] * 2, dimension_numbers=_LAYOUT
    )


def _up_native(features: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    before, after = _pads(stride, size)
    flipped = kernel[::-1, ::-1].swapaxes(2, 3)
    pads = [(size - 1 - before, size - 1 - after)] * 2
    return lax.conv_general_dilated(features, flipped, (1, 1), pads, (stride, stride), dimension_numbers=_LAYOUT)


def _correlate_native(images: jax.Array, features: jax.Array, *, stride: int, size: int) -> jax.Array:
    pads = [_pads(stride, size)] * 2
    layout = ("CHWN", "IHWO", "HWNC")
    return lax.conv_general_dilated(images, features, (1, 1), pads, (1, 1), (stride, stride), dimension_numbers=layout)


# The CPU's forms. Wide: undilated convolutions that look like a forward one, the kind that its backend runs near its peak.
# Narrow: one product with gathered patches.


def _pads(stride: int, size: int) -> tuple[int, int]:
    """Padding "SAME", (before, after), where the stride divides the image: size - stride in all."""
    return (size - stride) // 2, size - stride - (size - stride) // 2


def _patches(images: jax.Array, stride: int, size: int) -> jax.Array:
    """What the kernel sees at each place: [B * H / stride * W / stride, size * size * C], in the order of `_taps`."""
    batch, height, width, channels = images.shape
    pads, count = _pads(stride, size), size // stride
    rows, columns = height // stride, width // stride
    padded = jnp.pad(images, ((0, 0), pads, pads, (0, 0)))
    blocks = padded.reshape(batch, rows + count - 1, stride, columns + count - 1, stride, channels).swapaxes(2, 3)
    blocks = blocks.reshape(*blocks.shape[:3], -1)
    shifted = [blocks[:, r : r + rows, c : c + columns] for r in range(count) for c in range(count)]
    return jnp.concatenate(shifted, -1).reshape(batch * rows * columns, -1)


def _taps(kernel: jax.Array, stride: int) -> jax.Array:
    """The kernel [k, k, C, D] as [k * k * C, D], its taps by blocks of stride x stride: these fall on one pixel's phases."""
    count = len(kernel) // stride
    blocks = kernel.reshape(count, stride, count, stride, *kernel.shape[2:]).swapaxes(1, 2)
    return blocks.reshape(-1, kernel.shape[3])


def _down_cpu(images: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    if kernel.shape[2] >= _NARROW:
        return _down_native(images, kernel, stride=stride, size=size)
    batch, height, width, _ = images.shape
    features = _patches(images, stride, size) @ _taps(kernel, stride)
    return features.reshape(batch, height // stride, width // stride, -1)


def _up_cpu(features: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    if kernel.shape[2] <= _SLIM:
        return _up_product(features, kernel, stride=stride, size=size)
    batch, height, width, _ = features.shape
    before, _ = _pads(stride, size)
    count = size // stride
    # Pixels of one phase of the stride see the same taps: each phase is a plain convolution of the features.
    taps = [((phase + before) % stride, (phase + before) // stride) for phase in range(stride)]

    def convolve(row: tuple[int, int], column: tuple[int, int]) -> jax.Array:
        phase = kernel[row[0] :: stride, column[0] :: stride][::-1, ::-1].swapaxes(2, 3)
        pads = [(count - 1 - shift, shift) for _, shift in (row, column)]
        return lax.conv_general_dilated(features, phase, (1, 1), pads, dimension_numbers=_LAYOUT)

    pixels = jnp.stack([jnp.stack([convolve(row, column) for column in taps], 3) for row in taps], 2)
    return pixels.reshape(batch, height * stride, width * stride, -1)


def _up_product(features: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    batch, height, width, _ = features.shape
    channels, count = kernel.shape[2], size // stride
    products = jnp.split(features @ _taps(kernel, stride).T, count * count, -1)
    total = sum(
        jnp.pad(products[r * count + c], ((0, 0), (r, count - 1 - r), (c, count - 1 - c), (0, 0)))
        for r in range(count)
        for c in range(count)
    )
    rows, columns = height + count - 1, width + count - 1
    pixels = total.reshape(batch, rows, columns, stride, stride, channels).transpose(0, 1, 3, 2, 4, 5)  # type: ignore[union-attr]
    pixels = pixels.reshape(batch, rows * stride, columns * stride, channels)
    before, _ = _pads(stride, size)
    return pixels[:, before : before + height * stride, before : before + width * stride]


def _correlate_cpu(images: jax.Array, features: jax.Array, *, stride: int, size: int) -> jax.Array:
    if images.shape[3] < _NARROW:
        taps = _patches(images, stride, size).T @ features.reshape(-1, features.shape[3])
        count = size // stride
        blocks = taps.reshape(count, count, stride, stride, images.shape[3], -1)
        return blocks.swapaxes(1, 2).reshape(size, size, images.shape[3], -1)
    # The channels are the batch of this convolution, and the batch its channels.
    images, features = images.transpose(3, 1, 2, 0), features.transpose(1, 2, 0, 3)
    pads = [_pads(stride, size)] * 2
    return lax.conv_general_dilated(
        images, features, (1, 1), pads, rhs_dilation=(stride, stride), dimension_numbers=_LAYOUT
    ).transpose(1, 2, 0, 3)


def compiler_options(platform: str | None = None) -> dict[str, str]:
    """Options of `jax.jit` for programs with convolutions, on a CPU: XLA's own ones, and arrays held where they are asked to be.

    YNNPACK's convolutions, the default, take half as long again; barriers are dropped by default before operations are fused. Empty
    elsewhere, and without what jaxlib does not know. The platform is the default one where none is given.
    """
    options = {"xla_cpu_experimental_ynn_fusion_type": "", "xla_disable_hlo_passes": "cse_barrier_expander"}
    wanted = options if (platform or jax.default_backend()) == "cpu" else {}
    return {name: value for name, value in wanted.items() if _accepted(name, value)}


@cache
def _accepted(name: str, value: str) -> bool:
    try:
        jax.jit(lambda: lax.optimization_barrier(jnp.zeros(())), compiler_options={name: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
