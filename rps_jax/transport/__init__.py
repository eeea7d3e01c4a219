"""Exchanges over a network that really drops packets: blocks as UDP datagrams, never sent again.

    with transport.join(addresses, worker, key) as network:
        params = network.average_models(params)

What does not arrive in time is dropped. Only the receiver knows what arrived; a worker that is
dead, frozen or slow is nothing but dropped messages.
"""

from rps_jax.transport.carrier import Datagrams as Datagrams
from rps_jax.transport.carrier import Exchanged as Exchanged
from rps_jax.transport.joining import join as join
from rps_jax.transport.network import Network as Network
from rps_jax.transport.optimizer import optax_average_gradients as optax_average_gradients
from rps_jax.transport.optimizer import optax_average_models as optax_average_models
from rps_jax.transport.recording import trace_of as trace_of
