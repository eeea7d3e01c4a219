"""The LSTM: flax's, with one forget bias, at any length, alone and over workers."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from models import SlotTagger, accuracy, cross_entropy, length_mask
from models.lstm import LSTM

NUM_WORKERS, BATCH, LENGTH, VOCAB, NUM_TAGS = 2, 3, 5, 11, 6
MODEL = SlotTagger(VOCAB, NUM_TAGS, embedding_size=4, hidden_size=8)


def init(model, *inputs):
    """Parameters as NumPy arrays, so that taking them apart compiles nothing."""
    key = jax.random.key(1, impl="rbg")  # quick to compile
    return jax.device_get(jax.jit(model.init)(key, *inputs))


def make_batch(shape=(BATCH,)):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, VOCAB, (*shape, LENGTH), np.int32)
    tags = rng.integers(0, NUM_TAGS, (*shape, LENGTH), np.int32)
    lengths = rng.integers(1, LENGTH, shape, np.int32, endpoint=True)
    return tokens, lengths, tags


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def loss_fn(params, tokens, lengths, tags):
    logits = MODEL.apply(params, tokens, lengths)
    return cross_entropy(logits, tags, length_mask(lengths, tokens.shape[1]))


apply = jax.jit(MODEL.apply)
loss_and_gradients = jax.jit(jax.value_and_grad(loss_fn))


def worker_mesh():
    return jax.make_mesh((NUM_WORKERS,), ("workers",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_parameters_and_logits_are_float32(dtype):
    model = SlotTagger(vocab_size=867, num_tags=120, dtype=dtype)
    tokens, lengths, _ = make_batch()
    params = jax.eval_shape(model.init, jax.random.key(0), tokens, lengths)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    gates = 4 * 300
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == (
        867 * 150 + (150 + 300 + 1) * gates + (300 + 1) * 120
    )
    logits = jax.eval_shape(model.apply, params, tokens, lengths)
    assert (logits.shape, logits.dtype) == ((BATCH, LENGTH, 120), jnp.float32)


def test_bfloat16_computes_about_the_same():
    inputs = normal(BATCH, LENGTH, 4)
    lengths = np.full(BATCH, LENGTH)
    params = init(LSTM(8), inputs, lengths)
    exact = jax.jit(LSTM(8).apply)(params, inputs, lengths)
    rounded = jax.jit(LSTM(8, dtype=jnp.bfloat16).apply)(params, inputs, lengths)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(rounded, np.float32), exact, atol=0.02)


@pytest.mark.parametrize("lengths", [(LENGTH, 1, 2), (2, 3, 0), (0, 0, 0), (1, 1, LENGTH + 4)])
def test_layer_and_its_gradients_equal_those_of_flax(lengths):
    """As far as the sequences go."""
    inputs, lengths = normal(BATCH, LENGTH, 4), np.array(lengths)
    params = init(LSTM(8), inputs, lengths)
    weights = normal(BATCH, LENGTH, 8) * np.asarray(length_mask(lengths, LENGTH))[:, :, None]
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, *[f(params, inputs, weights, lengths) for f in (of_ours, of_flax)])


@jax.jit
@partial(jax.value_and_grad, argnums=(0, 1))
def of_ours(params, inputs, weights, lengths):
    return jnp.sum(weights * LSTM(8).apply(params, inputs, lengths))


@jax.jit
@partial(jax.value_and_grad, argnums=(0, 1))
def of_flax(params, inputs, weights, lengths):
    del lengths
    layer = params["params"]
    gates = zip(
        "ifgo",
        jnp.split(layer["input"]["kernel"], 4, axis=1),
        jnp.split(layer["recurrent_kernel"], 4, axis=1),
        jnp.split(layer["input"]["bias"], 4),
        strict=True,
    )
    cell = {}
    for gate, kernel, recurrent_kernel, bias in gates:
        cell[f"i{gate}"] = {"kernel": kernel}
        cell[f"h{gate}"] = {"kernel": recurrent_kernel, "bias": bias}
    reference = nn.RNN(nn.OptimizedLSTMCell(8))
    return jnp.sum(weights * reference.apply({"params": {"cell": cell}}, inputs))


def test_only_the_forget_gate_has_a_bias_at_first():
    params = init(LSTM(8), normal(BATCH, LENGTH, 4), np.ones(BATCH, int))["params"]
    np.testing.assert_array_equal(params["input"]["bias"], np.repeat([0, 1, 0, 0], 8))


def test_padding_is_never_seen():
    tokens, _, tags = make_batch()
    lengths = np.array([LENGTH, 2, 0], np.int32)
    mask = np.asarray(length_mask(lengths, LENGTH))
    np.testing.assert_array_equal(mask.sum(axis=1), lengths)
    params = init(MODEL, tokens, lengths)
    other_tokens = np.where(mask, tokens, (tokens + 1) % VOCAB)
    other_tags = np.where(mask, tags, NUM_TAGS + 7)

    logits = np.asarray(apply(params, tokens, lengths))
    np.testing.assert_array_equal(logits, apply(params, other_tokens, lengths))
    np.testing.assert_array_equal(logits[~mask], 0)
    assert np.all(np.any(logits[mask] != 0, axis=-1))
    jax.tree.map(
        np.testing.assert_array_equal,
        loss_and_gradients(params, tokens, lengths, tags),
        loss_and_gradients(params, other_tokens, lengths, other_tags),
    )


def test_only_the_past_has_a_gradient_and_padding_has_none():
    # Every place has a token, and so an embedding, of its own.
    tokens = np.arange(BATCH * LENGTH, dtype=np.int32).reshape(BATCH, LENGTH)
    lengths = np.array([LENGTH, 2, 0], np.int32)
    model = SlotTagger(BATCH * LENGTH, NUM_TAGS, embedding_size=4, hidden_size=8)
    params = init(model, tokens, lengths)

    @jax.jit
    @jax.grad
    def gradient(params, weights_BxL):
        return jnp.sum(weights_BxL[:, :, None] * model.apply(params, tokens, lengths))

    def touched(weights_BxL):
        embedding = gradient(params, weights_BxL)["params"]["Embed_0"]["embedding"]
        return np.any(np.asarray(embedding) != 0, axis=-1).reshape(BATCH, LENGTH)

    mask = length_mask(lengths, LENGTH)
    np.testing.assert_array_equal(touched(np.ones((BATCH, LENGTH), np.float32)), mask)
    one_token = np.zeros((BATCH, LENGTH), np.float32)
    one_token[0, 2] = 1
    np.testing.assert_array_equal(touched(one_token).ravel().nonzero(), [[0, 1, 2]])


def test_vmap_shard_map_and_pmap_give_what_each_worker_gives_alone():
    batch = make_batch((NUM_WORKERS, BATCH))
    params = init(MODEL, batch[0][0], batch[1][0])
    params = jax.tree.map(lambda x: np.stack([x * (i + 1) for i in range(NUM_WORKERS)]), params)
    workers = [jax.tree.map(lambda x, i=i: x[i], (params, *batch)) for i in range(NUM_WORKERS)]
    plain = [jax.device_get(loss_and_gradients(*worker)) for worker in workers]
    plain = jax.tree.map(lambda *xs: np.stack(xs), *plain)

    def one_device(*block):
        out = loss_and_gradients(*jax.tree.map(lambda x: x[0], block))
        return jax.tree.map(lambda x: x[None], out)

    sharded = jax.jit(
        jax.shard_map(
            one_device,
            mesh=worker_mesh(),
            in_specs=P("workers"),
            out_specs=P("workers"),
            check_vma=True,
        )
    )
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for run in (sharded, jax.jit(jax.vmap(loss_and_gradients)), jax.pmap(loss_and_gradients)):
        jax.tree.map(close, run(params, *batch), plain)


def test_shared_parameters_pass_the_check_of_shard_map():
    """Parameters equal on all workers, sentences not: plain data parallelism."""
    tokens, lengths, _ = make_batch((NUM_WORKERS * BATCH,))
    weights = normal(*tokens.shape)[:, :, None]
    params = init(MODEL, tokens[:BATCH], lengths[:BATCH])

    def loss_of_some(params, tokens, lengths, weights):
        return jnp.sum(weights * MODEL.apply(params, tokens, lengths))

    def loss_of_all(*args):
        return jax.lax.psum(loss_of_some(*args), "workers")

    sharded = jax.shard_map(
        jax.value_and_grad(loss_of_all),
        mesh=worker_mesh(),
        in_specs=(P(), *[P("workers")] * 3),
        out_specs=P(),
        check_vma=True,
    )
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
        jax.jit(sharded)(params, tokens, lengths, weights),
        jax.jit(jax.value_and_grad(loss_of_some))(params, tokens, lengths, weights),
    )


def test_a_few_steps_of_adam_fit_a_batch():
    tokens, lengths, _ = make_batch()
    tags = tokens % NUM_TAGS
    params = init(MODEL, tokens, lengths)
    optimizer = optax.adam(0.1)

    @jax.jit
    def update(params, opt_state, grads):
        steps, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, steps), opt_state

    opt_state = optimizer.init(params)
    losses = []
    for _ in range(30):
        loss, grads = loss_and_gradients(params, tokens, lengths, tags)
        params, opt_state = update(params, opt_state, grads)
        losses.append(float(loss))
    assert losses[-1] < 0.1 * losses[0]
    logits = apply(params, tokens, lengths)
    assert accuracy(logits, tags, length_mask(lengths, LENGTH)) == 1


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_loss_and_accuracy_average_over_the_entries_that_count(shape):
    logits = normal(*shape, NUM_TAGS)
    labels = np.random.default_rng(1).integers(0, NUM_TAGS, shape)
    labels.flat[1] = np.argmax(logits.reshape(-1, NUM_TAGS)[1])  # at least one is right
    weights = (np.arange(6) % 3 != 0).reshape(shape)
    padded_labels = np.where(weights, labels, NUM_TAGS + 3)

    kept_logits, kept_labels = logits[weights], labels[weights]
    right = np.take_along_axis(kept_logits, kept_labels[:, None], axis=-1)[:, 0]
    loss = np.mean(np.log(np.exp(kept_logits).sum(axis=-1)) - right)
    accurate = np.mean(np.argmax(kept_logits, axis=-1) == kept_labels)
    for measure, expected in ((jax.jit(cross_entropy), loss), (jax.jit(accuracy), accurate)):
        assert measure(logits, labels).shape == ()
        for w in (weights, weights.astype(np.float32), 3 * weights):
            np.testing.assert_allclose(measure(logits, padded_labels, w), expected, rtol=1e-5)
        np.testing.assert_allclose(measure(kept_logits, kept_labels), expected, rtol=1e-5)


def test_no_entry_at_all_gives_zero_and_a_zero_gradient():
    logits, labels, weights = normal(4, NUM_TAGS), np.zeros(4, int), np.zeros(4)
    loss, gradient = jax.jit(jax.value_and_grad(cross_entropy))(logits, labels, weights)
    assert loss == accuracy(logits, labels, weights) == 0
    np.testing.assert_array_equal(gradient, 0)
