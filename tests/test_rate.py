"""The rate that is found, on a simulated link that drops at random; its pace, and deadlines."""

import random
import statistics

import numpy as np
import pytest

from rps_jax.transport import pacing
from rps_jax.transport.deadline import Deadline
from rps_jax.transport.feedback import Feedback
from rps_jax.transport.pacing import Pacer
from rps_jax.transport.packets import Report
from rps_jax.transport.rate import Carried, Rate, carried

PACKETS, BITS = 300, 8 * 1442


class Link:
    """A link that three workers' packets share; fluid, but for the random drops."""

    def __init__(self, capacity, drop_rate=0.0, queue_seconds=0.02, seed=0):
        self.capacity, self.drop_rate, self.queue_seconds = capacity, drop_rate, queue_seconds
        self.rates, self.own_drops, self.packets = [], 0.0, 0
        self._random = random.Random(seed)

    def carry(self, rate):
        """What the network makes of a phase at a rate."""
        bits = 3 * PACKETS * BITS
        seconds = bits / rate
        too_much = max(0.0, (rate - self.capacity) * seconds - self.queue_seconds * self.capacity)
        overflow = too_much / bits
        arrives = min((1 - overflow) * bits / self.capacity, seconds + self.queue_seconds)
        reports = [Report(0, 0, self._arriving(overflow), max(seconds, arrives)) for _ in range(3)]
        self.rates.append(rate)
        self.own_drops += 3 * PACKETS * overflow
        self.packets += 3 * PACKETS
        return carried(PACKETS, seconds, reports)

    def _arriving(self, overflow):
        keep = (1 - overflow) * (1 - self.drop_rate)
        return sum(self._random.random() < keep for _ in range(PACKETS))


def send(rate, link, phases):
    """Sends phases; their reports come while the next is under way."""
    before = None
    for _ in range(phases):
        now = rate.next()
        seen = link.carry(now)
        if before is not None:
            rate.saw(*before)
        before = now, seen


def found_on(capacity):
    """A rate that has been found on a link, and the link."""
    rate, link = Rate(), Link(capacity)
    send(rate, link, 150)
    return rate, link


@pytest.mark.parametrize("capacity", [20e6, 100e6, 1e9])
@pytest.mark.parametrize("drop_rate", [0.0, 0.01, 0.1, 0.3])
def test_it_finds_what_the_link_carries_whatever_is_dropped_at_random(capacity, drop_rate):
    rate, link = Rate(), Link(capacity, drop_rate)
    send(rate, link, 400)
    # Above the capacity there is a queue to fill, which costs nothing.
    assert 0.93 < statistics.median(link.rates[200:]) / capacity < 1.25


@pytest.mark.parametrize("drop_rate", [0.01, 0.1])
@pytest.mark.parametrize("seed", range(5))
def test_random_drops_do_not_hold_it_up(drop_rate, seed):
    rate, link = Rate(), Link(1e9, drop_rate, seed=seed)
    send(rate, link, 50)
    assert max(link.rates) > 0.85 * link.capacity


@pytest.mark.parametrize("capacity", [100e6, 1e9])
def test_it_drops_next_to_nothing_itself(capacity):
    rate, link = Rate(), Link(capacity)
    send(rate, link, 400)
    assert link.own_drops < 0.001 * link.packets


def test_it_follows_a_capacity_that_falls_and_comes_back():
    rate, link = found_on(1e9)
    for capacity in (200e6, 1e9):
        link.capacity = capacity
        send(rate, link, 250)
        assert 0.8 < statistics.median(link.rates[-50:]) / capacity < 1.3


def test_a_destination_that_is_slow_itself_does_not_count():
    reports = [Report(0, 0, PACKETS, 0.1)] * 2 + [Report(0, 0, 10, 0.1)]
    assert carried(PACKETS, 0.1, reports).fraction == 1


