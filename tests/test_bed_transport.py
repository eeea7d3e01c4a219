"""The transport on real links: what they drop is what the simulation replays."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bed import bed_or_skip

import rps_jax as rps
from launch.bed import Bed, Link
from rps_jax import transport

N, SIZE, STEPS = 3, 20_000, 5
KEY = b"0123456789abcdef"
OPTIMIZER = optax.sgd(0.1)
BATCHES = np.random.default_rng(0).normal(size=(STEPS, N, SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def bed() -> Iterator[Bed]:
    with bed_or_skip(N, Link(rate=200e6)) as made:
        yield made


def on_every_host(bed: Bed, work: Callable[[transport.Network], Any], run: int) -> list[Any]:
    """Runs `work` of every worker in a thread, whose datagrams go from host to host."""
    places = [(address, 4100 + run) for address in bed.addresses]

    def one(worker: int) -> Any:
        network = bed.inside(
            worker,
            lambda: transport.join(
                places, worker, KEY, run=run, link_rate=100e6, start_timeout=20.0, record=True
            ),
        )
        with network, jax.default_device(jax.devices()[worker]):
            return work(network)

    with ThreadPoolExecutor(N) as threads:
        return list(threads.map(one, range(N)))


def test_datagrams_that_a_network_does_not_carry_whole_go_in_pieces(bed: Bed) -> None:
    bed.set_link(Link(rate=200e6, mtu=1000))

    def mean(network: transport.Network) -> Any:
        return network.average_models(jnp.full(SIZE, float(network.worker)))

    with pytest.warns(UserWarning, match=r"packets have 1000 bytes at the most: .*; mtu=1000 of"):
        done = on_every_host(bed, mean, run=2)
    np.testing.assert_allclose(np.stack(done), 1.0, rtol=1e-6)


def loss_fn(params: Any, model_state: Any, batch: Any, key: Any) -> tuple[Any, Any]:
    del key
    return 0.5 * jnp.sum((params - batch) ** 2), model_state


@pytest.mark.parametrize(
    "rule", [rps.rules.AverageModels(), rps.rules.AverageGradients(on_miss="zero")]
)
def test_the_law_of_the_wire(bed: Bed, rule: Any) -> None:
    """A training over links that drop a tenth, and its recorded drops in the simulation."""
    bed.set_link(Link(rate=200e6, drop_rate=0.1))

    def train(network: transport.Network) -> Any:
        carrier = transport.Datagrams(network)
        step = jax.jit(rps.make_step(loss_fn, OPTIMIZER, rule, carrier))
        state: Any = rps.init_train_state(
            jnp.zeros(SIZE), (), OPTIMIZER, carrier, N, algorithm=rule
        )
        for batch in BATCHES:
            state, _ = step(state, batch[network.worker])
        return np.asarray(state.params), network.records

    before = bed.counts()
    done = on_every_host(bed, train, run=int(isinstance(rule, rps.rules.AverageModels)))
    assert bed.counts().since(before).random_drops > 0
    records = [seen for _, seen in done]
    trace = transport.trace_of(records)
    assert trace.arrived.shape[0] == STEPS
    found = np.stack([params for params, _ in done])
    np.testing.assert_allclose(found, simulated(trace, rule), rtol=1e-5, atol=1e-5)

    def deliveries(worker: jax.Array) -> list[rps.Delivery]:
        del worker
        found, state = [], trace.init(N)
        for step in range(STEPS):
            key = jax.random.key(0)
            delivery, state = rps.draw_exchange(trace, state, key, step, "workers")
            found.append(delivery)
        return found

    drawn = jax.vmap(deliveries, axis_name="workers")(jnp.arange(N))
    for step, delivery in enumerate(drawn):
        for worker, seen in enumerate(of_worker[step] for of_worker in records):
            np.testing.assert_array_equal(delivery.received[worker], seen.received)
            np.testing.assert_array_equal(delivery.gathered[worker], seen.gathered)
            assert delivery.shift[worker] == seen.shift


def simulated(trace: rps.Trace, rule: Any) -> np.ndarray:
    """Returns the parameters of every worker after the same training under a trace."""
    step = rps.make_train_step(loss_fn, OPTIMIZER, trace, "workers", algorithm=rule)
    one = rps.init_train_state(jnp.zeros(SIZE), (), OPTIMIZER, trace, N, algorithm=rule)
    state = jax.tree.map(lambda x: jnp.stack([x] * N), one)
    train_step = jax.jit(jax.vmap(step, axis_name="workers"))
    for batch in BATCHES:
        state, _ = train_step(state, jnp.asarray(batch))
    return np.asarray(state.params)


def test_without_drops_it_is_the_mean(bed: Bed) -> None:
    bed.set_link(Link(rate=200e6))
    models = np.random.default_rng(0).normal(size=(N, SIZE)).astype(np.float32)

    def average(network: transport.Network) -> Any:
        return np.asarray(network.average_models(jnp.asarray(models[network.worker])))

    for found in on_every_host(bed, average, run=2):
        np.testing.assert_allclose(found, models.mean(0), rtol=1e-5, atol=1e-6)


class Process:
    """A worker in a process of its own, and what it has said of its exchanges."""

    def __init__(self, bed: Bed, worker: int) -> None:
        script = str(Path(__file__).with_name("bed_worker.py"))
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
        self.popen = bed.start(
            worker,
            *(sys.executable, script, str(worker), *bed.addresses),
            stdout=subprocess.PIPE,
            text=True,
            env=environment | {"JAX_PLATFORMS": "cpu"},
        )
        assert self.popen.stdout
        # A worker that is not listened to for a while is not to wait for that.
        fcntl.fcntl(self.popen.stdout, fcntl.F_SETPIPE_SZ, 1 << 20)

    def said(self) -> dict[str, Any]:
        """Returns what it says next."""
        assert self.popen.stdout
        line = self.popen.stdout.readline()
        assert line, "it has died"
        return json.loads(line)

    def until(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Returns the first that it says of which something holds, of thousands."""
        return next(said for said in (self.said() for _ in range(20_000)) if holds(said))


