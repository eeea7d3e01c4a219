"""A convolution that stays fast where every member of a `jax.vmap` has a kernel of its own.

XLA sees a vmap over kernels as one convolution in groups, whose gradients are slow on every
platform and hundreds of times slower on CPUs (jax issue 13800). On CPUs the members are convolved
one after the other instead. The gradients are written as the convolutions that they are: inside a
loop, XLA does not hand those of `jax.grad` to the processor's own routine.

Dimensions: B images, H rows, W columns, C channels in, O channels out, K rows and columns of a
kernel.
"""

import functools

import jax
from jax import lax

from models.members import ManyModels, member_by_member, varying_like

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolve(
    images_BxHxWxC: jax.Array,
    kernel_KxKxCxO: jax.Array,
    strides: int = 1,
    many_models: ManyModels = "auto",
) -> jax.Array:
    """Convolves images with a kernel of odd size that is centred on the pixels, zeros around them.

    Args:
        images_BxHxWxC: floating point.
        kernel_KxKxCxO: of the same dtype.
        strides: of rows and columns.
        many_models: how a vmap over images and kernels is computed; see `models.members`.

    Returns:
        Array of shape [B, ceil(H / strides), ceil(W / strides), O].
    """
    kernel_KxKxCxO = varying_like(kernel_KxKxCxO, images_BxHxWxC)
    return _convolve(images_BxHxWxC, kernel_KxKxCxO, strides, many_models)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(
    images: jax.Array, kernel: jax.Array, strides: int, many_models: ManyModels
) -> jax.Array:
    forward = functools.partial(_forward, strides=strides)
    result: jax.Array = member_by_member(forward, many_models)(images, kernel)
    return result


def _keep(
    images: jax.Array, kernel: jax.Array, strides: int, many_models: ManyModels
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _convolve(images, kernel, strides, many_models), (images, kernel)


def _gradients(
    strides: int,
    many_models: ManyModels,
    kept: tuple[jax.Array, jax.Array],
    cotangent: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    images, kernel = kept
    size, rows_and_columns = kernel.shape[0], images.shape[1:3]
    of_images = functools.partial(_of_images, strides=strides, shape=rows_and_columns)
    of_kernel = functools.partial(_of_kernel, strides=strides, size=size)
    return (
        member_by_member(of_images, many_models)(cotangent, kernel),
        member_by_member(of_kernel, many_models)(images, cotangent),
    )


_convolve.defvjp(_keep, _gradients)


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
