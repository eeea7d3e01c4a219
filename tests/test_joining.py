"""Joining a network of datagrams: what is refused, where a worker binds, when it has joined."""

import contextlib
import weakref
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from datagrams import KEY, addresses, sealed

import rps_jax as rps
from rps_jax import transport
from rps_jax.transport import joining
from rps_jax.transport.layout import layout_of
from rps_jax.transport.packets import Sealer
from rps_jax.transport.sockets import DatagramSocket


def test_a_model_on_several_devices_is_refused():
    mesh = jax.make_mesh((2,), ("x",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    spec = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    params = {"w": jax.device_put(jnp.zeros(4), spec)}
    with (
        transport.join(addresses(1), 0, KEY) as network,
        pytest.raises(ValueError, match=r"leaf \['w'\] lies on 2 devices: expected one"),
    ):
        network.average_models(params)


def test_a_network_is_to_be_entered():
    network, params = transport.join(addresses(1), 0, KEY), {"x": jnp.ones(3)}
    exchanges = (
        lambda: network.average_models(params),
        lambda: network.exchange(0, np.zeros((1, 1, 12), np.uint8), layout_of(params, 1, 100)),
    )
    for joined in (False, True, False):
        with network if joined else contextlib.nullcontext():
            for exchange in exchanges:
                if joined:
                    exchange()
                else:
                    with pytest.raises(RuntimeError, match="the network is not joined: expected"):
                        exchange()


def test_a_network_that_was_left_holds_no_models():
    """Compiled programs refer to it for as long as JAX keeps them."""
    layout = layout_of({"x": jnp.ones(3)}, 1, 100)
    with transport.join(addresses(1), 0, KEY) as network:
        held = weakref.ref(network.exchange(0, np.zeros((1, 1, 12), np.uint8), layout).rows)
        assert held() is not None
    assert held() is None


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_of_an_exchange_is_raised_as_itself(monkeypatch, interrupt):
    def interrupted(*arguments):
        raise interrupt

    with transport.join(addresses(1), 0, KEY) as network:
        with monkeypatch.context() as patch:
            patch.setattr(network._inbox, "close_phase", interrupted)
            with pytest.raises(interrupt):
                network.average_models({"x": jnp.ones(3)})
            patch.setattr(network._inbox, "close_phase", lambda *arguments: 1 // 0)
            with pytest.raises(jax.errors.JaxRuntimeError, match="ZeroDivisionError"):
                network.average_models({"x": jnp.ones(3)})
        assert network.average_models({"x": jnp.ones(3)})["x"].sum() == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"worker": 3}, ValueError, "worker=3: expected one of the 3 addresses"),
        ({"key": b"short"}, ValueError, "key has 5 bytes: expected 16 to 64 bytes"),
        ({"link_rate": 0}, ValueError, "link_rate=0: expected a positive number"),
        ({"deadline": float("nan")}, ValueError, "deadline=nan: expected a positive number"),
        ({"mtu": 500}, ValueError, "mtu=500: expected bytes, 576 to 65000"),
        ({"run": -1}, ValueError, "run=-1: expected an integer in"),
        ({"run": 1.5}, ValueError, "run=1.5: expected an integer in"),
        ({"seed": "x"}, ValueError, "seed='x': expected an integer"),
        ({"assignment": "other"}, ValueError, "assignment='other': expected"),
        ({"worker": "0"}, ValueError, "worker='0': expected one of the 3 addresses"),
        ({"key": "k" * 24}, ValueError, "key is of type str: expected 16 to 64 bytes"),
        ({"addresses": [("a", 1)] * 65536}, ValueError, "there are 65536: expected 65535 at the"),
        (
            {"addresses": [("a", 1), ("b", 1), ["a", 1]]},
            ValueError,
            r"\('a', 1\) 2 times: expected",
        ),
        ({"addresses": ["a:1"]}, ValueError, "addresses: 'a:1': expected a host and a port"),
        ({"addresses": [("a", 70000)]}, ValueError, r"addresses: \('a', 70000\): expected a host"),
    ],
)
def test_bad_arguments_raise(options, error, message):
    arguments = {"addresses": addresses(), "worker": 0, "key": KEY} | options
    with pytest.raises(error, match=message):
        transport.join(**arguments)


def test_a_state_of_another_number_of_workers_is_refused():
    with transport.join(addresses(2), 0, KEY) as network:
        carrier = transport.Datagrams(network)
        with pytest.raises(ValueError, match="num_workers=3: expected 2, those of the network"):
            rps.init_train_state({}, (), optax.sgd(0.1), carrier, 3)


def test_numbers_of_numpy_are_those_of_python():
    places = addresses(2)
    same = [[host, np.int64(port)] for host, port in places], {"seed": np.int64(3)}

    def run(worker):
        arguments, options = same if worker else (places, {"seed": 3})
        with transport.join(arguments, worker, KEY, start_timeout=20.0, **options) as network:
            return network.average_models({"x": jnp.full(6, float(worker))})["x"]

    with ThreadPoolExecutor(2) as threads:
        for found in threads.map(run, range(2)):
            np.testing.assert_array_equal(found, 0.5)


def test_what_is_asked_of_the_socket_reaches_it(monkeypatch):
    asked = {}

    def opened(*arguments, **options):
        asked.update(options)
        return DatagramSocket(*arguments, **options)

    monkeypatch.setattr(joining, "DatagramSocket", opened)
    for choice in (False, True):
        with transport.join(addresses(1), 0, KEY, lower_effort=choice, offload=not choice, run=7):
            assert (asked["lower_effort"], asked["offload"]) == (choice, not choice)
    for run, wanted in ((7, True), (8, False)):
        assert asked["wanted"](memoryview(sealed(Sealer(run, KEY))[0])) == wanted


def test_a_port_that_is_taken_is_said():
    taken = DatagramSocket(("127.0.0.1", 0))
    places = [taken.address, *addresses(1)]
    with pytest.raises(OSError, match="Address already in use"):
        transport.join(places, 0, KEY)
    taken.close()


@pytest.mark.parametrize("host", ["localhost", "::1"])
def test_hosts_have_names_or_addresses_and_one_may_be_unknown(host) -> None:
    places = [(host, port) for _, port in addresses(2)] + [("nobody.invalid", 4000)]

    def run(worker):
        joined = transport.join(places, worker, KEY, start_timeout=1.0, assignment="fixed")
        with joined as network:
            for _ in range(3):
                found = network.average_models({"x": jnp.full(6, float(worker))})["x"]
            return found

    with ThreadPoolExecutor(2) as threads:
        for worker, found in enumerate(threads.map(run, range(2))):
            np.testing.assert_array_equal(found, [0.5, 0.5, 0.5, 0.5, worker, worker])