@pytest.mark.long
@pytest.mark.parametrize("how", ["killed and started again", "frozen"])
def test_the_others_go_on_without_a_worker_which_comes_back(bed: Bed, how: str) -> None:
    bed.set_link(Link(rate=200e6, drop_rate=0.1))
    *others, last = [Process(bed, worker) for worker in range(N)]
    everyone, without = list(range(N)), list(range(N - 1))
    try:
        for process in (*others, last):
            process.until(lambda said: said["heard"] == everyone)
        last.popen.send_signal(signal.SIGSTOP if how == "frozen" else signal.SIGKILL)
        for process in others:
            gone = process.until(lambda said: said["heard"] == without)
        for process in others:
            assert process.until(lambda said: said["exchange"] > gone["exchange"] + 50)
        if how == "frozen":
            last.popen.send_signal(signal.SIGCONT)
        else:
            last = Process(bed, N - 1)
        back = last.until(lambda said: said["exchange"] > gone["exchange"] + 50)
        for process in others:
            process.until(lambda said: said["exchange"] > back["exchange"])
            process.until(lambda said: said["heard"] == everyone)
        # All have come to one model, which is nobody's first.
        found = [process.until(lambda said: said["heard"] == everyone) for process in others]
        assert np.ptp([said["params"] for said in found]) < 1e-3
        assert 0 < found[0]["params"] < N - 1
    finally:
        end(*others, last)


@pytest.mark.long
def test_the_others_do_not_follow_a_worker_whose_cable_was_down(bed: Bed) -> None:
    bed.set_link(Link(rate=200e6))
    *others, last = [Process(bed, worker) for worker in range(N)]
    everyone, without = list(range(N)), list(range(N - 1))
    try:
        for process in (*others, last):
            process.until(lambda said: said["heard"] == everyone)
        bed.set_cable(N - 1, "down")
        gone = [process.until(lambda said: said["heard"] == without) for process in others]
        before = max(said["exchange"] for said in gone)
        ahead = last.until(lambda said: said["exchange"] > before + 3000)
        bed.set_cable(N - 1, "up")
        back = last.until(lambda said: said["exchange"] < ahead["exchange"] - 100)
        for process in others:
            process.until(lambda said: said["exchange"] > back["exchange"])
            found = process.until(lambda said: said["heard"] == everyone)
            assert found["exchange"] < ahead["exchange"]
    finally:
        bed.set_cable(N - 1, "up")
        end(*others, last)


def end(*processes: Process) -> None:
    for process in processes:
        process.popen.kill()
        process.popen.communicate()
