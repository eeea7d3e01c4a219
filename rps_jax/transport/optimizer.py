"""The averaging rules over a network of datagrams as optax transformations.

    optimizer = transport.optax_average_models(optax.adam(1e-3), network)

See `rps_jax.optimizer`, whose transformations are of simulated networks.
"""

import jax.numpy as jnp
import optax

from rps_jax.averaging import OnMiss
from rps_jax.keys import key_data
from rps_jax.optimizer import ExchangeState, average_gradients_over, average_models_over
from rps_jax.transport.carrier import Datagrams, Endpoint


def optax_average_models(
    optimizer: optax.GradientTransformation, network: Endpoint
) -> optax.GradientTransformationExtraArgs:
    """RPS around an optimizer: its local step, then the average of the workers' models.

    Args:
        optimizer: the whole chain that makes the local step.
        network: that this worker has joined.

    Returns:
        As `rps_jax.optax_average_models`.
    """
    return average_models_over(Datagrams(network), _start, optimizer)


def optax_average_gradients(
    network: Endpoint, *, on_miss: OnMiss = "own"
) -> optax.GradientTransformation:
    """Averages gradients over the network; to be placed first in a chain.

    Args:
        network: that this worker has joined.
        on_miss: what a worker applies where no average arrived: its "own" gradient or "zero".

    Returns:
        As `rps_jax.optax_average_gradients`.

    Raises:
        ValueError: an unknown `on_miss`.
    """
    return average_gradients_over(Datagrams(network), _start, on_miss)


def _start() -> ExchangeState:
    # Nothing is drawn from the key: the network drops by itself.
    return ExchangeState(key_data(0), jnp.int32(0), ())
