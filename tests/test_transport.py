"""Exchanges by datagrams on loopback: workers in threads, and a network that misbehaves, seeded."""

import socket
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from datagrams import KEY, N, addresses, hostile, params_of, sealed

import rps_jax as rps
from rps_jax import transport
from rps_jax.transport.layout import layout_of
from rps_jax.transport.packets import Sealer


class Unruly:
    """A socket whose datagrams come late, twice, in another order, or not at all; seeded."""

    def __init__(self, inner, seed, drop=0.0, twice=0.0, later=0.0):
        self._inner, self._rng = inner, np.random.default_rng(seed)
        self._drop, self._twice, self._later = drop, twice, later
        self._held: deque[np.ndarray] = deque()

    def receive(self):
        for datagrams, seconds in self._inner.receive():
            for datagram, came in zip(datagrams[:, None], seconds, strict=True):
                drop, twice, later = self._rng.random(3)
                if drop < self._drop:
                    continue
                if later < self._later:
                    self._held.append(datagram.copy())
                    continue
                yield datagram, came
                if twice < self._twice:
                    yield datagram, came
                if self._held and self._rng.random() < 0.5:
                    yield self._held.popleft(), came

    def __getattr__(self, name):
        return getattr(self._inner, name)


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


def run_workers(work, count=N, unruly: Any = None, key=KEY, **options):
    """Runs `work(network, worker)` of every worker in a thread; returns the results in order."""
    places = addresses(count)
    options = {"deadline": 1.0, "start_timeout": 20.0, "record": True} | options

    def run(worker):
        network = transport.join(places, worker, key, **options)
        if unruly:
            network._socket = Unruly(network._socket, worker, **unruly)
        with network, jax.default_device(jax.devices()[worker]):
            return work(network, worker)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


def stacked(trees):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *map(jax.device_get, trees))


def assert_close(found, expected):
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        tolerance = 0.02 if a.dtype == jnp.bfloat16 else 1e-5
        np.testing.assert_allclose(
            a.astype(np.float64), b.astype(np.float64), rtol=tolerance, atol=tolerance
        )


def replayed(records, models):
    """The models after the recorded exchanges, in the simulation."""
    trace = transport.trace_of(records)

    def one_worker(params):
        state = trace.init(N)
        for step in range(trace.arrived.shape[0]):
            key = jax.random.key(0)
            delivery, state = rps.draw_exchange(trace, state, key, step, "workers")
            params = rps.average_models(params, delivery, "workers")
        return params

    return jax.device_get(jax.vmap(one_worker, axis_name="workers")(models))


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("key", [KEY, None])
def test_without_drops_it_is_the_mean(offload, key):
    def work(network, worker):
        return network.average_models(params_of(worker)), network.records

    done = run_workers(work, offload=offload, key=key, deadline=20.0)  # Of a busy machine, too.
    models = stacked([params_of(worker) for worker in range(N)])
    assert_close(stacked([params for params, _ in done]), reference.all_reduce(models))
    for _, (seen,) in done:
        assert seen.received.all()
        assert seen.gathered.all()


@pytest.mark.parametrize("offload", [True, False])
@pytest.mark.parametrize("mtu", [576, 9000])
def test_packets_may_be_small_and_large(mtu, offload):
    def work(network, worker):
        assert network.payload_bytes == mtu - 94
        return network.average_models(params_of(worker)), network.records

    done = run_workers(work, offload=offload, mtu=mtu, deadline=20.0)
    models = stacked([params_of(worker) for worker in range(N)])
    assert_close(stacked([params for params, _ in done]), reference.all_reduce(models))
    assert done[0][1][0].received.shape == (N, 6 if mtu == 576 else 1)


def test_models_are_averaged_inside_of_a_compiled_function():
    def work(network, worker):
        @jax.jit
        def step(params):
            return network.average_models(jax.tree.map(lambda x: 2 * x, params))

        found = [step({"w": jnp.full(3000, float(worker + number))})["w"] for number in range(3)]
        return jax.block_until_ready(found), network.next_exchange

    for found, exchanges in run_workers(work, deadline=20.0):
        assert exchanges == 3
        for number, each in enumerate(found):
            np.testing.assert_allclose(each, 2.0 * (N - 1) / 2 + 2 * number)


def test_devices_whose_memory_the_host_does_not_share(monkeypatch):
    def not_cpu(*args, cpu, default):
        del cpu
        return default(*args)

    def work(network, worker):
        return network.average_models(params_of(worker)), network.average_models(params_of(worker))

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.lax, "platform_dependent", not_cpu)
    done = run_workers(work, deadline=20.0)
    models = stacked([params_of(worker) for worker in range(N)])
    for averaged in zip(*done, strict=True):
        assert_close(stacked(averaged), reference.all_reduce(models))


