"""The laws of channels: agreement of both ends, purity, and the statistics of independent drops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from mappings import MAPPINGS, mesh, places

import rps_jax as rps
from rps_jax import keys
from rps_jax.channels.channel import ALL_GATHER, REDUCE_SCATTER
from rps_jax.draw import rule_key
from rps_jax.keys import key_data, wrap_key

KEY = jax.random.key(11)


def views(channel, num_workers, step=0, way="vmap"):
    """Every worker's view of one exchange: fields `[worker, other, ...]`."""

    def one_worker(axis_name, unused):
        return rps.draw_exchange(channel, (), KEY, step, axis_name)[0].masks

    return jax.device_get(MAPPINGS[way](one_worker, num_workers)(np.zeros(num_workers, np.float32)))


@pytest.mark.parametrize("n", [1, 2, 3, 16, 33])
@pytest.mark.parametrize("packets", [None, 2])
def test_both_ends_agree_and_own_messages_arrive(n, packets):
    sent, received, gathered = views(rps.Bernoulli(0.5, packets=packets), n)
    np.testing.assert_array_equal(sent, np.swapaxes(received, 0, 1))
    for view in (sent, received, gathered):
        assert view[np.arange(n), np.arange(n)].all()


@pytest.mark.parametrize(("way", "n"), places())
def test_a_delivery_does_not_depend_on_the_placement(way, n):
    channel = rps.Bernoulli(0.3)
    for placed, plain in zip(views(channel, n, way=way), views(channel, n), strict=True):
        np.testing.assert_array_equal(placed, plain)


@pytest.mark.parametrize(
    "configured",
    [
        lambda: jax.default_prng_impl("rbg"),
        lambda: jax.threefry_partitionable(False),
        lambda: jax.enable_x64(True),
        lambda: jax.numpy_dtype_promotion("strict"),
    ],
)
def test_an_exchange_does_not_depend_on_the_configuration_of_jax(configured):
    def one_worker(axis, step):
        key = wrap_key(key_data(2**31 + 7))
        return rps.draw_exchange(rps.Bernoulli(0.3, packets=3), (), key, step, axis)[0]

    steps = np.arange(5, dtype=np.int32)
    before = jax.device_get(MAPPINGS["vmap"](one_worker, 5)(steps))
    with configured():
        after = jax.device_get(MAPPINGS["vmap"](one_worker, 5)(steps))
    jax.tree.map(np.testing.assert_array_equal, before, after)


@pytest.mark.parametrize(("seed", "low"), [(2**40 + 5, 5), (-1, 2**32 - 1)])
def test_of_a_seed_the_lowest_32_bits_count(seed, low):
    np.testing.assert_array_equal(key_data(seed), key_data(low))


def test_draws_are_those_of_jax_random_in_its_default_configuration():
    for seed in range(20):
        key = wrap_key(key_data(seed))
        np.testing.assert_array_equal(jax.random.key_data(key), key_data(seed))
        np.testing.assert_array_equal(
            jax.random.key_data(jax.random.split(key)),
            np.stack([jax.random.key_data(half) for half in keys.split(key)]),
        )
        np.testing.assert_array_equal(jax.random.uniform(key, (2, 3)), keys.uniform(key, (2, 3)))
        for bound in (1, 2, 7, 33):
            expected = jax.random.randint(key, (), 0, bound, jnp.int32)
            assert keys.randint(key, bound) == expected


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_both_ends_agree_whatever_the_key(impl):
    key = jax.random.fold_in(jax.random.key(3, impl=impl), 1)
    sample = jax.jit(lambda worker: rps.Bernoulli(0.5).sample((), key, worker, 8)[0])
    sent, received, gathered = jax.vmap(sample)(jnp.arange(8)).masks
    np.testing.assert_array_equal(sent, received.T)
    alone = [sample(worker).gathered for worker in range(8)]
    np.testing.assert_array_equal(gathered, np.stack(alone))


def test_a_channel_is_a_pytree_that_may_hold_gradients():
    grads = jax.grad(lambda channel: -5.0 * channel.drop_rate)(rps.Bernoulli(0.3))
    assert float(grads.drop_rate) == -5.0
    assert jax.tree.map(lambda x: x, rps.Bernoulli(0.3, packets=2)) == rps.Bernoulli(0.3, packets=2)


