"""The averaging rules over a network of datagrams as optax transformations.

    optimizer = transport.optax_average_models(optax.adam(1e-3), network)

See `rps_jax.optimizer`, whose transformations are of simulated networks.
"""

from typing import Any

import jax
import optax

from rps_jax.keys import key_data
from rps_jax.optimizer import average_gradients_over, average_models_over
from rps_jax.transport.carrier import Datagrams, Endpoint


def optax_average_models(
    optimizer: optax.GradientTransformation, network: Endpoint, **options: Any
) -> optax.GradientTransformationExtraArgs:
    """RPS around an optimizer: its local step, then the average of the workers' models.

    Args:
        optimizer: the whole chain that makes the local step.
        network: that this worker has joined.
        options: as of `rps_jax.optax_average_models`; servers average what they received.

    Returns:
        As `rps_jax.optax_average_models`.

    Raises:
        TypeError, ValueError: as `rps_jax.optax_average_models`.
    """
    return average_models_over(Datagrams(network), _start, optimizer, **options)


def optax_average_gradients(network: Endpoint, **options: Any) -> optax.GradientTransformation:
    """Averages gradients over the network; to be placed first in a chain.

    Args:
        network: that this worker has joined.
        options: as of `rps_jax.optax_average_gradients`; servers average what they received.

    Returns:
        As `rps_jax.optax_average_gradients`.

    Raises:
        ValueError: as `rps_jax.optax_average_gradients`.
    """
    return average_gradients_over(Datagrams(network), _start, **options)


def _start() -> tuple[jax.Array, Any]:
    # Nothing is drawn from the key: the network drops by itself.
    return key_data(0), ()
