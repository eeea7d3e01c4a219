"""For tests of exchanges: workers in threads on loopback, and a network that misbehaves, seeded."""

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from datagrams import KEY, N, addresses

from rps_jax import transport


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