def test_adding_workers_changes_no_link_that_was_there():
    small, large = views(rps.Bernoulli(0.3), 4), views(rps.Bernoulli(0.3), 9)
    for view, larger in zip(small, large, strict=True):
        np.testing.assert_array_equal(view, larger[:4, :4])


def test_the_rate_may_be_traced_and_a_sweep_compiles_once():
    traces = []

    @jax.jit
    def dropped(channel):
        traces.append(channel)
        sample = lambda worker: channel.sample((), KEY, worker, 8)[0]  # noqa: E731
        return ~jax.vmap(sample)(jnp.arange(8)).gathered

    counts = [int(dropped(rps.Bernoulli(rate)).sum()) for rate in (0.0, 0.2, 0.5, 1.0)]
    assert counts[0] == 0
    assert counts[-1] == 8 * 7
    assert counts == sorted(counts)
    assert len(traces) == 1


def test_the_phases_can_have_rates_of_their_own():
    sent, _, gathered = views(rps.Bernoulli(0.0, all_gather_drop_rate=1.0), 6)
    assert sent.all()
    assert (gathered == np.eye(6, dtype=bool)).all()
    sent, _, gathered = views(rps.Bernoulli(1.0, all_gather_drop_rate=0.0), 6)
    assert (sent == np.eye(6, dtype=bool)).all()
    assert gathered.all()


@pytest.mark.parametrize(
    "make",
    [
        rps.Bernoulli,
        rps.GilbertElliott,
        rps.Outage,
        lambda rate: rps.PerLink(np.full((4, 4), rate)),
    ],
)
def test_the_least_draw_drops_nothing_at_rate_0_and_all_at_rate_1(monkeypatch, make):
    """It is 0 itself, as one in 8 million is."""
    monkeypatch.setattr(keys, "uniform", lambda key, shape=(): jnp.zeros(shape))
    for rate, arrives in ((0.0, 4), (1.0, 1)):
        channel = make(rate)
        sample = jax.jit(lambda state, of=channel: of.sample(state, KEY, 1, 4)[0])
        assert [mask.sum() for mask in sample(channel.init(4)).masks] == [arrives] * 3


def test_drops_and_what_a_rule_draws_have_keys_of_their_own_at_every_step():
    seen = []

    class Watched(rps.Reliable):
        def sample(self, state, key, worker, num_workers):
            seen.append(key)
            return super().sample(state, key, worker, num_workers)

    def one_worker(_, step):
        return rps.draw_exchange(Watched(), (), KEY, step, "workers")

    for step in range(3):
        jax.vmap(one_worker, (0, None), axis_name="workers")(jnp.zeros(2), step)
        seen.append(rule_key(KEY, step))
    assert len({tuple(jax.random.key_data(key).tolist()) for key in seen}) == len(seen) == 6


def test_sample_links_asks_both_ends_of_a_link_the_same():
    """A channel of one's own in one function: here worker 2 is deaf in the all-gather."""

    def arrives(phase, key, source, destination):
        assert phase in (REDUCE_SCATTER, ALL_GATHER)
        return (destination != 2) | (phase == REDUCE_SCATTER)

    sample = lambda worker: rps.sample_links(arrives, KEY, worker, 4)  # noqa: E731
    sent, received, gathered = jax.device_get(jax.jit(jax.vmap(sample))(jnp.arange(4))).masks
    assert sent.all()
    assert received.all()
    assert (gathered[2] == (np.arange(4) == 2)).all()
    assert np.delete(gathered, 2, axis=0).all()


def off_diagonal(view):
    n = view.shape[-1]
    return view[..., ~np.eye(n, dtype=bool)]


@functools.partial(jax.jit, static_argnums=(1, 2))
def sampled(channel, n, steps):
    """`[steps, 2 phases, n, n]` of many exchanges, and the shifts `[steps]`."""

    def at(step):
        def one_worker(_):
            delivery, _ = rps.draw_exchange(channel, (), KEY, step, "workers")
            return delivery

        delivery = jax.vmap(one_worker, axis_name="workers", axis_size=n)(jnp.zeros(n))
        return jnp.stack([delivery.sent, delivery.gathered]), delivery.shift[0]

    return jax.vmap(at)(jnp.arange(steps))