@pytest.mark.parametrize(
    "unruly",
    [{"drop": 0.3}, {"twice": 0.5, "later": 0.3}, {"drop": 0.2, "twice": 0.3, "later": 0.2}],
)
def test_the_recorded_exchanges_replay_in_the_simulation(unruly):
    def work(network, worker):
        params = params_of(worker)
        for _ in range(4):
            params = network.average_models(params)
        assert network.next_exchange == 4
        assert network.link_rate >= 1e6
        return params, network.records

    done = run_workers(work, unruly=unruly)
    models = stacked([params_of(worker) for worker in range(N)])
    assert_close(stacked([params for params, _ in done]), replayed([r for _, r in done], models))
    dropped = 1 - np.mean([seen.received.mean() for _, records in done for seen in records])
    assert dropped > 0 or "drop" not in unruly
    assert len({seen.shift for _, records in done for seen in records}) > 1


def test_when_everything_is_dropped_every_worker_keeps_its_own_and_none_waits_long():
    def work(network, worker):
        began = time.monotonic()
        params = [network.average_models(params_of(worker)) for _ in range(4)]
        return params, time.monotonic() - began

    with pytest.warns(UserWarning, match="has heard no other in .* datagrams that came: none"):
        done = run_workers(work, unruly={"drop": 1.0}, deadline=0.3, start_timeout=0.3)
    for worker, (results, seconds) in enumerate(done):
        for result in results:
            jax.tree.map(np.testing.assert_array_equal, result, params_of(worker))
        # Two phases of an exchange; then nobody is waited for who has never been heard.
        assert seconds < 30


@pytest.mark.parametrize("unlike", ["seed", "mtu", "tree"])
def test_workers_that_exchange_something_else_are_not_averaged(unlike):
    places, params = addresses(2), {"w": jnp.arange(1000.0)}

    def run(worker):
        options = {unlike: 1000 + worker} if unlike != "tree" else {}
        mine = {"v": params["w"]} if unlike == "tree" and worker else params
        with transport.join(places, worker, KEY, deadline=20.0, **options) as network:
            (averaged,) = network.average_models(mine).values()
            return averaged, network.counts["unlike"]

    said = "averages nothing of [01]: another pytree, seed, assignment, mtu or number of workers"
    with pytest.warns(UserWarning, match=said), ThreadPoolExecutor(2) as threads:
        done = list(threads.map(run, range(2)))
    for averaged, count in done:
        np.testing.assert_array_equal(averaged, params["w"])
        assert count > 0


def test_each_kind_of_warning_is_given_once():
    places, params, met = addresses(2), {"w": jnp.arange(1000.0)}, threading.Event()

    def run(worker):
        mine = {"v": params["w"]} if worker else params
        if worker:
            met.wait()
        with transport.join(places, worker, KEY, deadline=0.3, start_timeout=0.3) as network:
            for _ in range(10):
                network.average_models(mine)
                met.set()
                time.sleep(0.05)

    with (
        pytest.warns(UserWarning, match="has heard no|averages nothing") as given,
        ThreadPoolExecutor(2) as threads,
    ):
        list(threads.map(run, range(2)))
    said = [str(each.message) for each in given]
    assert len([each for each in said if "worker 0 has heard no other" in each]) == 1
    assert len([each for each in said if "worker 0 averages nothing of 1" in each]) == 1


class Hole:
    """A socket whose large packets disappear on the way."""

    def __init__(self, inner):
        self._inner = inner

    def send(self, datagrams, address):
        if datagrams.shape[1] < 500:
            self._inner.send(datagrams, address)

    def __getattr__(self, name):
        return getattr(self._inner, name)


def test_a_way_on_which_large_packets_disappear_is_told():
    places = addresses(2)

    def run(worker):
        with transport.join(places, worker, KEY, deadline=0.3, start_timeout=5.0) as network:
            network._socket = Hole(network._socket)
            for _ in range(8):
                network.average_models({"w": jnp.zeros(20_000)})

    said = (
        r"hears [01], but no packet of theirs .* in 5 exchanges: .* packets of 1280 bytes \(mtu\)"
    )
    with pytest.warns(UserWarning, match=said), ThreadPoolExecutor(2) as threads:
        list(threads.map(run, range(2)))


