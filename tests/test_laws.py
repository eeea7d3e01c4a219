"""The laws that every channel and every rule is held to by being in its registry."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mappings import MAPPINGS

import rps_jax as rps

PLACES = [("vmap", 5), ("shard_map", 3), ("pmap", 3), ("vmap_in_shard_map", 6)]
KEY = jax.random.key(3)


def trace(n):
    rng = np.random.default_rng(n)
    arrived = rng.random((4, 2, n, n, 3)) < 0.6
    return rps.Trace(np.packbits(arrived, axis=-1), packets=3)


# Channels for n workers whose options let the laws show; the others are made without any.
OPTIONS = {
    "bernoulli": lambda n: rps.Bernoulli(0.4, all_gather_drop_rate=0.2, packets=2),
    "gilbert-elliott": lambda n: rps.GilbertElliott(0.4, 3, packets=2, good_drop_rate=0.1),
    "per-link": lambda n: rps.PerLink(np.linspace(0, 1, 2 * n * n).reshape(2, n, n), packets=2),
    "deadline": lambda n: rps.Deadline(slowness=np.linspace(1, 3, n), window=2, packets=2),
    "outage": lambda n: rps.Outage(0.3, 2, schedule=[[n - 1, 1, 2]]),
    "trace": trace,
}
CHANNELS = {
    name: OPTIONS.get(name, lambda n, kind=kind: kind()) for name, kind in rps.CHANNELS.items()
}
COMBINATIONS = {
    "either": lambda n: rps.Either(rps.Bernoulli(0.3, packets=2), rps.Outage(0.3)),
    "schedule": lambda n: rps.Schedule((rps.Bernoulli(0.3), rps.GilbertElliott(0.3, 2)), (1,)),
    "all-or-nothing": lambda n: rps.AllOrNothing(rps.GilbertElliott(0.3, 2, packets=3)),
}
EVERY_CHANNEL = CHANNELS | COMBINATIONS


def cases(every, usual):
    """Returns parameters of a test: those that are not usual are among the long ones."""
    wrapped = [each if isinstance(each, tuple) else (each,) for each in every]
    return [pytest.param(*each, marks=() if usual(*each) else pytest.mark.long) for each in wrapped]


@pytest.mark.parametrize("channel", CHANNELS)
def test_every_channel_of_the_registry_can_be_made(channel):
    try:
        CHANNELS[channel](3)
    except TypeError as error:
        pytest.fail(f"give {channel} its options in OPTIONS: {error}")


@pytest.mark.parametrize(
    "make", [*CHANNELS.values(), lambda n: rps.Deadline(0.02)], ids=[*CHANNELS, "fixed deadline"]
)
def test_an_array_is_refused_where_one_number_is_expected(make):
    leaves, structure = jax.tree.flatten(make(4))
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, int | float):
            several = structure.unflatten([*leaves[:place], np.full(2, leaf), *leaves[place + 1 :]])
            with pytest.raises(ValueError, match=r"\w+ has shape \(2,\): expected a scalar"):
                several.sample(several.init(4), KEY, 0, 4)


@functools.cache
def views(name, way, n, steps=3):
    """All workers' deliveries, step by step: masks `[step, worker, other, packet]`."""

    channel, seen = EVERY_CHANNEL[name](n), []

    def one_worker(axis, state, step):
        delivery, state = rps.draw_exchange(channel, state, KEY, step, axis)
        return jax.tree.map(lambda x: x.reshape(n, -1), delivery.masks), state

    exchange = MAPPINGS[way](one_worker, n)
    state = jax.tree.map(lambda x: np.stack([x] * n), channel.init(n))
    for step in range(steps):
        masks, state = exchange(state, np.full(n, step, np.int32))
        seen.append(jax.device_get(masks))
    return [np.stack(masks) for masks in zip(*seen, strict=True)]


@pytest.mark.parametrize(
    ("way", "n", "channel"),
    cases(
        [(*place, channel) for place in PLACES for channel in EVERY_CHANNEL],
        # Everywhere, one with a memory of its links, and one with a recording.
        lambda way, n, channel: (
            (way == "vmap" and channel in CHANNELS)
            or (way == "vmap_in_shard_map" and channel in ("gilbert-elliott", "trace"))
        ),
    ),
)
def test_both_ends_of_a_message_agree_wherever_they_are(channel, way, n):
    sent, received, gathered = views(channel, way, n)
    np.testing.assert_array_equal(sent, np.swapaxes(received, 1, 2))
    for mask, alone in zip((sent, received, gathered), views(channel, "vmap", n), strict=True):
        assert mask[:, np.arange(n), np.arange(n)].all()
        np.testing.assert_array_equal(mask, alone)


