"""The packet simulation: its slow twin, queueing theory, and what no network may break."""

import dataclasses
import math

import numpy as np
import pytest
from colocation_reference import Packet, deliver

from rps_jax.colocation import (
    PARAMS,
    SettingError,
    Settings,
    closed_forms,
    layout,
    simulate,
    validation,
    with_discipline,
)
from rps_jax.colocation.settings import PICOSECONDS
from rps_jax.colocation.traffic import learning_packets, web_messages

# A tenth of a second of a small network under a heavy load: some hundred milliseconds to simulate.
SMALL = Settings(
    num_hosts=4,
    web_rate=2000,
    message_bytes=50_000,
    learning_gbps=1.2,
    model_bytes=1_000_000,
    jitter_ms=0.3,
    threshold_bytes=20_000,
    duration=0.1,
    warmup=0.0,
)
DISCIPLINES = {
    "fifo": {},
    "threshold": {"threshold_bytes": 20_000},
    "strict-priority": {"learning_buffer_bytes": 20_000},
    "drr": {"web_weight": 2, "learning_buffer_bytes": 20_000},
    "fraction": {"low_priority_fraction": 0.6, "learning_buffer_bytes": 20_000},
    "random": {"drop_probability": 0.3},
    "policer": {"policer_mbps": 200, "policer_burst_bytes": 10_000},
    "deadline": {"deadline_ms": 0.4},
}


def change(settings=SMALL, **changes):
    return dataclasses.replace(settings, **changes)


def same(one, other):
    np.testing.assert_array_equal(one.completion_ms, other.completion_ms)
    np.testing.assert_array_equal(one.counts, other.counts)
    assert one.totals == other.totals
    assert one.packet_hops == other.packet_hops


@pytest.mark.parametrize("discipline", sorted(DISCIPLINES.keys() - {"fraction", "random"}))
def test_it_equals_the_slow_twin(discipline):
    settings = with_discipline(SMALL, discipline, **DISCIPLINES[discipline])
    settings = change(settings, transport="ideal", duration=0.05)
    packets, messages = [], []
    for block in web_messages(settings):
        arrivals = zip(block.times.tolist(), block.hosts.tolist(), strict=True)
        for now, (source, destination) in arrivals:
            full, last = divmod(settings.message_bytes, 1460)
            sizes = [1500] * full + [last + 40] * (last > 0)
            messages.append((now, len(packets), len(packets) + len(sizes)))
            packets += [Packet(now, source, destination, size, False) for size in sizes]
    numbers = {}
    for block in learning_packets(settings):
        hosts = np.repeat(np.arange(settings.num_hosts), np.diff(block.ends))
        columns = (block.times, hosts, block.destinations, block.sizes, block.numbers)
        for *fields, number in zip(*(column.tolist() for column in columns), strict=True):
            numbers[len(packets)] = number
            packets.append(Packet(*fields, True))
    expected = deliver(settings, packets)
    found = simulate(settings, record=True)

    completions = [(max(expected[first:end]) - now) / 1e9 for now, first, end in messages]
    np.testing.assert_array_equal(found.completion_ms, completions)
    lost = [index for index in numbers if expected[index] is None]
    assert found.learning_dropped == len(lost)
    assert (len(lost) > 0) == (discipline != "fifo")
    arrived = found.arrived.ravel()
    seen = [(number, expected[k] is not None) for k, number in numbers.items()]
    assert all(arrived[number] == delivered for number, delivered in seen if number < arrived.size)


@pytest.mark.parametrize("case", validation.cases(), ids=lambda case: case.name)
def test_it_is_what_queueing_theory_says(case):
    """Within 2% and 4 standard errors: a correct simulation fails once in 16,000 seeds."""
    found = validation.compare(case, seeds=2, duration=2.0)
    assert found.holds, f"{found.measured} ±{found.error}, expected {case.expected}"


@pytest.mark.parametrize("discipline", DISCIPLINES)
@pytest.mark.parametrize("web_buffer_bytes", [math.inf, 30_000])
def test_every_packet_is_delivered_dropped_or_under_way(discipline, web_buffer_bytes):
    settings = with_discipline(SMALL, discipline, **DISCIPLINES[discipline])
    for drain in (0.0, 10.0):
        settings = change(settings, web_buffer_bytes=web_buffer_bytes, drain=drain)
        found = simulate(settings)
        for kind in ("web", "learning"):
            sent, delivered, dropped, under_way = (
                found.totals[f"{kind}_{what}"]
                for what in ("sent", "delivered", "dropped", "under_way")
            )
            assert sent == delivered + dropped + under_way
            assert drain == 0 or under_way == 0
        assert (found.totals["web_dropped"] > 0) == (web_buffer_bytes < math.inf)
        # At each port, what came was transmitted or dropped, but for what waits at the end.
        waits = found.counts[..., layout.OFFERED] - found.counts[..., [1, 2]].sum(-1)
        assert (waits >= 0).all()
        assert drain == 0 or not waits.any()
    # Reliable: what is dropped is sent again until all messages are complete.
    assert not np.isnan(found.completion_ms).any()
    assert (found.totals["retransmissions"] > 0) == (web_buffer_bytes < math.inf)


