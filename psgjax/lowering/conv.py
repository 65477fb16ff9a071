"""The strided convolution and its transpose, lowered to what each backend runs fast.

Three linear maps close under differentiation, and no others are needed:

    down(images, kernel)     the strided convolution
    up(features, kernel)     its transpose (the adjoint in the images): the "deconvolution" of generators
    correlate(images, features)   its adjoint in the kernel: the weight gradient

The gradient of each with respect to either argument is one of the other two, so derivatives of any order stay among them,
and neither reverse mode nor `vmap` ever chooses a convolution. That matters on a CPU, where the gradients that reverse mode makes
of a convolution inside a loop are some thirty times slower than outside it (jax issue 12868). There, each map is made of
convolutions of the one kind that the backend runs well, and of matrix products, between arrays kept in memory, with
fewer multiplications than written out (`filtering.py`). Elsewhere the native convolutions are used. `docs/performance.md` has
the measurements.

Layouts: images [B, H, W, C] with H, W divisible by the stride; features [B, H / stride, W / stride, D]; kernels [k, k, C, D]
with k a multiple of the stride. Padding is "SAME": `down` equals `lax.conv_general_dilated(images, kernel, strides, "SAME")`,
and `up` equals `lax.conv_transpose(features, kernel, strides, "SAME", transpose_kernel=True)`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap

from psgjax.lowering import filtering

# Below so many image channels one product with gathered patches beats a convolution: the patches are small then.
NARROW = 16
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


def barrier(*arrays: jax.Array) -> Any:
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
    return barrier(_lowered("down", stride, kernel.shape[0])(images, kernel))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _up(features: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return barrier(_lowered("up", stride, kernel.shape[0])(features, kernel))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _correlate(images: jax.Array, features: jax.Array, stride: int, size: int) -> jax.Array:
    return barrier(_lowered("correlate", stride, size)(images, features))


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
        # One by one, as the other maps of the same arrays do: the compiler then merges what all make of one, across the passes.
        # Not kernels: what is made of one is then made once for all pieces of a batch.
        a, b = barrier(a), barrier(b) if name == "correlate" else b
        return lax.platform_dependent(a, b, cpu=cpu, default=native)

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


# The CPU's forms. Narrow images: one product with gathered patches, or with all taps. Wide ones: minimal filtering along the rows,
# and for each of its points a product, or a convolution that looks like a forward one: its backend runs these near its peak.
# Programs apply them to the same shapes many times: `jax.jit` traces each once.


def _pads(stride: int, size: int) -> tuple[int, int]:
    """Padding "SAME", (before, after), where the stride divides the image: size - stride in all."""
    return (size - stride) // 2, size - stride - (size - stride) // 2


@partial(jax.jit, static_argnames=("stride", "size"))
def _down_cpu(images: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    batch, height, width, channels = images.shape
    if channels < NARROW:
        taps = _blocks(kernel, stride).reshape(-1, kernel.shape[3])
        return (_patches(images, stride, size) @ taps).reshape(batch, height // stride, width // stride, -1)

    def convolve(images: jax.Array, kernel: jax.Array) -> jax.Array:
        pads = [(0, 0), _pads(stride, size)]
        return lax.conv_general_dilated(images, kernel, (stride, stride), pads, dimension_numbers=_LAYOUT)

    mixing = filtering.mixing(height // stride, stride, size, images.dtype)
    tiles, kernels = filtering.tiles(mixing.images, images, stride), filtering.at_points(mixing.kernel, kernel, 0)
    return filtering.from_tiles(mixing.features, _one_by_one(convolve, tiles, kernels), batch)


@partial(jax.jit, static_argnames=("stride", "size"))
def _up_cpu(features: jax.Array, kernel: jax.Array, *, stride: int, size: int) -> jax.Array:
    multiply = partial(_up_product, stride=stride)
    if kernel.shape[2] < NARROW:
        return multiply(features, kernel)
    mixing = filtering.mixing(features.shape[1], stride, size, features.dtype)
    parts = map(multiply, filtering.tiles(mixing.features, features, 1), filtering.at_points(mixing.kernel, kernel, 0))
    return filtering.from_tiles(mixing.images, parts, features.shape[0])


@partial(jax.jit, static_argnames=("stride", "size"))
def _correlate_cpu(images: jax.Array, features: jax.Array, *, stride: int, size: int) -> jax.Array:
    if images.shape[3] < NARROW:
        taps = _patches(images, stride, size).T @ features.reshape(-1, features.shape[3])
        count = size // stride
        blocks = taps.reshape(count, count, stride, stride, images.shape[3], -1)
        return blocks.swapaxes(1, 2).reshape(size, size, images.shape[3], -1)

    def convolve(images: jax.Array, features: jax.Array) -> jax.Array:
        # The channels are the batch of this convolution, and the batch its channels.
        images, features = images.transpose(3, 1, 2, 0), features.transpose(1, 2, 0, 3)
        pads, gaps = [(0, 0), _pads(stride, size)], (stride, stride)
        taps = lax.conv_general_dilated(images, features, (1, 1), pads, rhs_dilation=gaps, dimension_numbers=_LAYOUT)
        return taps.transpose(1, 2, 0, 3)

    mixing = filtering.mixing(features.shape[1], stride, size, images.dtype)
    tiles = filtering.tiles(mixing.images, images, stride), filtering.tiles(mixing.features, features, 1)
    return filtering.from_points(mixing.kernel, lax.optimization_barrier(_one_by_one(convolve, *tiles)), 0)


def _up_product(features: jax.Array, kernel: jax.Array, *, stride: int) -> jax.Array:
    """One product with all taps, and a shifted sum of what falls on each pixel; the kernel may be lower than wide."""
    batch, height, width, depth = features.shape
    rows, columns = (n // stride for n in kernel.shape[:2])
    taps = jnp.moveaxis(_blocks(kernel, stride), -1, 0).reshape(depth, -1)  # not the transpose: products would undo it
    products = jnp.split(features @ taps, rows * columns, -1)
    total = sum(
        jnp.pad(products[r * columns + c], ((0, 0), (r, rows - 1 - r), (c, columns - 1 - c), (0, 0)))
        for r in range(rows)
        for c in range(columns)
    )
    rows, columns = height + rows - 1, width + columns - 1
    pixels = total.reshape(batch, rows, columns, stride, stride, -1).swapaxes(2, 3)  # type: ignore[union-attr]
    pixels = pixels.reshape(batch, rows * stride, columns * stride, -1)
    top, left = (_pads(stride, n)[0] for n in kernel.shape[:2])
    return pixels[:, top : top + height * stride, left : left + width * stride]


def _one_by_one(convolve: _Map, images: Sequence[jax.Array], kernels: Sequence[jax.Array]) -> list[jax.Array]:
    """The convolutions of each point, none started before the last is done.

    Left alone, all would be under way at once, each with scratch memory that the threads then keep. What is only scheduled in an
    order does not wait in it: so each kernel takes a zero from the results before it.
    """
    results: list[jax.Array] = []
    for image, kernel in zip(images, kernels, strict=True):
        after = kernel + 0 * results[-1].ravel()[0] if results else kernel
        results.append(convolve(image, after))
    return results


def _patches(images: jax.Array, stride: int, size: int) -> jax.Array:
    """What the kernel sees at each place: [B * H / stride * W / stride, size * size * C], in the order of `_blocks`."""
    batch, height, width, channels = images.shape
    pads, count = _pads(stride, size), size // stride
    rows, columns = height // stride, width // stride
    padded = jnp.pad(images, ((0, 0), pads, pads, (0, 0)))
    blocks = padded.reshape(batch, rows + count - 1, stride, columns + count - 1, stride, channels).swapaxes(2, 3)
    blocks = blocks.reshape(*blocks.shape[:3], -1)
    shifted = [blocks[:, r : r + rows, c : c + columns] for r in range(count) for c in range(count)]
    return jnp.concatenate(shifted, -1).reshape(batch * rows * columns, -1)


def _blocks(kernel: jax.Array, stride: int) -> jax.Array:
    """The kernel [k, l, C, D] as [k / stride, l / stride, stride, stride, C, D]: a block's taps fall on one pixel's phases."""
    rows, columns = (n // stride for n in kernel.shape[:2])
    return kernel.reshape(rows, stride, columns, stride, *kernel.shape[2:]).swapaxes(1, 2)


def compiler_options(platform: str | None = None, *, seldom: bool = False) -> dict[str, Any]:
    """Options of `jax.jit` for programs with convolutions, on a CPU: XLA's own ones, and optimization barriers respected.

    YNNPACK's convolutions, the default, take half as long again; barriers are dropped by default before operations are fused. Empty
    elsewhere, and without what jaxlib does not know. The platform is the default one where none is given. For a program that runs
    seldom, less is optimised: that saves a third of the time to compile it.
    """
    options: dict[str, Any] = {
        "xla_cpu_experimental_ynn_fusion_type": "",
        "xla_disable_hlo_passes": "cse_barrier_expander",
        **({"xla_backend_optimization_level": 1} if seldom else {}),
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
