"""A convolution that stays fast where every member of a `jax.vmap` has a kernel of its own.

XLA sees a vmap over kernels as one convolution in groups, whose gradients are slow on every
platform: several times on GPUs, hundreds of times on CPUs (jax issue 13800). On CPUs the members
are convolved one after the other instead. Inside a loop, XLA does not hand the gradients of
`jax.grad` to the processor's own routine, so there they are written as the convolutions that they
are. Elsewhere it is one convolution in groups, and the gradient of the kernels one product of
matrices, of patches of the images and the cotangent. In full float32 precision, where GPUs have no
fast convolution in groups, all three are products of patches.

Dimensions: B images, H rows, W columns, C channels in, O channels out, K rows and columns of a
kernel.
"""

import functools

import jax
import jax.numpy as jnp
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
    forward, by_patches = (
        functools.partial(each, strides=strides) for each in (_forward, _forward_by_patches)
    )
    together = by_patches if _full_precision() else forward
    result: jax.Array = member_by_member(forward, many_models, together=together)(images, kernel)
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
    alone, in_loop, by_patches = (
        functools.partial(gradient, strides=strides, shape=images.shape[1:3])
        for gradient in (_of_images, _of_images_in_loop, _of_images_by_patches)
    )
    together = by_patches if _full_precision() else in_loop
    of_images = member_by_member(alone, many_models, in_loop=in_loop, together=together)
    alone, in_loop, by_patches = (
        functools.partial(gradient, strides=strides, size=kernel.shape[0])
        for gradient in (_of_kernel, _of_kernel_in_loop, _of_kernel_by_patches)
    )
    of_kernel = member_by_member(alone, many_models, in_loop=in_loop, together=by_patches)
    return of_images(cotangent, kernel), of_kernel(images, cotangent)


_convolve.defvjp(_keep, _gradients)


def _full_precision() -> bool:
    """Returns whether products are to have all of float32's precision, on any platform."""
    return jax.config.values["jax_default_matmul_precision"] in ("float32", "highest")


def _forward(images: jax.Array, kernel: jax.Array, *, strides: int) -> jax.Array:
    around = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        images,
        kernel,
        (strides, strides),
        [(around, around)] * 2,
        dimension_numbers=_DIMENSIONS,
    )


def _forward_by_patches(images: jax.Array, kernel: jax.Array, *, strides: int) -> jax.Array:
    rows_and_columns = tuple(-(-length // strides) for length in images.shape[1:3])
    patches = _patches(images, rows_and_columns, strides, kernel.shape[0])
    return jnp.dot(patches, kernel.reshape(-1, kernel.shape[-1]))


def _of_images(
    cotangent: jax.Array, kernel: jax.Array, *, strides: int, shape: tuple[int, ...]
) -> jax.Array:
    """Returns the gradient of the images, as `jax.grad` does."""
    images = jnp.zeros_like(cotangent, shape=(len(cotangent), *shape, kernel.shape[2]))
    (gradient,) = jax.linear_transpose(
        lambda images: _forward(images, kernel, strides=strides), images
    )(cotangent)
    return gradient


def _of_images_in_loop(
    cotangent: jax.Array, kernel: jax.Array, *, strides: int, shape: tuple[int, ...]
) -> jax.Array:
    """Returns the same: the cotangent, convolved with the reversed kernel."""
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


def _of_images_by_patches(
    cotangent: jax.Array, kernel: jax.Array, *, strides: int, shape: tuple[int, ...]
) -> jax.Array:
    """Returns the same, as a product of patches of the cotangent, zeros between its pixels."""
    after = (
        length - strides * (out - 1) - 1
        for length, out in zip(shape, cotangent.shape[1:3], strict=True)
    )
    around = ((0, 0, 0), *((0, end, strides - 1) for end in after), (0, 0, 0))
    spread = lax.pad(cotangent, jnp.zeros_like(cotangent, shape=()), around)
    return _forward_by_patches(spread, kernel[::-1, ::-1].swapaxes(2, 3), strides=1)


def _of_kernel(images: jax.Array, cotangent: jax.Array, *, strides: int, size: int) -> jax.Array:
    """Returns the gradient of the kernel, as `jax.grad` does."""
    channels = images.shape[-1], cotangent.shape[-1]
    kernel = jnp.zeros_like(cotangent, shape=(size, size, *channels))
    (gradient,) = jax.linear_transpose(
        lambda kernel: _forward(images, kernel, strides=strides), kernel
    )(cotangent)
    return gradient


def _of_kernel_in_loop(
    images: jax.Array, cotangent: jax.Array, *, strides: int, size: int
) -> jax.Array:
    """Returns the same: the images, convolved with the cotangent, over B."""
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


def _of_kernel_by_patches(
    images: jax.Array, cotangent: jax.Array, *, strides: int, size: int
) -> jax.Array:
    """Returns the same: what each element of the kernel sees, times the cotangent, over pixels."""
    patches = _patches(images, cotangent.shape[1:3], strides, size)
    gradient = jnp.einsum("bhwp,bhwo->po", patches, cotangent)
    return gradient.reshape(size, size, images.shape[-1], cotangent.shape[-1])


def _patches(
    images: jax.Array, rows_and_columns: tuple[int, ...], strides: int, size: int
) -> jax.Array:
    """Returns what a kernel of a size sees of each pixel of the result: `[B, H, W, K * K * C]`."""
    around = size // 2
    padded = jnp.pad(images, ((0, 0), (around, around), (around, around), (0, 0)))
    rows, columns = (strides * (out - 1) + 1 for out in rows_and_columns)
    return jnp.concatenate(
        [
            padded[:, row : row + rows : strides, column : column + columns : strides]
            for row in range(size)
            for column in range(size)
        ],
        axis=-1,
    )