@pytest.mark.parametrize("learning", ["bursty", "poisson"])
def test_a_seed_gives_the_same_to_the_bit_and_another_does_not(learning):
    settings = change(learning=learning)
    same(simulate(settings), simulate(settings))
    other = simulate(change(settings, seed=2))
    assert len(other.completion_ms) != len(simulate(settings).completion_ms) or not np.array_equal(
        other.completion_ms, simulate(settings).completion_ms
    )


def test_web_messages_of_a_seed_hang_on_nothing_else():
    (block,) = web_messages(SMALL)
    for other in (
        with_discipline(SMALL, "random"),
        change(learning="poisson", learning_gbps=0.5),
        change(learning="none", transport="ideal"),
    ):
        (found,) = web_messages(other)
        np.testing.assert_array_equal(found.times, block.times)
        np.testing.assert_array_equal(found.hosts, block.hosts)
    # At another rate, they are the same messages at stretched times.
    (faster,) = web_messages(change(web_rate=4000))
    np.testing.assert_allclose(faster.times[: len(block.times)] * 2, block.times, atol=2)
    np.testing.assert_array_equal(faster.hosts[: len(block.times)], block.hosts)


def test_an_infinite_threshold_drops_nothing():
    found = simulate(change(threshold_bytes=math.inf))
    assert found.learning_sent > 1000
    assert found.learning_dropped == 0
    same(found, simulate(with_discipline(SMALL, "fifo")))


def test_a_lower_threshold_drops_more_and_at_zero_the_web_is_nearly_alone():
    found = [simulate(change(threshold_bytes=size)) for size in (0, 3000, 10_000, 50_000, math.inf)]
    losses = [one.learning_dropped for one in found]
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == len(losses)
    means = [one.completion_ms.mean() for one in found]
    assert means == sorted(means)
    alone = simulate(change(learning="none")).completion_ms.mean()
    # A packet finds at most one of learning's under transmission, at each of two ports.
    assert alone < means[0] < alone + 0.2 * (means[-1] - alone)


@pytest.mark.parametrize("transport", ["ideal", "tcp"])
def test_web_packets_overtake_learning_under_strict_priority(transport):
    settings = change(transport=transport)
    first = simulate(with_discipline(settings, "strict-priority", learning_buffer_bytes=math.inf))
    assert first.learning_dropped == 0
    fifo = simulate(with_discipline(settings, "fifo"))
    alone = simulate(change(settings, learning="none"))
    means = [found.completion_ms.mean() for found in (alone, first, fifo)]
    assert means == sorted(means)
    assert means[1] - means[0] < 0.2 * (means[2] - means[0])


def test_random_drops_are_of_their_probability_at_each_port():
    p = 0.3
    found = simulate(with_discipline(SMALL, "random", drop_probability=p))
    counts = found.counts[:, layout.LEARNING_CLASS].reshape(2, -1, 4).sum(1)
    for offered, dropped, *_ in counts:
        # Within 4 standard errors.
        assert abs(dropped - p * offered) < 4 * (offered * p * (1 - p)) ** 0.5
    assert simulate(with_discipline(SMALL, "random", drop_probability=0)).learning_dropped == 0
    all_dropped = simulate(with_discipline(SMALL, "random", drop_probability=1))
    assert all_dropped.learning_dropped == all_dropped.learning_sent


def test_limits_of_the_disciplines_agree():
    def run(discipline, **params):
        return simulate(with_discipline(SMALL, discipline, **params))

    fifo, room = run("fifo"), {"learning_buffer_bytes": 30_000}
    same(run("fraction", low_priority_fraction=1, **room), run("strict-priority", **room))
    same(run("fraction", low_priority_fraction=0, **room), fifo)
    same(run("deadline", deadline_ms=1e6), fifo)
    same(run("random", drop_probability=0), fifo)
    same(run("policer", policer_mbps=1000, policer_burst_bytes=1e9), fifo)


