"""For tests of exchanges: free addresses, a model, genuine datagrams, and hostile ones."""

import contextlib
import socket

import jax.numpy as jnp
import numpy as np

from rps_jax.transport.packets import Sealer

N, KEY = 3, b"0123456789abcdef"


def addresses(count=N):
    """Ports of the loopback that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        bound = [stack.enter_context(socket.socket(type=socket.SOCK_DGRAM)) for _ in range(count)]
        for each in bound:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname() for each in bound]


def sealed(sealer, **changes):
    fields = {"phase": 0, "exchange": 0, "source": 1, "destination": 0} | changes
    return sealer.seal(**fields, rows=np.arange(60, dtype=np.uint8).reshape(2, 30))


def hostile(rng, sealer, count):
    """Datagrams that must not be applied: random, cut, grown, forged, foreign, stale."""
    genuine = sealed(sealer)[0].tobytes()
    others = [Sealer(7, b"another key, 16+"), Sealer(8, KEY), Sealer(7, None)]
    for _ in range(count):
        kind = rng.integers(6)
        if kind == 0:
            yield rng.bytes(int(rng.integers(0, 200)))
        elif kind == 1:
            yield genuine[: int(rng.integers(0, len(genuine)))]
        elif kind == 2:
            yield genuine + rng.bytes(int(rng.integers(1, 50)))
        elif kind == 3:
            damaged = bytearray(genuine)
            place = int(rng.integers(len(damaged)))
            damaged[place] ^= int(rng.integers(1, 256))
            yield bytes(damaged)
        else:
            yield sealed(others[int(rng.integers(3))])[1].tobytes()


def params_of(worker, scale=1.0):
    """More than a packet of one dtype, less than one of others, and awkward leaves."""
    rng = np.random.default_rng(worker)
    return {
        "matrix": jnp.asarray(scale * rng.normal(size=(40, 50)), jnp.float32),
        "half": jnp.asarray(rng.normal(size=11), jnp.bfloat16),
        "count": jnp.asarray(rng.integers(-9, 9, size=3), jnp.int32),
        "scalar": jnp.float32(rng.normal()),
        "empty": jnp.zeros((0, 3)),
    }
