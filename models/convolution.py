"""A convolution that stays fast where every member of a `jax.vmap` has a kernel of its own.

XLA sees a vmap over kernels as one convolution in groups, whose gradients are slow on every
platform and hundreds of times slower on CPUs (jax issue 13800). On CPUs the members are convolved
one after the other instead, each as large as the processor's own convolution; the gradients are
written as convolutions of the shape that XLA hands to it, inside a loop too, where it does not
recognise those of `jax.grad`.

Dimensions: B images, H rows, W columns, C channels in, O channels out, K rows and columns of a
kernel.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import jax
from jax import lax

ManyKernels = Literal["auto", "loop", "groups"]
"""How a vmap over kernels is computed: one after the other, or as one convolution in groups."""

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def convolve(
    images_BxHxWxC: jax.Array,
    kernel_KxKxCxO: jax.Array,
    strides: int = 1,
    many_kernels: ManyKernels = "auto",
) -> jax.Array:
    """Convolves images with a kernel of odd size that is centred on the pixels, zeros around them.

    Args:
        images_BxHxWxC: floating point.
        kernel_KxKxCxO: of the same dtype.
        strides: of rows and columns.
        many_kernels: "auto" is "loop" on CPUs and "groups" elsewhere.

    Returns:
        Array of shape [B, ceil(H / strides), ceil(W / strides), O].
    """
    forward = functools.partial(_forward, strides=strides)
    return _over_workers(forward, many_kernels)(images_BxHxWxC, kernel_KxKxCxO)


def _keep(
    images: jax.Array, kernel: jax.Array, strides: int, many_kernels: ManyKernels
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve(images, kernel, strides, many_kernels), (images, kernel)


def _gradients(
    strides: int,
    many_kernels: ManyKernels,
    kept: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    images, kernel = kept
    size, rows_and_columns = kernel.shape[0], images.shape[1:3]
    of_images = functools.partial(_of_images, strides=strides, shape=rows_and_columns)
    of_kernel = functools.partial(_of_kernel, strides=strides, size=size)
    return (
        _over_workers(of_images, many_kernels)(cotangent, kernel),
        _over_workers(of_kernel, many_kernels)(images, cotangent),
    )


convolve.defvjp(_keep, _gradients)


def _forward(images: jax.Array, kernel: jax.Array, *, strides: int) -> jax.Array:
    around = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        images,
        kernel,
        (strides, strides),
        [(around, around)] * 2,
        dimension_numbers=_DIMENSIONS,
    )


def _of_images(
    cotangent: jax.Array, kernel: jax.Array, *, strides: int, shape: tuple[int, ...]
) -> jax.Array:
    """Returns the gradient of the images: the cotangent, convolved with the reversed kernel."""
    before = kernel.shape[0] // 2
    padding = [
        (before, length - strides * (out - 1) - 1 + before)
        for length, out in zip(shape, cotangent.shape[1:3], strict=True)
    ]
    return lax.conv_general_dilated(
        cotangent,
        kernel[::-1, ::-1].swapaxes(2, 3),
        (1, 1),
        padding,
        lhs_dilation=(strides, strides),
        dimension_numbers=_DIMENSIONS,
    )


def _of_kernel(images: jax.Array, cotangent: jax.Array, *, strides: int, size: int) -> jax.Array:
    """Returns the gradient of the kernel: the images, convolved with the cotangent, over B."""
    before = size // 2
    padding = [
        (before, size - 1 - before + strides * (out - 1) + 1 - length)
        for length, out in zip(images.shape[1:3], cotangent.shape[1:3], strict=True)
    ]
    gradient_CxKxKxO = lax.conv_general_dilated(
        images.transpose(3, 1, 2, 0),
        cotangent.transpose(1, 2, 0, 3),
        (1, 1),
        padding,
        rhs_dilation=(strides, strides),
        dimension_numbers=_DIMENSIONS,
    )
    return gradient_CxKxKxO.transpose(1, 2, 0, 3)


def _over_workers(
    function: Callable[[jax.Array, jax.Array], jax.Array], many_kernels: ManyKernels
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the function of two arrays with a rule of its own for vmaps over both."""
    apply = jax.custom_batching.custom_vmap(function)

    def loop(*batched: jax.Array) -> jax.Array:
        # By itself again: there may be another vmap around this one.
        result: jax.Array = lax.map(lambda each: apply(*each), batched)
        return result

    def groups(*batched: jax.Array) -> jax.Array:
        return jax.vmap(function)(*batched)

    @apply.def_vmap
    def _(size: int, is_batched: list[bool], *arrays: jax.Array) -> tuple[Any, bool]:
        del size
        if not all(is_batched):
            # One kernel for all: the members are more of a batch, and that XLA sees.
            axes = tuple(0 if batched else None for batched in is_batched)
            return jax.vmap(function, in_axes=axes)(*arrays), True
        if many_kernels == "auto":
            return lax.platform_dependent(*arrays, cpu=loop, default=groups), True
        return (loop if many_kernels == "loop" else groups)(*arrays), True

    return apply