def one_message(**changes):
    """Returns the ms that the only message of an empty network takes."""
    settings = Settings(
        web_rate=20, learning="none", warmup=0, duration=0.2, initial_window=1, **changes
    )
    found = simulate(settings)
    assert len(found.completion_ms) >= 1
    assert found.totals["retransmissions"] == 0
    return found.completion_ms


def test_a_message_alone_takes_what_the_textbook_says():
    """Slow start doubles the window every round trip until the link is full."""
    packet, ack, propagation = 12e-3, 0.512e-3, 1e-3
    one_way = 2 * (packet + propagation)
    round_trip = one_way + 2 * (ack + propagation)
    # One packet; then two; then four, of which the last waits for three.
    for packets, expected in (
        (1, one_way),
        (3, round_trip + one_way + packet),
        (7, 2 * round_trip + one_way + 3 * packet),
    ):
        taken = one_message(message_bytes=packets * 1460)
        np.testing.assert_allclose(taken, expected, rtol=1e-9)
        # With the sender's eyes: a handshake before, and the last acknowledgement after.
        handshake = 4 * (ack + propagation)
        taken = one_message(message_bytes=packets * 1460, completion="sender")
        np.testing.assert_allclose(taken, expected + handshake + handshake / 2, rtol=1e-9)


def test_a_lost_tail_waits_for_the_time_out_and_a_lost_middle_costs_nothing():
    """Buffers of a few packets, which a window of ten overruns at the sender itself."""
    tail = Settings(
        web_rate=20, learning="none", warmup=0, duration=0.2, message_bytes=10 * 1460,
        web_buffer_bytes=5 * 1500,
    )  # fmt: skip
    # Of ten at once, one is transmitted and five wait; the last four are lost, and nothing that
    # follows shows it.
    found = simulate(tail)
    assert found.totals["web_dropped"] == found.totals["time_outs"] * 4 > 0
    assert (found.completion_ms > 200).all()
    assert (found.completion_ms < 201).all()
    # Where more follows, all that is lost is sent again in time: the link is never idle.
    found = simulate(dataclasses.replace(tail, message_bytes=69 * 1460, web_buffer_bytes=8 * 1500))
    assert found.totals["web_dropped"] > 0
    assert found.totals["time_outs"] == 0
    np.testing.assert_allclose(found.completion_ms, (69 + 1) * 12e-3 + 2e-3, rtol=1e-9)