def test_a_phase_that_was_not_waited_for_is_told_by_what_came_until_then():
    reports = [Report(0, 0, PACKETS // 5, 0.4)] * 3
    assert carried(PACKETS, 2.0, reports).fraction == pytest.approx(1.0)
    assert carried(PACKETS, 4.0, reports).fraction == pytest.approx(1.0)
    assert carried(PACKETS, 1.0, reports).fraction == pytest.approx(0.5)


def test_a_report_of_nothing_says_nothing_of_the_rate():
    """Its worker had gone on when the packets came."""
    pacer = Pacer(1.0)
    feedback = Feedback(pacer, Rate())
    before = pacer.bits_per_second
    for number in range(3):
        feedback.sent(number, 0, PACKETS, 10**6, 8e6 / before)
        feedback.heard([Report(number, 0, 0, 0.0)], anyone=True)
        assert pacer.bits_per_second == before


def test_few_phases_in_a_row_without_reports_change_nothing():
    pacer = Pacer(1.0)
    feedback = Feedback(pacer, Rate())
    start = pacer.bits_per_second
    for number in range(40):
        seconds = 8e6 / pacer.bits_per_second
        feedback.sent(number, 0, PACKETS, 10**6, seconds)
        said = [Report(number, 0, PACKETS, seconds)] * 3 if number % 4 == 3 else []
        feedback.heard(said, anyone=True)
        assert pacer.bits_per_second >= start


@pytest.mark.parametrize("capacity", [20e6, 500e6])
def test_a_pacer_follows_the_reports_of_what_was_sent(capacity):
    pacer, rates = Pacer(1.0), []
    feedback = Feedback(pacer, Rate())
    for number in range(60):
        rates.append(pacer.bits_per_second)
        seconds = 8e6 / rates[-1]
        feedback.sent(number, 0, PACKETS, 10**6, seconds)
        packets = round(PACKETS * min(1.0, capacity / rates[-1]))
        feedback.heard([Report(number, 0, packets, seconds)] * 3, anyone=True)
    assert 0.8 < statistics.median(rates[-20:]) / capacity < 1.3


def test_a_deadline_that_was_too_short_is_longer_at_once():
    deadline = Deadline(5.0)
    for _ in range(20):
        deadline.took(0.1)
    for expected in (0.4, 0.8, 1.6, 3.2, 5.0):
        deadline.was_too_short(deadline.seconds())
        assert deadline.seconds() == pytest.approx(expected)
    deadline.took(0.1)
    assert deadline.seconds() < 5.0


@pytest.mark.parametrize("packets", [0, 2**32 - 1])
@pytest.mark.parametrize("seconds", [0.0, 1.8e13])
def test_absurd_reports_do_no_more_than_lower_the_rate(packets, seconds):
    rate = Rate()
    for _ in range(50):
        now = rate.next()
        assert 1e6 <= now <= 100e9
        rate.saw(now, carried(PACKETS, 0.1, [Report(0, 0, packets, seconds)]))


def test_a_rate_that_the_sender_cannot_reach_is_not_tried_further():
    rate, link = Rate(), Link(1e9)
    before = None
    for _ in range(60):
        now = rate.next()
        seen = link.carry(min(now, 150e6))
        if now > 150e6 / 0.9:
            rate.did_not_reach()
        if before is not None:
            rate.saw(*before)
        before = now, seen
    assert max(link.rates[-20:]) <= 150e6
    assert now <= 150e6 / 0.9 * 1.25


def test_without_reports_it_gets_slower():
    rate = Rate()
    before = rate.next()
    rate.saw_nothing()
    assert rate.next() < before


def test_when_little_arrives_it_sends_so_much_less_at_once():
    rate, link = found_on(200e6)
    link.capacity = 20e6
    send(rate, link, 4)
    assert max(link.rates[-2:]) < 30e6
    send(rate, link, 100)
    assert 0.8 < statistics.median(link.rates[-50:]) / link.capacity < 1.3


def test_a_slower_rate_that_is_still_too_fast_is_followed_by_a_slower_one():
    rate, packets = Rate(), 3 * PACKETS
    rate.saw(rate.next(), Carried(0.1, packets))
    trial = rate.next()
    rate.next()
    rate.saw(trial, Carried(0.75, packets))
    assert 0.5 * trial < rate.next() < 0.75 * trial


def test_a_burst_of_drops_does_not_hold_it_down():
    rate, link = found_on(200e6)
    for drop_rate in (0.7, 0.0):
        link.drop_rate = drop_rate
        send(rate, link, 30)
    assert max(link.rates[-10:]) > 0.9 * link.capacity


def test_a_slower_rate_of_which_no_report_comes_stays():
    rate, link = found_on(200e6)
    link.capacity = 20e6
    send(rate, link, 4)
    silent = [rate.next() for _ in range(20)]
    assert max(silent) < 30e6


def test_a_faster_rate_of_which_no_report_comes_does_not():
    rate = Rate()
    before = rate.next()
    rate.saw(before, carried(PACKETS, 0.1, [Report(0, 0, PACKETS, 0.1)]))
    assert rate.next() > before
    for _ in range(5):
        assert rate.next() == before


def test_a_phase_takes_longer_than_the_last_by_less_than_the_others_wait():
    pacer, num_bytes, longest = Pacer(1.0), 3 * PACKETS * 1442, 5.0
    feedback = Feedback(pacer, Rate(), longest)
    seconds = [8 * num_bytes / pacer.bits_per_second]
    for number in range(60):
        feedback.sent(number, 0, PACKETS, num_bytes, seconds[-1])
        feedback.heard([], anyone=True)
        seconds.append(8 * num_bytes / pacer.bits_per_second)
    assert max(np.diff(seconds)) < longest
    # On a slow link, all phases take long.
    assert seconds[-1] > 2 * longest


def test_a_deadline_follows_what_phases_take():
    deadline = Deadline(5.0)
    assert deadline.seconds() == 5.0
    for seconds in (1.0, 1.1, 0.9, 1.0, 1.05):
        deadline.took(seconds)
    assert 1.1 < deadline.seconds() < 3.0
    for _ in range(40):
        deadline.took(0.001)
    assert deadline.seconds() == pytest.approx(0.2)


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
