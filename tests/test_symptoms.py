"""What goes wrong in silence between workers, and is said."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax.numpy as jnp
import numpy as np
import pytest
from datagrams import KEY, addresses
from run_workers import run_workers

from rps_jax import transport


@pytest.mark.parametrize("unlike", ["seed", "mtu", "tree", "assignment"])
def test_workers_that_exchange_something_else_are_not_averaged(unlike):
    places, params = addresses(2), {"w": jnp.arange(1000.0)}

    def run(worker):
        values = {"assignment": ("random", "fixed")[worker]}
        options = {unlike: values.get(unlike, 1000 + worker)} if unlike != "tree" else {}
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
