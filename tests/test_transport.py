"""Exchanges by datagrams on loopback: workers in threads, and a network that misbehaves, seeded."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from datagrams import KEY, N, addresses, hostile, params_of, sealed
from run_workers import assert_close, run_workers, stacked

import rps_jax as rps
from rps_jax import transport
from rps_jax.transport.layout import layout_of
from rps_jax.transport.packets import Sealer


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
        averaged = network.average_models(params_of(worker))
        assert network.link_rate == 2e9
        return averaged, network.records

    done = run_workers(work, offload=offload, mtu=mtu, link_rate=2e9, deadline=20.0)
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


def test_who_hears_nobody_knows_of_its_own_packets_alone():
    params = {"x": jnp.arange(2000.0)}
    with transport.join(addresses(2), 1, KEY, deadline=0.1, start_timeout=0.1) as network:
        exchange = jax.jit(transport.Datagrams(network).exchange)
        with pytest.warns(UserWarning, match="has heard no other"):
            averaged, delivery, _ = jax.block_until_ready(exchange((), (), 0, params, params))
    np.testing.assert_array_equal(averaged["x"], params["x"])
    for mask in delivery.masks:
        assert mask.shape == (2, layout_of(params, 2, network.payload_bytes).packets)
        np.testing.assert_array_equal(mask, np.broadcast_to([[False], [True]], mask.shape))


def test_pytrees_of_different_sizes_may_take_turns():
    def work(network, worker):
        params, stats = {"w": jnp.full(2000, float(worker))}, jnp.full(5, float(worker))
        for _ in range(10):
            params, stats = network.average_models(params), network.average_models(stats)
        return params["w"], stats, network.records

    # What is early of the other tree is lost: means of fewer, and no failure.
    done = run_workers(work)
    for params, stats, _ in done:
        assert 0 <= params.min() <= params.max() <= N - 1
        assert 0 <= stats.min() <= stats.max() <= N - 1
    with pytest.raises(ValueError, match="expected exchanges of one pytree"):
        transport.trace_of([records for _, _, records in done])


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


def simulate(rule, optimizer, channel, initial, batches):
    """The state after the same training over a simulated network, and the metrics of its steps."""
    step = rps.make_train_step(loss_fn, optimizer, channel, "workers", algorithm=rule)
    one = rps.init_train_state(initial, (), optimizer, channel, N, algorithm=rule)
    state = jax.tree.map(lambda x: jnp.stack([x] * N), one)
    train_step, steps = jax.jit(jax.vmap(step, axis_name="workers")), []
    for batch in batches:
        state, metrics = train_step(state, jnp.float32(batch))
        steps.append(metrics)
    return jax.device_get((state, steps))


@pytest.mark.parametrize(
    "rule",
    [
        rps.rules.AverageModels(),
        rps.rules.AverageModels(message_dtype="float16"),
        rps.rules.AverageGradients(on_miss="zero"),
    ],
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
    state, simulated = simulate(rule, optimizer, trace, initial, batches)
    for number, metrics in enumerate(simulated):
        of_workers = [delivered[number] for _, _, delivered in done]
        np.testing.assert_allclose(np.mean(metrics.delivered), np.mean(of_workers), rtol=1e-5)
        assert np.mean(of_workers) < 1
    assert_close(stacked([params for params, _, _ in done]), state.params)


def test_a_worker_that_is_ahead_is_heard_under_local_steps_too():
    """Exchanges are numbered one by one, so that the others' next one is the next."""
    every, optimizer = 4, optax.sgd(0.1)
    rule = rps.rules.AverageModels(local_steps=every, message_dtype="float16")
    initial = {"x": jnp.zeros(3000)}
    batches = np.arange(5 * every)[:, None, None] + np.arange(N)[:, None] + np.zeros(3000)

    def work(network, worker):
        carrier = transport.Datagrams(network)
        step = jax.jit(rps.make_step(loss_fn, optimizer, rule, carrier))
        state: Any = rps.init_train_state(initial, (), optimizer, carrier, N, algorithm=rule)
        for batch in batches:
            if worker == 0:
                time.sleep(0.01)
            state, _ = step(state, jnp.float32(batch[worker]))
            jax.block_until_ready(state)
        return network.records, state.params

    done = run_workers(work, deadline=5.0)
    for records, _ in done:
        assert [seen.exchange for seen in records] == list(range(5))
        assert all(seen.received.all() and seen.gathered.all() for seen in records)
    simulated = simulate(rule, optimizer, rps.Reliable(), initial, batches)[0].params
    assert_close(stacked([params for _, params in done]), simulated)


def test_exchanges_of_one_network_come_one_after_the_other():
    params = {"x": jnp.zeros(10)}
    with transport.join(addresses(2), 0, KEY, start_timeout=1.0) as network:
        with ThreadPoolExecutor(1) as threads:
            first = threads.submit(network.average_models, params)
            while not network._exchanging.locked():
                time.sleep(0.01)
            with pytest.raises(RuntimeError, match="two exchanges of one network"):
                network.exchange(0, np.zeros((2, 1, 20), np.uint8), layout_of(params, 2, 100))
            with pytest.warns(UserWarning, match="has heard no other"):
                first.result()
        with pytest.raises(RuntimeError, match="was entered before"), network:
            pass


def test_fragments_of_models_are_refused_where_workers_need_not_be_in_step():
    options = {"algorithm": "diloco", "local_steps": 2, "fragments": 2}
    params = jnp.zeros(10)
    with transport.join(addresses(1), 0, KEY) as network:
        optimizer = transport.optax_average_models(optax.sgd(0.1), network, **options)
        with pytest.raises(ValueError, match=r"fragments=2.*expected whole models"):
            optimizer.update(params, optimizer.init(params), params)


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
        # Who does not come any more is waited for about as long as this takes.
        assert max(deadline.seconds() for deadline in network._deadlines) < 20.0
        return params, network.records

    for params, records in run_workers(work, deadline=20.0):
        assert len(records) == 20
        assert np.isfinite(params["x"]).all()


def test_what_is_sent_is_paced_and_reported_by_those_who_get_it():
    params = {"x": jnp.zeros(20_000)}

    def work(network, worker):
        paced, sent, heard = [], [], []
        pacer, feedback = network._pacer, network._feedback
        spied = (
            (pacer, "wait", paced, lambda num_bytes: [num_bytes]),
            (feedback, "sent", sent, lambda *arguments: [arguments[:4]]),
            (feedback, "heard", heard, lambda reports, anyone: reports),
        )
        for owner, name, seen, of_call in spied:
            setattr(owner, name, spy(getattr(owner, name), seen, of_call))
        for _ in range(3):
            network.average_models(params)
        return paced, sent, heard, network._sealer.overhead

    layout = layout_of(params, N, transport.packets.payload_of(transport.packets.MTU))
    phases = [(exchange, phase) for exchange in range(3) for phase in range(2)]
    for paced, sent, heard, overhead in run_workers(work, deadline=20.0):
        num_bytes = (N - 1) * layout.packets * (layout.length + overhead)
        assert sum(paced) == len(phases) * num_bytes
        assert sent == [(*place, layout.packets, num_bytes) for place in phases]
        assert {seen.phase for seen in heard} == {0, 1}
        assert {(seen.exchange, seen.phase) for seen in heard} <= set(phases[:-1])
        assert {seen.packets for seen in heard} == {layout.packets}


def spy(function, seen, of_call):
    """The function, which adds what is to be seen of each call."""

    def spied(*arguments, **options):
        seen.extend(of_call(*arguments, **options))
        return function(*arguments, **options)

    return spied


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