@pytest.mark.parametrize("drop_rate", [0.01, 0.1, 0.5])
def test_drops_have_the_stated_rate_and_are_independent(drop_rate):
    """Within five standard errors: each check fails by chance once in 1.7 million keys."""
    n, steps = 6, 4000
    arrivals, _ = sampled(rps.Bernoulli(drop_rate), n, steps)
    drops = ~off_diagonal(np.asarray(arrivals))  # [steps, 2, links]
    variance = drop_rate * (1 - drop_rate)

    assert abs(drops.mean() - drop_rate) < 5 * (variance / drops.size) ** 0.5
    each_link = drops.mean(0)
    assert np.abs(each_link - drop_rate).max() < 5 * (variance / steps) ** 0.5

    # Correlations over links and phases (of a step), and over steps (of a link).
    centred = (drops - drop_rate).reshape(steps, -1) / variance**0.5
    links = centred.shape[1]
    between = centred.T @ centred / steps
    # Products of rare events are far from normal: a wider margin than five for the largest.
    assert np.abs(between[~np.eye(links, dtype=bool)]).max() < 6 / steps**0.5 / variance**0.25
    assert abs(between[~np.eye(links, dtype=bool)].mean()) < 5 / (steps * links**2 / 2) ** 0.5
    lagged = (centred[1:] * centred[:-1]).mean()
    assert abs(lagged) < 5 / ((steps - 1) * links) ** 0.5


def test_the_server_of_a_block_is_uniform():
    """Chi-squared with 7 degrees of freedom exceeds 35 once in 90,000 keys."""
    n, steps = 8, 4000
    _, shifts = sampled(rps.Reliable(), n, steps)
    counts = np.bincount(shifts, minlength=n)
    assert ((counts - steps / n) ** 2 / (steps / n)).sum() < 35


def test_a_fixed_assignment_never_shifts():
    def one_worker(axis_name, unused):
        delivery, _ = rps.draw_exchange(rps.Reliable(), (), KEY, 5, axis_name, "fixed")
        return delivery

    assert MAPPINGS["vmap"](one_worker, 3)(np.zeros(3)).shift is None


def test_the_masks_of_a_mesh_need_no_communication():
    def one_worker():
        delivery, _ = rps.draw_exchange(rps.Bernoulli(0.1), (), KEY, 0, "workers")
        return jax.tree.map(lambda x: x[None], delivery)

    spec = jax.sharding.PartitionSpec("workers")
    mapped = jax.shard_map(one_worker, mesh=mesh(8), in_specs=(), out_specs=spec)
    text = jax.jit(mapped).lower().compile().as_text()
    for collective in ("all-reduce(", "all-gather(", "reduce-scatter(", "permute(", "to-all("):
        assert collective not in text


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rps.Bernoulli(1.5), r"drop_rate=1.5: expected a probability in \[0, 1\]"),
        (lambda: rps.Bernoulli(-0.1), r"drop_rate=-0.1: expected a probability"),
        (lambda: rps.Bernoulli(float("nan")), r"drop_rate=nan: expected a probability"),
        (lambda: rps.Bernoulli(0.1, 2.0), "all_gather_drop_rate=2.0: expected a probability"),
        (lambda: rps.Bernoulli(jnp.float32(1.5)), "drop_rate=1.5: expected a probability"),
        (lambda: rps.Bernoulli("0.1"), "drop_rate='0.1': expected a probability"),
        (lambda: rps.Bernoulli(0.1j), "drop_rate=0.1j: expected a probability"),
        (lambda: rps.Bernoulli(True), "drop_rate=True: expected a probability"),
        (lambda: rps.Bernoulli(0.1, packets=2.5), "packets=2.5: expected None or an integer"),
        (lambda: rps.Bernoulli(0.1, packets=0), "packets=0: expected None or an integer"),
        (
            lambda: jax.vmap(
                lambda x: rps.draw_exchange(rps.Reliable(), (), KEY, 0, "w", "sticky"),
                axis_name="w",
            )(jnp.zeros(2)),
            "assignment='sticky': expected one of random, fixed",
        ),
    ],
)
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()