@pytest.mark.long
def test_a_worker_that_is_slower_than_the_deadline_is_told():
    def work(network, worker):
        for _ in range(15):
            time.sleep(0.5 if worker == 2 else 0.01)
            network.average_models({"w": jnp.zeros(20_000)})

    with pytest.warns(UserWarning, match=r"hears 2, but .* later than the deadline; .* late"):
        run_workers(work, deadline=0.3)


def test_pytrees_of_different_sizes_may_take_turns():
    def work(network, worker):
        params, stats = {"w": jnp.full(2000, float(worker))}, jnp.full(5, float(worker))
        for _ in range(10):
            params, stats = network.average_models(params), network.average_models(stats)
        return params["w"], stats

    # What is early of the other tree is lost: means of fewer, and no failure.
    for params, stats in run_workers(work):
        assert 0 <= params.min() <= params.max() <= N - 1
        assert 0 <= stats.min() <= stats.max() <= N - 1


def test_a_receiver_that_fails_is_told(monkeypatch):
    def fails(*arguments):
        raise OSError("no such device")

    def work(network, worker):
        monkeypatch.setattr(network._inbox, "take", fails)
        for _ in range(2):
            network.average_models(params_of(worker))

    with (
        pytest.warns(UserWarning, match="has heard no other"),
        pytest.raises(RuntimeError, match=r"no longer received: OSError\('no such device'\)"),
    ):
        run_workers(work, deadline=0.3, start_timeout=0.3)


def test_models_that_are_equal_stay_equal():
    def work(network, worker):
        params = params_of(0)
        for _ in range(3):
            params = network.average_models(params)
        return params

    done = run_workers(work, unruly={"drop": 0.4})
    assert_close(stacked(done), stacked([params_of(0)] * N))


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
        ended.set()
        return before

    with ThreadPoolExecutor(count + 1) as threads:
        futures = [threads.submit(work, worker) for worker in range(count)]
        before = threads.submit(watch).result(timeout=90)
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
    assert all(records[-1][-1].received.any(1))


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


def test_an_attack_changes_no_result():
    """Beside the exchange come hostile datagrams, replays and genuine ones for another worker."""
    stop, places = threading.Event(), addresses()

    def attack():
        rng, sealer = np.random.default_rng(0), Sealer(0, KEY)
        with socket.socket(type=socket.SOCK_DGRAM) as attacker:
            while not stop.is_set():
                for datagram in hostile(rng, sealer, 50):
                    attacker.sendto(datagram, places[0])
                stray = sealed(sealer, destination=2)
                attacker.sendto(stray[0].tobytes(), places[0])
                attacker.sendto(sealed(sealer, source=9)[0].tobytes(), places[0])
                time.sleep(0.001)

    def work(worker):
        params = params_of(worker)
        with transport.join(places, worker, KEY, deadline=1.0, record=True) as network:
            for _ in range(5):
                params = network.average_models(params)
            return params, network.records, network.counts

    with ThreadPoolExecutor(N + 1) as threads:
        attacker = threads.submit(attack)
        done = list(threads.map(work, range(N)))
        stop.set()
        attacker.result()
    models = stacked([params_of(worker) for worker in range(N)])
    found = stacked([params for params, _, _ in done])
    assert_close(found, replayed([records for _, records, _ in done], models))
    counts = done[0][2]
    assert counts["foreign"] + counts["truncated"] + counts["forged"] + counts["stray"] > 0


def loss_fn(params, model_state, batch, key):
    del key
    return 0.5 * jnp.sum((params["x"] - batch) ** 2), model_state


@pytest.mark.parametrize(
    "rule", [rps.rules.AverageModels(), rps.rules.AverageGradients(on_miss="zero")]
)
def test_the_law_of_the_wire(rule):
    """A training over datagrams, and its recorded drops replayed in the simulation."""
    size, steps, optimizer = 3000, 4, optax.sgd(0.1)
    batches = np.random.default_rng(0).normal(size=(steps, N, size)).astype(np.float32)
    initial = {"x": jnp.zeros(size)}

    def work(network, worker):
        carrier = transport.Datagrams(network)
        step = jax.jit(rps.make_step(loss_fn, optimizer, rule, carrier))
        state: Any = rps.init_train_state(initial, (), optimizer, carrier, N, algorithm=rule)
        delivered = []
        for batch in batches:
            state, metrics = step(state, batch[worker])
            delivered.append(np.mean(metrics.delivered))
        return jax.device_get(state.params), network.records, delivered

    done = run_workers(work, unruly={"drop": 0.2})
    trace = transport.trace_of([records for _, records, _ in done])
    step = rps.make_train_step(loss_fn, optimizer, trace, "workers", algorithm=rule)
    one = rps.init_train_state(initial, (), optimizer, trace, N, algorithm=rule)
    state = jax.tree.map(lambda x: jnp.stack([x] * N), one)
    train_step = jax.jit(jax.vmap(step, axis_name="workers"))
    for number, batch in enumerate(batches):
        state, metrics = train_step(state, jnp.asarray(batch))
        of_workers = [delivered[number] for _, _, delivered in done]
        np.testing.assert_allclose(np.mean(metrics.delivered), np.mean(of_workers), rtol=1e-5)
        assert np.mean(of_workers) < 1
    assert_close(stacked([params for params, _, _ in done]), jax.device_get(state.params))


