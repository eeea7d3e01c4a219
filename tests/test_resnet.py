"""The ResNets of CIFAR: their sizes, dtypes and many models at once."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from models import ResNet, accuracy, cross_entropy
from models.resnet import conv3x3, shortcut


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


MODEL = ResNet(8, num_classes=3)
IMAGES = np.random.default_rng(0).normal(size=(6, 8, 8, 1)).astype(np.float32)
LABELS = np.arange(6) % 3


@functools.cache
def init():
    """Variables as NumPy arrays, so that taking them apart compiles nothing."""
    key = jax.random.key(1, impl="rbg")  # quick to compile
    return jax.device_get(jax.jit(partial(MODEL.init, train=False))(key, IMAGES))


@partial(jax.jit, static_argnames="model")
def evaluate(variables, images, model=MODEL):
    return model.apply(variables, images, train=False)


@jax.jit
def loss_and_gradients(variables, images, labels):
    """Of a training step: (loss, (new statistics, logits)), gradients."""

    def loss_fn(params):
        logits, updates = MODEL.apply(
            variables | {"params": params}, images, train=True, mutable=["batch_stats"]
        )
        return cross_entropy(logits, labels), (updates, logits)

    return jax.value_and_grad(loss_fn, has_aux=True)(variables["params"])


def init_shapes(model, image_shape=(32, 32, 3)):
    images = jnp.zeros((2, *image_shape))
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), images)


def num_parameters(depth, channels, num_classes):
    """Of the family: weights of every 3x3 convolution, two batch-norm vectors each, classifier."""
    blocks = (depth - 2) // 6
    convolutions = [(channels, 16)]
    for width, previous in ((16, 16), (32, 16), (64, 32)):
        convolutions += [(previous, width)] + [(width, width)] * (2 * blocks - 1)
    assert len(convolutions) == depth - 1
    return sum(9 * i * o + 2 * o for i, o in convolutions) + 64 * num_classes + num_classes


@pytest.mark.parametrize(
    ("depth", "published"),
    [(8, None), (20, 0.27e6), (32, 0.46e6), (44, 0.66e6), (56, 0.85e6), (110, 1.7e6)],
)
def test_parameter_counts_are_those_of_the_family(depth, published):
    variables = init_shapes(ResNet(depth))
    parameters = count(variables["params"])
    assert parameters == num_parameters(depth, channels=3, num_classes=10)
    if published is not None:
        assert parameters == pytest.approx(published, rel=0.02)  # published to two digits
    assert count(variables["batch_stats"]) == 2 * (16 + 2 * (depth - 2) // 6 * (16 + 32 + 64))


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 18, 21, 51])
def test_depth_outside_the_family_raises(depth):
    with pytest.raises(ValueError, match=rf"^depth is {depth}, expected 6k \+ 2 [^\n]*$"):
        ResNet(depth)


@pytest.mark.parametrize("image_shape", [(32, 32, 3), (8, 8, 1), (7, 9, 2), (1, 1, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_any_input_size_and_compute_type(image_shape, dtype):
    model = ResNet(8, num_classes=7, dtype=dtype)
    variables = init_shapes(model, image_shape)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    logits, updates = jax.eval_shape(apply, variables, jnp.zeros((5, *image_shape)))
    assert (logits.shape, logits.dtype) == ((5, 7), jnp.float32)
    assert updates["batch_stats"] == variables["batch_stats"]


def test_bfloat16_computes_about_the_same():
    variables = init()
    exact = evaluate(variables, IMAGES)
    rounded = evaluate(variables, IMAGES, ResNet(8, num_classes=3, dtype=jnp.bfloat16))
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, atol=0.05 * np.abs(exact).max())


def test_shortcut_keeps_every_second_pixel_and_adds_zero_channels():
    x = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
    y = np.asarray(shortcut(x, channels=5, strides=2))
    assert y.shape == (2, 4, 4, 5)
    np.testing.assert_array_equal(y[..., :3], x[:, ::2, ::2])
    np.testing.assert_array_equal(y[..., 3:], 0)
    np.testing.assert_array_equal(shortcut(x, channels=3, strides=1), x)


@pytest.mark.parametrize("size", [7, 8])
def test_residual_branch_is_centred_on_the_shortcut(size):
    """A strided block sees a lone pixel where its shortcut does, for odd and even sizes."""
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = 1  # the identity, if centred
    x = np.random.default_rng(0).normal(size=(1, size, size, 1)).astype(np.float32)
    y = conv3x3(1, strides=2).apply({"params": {"kernel": kernel}}, x)
    np.testing.assert_array_equal(y, shortcut(x, channels=1, strides=2))


def test_blocks_are_the_identity_when_their_branches_are_silent():
    """With the batch-norm scales of all blocks at zero, only the stem and shortcuts are left."""
    variables = init()
    params = dict(variables["params"])
    for name in params:
        if name.startswith("BatchNorm_") and name != "BatchNorm_0":
            params[name] = jax.tree.map(np.zeros_like, params[name])
    kernel = np.eye(64, dtype=np.float32)[:, [0, 15, 16]]
    params["Dense_0"] = {"kernel": kernel, "bias": np.zeros(3, np.float32)}
    pooled = evaluate(variables | {"params": params}, IMAGES)

    stem = jax.lax.conv_general_dilated(
        IMAGES,
        params["Conv_0"]["kernel"],
        window_strides=(1, 1),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    ) / np.sqrt(1 + 1e-5)
    expected = np.maximum(stem, 0)[:, ::4, ::4].mean(axis=(1, 2))[:, [0, 15]]
    pooled = np.asarray(pooled)
    np.testing.assert_allclose(pooled[:, :2], expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(pooled[:, 2], 0)


def test_evaluation_sees_each_image_alone_and_the_running_statistics():
    variables = init()
    logits = evaluate(variables, IMAGES)
    others = evaluate(variables, np.concatenate([IMAGES[:1], IMAGES[1:] + 3]))
    np.testing.assert_allclose(logits[0], others[0], rtol=1e-4, atol=1e-5)

    (_, (updates, _)), _ = loss_and_gradients(variables, IMAGES + 3, LABELS)
    assert not np.allclose(logits, evaluate(variables | updates, IMAGES), atol=1e-3)


def test_vmap_and_shard_map_give_what_each_worker_gives_alone():
    problem = (init(), IMAGES, LABELS)
    other = (*jax.tree.map(lambda x: 1.5 * x, problem[:2]), LABELS[::-1])
    stacked = jax.tree.map(lambda *xs: np.stack(xs), problem, other)
    plain = [jax.device_get(loss_and_gradients(*worker)) for worker in (problem, other)]
    plain = jax.tree.map(lambda *xs: np.stack(xs), *plain)

    def one_device(*block):
        out = loss_and_gradients(*jax.tree.map(lambda x: x[0], block))
        return jax.tree.map(lambda x: x[None], out)

    mesh = jax.make_mesh((2,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.jit(
        jax.shard_map(
            one_device, mesh=mesh, in_specs=P("workers"), out_specs=P("workers"), check_vma=True
        )
    )(*stacked)
    virtual = jax.jit(jax.vmap(loss_and_gradients))(*stacked)

    close = partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
    jax.tree.map(close, sharded, plain)
    jax.tree.map(close, virtual, plain)


def test_a_few_steps_of_sgd_fit_a_batch():
    variables = init()
    losses = []
    for _ in range(20):
        (loss, (updates, logits)), grads = jax.device_get(
            loss_and_gradients(variables, IMAGES, LABELS)
        )
        params = jax.tree.map(lambda x, g: x - 0.1 * g, variables["params"], grads)
        variables = {"params": params, **updates}
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert accuracy(logits, LABELS) == 1
