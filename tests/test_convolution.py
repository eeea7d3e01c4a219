"""The convolution whose vmap over kernels is fast, beside XLA's own."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from models.convolution import convolve

MANY, BATCH, IN, OUT = 3, 2, 2, 4


def plain(images, kernel, strides):
    around = kernel.shape[0] // 2
    return jax.lax.conv_general_dilated(
        images,
        kernel,
        (strides, strides),
        [(around, around)] * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def arrays(size, kernel_size):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(MANY, BATCH, size, size + 1, IN)).astype(np.float32)
    kernels = rng.normal(size=(MANY, kernel_size, kernel_size, IN, OUT)).astype(np.float32)
    return images, kernels


def with_gradients(convolution, images, kernel):
    result, pull = jax.vjp(convolution, images, kernel)
    return result, pull(jnp.cos(result))


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "kernel_size", "strides"),
    [(4, 3, 1), (5, 3, 2), (6, 3, 2), (6, 3, 3), (4, 1, 1), (5, 1, 2), (6, 5, 1)],
)
@pytest.mark.parametrize("many_models", ["auto", "vmap", None])
def test_convolution_and_gradients_are_those_of_xla(size, kernel_size, strides, many_models):
    images, kernels = arrays(size, kernel_size)
    if many_models is None:
        ours = partial(with_gradients, lambda x, k: convolve(x, k, strides))
        theirs = partial(with_gradients, lambda x, k: plain(x, k, strides))
        images, kernels = images[0], kernels[0]
    else:
        ours = jax.vmap(partial(with_gradients, lambda x, k: convolve(x, k, strides, many_models)))
        theirs = jax.vmap(partial(with_gradients, lambda x, k: plain(x, k, strides)))
    assert_close(jax.jit(ours)(images, kernels), jax.jit(theirs)(images, kernels))


@pytest.mark.parametrize("in_axes", [(0, None), (None, 0)])
def test_one_of_the_two_may_be_shared(in_axes):
    images, kernels = arrays(4, 3)
    shared = [x if axis == 0 else x[0] for x, axis in zip((images, kernels), in_axes, strict=True)]

    def of(convolution):
        return jax.vmap(partial(with_gradients, convolution), in_axes)(*shared)

    assert_close(of(lambda x, k: convolve(x, k, 1)), of(lambda x, k: plain(x, k, 1)))


@pytest.mark.parametrize(("size", "kernel_size", "strides"), [(5, 3, 1), (6, 3, 2)])
def test_products_of_patches_in_full_precision_are_the_same(size, kernel_size, strides):
    images, kernels = arrays(size, kernel_size)

    def of(convolution):
        return jax.jit(jax.vmap(partial(with_gradients, convolution)))

    with jax.default_matmul_precision("float32"):
        found = of(lambda x, k: convolve(x, k, strides, "vmap"))
        assert "convolution" not in found.lower(images, kernels).as_text()
        assert_close(found(images, kernels), of(lambda x, k: plain(x, k, strides))(images, kernels))


def test_vmaps_may_be_nested():
    images, kernels = arrays(4, 3)
    twice = [np.stack([x, 2 * x]) for x in (images, kernels)]

    def of(convolution):
        return jax.jit(jax.vmap(jax.vmap(partial(with_gradients, convolution))))

    assert_close(
        of(lambda x, k: convolve(x, k, 1))(*twice), of(lambda x, k: plain(x, k, 1))(*twice)
    )


def test_the_gradient_of_a_kernel_that_devices_share_is_summed_over_them():
    images, kernels = arrays(4, 3)
    mesh = jax.sharding.Mesh(jax.devices()[:2], ("devices",))

    def gradients(convolution, images, kernel):
        def loss(kernel):
            return jnp.sin(convolution(images, kernel)).sum()

        return jax.grad(loss)(kernel)

    specs = {"in_specs": (P("devices"), P()), "out_specs": P()}
    ours = partial(gradients, lambda x, k: convolve(x, k, 1))
    theirs = partial(gradients, lambda x, k: plain(x, k, 1))
    found = jax.jit(jax.shard_map(ours, mesh=mesh, **specs))(images[0], kernels[0])
    assert_close(found, theirs(images[0], kernels[0]))
