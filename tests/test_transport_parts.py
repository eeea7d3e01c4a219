"""Parts of exchanges by datagrams, each by itself; tests/test_transport.py has whole exchanges."""

import errno
import hmac
import itertools
import random
import socket
import sys
import time
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from datagrams import KEY, N, addresses, hostile, params_of, sealed

import rps_jax as rps
from rps_jax import transport
from rps_jax.transport import inbox as inbox_module
from rps_jax.transport import pacing
from rps_jax.transport.deadline import Deadline
from rps_jax.transport.inbox import Inbox
from rps_jax.transport.layout import Layout, layout_of
from rps_jax.transport.packets import EVERYONE, Sealer
from rps_jax.transport.peers import ALONE, HERE
from rps_jax.transport.sockets import DatagramSocket


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.long)])
def test_hostile_datagrams_are_counted_and_never_accepted(count):
    sealer, rng = Sealer(7, KEY), np.random.default_rng(0)
    datagrams, kinds = hostile(rng, sealer, count), Counter()
    while some := sorted(itertools.islice(datagrams, 2000), key=len):
        for size, group in itertools.groupby(some, key=len):
            alike = list(group)
            rows = np.frombuffer(b"".join(alike), np.uint8).reshape(len(alike), size)
            genuine, refused = sealer.open(rows)
            assert not genuine
            kinds.update(refused)
    assert sum(kinds.values()) == count
    assert kinds.keys() == {"foreign", "truncated", "forged"}


@pytest.mark.parametrize("key", [b"k" * 16, b"k" * 64])
def test_a_tag_is_half_an_hmac(key):
    for datagram in sealed(Sealer(7, key)):
        content, tag = datagram[:-16].tobytes(), datagram[-16:].tobytes()
        assert tag == hmac.digest(key, content, "sha256")[:16]


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


@pytest.mark.parametrize("most_bytes", [100, 1400, 60_000])
@pytest.mark.parametrize("num_workers", [1, 2, 5, 33])
def test_packets_hold_every_leaf_and_give_it_back(num_workers, most_bytes):
    tree = params_of(0)
    layout = layout_of(tree, num_workers, most_bytes)
    assert 0 < layout.length <= most_bytes
    blocks, from_blocks = rps.blocks.to_blocks(tree, num_workers, layout.packets)
    rows = layout.rows([np.asarray(block) for block in blocks], num_workers)
    assert rows.shape == (num_workers, layout.packets, layout.length)
    restored = from_blocks([jnp.asarray(block) for block in layout.blocks(rows)])
    jax.tree.map(np.testing.assert_array_equal, restored, tree)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int32, np.int64, np.uint64])
def test_integers_of_any_size_are_averaged_without_overflow(dtype):
    bounds = np.iinfo(dtype)
    values = np.random.default_rng(0).integers(bounds.min, bounds.max, (5, 4, 3), dtype, True)
    values[:, 0] = bounds.max
    values[:, 1] = bounds.min
    rows = values.view(np.uint8).reshape(5, 4, -1)
    layout = Layout(4, ((np.dtype(dtype), 3),))
    (found,) = layout.blocks(layout.average(rows.copy(), np.ones((5, 4), bool)))
    # To the nearest, and a half up.
    expected = (2 * values.astype(object).sum(0) + 5) // 10
    np.testing.assert_array_equal(found.astype(object), expected)


def test_a_leaf_without_an_average_is_refused():
    for dtype in ("bool", "int4"):
        with pytest.raises(
            TypeError, match=rf"leaf \['x'\] has dtype {dtype}: expected a floating"
        ):
            layout_of({"x": jnp.ones(3, dtype)}, N, 1400)


def test_a_deadline_follows_what_phases_take():
    deadline = Deadline(5.0)
    assert deadline.seconds() == 5.0
    for seconds in (1.0, 1.1, 0.9, 1.0, 1.05):
        deadline.took(seconds)
    assert 1.1 < deadline.seconds() < 3.0
    for _ in range(40):
        deadline.took(0.001)
    assert deadline.seconds() == pytest.approx(0.2)


