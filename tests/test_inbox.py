"""What has arrived of an exchange, and who is waited for."""

import numpy as np
from datagrams import N

from rps_jax.transport import inbox as inbox_module
from rps_jax.transport.inbox import Inbox
from rps_jax.transport.packets import EVERYONE, Sealer
from rps_jax.transport.peers import ALONE, HERE


def test_what_is_still_to_come_is_told_by_what_came_last():
    packets, length, sealer = 40, 30, Sealer(7, None)
    inbox = Inbox(0, N, sealer)

    def take(source, first, last=False, phase=0):
        rows = np.zeros((1, length), np.uint8)
        to = 0xFFFF if phase else 0
        inbox.take(sealer.seal(phase, 0, source, to, rows, first, last=last), np.zeros(1))

    assert inbox.still_to_come() == 0
    inbox.open_exchange(0, packets, length)
    assert inbox.still_to_come() == packets
    # What was dropped before it does not count.
    take(1, first=29)
    take(2, first=35)
    assert inbox.still_to_come() == packets - 30
    # The end of a phase is heard, whatever of it arrived.
    take(1, first=0, last=True)
    assert inbox.still_to_come() == packets - 36
    take(2, first=packets - 1)
    assert inbox.still_to_come() == 0
    inbox.close_phase(0, 0.0)
    take(1, first=9, phase=1)
    take(2, first=19, phase=1)
    assert inbox.still_to_come() == packets - 10


def test_datagrams_that_come_together_are_filed_as_one_by_one():
    rng, sealer = np.random.default_rng(0), Sealer(7, None)
    packets, length, count = 6, 8, 4000
    said = zip(
        rng.choice([0, 0, 1], count),  # phase
        rng.choice([3, 3, 3, 4, 2, 9], count, p=[0.4, 0.3, 0.2, 0.09, 0.005, 0.005]),  # exchange
        rng.integers(0, N + 2, count),  # source, oneself and strangers included
        rng.choice([0, 0, 1, 0xFFFF, 0xFFFF], count),  # destination
        rng.integers(0, packets + 1, count),  # place, beyond the block included
        rng.random(count) < 0.02,  # the last of a phase
        strict=True,
    )

    def datagram(phase, exchange, source, to, place, last):
        row = np.full((1, length), 16 * source + place, np.uint8)
        return sealer.seal(phase, exchange, source, to, row, place, last=last)

    datagrams = np.concatenate([datagram(*(x.item() for x in each)) for each in said])
    came = np.arange(count) / 1e9
    together, one_by_one = Inbox(0, N, sealer), Inbox(0, N, sealer)
    for inbox, size in ((together, 250), (one_by_one, 1)):
        inbox.open_exchange(3, packets, length)
        for start in range(0, count, size):
            inbox.take(datagrams[start : start + size], came[start : start + size])
    assert together.counts == one_by_one.counts
    assert min(together.counts[kind] for kind in ("duplicate", "late", "early", "stray")) > 0
    for phase in range(2):
        for found, expected in zip(
            together.received(phase), one_by_one.received(phase), strict=True
        ):
            assert found.tolist() == expected.tolist()
        (rows, arrived, _), (expected, also, _) = (
            inbox.close_phase(phase, 0.0) for inbox in (together, one_by_one)
        )
        assert arrived.any()
        assert (arrived == also).all()
        assert (rows[arrived] == expected[arrived]).all()


def test_a_clock_that_is_set_makes_no_phase_slow():
    sealer = Sealer(7, None)
    inbox = Inbox(0, 2, sealer)
    inbox.open_exchange(0, 2, 30)
    datagrams = sealer.seal(0, 0, 1, 0, np.zeros((2, 30), np.uint8), 0)
    inbox.take(datagrams, np.array([0.0, 1000.0]))
    packets, seconds = inbox.received(0)
    assert packets[1] == 2
    assert seconds[1] < 500


def test_nobody_waits_for_a_worker_of_which_only_old_datagrams_come():
    sealer, inbox = Sealer(7, None), Inbox(0, 2, Sealer(7, None))

    def take(exchange):
        inbox.take(sealer.seal(0, exchange, 1, 0, np.zeros((4, 8), np.uint8)))

    timed_out = []
    for exchange in range(6):
        inbox.open_exchange(exchange, 5, 8)
        # Worker 1 is late by one exchange, once; it dies, and someone sends its datagrams again.
        take(min(exchange, 1))
        timed_out.append(inbox.close_phase(0, 0.0)[2])
    assert timed_out == [True, True, True, True, False, False]
    take(5)
    inbox.open_exchange(6, 5, 8)
    assert inbox.close_phase(0, 0.0)[2]


