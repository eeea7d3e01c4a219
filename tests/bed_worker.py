"""A worker on a host of the bed: exchanges a small model again and again, and tells of each."""

import json
import sys

import jax.numpy as jnp
import numpy as np

from rps_jax import transport


def main() -> None:
    """Takes its worker and everyone's addresses; prints a line of JSON an exchange."""
    worker, addresses = int(sys.argv[1]), sys.argv[2:]
    places = [(address, 4200) for address in addresses]
    params = jnp.full(20_000, float(worker))
    with transport.join(
        places, worker, b"0123456789abcdef", link_rate=100e6, record=True
    ) as network:
        while True:
            params = network.average_models(params)
            seen = network.records.pop()
            said = {
                "exchange": seen.exchange,
                "heard": np.flatnonzero(seen.received.any(1)).tolist(),
                "params": float(params.mean()),
            }
            print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main()