@pytest.mark.parametrize("channel", cases(EVERY_CHANNEL, CHANNELS.__contains__))
def test_a_sweep_of_a_channel_compiles_once(channel):
    n, traces = 4, []

    @jax.jit
    def sample(channel, key):
        traces.append(channel)
        return channel.sample(channel.init(n), key, 1, n)

    kind = EVERY_CHANNEL[channel](n)
    sample.trace(kind, KEY)
    halved = jax.tree.map(lambda x: x / 2 if isinstance(x, float) else x, kind)
    sample.trace(halved, KEY)
    assert len(traces) == 1


@pytest.mark.parametrize("channel", cases(EVERY_CHANNEL, CHANNELS.__contains__))
def test_the_work_and_the_state_of_a_worker_are_linear_in_workers(channel):
    def of(n):
        kind = EVERY_CHANNEL[channel](n)
        sample = jax.jit(lambda kind, state: kind.sample(state, KEY, 0, n))
        cost = sample.lower(kind, kind.init(n)).cost_analysis()
        state = sum(np.size(leaf) for leaf in jax.tree.leaves(kind.init(n)))
        return cost.get("flops", 0.0), state

    for large, small in zip(of(128), of(64), strict=True):
        assert large <= 2.5 * small + 100


@pytest.mark.parametrize("channel", EVERY_CHANNEL)
def test_exchanges_of_every_channel_can_be_scanned(channel):
    """In a shard_map, where JAX checks what varies, a state keeps its type."""
    n = 3
    kind = EVERY_CHANNEL[channel](n)

    def one_worker(axis, state):
        def exchange(state, step):
            return rps.draw_exchange(kind, state, KEY, step, axis)[1], ()

        return jax.lax.scan(exchange, state, jnp.arange(2))[0]

    state = jax.tree.map(lambda x: jnp.stack([x] * n), kind.init(n))
    jax.eval_shape(MAPPINGS["shard_map"](one_worker, n), state)


def loss_fn(params, model_state, batch, key):
    del key
    return 0.5 * jnp.sum((params["x"] - batch) ** 2), model_state


@functools.cache
def program(algorithm, way, n):
    """The step of all workers; learning rate and drop rate are arguments, `[n]`."""

    def one_worker(axis, state, batch, learning_rate, drop_rate):
        optimizer, channel = optax.sgd(learning_rate), rps.Bernoulli(drop_rate)
        step = rps.make_train_step(loss_fn, optimizer, channel, axis, algorithm=algorithm)
        return step(state, batch)

    return MAPPINGS[way](one_worker, n)


def trained(algorithm, way, drop_rate, start, batch):
    """Models of all workers right after their second exchange, before which none has moved.

    So it shows what an exchange does, of a rule too that adds its own last change to an average.

    Args:
        start: where the workers begin, `[n, 7]`.
        batch: where their losses draw them, `[n, 7]`.
    """
    n, channel = len(start), rps.Bernoulli(drop_rate)

    def begin(params):
        return rps.init_train_state(params, (), optax.sgd(0.1), channel, n, algorithm=algorithm)

    start, batch, drop_rates = (
        jnp.asarray(x, jnp.float32) for x in (start, batch, np.full(n, drop_rate))
    )
    state, train = jax.vmap(begin)({"x": start}), program(algorithm, way, n)
    steps = 2 * rps.RULES[algorithm]().every
    for step in range(1, steps + 1):
        learning_rates = jnp.full(n, 0.1 if step < steps else 0.0, jnp.float32)
        state, metrics = train(state, batch, learning_rates, drop_rates)
    return jax.device_get((state.params["x"], metrics))


# One start for all, and losses that draw the workers apart: their mean does not move, whatever an
# outer optimizer makes of it.
N = 5
APART = np.random.default_rng(0).normal(size=(N, 7)).astype(np.float32)
MEAN = np.broadcast_to(APART.mean(0), APART.shape)

LOSSY = [name for name, rule in rps.RULES.items() if rule.lossy]
EXCHANGE = [name for name, rule in rps.RULES.items() if jax.tree.leaves(rule().sends(APART[0]))]