def test_an_exchange_has_what_came_of_it_and_nothing_else():
    sealer, inbox, packets, clock = Sealer(7, None), Inbox(0, 2, Sealer(7, None)), 6, [0.0]

    def take(exchange, *places):
        for place in places:
            clock[0] += 1e-6
            row = np.full((1, 8), exchange, np.uint8)
            inbox.take(sealer.seal(0, exchange, 1, 0, row, place), clock[0])

    early, ahead = [], 0
    for number in range(9):
        exchange, elsewhere = inbox.open_exchange(number + ahead, packets, 8)
        if elsewhere:
            early, ahead = [], exchange - number
        came = [(number + 1) % 4, (number + 2) % 4]
        take(exchange, *came)
        found, seconds = inbox.received(0)
        assert found[1] == len({*early, *came})
        assert seconds[1] < 5e-6
        clock[0] += 1.0
        rows, arrived, _ = inbox.close_phase(0, 0.0)
        assert np.flatnonzero(arrived[1]).tolist() == sorted({*early, *came})
        assert (rows[1][arrived[1]] == exchange).all()
        early = [number % packets]
        take(exchange + 1, *early)
        if number in (3, 6):  # By an odd and an even number of exchanges.
            end = np.zeros((1, 0), np.uint8)
            inbox.take(sealer.seal(0, exchange + 5 + number, 1, 0, end, last=True), clock[0])
    assert ahead == 7 + 10


def test_who_says_that_it_is_there_is_met_and_ends_nothing():
    sealer, inbox = Sealer(7, None), Inbox(0, 3, Sealer(7, None))

    def says(*said):
        ends = [
            sealer.seal(0, 0, source, 0, np.zeros((1, 0), np.uint8), place, last=True)
            for source, place in said
        ]
        inbox.take(np.concatenate(ends))

    assert inbox.heard_nobody()
    says((1, HERE))
    assert inbox.meet(0.0) == [2]
    assert not inbox.heard_nobody()
    says((2, HERE))
    assert inbox.meet(0.0) == []
    inbox.open_exchange(0, 4, 8)
    assert inbox.still_to_come() == 4
    says((1, HERE), (2, 0))
    assert inbox.in_vain()[0].tolist() == [False, False, True]
    assert inbox.close_phase(0, 0.0)[2]
    says((1, 0))
    assert inbox.counts == {"accepted": 4, "late": 1}


def test_all_listen_where_those_who_are_heard_take_no_part():
    sealer, inbox = Sealer(7, None), Inbox(0, 3, Sealer(7, None))
    for exchange, (ends, rows_of, all_listen) in enumerate(
        [
            ({}, [], False),
            ({1: ALONE}, [], True),
            ({1: ALONE, 2: ALONE}, [], True),
            ({1: ALONE, 2: 0}, [], False),
            ({1: ALONE}, [2], False),
        ]
    ):
        inbox.open_exchange(exchange, 4, 8)
        for source, place in ends.items():
            row = np.zeros((1, 0), np.uint8)
            inbox.take(sealer.seal(0, exchange, source, 0, row, place, last=True))
        for source in rows_of:
            rows = np.zeros((4, 8), np.uint8)
            inbox.take(sealer.seal(1, exchange, source, EVERYONE, rows))
        assert inbox.all_listen() == all_listen


def test_once_another_has_begun_nobody_is_met_any_more():
    sealer, inbox = Sealer(7, None), Inbox(0, 3, Sealer(7, None))
    inbox.take(sealer.seal(0, 0, 1, 0, np.zeros((4, 8), np.uint8)))
    assert inbox.meet(0.0) == []
    inbox.give_up_unmet()
    inbox.open_exchange(0, 4, 8)
    # Worker 2 is not waited for until it is heard.
    assert not inbox.close_phase(0, 0.0)[2]


def test_nobody_waits_for_a_worker_that_is_alone_far_ahead_but_for_one_that_listens():
    sealer, inbox = Sealer(7, None), Inbox(0, 3, Sealer(7, None))
    where = [None, 100, 101, 3, 4, 5, 102, 103]  # Of worker 2; of worker 1 it is here.
    timed_out = []
    for exchange, of_other in enumerate(where):
        assert inbox.open_exchange(exchange, 5, 8) == (exchange, False)
        for source, number, place in ((1, exchange, 0), (2, of_other, ALONE)):
            if number is not None:
                end = np.zeros((1, 0), np.uint8)
                inbox.take(sealer.seal(0, number, source, 0, end, place, last=True))
        if inbox.close_phase(0, 0.0)[2]:
            timed_out.append(exchange)
    # At first, and once after it has listened.
    assert timed_out == [0, 6]


def test_datagrams_of_another_length_or_pytree_are_counted():
    sealer, inbox = Sealer(7, None), Inbox(0, N, Sealer(7, None))
    inbox.open_exchange(0, 4, 8, digest=5)
    for length, digest in ((8, 6), (9, 5), (8, 5)):
        inbox.take(sealer.seal(0, 0, 1, 0, np.zeros((4, length), np.uint8), digest=digest))
    assert inbox.counts == {"unlike": 4, "stray": 4, "accepted": 4, "duplicate": 0}
    assert inbox.unlike() == []


def test_few_datagrams_are_kept_before_the_first_exchange(monkeypatch):
    monkeypatch.setattr(inbox_module, "_MOST_WAITING", 120)
    sealer = Sealer(7, None)
    inbox = Inbox(0, N, sealer)
    for exchange in (*range(9), 8):
        for start in range(0, 60, 20):
            rows = np.zeros((20, 8), np.uint8)
            inbox.take(sealer.seal(0, exchange, 1, 0, rows, start))
    inbox.open_exchange(7, 60, 8)
    assert inbox.received(0)[0].tolist() == [0, 60, 0]
    assert inbox.counts == {"accepted": 120, "duplicate": 0}
