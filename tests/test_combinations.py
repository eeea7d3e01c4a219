"""Channels made of others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from many_exchanges import between_workers, drops_of

import rps_jax as rps


def test_either_drops_what_one_of_two_independent_channels_drops():
    """Five standard errors: each check fails by chance once in 1.7 million keys."""
    channel = rps.Either(rps.Bernoulli(0.2, packets=2), rps.Bernoulli(0.2))
    drops = between_workers(drops_of(channel, 6, steps=400))
    for sample, expected in ((drops, 1 - 0.8**2), (drops.all(-1), 0.2 + 0.8 * 0.04)):
        standard_error = (expected * (1 - expected) / sample[..., 0].size) ** 0.5
        assert abs(sample.mean() - expected) < 5 * standard_error


def test_either_of_a_channel_and_nothing_is_that_channel():
    outage = rps.Outage(schedule=[[1, 0, 2]])
    expected = drops_of(outage, 4, steps=3)
    for pair in ((outage, rps.Reliable()), (rps.Reliable(), outage)):
        np.testing.assert_array_equal(drops_of(rps.Either(*pair), 4, steps=3), expected)


def test_a_schedule_gives_each_channel_its_turn():
    channel = rps.Schedule((rps.Reliable(), rps.Bernoulli(1.0, packets=3), rps.Reliable()), (1, 3))
    drops = between_workers(drops_of(channel, 3, steps=5))
    assert drops.shape[-1] == 3
    np.testing.assert_array_equal(drops.all((0, 2, 3, 4)), [False, True, True, False, False])
    np.testing.assert_array_equal(drops.any((0, 2, 3, 4)), [False, True, True, False, False])


def test_the_boundaries_may_be_traced():
    @jax.jit
    def sample(boundaries):
        channel = rps.Schedule((rps.Reliable(), rps.Bernoulli(1.0)), boundaries)
        return channel.sample(channel.init(3), jax.random.key(0), 1, 3)[0].sent.sum()

    assert sample(np.array([0])) == 1
    assert sample(np.array([1])) == 3


@pytest.mark.parametrize(
    "kind", [rps.Bernoulli, pytest.param(rps.GilbertElliott, marks=pytest.mark.long)]
)
def test_all_or_nothing_drops_what_misses_a_packet(kind):
    in_packets = kind(0.2, packets=4)
    expected = drops_of(in_packets, 4, steps=20).any(axis=-1, keepdims=True)
    np.testing.assert_array_equal(drops_of(rps.AllOrNothing(in_packets), 4, steps=20), expected)


def test_one_packet_is_a_whole_message():
    dropped = np.ones((3, 3))
    channel = rps.Either(rps.PerLink(dropped, packets=1), rps.Bernoulli(0.0, packets=4))
    assert channel.packets == 4
    assert between_workers(drops_of(channel, 3, steps=1)).all()


def test_two_that_say_who_serves_what_are_refused():
    trace = rps.Trace(np.full((1, 2, 3, 3, 1), 128, np.uint8), 1, shifts=np.zeros(1, np.int32))
    channel = rps.Either(trace, rps.Schedule((rps.Reliable(), trace), (1,)))
    with pytest.raises(ValueError, match="two shifts: expected one channel at most"):
        jax.eval_shape(lambda key: channel.sample(channel.init(3), key, 0, 3), jax.random.key(0))


def test_different_numbers_of_packets_are_refused():
    channel = rps.Either(rps.Bernoulli(0.1, packets=2), rps.Bernoulli(0.1, packets=3))
    with pytest.raises(ValueError, match=r"packets=\[2, 3\]: expected the same number"):
        jax.eval_shape(lambda key: channel.sample(channel.init(3), key, 0, 3), jax.random.key(0))


def test_a_schedule_needs_its_boundaries():
    with pytest.raises(ValueError, match=r"boundaries=\(\): expected 1, one fewer than channels"):
        rps.Schedule((rps.Reliable(), rps.Reliable()), ())


def deliveries(channel):
    """The first three exchanges of four workers, as worker 0 sees them."""
    sample = jax.jit(lambda state, key: channel.sample(state, key, 0, 4))
    state = channel.init(4)
    for exchange in range(3):
        delivery, state = sample(state, jax.random.key(exchange))
        yield delivery


def test_a_combination_keeps_who_served_what():
    trace = rps.Trace(
        np.full((3, 2, 4, 4, 1), 255, np.uint8), 5, shifts=np.array([1, 2, 3], np.int32)
    )

    def shifts(channel):
        return [int(delivery.shift) for delivery in deliveries(channel)]

    assert shifts(rps.Schedule((trace,), ())) == [1, 2, 3]
    first, *rest = shifts(rps.Schedule((rps.Reliable(), trace), (1,)))
    assert 0 <= first < 4
    assert rest == [2, 3]
    assert shifts(rps.Either(trace, rps.Reliable())) == [1, 2, 3]
    assert shifts(rps.Either(rps.Reliable(), trace)) == [1, 2, 3]


def test_a_combination_waits_for_the_slower_part_or_for_whose_turn_it_is():
    class Waits:
        def __init__(self, seconds):
            self.seconds = seconds

        def init(self, num_workers):
            return ()

        def sample(self, state, key, worker, num_workers):
            masks = [jnp.ones(num_workers, bool)] * 3
            return rps.Delivery(*masks, seconds=jnp.float32(self.seconds)), state

    fast, slow = Waits(1), Waits(3)

    def waits(channel):
        return [float(delivery.seconds) for delivery in deliveries(channel)]

    assert waits(rps.Either(slow, fast)) == [3, 3, 3]
    assert waits(rps.Either(rps.Reliable(), fast)) == [1, 1, 1]
    assert waits(rps.Schedule((slow, rps.Reliable(), fast, slow), (0, 1, 2))) == [0, 1, 3]


def test_a_channel_does_not_have_to_say_how_many_packets_it_has():
    class Odd:
        def init(self, num_workers):
            return ()

        def sample(self, state, key, worker, num_workers):
            arrives = np.arange(num_workers)[:, None] != 2
            return rps.Delivery(*[arrives] * 3), state

    channel = rps.Either(Odd(), rps.Reliable())
    delivery, _ = channel.sample(channel.init(4), jax.random.key(0), 0, 4)
    assert delivery.sent[:, 0].tolist() == [True, True, False, True]


@pytest.mark.parametrize("boundaries", [(5, 2), (2.7, 3), (-2, 3)])
def test_boundaries_rise(boundaries):
    with pytest.raises(ValueError, match=r"boundaries=.*: expected rising integers, 0 or more"):
        rps.Schedule((rps.Reliable(),) * 3, boundaries)