@pytest.mark.parametrize(
    ("algorithm", "way", "n"),
    cases(
        [(rule, *place) for place in PLACES for rule in rps.RULES],
        lambda rule, way, n: way == "vmap" or rule == "rps",
    ),
)
def test_equal_workers_stay_equal(algorithm, way, n):
    models, _ = trained(algorithm, way, 0.5, np.zeros((n, 7)), np.tile(np.arange(7.0), (n, 1)))
    np.testing.assert_allclose(models, np.broadcast_to(models[:1], models.shape), rtol=1e-6)
    assert np.abs(models).max() > 0.1


@pytest.mark.parametrize(
    ("algorithm", "model_state"),
    [
        *((rule, {"mean": jnp.zeros(2)}) for rule in rps.RULES),
        ("rps", {}),
        (rps.rules.AverageModels(server="stale", local_steps=2), {}),
        (rps.rules.AverageModels(server="stale", local_steps=2), {"mean": jnp.zeros(2)}),
    ],
)
def test_steps_of_every_rule_can_be_scanned(algorithm, model_state):
    n, optimizer, channel = 3, optax.sgd(0.1), rps.Bernoulli(0.4)

    def one_worker(axis, state, batch):
        step = rps.make_train_step(loss_fn, optimizer, channel, axis, algorithm=algorithm)
        return jax.lax.scan(lambda state, _: (step(state, batch)[0], ()), state, length=2)[0]

    state = rps.init_train_state(
        {"x": jnp.zeros(7)}, model_state, optimizer, channel, n, algorithm=algorithm
    )
    state = jax.tree.map(lambda x: jnp.stack([x] * n), state)
    jax.eval_shape(MAPPINGS["shard_map"](one_worker, n), state, jnp.zeros((n, 7)))


@pytest.mark.parametrize("algorithm", EXCHANGE)
def test_without_drops_every_worker_has_the_mean(algorithm):
    models, metrics = trained(algorithm, "vmap", 0.0, MEAN, APART)
    np.testing.assert_allclose(models, MEAN, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(metrics.delivered, np.ones((2, N)))


@pytest.mark.parametrize("algorithm", LOSSY)
def test_without_arrivals_every_worker_trains_as_if_it_were_alone(algorithm):
    models, metrics = trained(algorithm, "vmap", 1.0, MEAN, APART)
    alone, of_one = trained(algorithm, "vmap", 1.0, MEAN[:1], APART[:1])
    np.testing.assert_allclose(models[:1], alone, rtol=1e-6)
    assert np.abs(models - MEAN).max() > 0.1
    np.testing.assert_array_equal(metrics.delivered, np.zeros((2, N)))
    np.testing.assert_array_equal(of_one.delivered, np.ones((2, 1)))  # There is nobody to hear.


@pytest.mark.parametrize("algorithm", LOSSY)
def test_a_dropped_poison_reaches_no_one(algorithm):
    poison = np.where(np.arange(N)[:, None] == 0, np.nan, APART)
    models, _ = trained(algorithm, "vmap", 1.0, MEAN, poison)
    assert np.isnan(models[0]).any()
    assert np.isfinite(models[1:]).all()


@pytest.mark.parametrize("algorithm", cases(rps.RULES, lambda rule: rule == "rps"))
def test_half_precision_trains_under_strict_promotion(algorithm):
    n, optimizer = 3, optax.sgd(0.5)
    with jax.numpy_dtype_promotion("strict"):
        step = rps.make_train_step(
            lambda params, state, batch, key: (jnp.sum(params["x"] * batch), state),
            optimizer, rps.Bernoulli(0.3), "workers", algorithm=algorithm,
        )  # fmt: skip
        params = {"x": jnp.ones(7, jnp.bfloat16), "count": jnp.ones(2, jnp.float32)}
        channel = rps.Bernoulli(0.3)
        one = rps.init_train_state(params, (), optimizer, channel, n, algorithm=algorithm)
        state = jax.tree.map(lambda x: jnp.stack([x] * n), one)

        def measured(state, batch):
            state, metrics = step(state, batch)
            return state, metrics, rps.consensus_distance(state.params, "workers")

        batch = jnp.arange(21, dtype=jnp.bfloat16).reshape(n, 7)
        state, _, distance = jax.jit(jax.vmap(measured, axis_name="workers"))(state, batch)
    assert state.params["x"].dtype == jnp.bfloat16
    assert distance.dtype == jnp.float32
    spread = np.asarray(state.params["x"], np.float32)
    expected = np.sqrt(((spread - spread.mean(0)) ** 2).sum(1).mean())
    np.testing.assert_allclose(distance, np.full(n, expected), rtol=1e-5, atol=1e-6)
