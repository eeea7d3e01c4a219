"""Workers that were away, alone or ahead, and come to where the others are."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from datagrams import KEY, N, addresses, params_of
from run_workers import run_workers

from rps_jax import transport
from rps_jax.transport.catching_up import CatchingUp
from rps_jax.transport.layout import layout_of
from rps_jax.transport.peers import ALONE, Peers


class Cable:
    """A socket of which nothing goes out, and nothing comes in, while its cable is down."""

    def __init__(self, inner, down):
        self._inner, self._down = inner, down

    def send(self, datagrams, address):
        if not self._down.is_set():
            self._inner.send(datagrams, address)

    def receive(self):
        for came in self._inner.receive():
            if not self._down.is_set():
                yield came

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_a_worker_that_has_gone_is_dropped_messages_and_takes_over_the_others_model():
    places, gone, back = addresses(), threading.Event(), threading.Event()
    options: dict[str, Any] = {"deadline": 0.5, "start_timeout": 5.0, "record": True}

    def stays(worker):
        params = params_of(worker)
        with transport.join(places, worker, KEY, **options) as network:
            while not back.is_set():
                params = network.average_models(params)
                if network.records[-1].exchange == 2:
                    gone.wait(20)
            for _ in range(20):
                params = network.average_models(params)
            return params, network.records

    def leaves():
        params = params_of(N - 1)
        with transport.join(places, N - 1, KEY, **options) as network:
            for _ in range(3):
                params = network.average_models(params)
        gone.set()
        time.sleep(0.2)
        params = params_of(99, scale=100.0)  # Another life: its model is far from the others'.
        with transport.join(places, N - 1, KEY, **options) as network:
            for _ in range(6):
                params = network.average_models(params)
            back.set()
            for _ in range(20):
                params = network.average_models(params)
            return params, network.records

    with ThreadPoolExecutor(N) as threads:
        futures = [threads.submit(stays, worker) for worker in range(N - 1)]
        futures.append(threads.submit(leaves))
        (*others, (mine, records)) = [future.result(timeout=60) for future in futures]
    missed = [seen for seen in others[0][1] if not seen.received[N - 1].any()]
    assert missed
    assert records[0].exchange < records[1].exchange - 1 or records[0].exchange > 2
    # It has come to where the others are: nothing of its own life was averaged into theirs alone.
    for params, _ in others:
        distance = np.abs(np.asarray(params["matrix"]) - np.asarray(mine["matrix"])).max()
        assert distance < 100


def test_a_worker_that_starts_late_takes_part_in_the_first_exchange():
    places = addresses(2)

    def work(worker):
        time.sleep(0.5 * worker)
        with transport.join(places, worker, KEY, start_timeout=20.0) as network:
            return np.asarray(network.average_models({"x": jnp.full(4000, float(worker))})["x"])

    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(work, range(2)):
            np.testing.assert_array_equal(found, 0.5)


def test_the_outer_optimizer_of_a_worker_that_was_away_begins_anew():
    """Steps from its old anchor would lead it, and then the others, past their model."""
    places, back = addresses(3), threading.Event()

    def work(worker):
        params = {"x": jnp.full(3000, 0.0 if worker == 2 else 100.0)}
        if worker == 2:
            assert back.wait(20)
        with transport.join(places, worker, KEY, deadline=0.5, start_timeout=0.2) as network:
            options = {"algorithm": "diloco", "local_steps": 1}
            optimizer = transport.optax_average_models(optax.sgd(0.0), network, **options)
            state = optimizer.init(params)
            step = jax.jit(lambda params, state: optimizer.update(params, state, params))
            found = []
            while len(found) < 50 and not (worker == 2 and len(found) == 15):
                updates, state = jax.block_until_ready(step(params, state))
                params = optax.apply_updates(params, updates)
                found.append(np.asarray(params["x"]))
                if len(found) == 15:
                    back.set()
                time.sleep(0.02)
            return found

    with ThreadPoolExecutor(3) as threads:
        *others, last = threads.map(work, range(3))
    np.testing.assert_allclose(np.array(others), 100.0, rtol=1e-5)
    np.testing.assert_allclose(last[-1], 100.0, rtol=1e-5)


def test_a_worker_that_is_alone_goes_to_two_who_are_not_and_else_follows_whoever_leads():
    peers, one, two, three = Peers(4), np.array([1]), np.array([2]), np.array([3])
    alone = np.array([ALONE])
    peers.next_exchange(first=True)
    assert peers.alone
    assert peers.follows(one, alone)
    assert not peers.find(one, 7, 0)  # It has only begun: the ends of the others lead it.
    for exchange in (1, 0):
        peers.are_in_step(one, exchange)
    peers.next_exchange(first=False)
    for _ in range(4):  # Until the other was not there in as many exchanges.
        assert not peers.alone
        assert not peers.find(two, 20, 40)
        assert not peers.find(three, 20, 40)
        assert peers.meeting == -1
        assert peers.follows(two, np.array([0]))
        assert peers.follows(one, alone)
        assert not peers.follows(two, alone)
        peers.next_exchange(first=False)
    assert peers.alone
    assert peers.follows(two, alone)
    assert not peers.find(one, 1, 40)  # It was there: anyone may have kept what was said.
    assert peers.find(one, 20, 40)
    assert peers.meeting == -1
    assert peers.find(two, 19, 40)
    assert peers.meeting == 19
    assert peers.find(three, 60, 40)
    assert peers.meeting == 20
    assert not peers.returned
    peers.next_exchange(first=False)
    assert peers.returned
    assert not peers.alone
    peers.next_exchange(first=False)
    assert not peers.returned


def test_workers_that_all_listen_listen_no_longer():
    away = CatchingUp()
    away.begin(np.ones((3, 4), bool))
    for listens, all_listen in ((True, True), (True, False), (True, True), (False, True)):
        away.heard(np.zeros((3, 4), bool), all_listen=all_listen)
        assert away.listens == listens


def test_it_listens_until_it_has_heard_the_model_or_there_is_none_to_hear():
    rng, away, nothing = np.random.default_rng(0), CatchingUp(), np.zeros((3, 4), bool)
    assert not away.listens
    stale = rng.random((3, 4)) < 0.7
    away.begin(stale)
    while stale.any():
        assert away.listens
        heard = rng.random((3, 4)) < 0.4
        away.heard(heard, all_listen=False)
        stale &= ~heard
    assert not away.listens
    # What nobody serves is not waited for without end, nor what is exchanged no longer.
    for gathered, most in ((nothing, 30), (nothing[1:], 1)):
        away.begin(~nothing)
        for _ in range(most):
            away.heard(gathered, all_listen=False)
        assert not away.listens


@pytest.mark.parametrize("assignment", ["random", "fixed"])
def test_what_a_worker_that_was_away_has_to_hear_is_what_others_serve(assignment):
    me = 1
    network = transport.join(addresses(), me, KEY, assignment=assignment)
    shifts = {network._shift(exchange) for exchange in range(50)}
    by_others = [any((block + shift) % N != me for shift in shifts) for block in range(N)]
    assert network._of_others(4).tolist() == [[served] * 4 for served in by_others]
    network._socket.close()


@pytest.mark.parametrize("count", [2, 3])
def test_a_worker_whose_cable_was_down_does_not_lead_those_who_were_together(count):
    """Alone it runs ahead, and its model goes astray: of two that is what there is, else not."""
    places, down, ended = addresses(count), threading.Event(), threading.Event()
    cut, last = count - 1, {}

    def until(holds):
        latest = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < latest
            time.sleep(0.01)

    def work(worker):
        options = {"deadline": 0.3, "start_timeout": 20.0, "record": True}
        network = transport.join(places, worker, KEY, **options)
        network._socket = Cable(network._socket, down) if worker == cut else network._socket
        params = {"x": jnp.zeros(2000)}
        with network:
            while not ended.is_set():
                if worker != cut:
                    time.sleep(0.05)
                elif down.is_set():
                    params = jax.tree.map(lambda x: x + 1, params)
                params = network.average_models(params)
                last[worker] = network.records[-1].exchange, float(params["x"].max())
            return network.records

    def watch():
        until(lambda: len(last) == count and min(last.values())[0] > 5)
        down.set()
        until(lambda: last[cut][0] > last[0][0] + 50)
        before = last.copy()
        down.clear()
        until(lambda: max(last.values())[0] - min(last.values())[0] < 3)
        now = last[0][0]
        until(lambda: min(last.values())[0] > now + 20)
        return before

    with ThreadPoolExecutor(count + 1) as threads:
        futures = [threads.submit(work, worker) for worker in range(count)]
        try:
            before = threads.submit(watch).result()
        finally:
            ended.set()
        records = [future.result() for future in futures]
    numbers = [seen.exchange for seen in records[0]]
    jumps = np.diff(numbers)
    values = [value for _, value in last.values()]
    assert np.ptp(values) < 0.1
    if count == 2:
        assert jumps.max() > 40
        assert max(values) > 50
    else:
        assert jumps.max() < 10
        assert max(values) < 30
        assert before[cut][1] > 50
    # Of the last ones, as the others may have left before its very last.
    assert any(seen.received.any(1).all() for seen in records[-1][-10:])


def test_a_worker_that_starts_with_a_number_too_large_goes_to_the_others():
    places, ended, last = addresses(), threading.Event(), {}
    layout = layout_of({"x": np.zeros(600, np.float32)}, N, 1000)

    def work(worker):
        late, length = worker == N - 1, layout.length
        options = {"deadline": 0.3, "start_timeout": 20.0 if late else 0.5}
        while late and min(last.values(), default=0) < 5:
            time.sleep(0.01)
        with transport.join(places, worker, KEY, **options) as network:
            for number in range(1000 * late, 1000 * late + 60):
                time.sleep(0.02)
                rows = np.zeros((N, layout.packets, length), np.uint8)
                seen = network.exchange(number, rows, layout)
                last[worker] = seen.exchange
                if late and number > 1020:
                    assert seen.received.all()
                    ended.set()
                if ended.is_set():
                    break

    with ThreadPoolExecutor(N) as threads:
        list(threads.map(work, range(N)))
    assert ended.is_set()
    assert max(last.values()) < 100


@pytest.mark.long
def test_a_worker_that_was_away_takes_part_when_it_has_heard_the_whole_model() -> None:
    away, exchanges = N - 1, 70
    missed = threading.Event()

    def work(network, worker):
        params = {"x": jnp.full(20_000, 1e6 if worker == away else 1.0)}
        found = []
        if worker == away:
            missed.wait()
        while network.next_exchange < exchanges:
            params = network.average_models(params)
            found.append(float(jnp.abs(params["x"]).max()))
            if network.next_exchange > 20:
                missed.set()
            time.sleep(0.02)
        return found

    found = run_workers(work, unruly={"drop": 0.3}, deadline=0.5, start_timeout=0.5)
    assert found[away][0] > 1e5
    for of_worker in found:
        assert of_worker[-1] < 1.001
    assert max(*found[0], *found[1]) < 1.001