def test_a_trace_replays_what_it_says(tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text("time_s,source,destination,bytes\n0.01,1,2,1000\n0.01,0,2,1500\n0.02,3,0,64\n")
    settings = change(learning="trace", learning_trace=path, web_rate=0)
    found = simulate(settings)
    assert found.totals["learning_sent"] == found.totals["learning_delivered"] == 3
    assert found.counts[4 + 2, layout.LEARNING_CLASS, layout.OFFERED] == 2
    # The longer comes 4 us after the shorter, which is under transmission for 8 us.
    waited = found.counts[4 + 2, layout.LEARNING_CLASS, layout.WAITED]
    assert waited == pytest.approx(4e-6)
    for text, expected in (
        ("0.1,1,1,1000", "from one host to another"),
        ("0.1,1,4,1000", "hosts numbered from 0 to 3"),
        ("0.1,1,2,2000", "packets of 1 to 1500 bytes"),
        ("-1,1,2,100", "times of at least 0"),
        ("0.1,1,2", "lines of"),
        ("a,b,c,d", "lines of"),
        ("", "lines of"),
    ):
        path.write_text(text)
        with pytest.raises(SettingError, match=expected):
            simulate(settings)


def test_a_record_is_of_whole_iterations_and_agrees_with_the_drops():
    settings = change(duration=3.5 * SMALL.period)
    found = simulate(settings, record=True)
    assert found.arrived.shape == (3, 2, 4, 4, settings.chunk_packets)
    assert found.arrived[:, :, np.arange(4), np.arange(4)].all()
    # The simulation ends in the pause after the fourth reduce-scatter.
    lost = np.count_nonzero(
        ~simulate(change(settings, duration=3 * SMALL.period), record=True).arrived
    )
    assert np.count_nonzero(~found.arrived) == lost
    whole = simulate(change(settings, duration=3 * SMALL.period))
    assert whole.learning_dropped == lost
    assert whole.learning_sent == 3 * 2 * 4 * 3 * settings.chunk_packets
    with pytest.raises(ValueError, match="expected bursty"):
        simulate(change(learning="poisson"), record=True)


def test_bursty_learning_has_the_rate_that_was_asked_for():
    settings = Settings(web_rate=0)
    assert settings.period == pytest.approx(0.711, abs=5e-4)
    blocks = list(learning_packets(change(settings, duration=3 * settings.period)))
    assert len(blocks) == 3
    sent = sum(int(block.sizes.sum()) for block in blocks)
    assert 8 * sent / (3 * settings.period) == pytest.approx(2.4e9, rel=1e-6)
    for number, block in enumerate(blocks):
        for first, end in zip(block.ends[:-1], block.ends[1:], strict=True):
            times = block.times[first:end] / PICOSECONDS - number * settings.period
            assert (np.diff(times) > 0).all()
            assert 0 <= times[0] <= 2e-3
            second = np.argmax(np.diff(times)) + 1
            assert settings.period / 4 <= times[second] <= settings.period / 4 + 2e-3
            # 900 Mbps.
            assert np.median(np.diff(times)) == pytest.approx(1500 * 8 / 900e6)


@pytest.mark.parametrize("learning", ["bursty", "poisson"])
def test_the_rarest_traffic_never_comes(learning):
    found = simulate(change(web_rate=1e-9, learning=learning, learning_gbps=1e-12, seed=0))
    assert len(found.completion_ms) == 0
    # Of iterations that take centuries, the first begins at once.
    burst = 4 * 3 * SMALL.chunk_packets
    assert found.totals["learning_delivered"] == (burst if learning == "bursty" else 0)


def test_pools_grow_as_they_must():
    """A thousand messages at once, of two hosts: every pool is outgrown."""
    settings = Settings(
        num_hosts=2, web_rate=9e5, message_bytes=100_000, learning="none", duration=1e-3,
        warmup=0, drain=10, link_gbps=400,
    )  # fmt: skip
    found = simulate(settings)
    assert len(found.completion_ms) > 800
    assert not np.isnan(found.completion_ms).any()


def test_what_cannot_complete_is_counted():
    found = simulate(change(drain=0.0, web_rate=3000))
    summary = found.summary()
    assert summary["unfinished"] > 0
    assert summary["completed"] + summary["unfinished"] == len(found.completion_ms)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hosts": 1}, "num_hosts=1: expected an integer in"),
        ({"web_rate": -1}, "web_rate=-1: expected a rate of at least 0"),
        ({"web_rate": math.nan}, "web_rate=nan"),
        ({"web_rate": 1e6}, r"web_rate=1000000.0: expected below \d+ \(more could never drain\)"),
        (  # Of 41 bytes and three of 64 over four links of 1 Gbps: the handshake counts.
            {"web_rate": 3e6, "message_bytes": 1, "completion": "sender", "learning": "none"},
            "web_rate=3000000.0: expected below 2145923",
        ),
        ({"threshold_bytes": -1}, "threshold_bytes=-1: expected at least 0"),
        ({"threshold_bytes": math.nan}, "threshold_bytes=nan: expected at least 0"),
        ({"deadline_ms": 1.0}, "deadline_ms=1.0: expected none with threshold"),
        ({"discipline": "best"}, "discipline=best: expected fifo or threshold"),
        ({"pacing_mbps": 100}, "pacing_mbps=100: expected above 300"),
        ({"warmup": 0.1}, "warmup=0.1: expected in"),
        ({"transport": "ideal", "web_buffer_bytes": 1e5}, "web_buffer_bytes=100000.0: expec"),
        ({"learning": "trace"}, "learning_trace=None: expected a file"),
        ({"learning_gbps": 4.1, "threshold_bytes": math.inf, "learning": "poisson"},
         "learning_gbps=4.1: expected less than the links carry"),
    ],
)  # fmt: skip
def test_bad_settings_say_what_was_expected(changes, message):
    with pytest.raises(SettingError, match=message):
        simulate(change(**changes))


def test_parameters_not_given_are_those_of_the_discipline():
    for discipline, defaults in PARAMS.items():
        settings = with_discipline(SMALL, discipline)
        settings.check()
        assert settings.params == defaults


def test_closed_forms_at_their_limits():
    assert closed_forms.fifo(0.5, 0.2, 1.0).web == closed_forms.fifo(0.5, 0.2, 1.0).learning
    waits = closed_forms.priority(0.3, 0.4, 1.0)
    # The conservation law: priorities share out the wait of one queue.
    whole = closed_forms.fifo(0.3, 0.4, 1.0).web
    assert 0.3 * waits.web + 0.4 * waits.learning == pytest.approx(0.7 * whole)
    assert closed_forms.md1k_drop_fraction(0.5, 60) == pytest.approx(0, abs=1e-12)
    assert closed_forms.md1k_drop_fraction(2.0, 40) == pytest.approx(1 / 2)