def test_a_worker_that_is_ahead_is_heard_under_local_steps_too():
    """Exchanges are numbered one by one, so that the others' next one is the next."""
    every, optimizer = 4, optax.sgd(0.1)
    rule = rps.rules.AverageModels(local_steps=every)
    initial = {"x": jnp.zeros(3000)}

    def work(network, worker):
        carrier = transport.Datagrams(network)
        step = jax.jit(rps.make_step(loss_fn, optimizer, rule, carrier))
        state: Any = rps.init_train_state(initial, (), optimizer, carrier, N, algorithm=rule)
        for number in range(5 * every):
            if worker == 0:
                time.sleep(0.01)
            state, _ = step(state, jnp.full(3000, float(worker + number)))
            jax.block_until_ready(state)
        return network.records

    for records in run_workers(work, deadline=5.0):
        assert [seen.exchange for seen in records] == list(range(5))
        assert all(seen.received.all() and seen.gathered.all() for seen in records)


def test_only_a_worker_that_starts_is_given_the_time_of_a_start():
    """One that never came is given up; the others' faults then cost a deadline."""
    died = threading.Event()

    def work(worker):
        options = {"deadline": 0.15, "start_timeout": 1.0}
        with transport.join(places, worker, KEY, **options) as network:
            params = params_of(worker)
            for _ in range(4):
                params = network.average_models(params)
            if worker == 1:
                return died.set()
            died.wait()
            began = time.monotonic()
            network.average_models(params)
            return time.monotonic() - began

    places = addresses()
    with ThreadPoolExecutor(2) as threads:
        seconds, _ = threads.map(work, range(2))
    assert seconds < 0.9


def test_what_average_models_returns_is_averaged_when_the_network_is_left():
    def work(network, worker):
        params = {"x": jnp.full(50_000, float(worker))}
        for _ in range(20):
            params = network.average_models(jax.tree.map(lambda x: x + 1, params))
        return params, network.records

    for params, records in run_workers(work, deadline=5.0):
        assert len(records) == 20
        assert np.isfinite(params["x"]).all()


@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint32", "int32"])
def test_integers_are_averaged_to_the_nearest(dtype):
    values = np.array([[200, 0], [255, 1], [100, 1]]).astype(dtype)

    def work(network, worker):
        return np.asarray(network.average_models({"x": jnp.asarray(values[worker])})["x"])

    for found in run_workers(work):
        assert found.dtype == dtype
        np.testing.assert_allclose(found, values.astype(float).mean(0), atol=0.5)


def chain_of(kind, network):
    if kind == "models":
        return transport.optax_average_models(optax.sgd(0.1), network)
    return optax.chain(transport.optax_average_gradients(network), optax.sgd(0.1))


@pytest.mark.parametrize("kind", ["models", "gradients"])
def test_one_line_of_optax_averages_over_the_network(kind):
    batches = np.random.default_rng(0).normal(size=(3, N, 500)).astype(np.float32)

    def work(network, worker):
        optimizer = chain_of(kind, network)
        params: Any = jnp.zeros(500)
        state = optimizer.init(params)

        @jax.jit
        def step(params, state, batch):
            updates, state = optimizer.update(params - batch, state, params)
            return optax.apply_updates(params, updates), state

        for batch in batches:
            params, state = step(params, state, batch[worker])
        return np.asarray(params)

    expected = np.zeros(500)
    for batch in batches:
        expected -= 0.1 * (expected - batch.mean(0))
    for params in run_workers(work):
        np.testing.assert_allclose(params, expected, rtol=1e-4, atol=1e-6)


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

    found = run_workers(work, unruly={"drop": 0.3}, deadline=0.05, start_timeout=0.05)
    assert found[away][0] > 1e5
    for of_worker in found:
        assert of_worker[-1] < 1.001
    assert max(*found[0], *found[1]) < 1.001