def test_a_host_that_knows_itself_as_loopback_is_reached_by_others():
    port = addresses(1)[0][1]
    for others, expected in (
        ([("127.0.0.1", 4000)], "127.0.0.1"),
        ([("127.0.0.1", 4000), ("192.0.2.1", 4000)], "0.0.0.0"),
        ([("nobody.invalid", 4000)], "0.0.0.0"),
    ):
        bound = DatagramSocket(("127.0.0.1", port), others)
        bound.close()
        assert bound.address == (expected, port)
    with pytest.raises(OSError, match="no family of addresses"):
        DatagramSocket(("127.0.0.1", port), [("::1", 4000)])


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL])
def test_datagrams_go_one_by_one_where_the_system_takes_none_joined(error):
    class WithoutJoined:
        """As Linux, where the way goes by IPsec."""

        def __init__(self, inner):
            self._inner, self.refused = inner, 0

        def sendmsg(self, buffers, control, *arguments):
            if control:
                self.refused += 1
                raise OSError(error, "not joined")
            return self._inner.sendmsg(buffers, control, *arguments)

        def __getattr__(self, name):
            return getattr(self._inner, name)

    sender, receiver = (DatagramSocket(("127.0.0.1", 0)) for _ in range(2))
    sender._socket = WithoutJoined(sender._socket)
    for _ in range(2):
        sender.send(np.zeros((5, 1200), np.uint8), receiver.address)
    assert sender._socket.refused == (sys.platform == "linux")  # It is not tried again.
    assert sender.bytes_sent == 10 * 1200
    assert sum(len(datagrams) for datagrams, _ in receiver.receive()) == 10
    assert sender.path_mtu is None  # Of the loopback, 65,536 bytes.
    sender.close()
    receiver.close()


@pytest.mark.parametrize("offload", [True, False])
def test_datagrams_are_told_when_they_came(offload):
    sender, receiver = (DatagramSocket(("127.0.0.1", 0), offload=offload) for _ in range(2))
    came, began = [], time.monotonic()
    for _ in range(3):
        sender.send(np.zeros((2, 60), np.uint8), receiver.address)
        came.extend(each for _, seconds in receiver.receive() for each in seconds)
    elapsed = time.monotonic() - began
    sender.close()
    receiver.close()
    assert len(came) == 6
    assert came == sorted(came)
    assert 0 < came[-1] - came[0] < 2 * elapsed


def test_no_more_is_sent_than_a_link_carries_but_for_a_short_burst(monkeypatch):
    rng, rate, now, sent = random.Random(0), 8e6, [5.0], []

    def sleep(seconds):
        now[0] += seconds + rng.choice([0.0, 1e-4, 3e-3])  # Waking up takes a while.

    monkeypatch.setattr(pacing.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(pacing.time, "sleep", sleep)
    pacer = pacing.Pacer(rate)
    for _ in range(500):
        now[0] += rng.choice([0.0, 0.0, 0.0, 1e-3, 0.05])
        num_bytes = rng.randrange(1, 1500)
        pacer.wait(num_bytes)
        sent.append((now[0], 8 * num_bytes / rate))
    for first, (began, _) in enumerate(sent):
        of_link = 0.0  # Of all between two: the first may have been late, the last is on its way.
        for at, seconds in sent[first + 1 :]:
            assert of_link < at - began + 2.2e-3
            of_link += seconds


@pytest.mark.parametrize("offload", [True, False])
def test_foreign_datagrams_do_not_part_those_of_the_run(offload):
    sealer, foreign = Sealer(7, KEY), Sealer(8, KEY)
    receiver = DatagramSocket(("127.0.0.1", 0), wanted=sealer.is_of_run, offload=offload)
    with socket.socket(type=socket.SOCK_DGRAM) as attacker:
        sender = DatagramSocket(("127.0.0.1", 0))
        for place in range(4):
            for datagram in (b"", b"RP", b"\0" * 90, sealed(foreign)[0].tobytes()):
                attacker.sendto(datagram, receiver.address)
            rows = np.full((3, 30), place, np.uint8)
            genuine = sealer.seal(0, 0, 1, 0, rows, 3 * place)
            sender.send(genuine, receiver.address)
        sender.close()
    (genuine, _), (rest, _) = receiver.receive()
    (opened,), refused = sealer.open(genuine)
    assert refused == {"foreign": 3}  # Those of the same size, but for the first.
    assert opened.places.tolist() == list(range(12))
    assert opened.payloads[:, 0].tolist() == np.repeat(range(4), 3).tolist()
    assert sealer.open(rest) == ([], {"foreign": 13})
    receiver.close()


def test_an_exchange_that_a_worker_was_in_twice_is_that_with_the_others():
    """As (exchange, what was heard of the other in each phase)."""
    both, nothing, first = (True, True), (False, False), (True, False)
    said = [
        [(0, both), (1, both), (2, both), (3, both), (2, first), (3, both)],
        # It began again at 0, alone; then all went back to 2.
        [(0, both), (1, first), (0, nothing), (1, nothing), (2, nothing), (2, first), (3, both)],
    ]
    records = []
    for worker, of_worker in enumerate(said):
        records.append([])
        for number, heard in of_worker:
            masks = np.zeros((2, 2, 3), bool)
            masks[:, worker], masks[:, 1 - worker] = True, np.array(heard)[:, None]
            records[-1].append(transport.Exchanged(number, np.empty(0), *masks, shift=0))
    trace = transport.trace_of(records)
    arrived = np.unpackbits(trace.arrived, axis=-1, count=trace.packets).all(-1)
    assert [tuple(phases) for phases in arrived[:, :, 1, 0].tolist()] == [both, both, first, both]
    assert [tuple(phases) for phases in arrived[:, :, 0, 1].tolist()] == [both, first, first, both]
