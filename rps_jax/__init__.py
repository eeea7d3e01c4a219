"""Model averaging over networks that drop messages: RPS as SPMD JAX.

Yu et al., "Distributed Learning over Unreliable Networks", ICML 2019, arXiv 1810.07766.

A `Channel` says which messages of one exchange arrive, as a `Delivery`; a `Rule` says what is
averaged and what stands in for a miss; a `Carrier` moves the blocks. Everything is written for one
worker and runs under `jax.shard_map`, `jax.pmap`, `jax.vmap`, or a vmap inside a shard_map.
"""

from rps_jax import rules as rules
from rps_jax import theory as theory
from rps_jax.averaging import all_reduce as all_reduce
from rps_jax.averaging import average_gradients as average_gradients
from rps_jax.averaging import average_models as average_models
from rps_jax.carrier import AllReduce as AllReduce
from rps_jax.carrier import Carrier as Carrier
from rps_jax.carrier import MaskedCollectives as MaskedCollectives
from rps_jax.channels import CHANNELS as CHANNELS
from rps_jax.channels import AllOrNothing as AllOrNothing
from rps_jax.channels import Bernoulli as Bernoulli
from rps_jax.channels import Channel as Channel
from rps_jax.channels import Deadline as Deadline
from rps_jax.channels import Either as Either
from rps_jax.channels import GilbertElliott as GilbertElliott
from rps_jax.channels import Outage as Outage
from rps_jax.channels import PerLink as PerLink
from rps_jax.channels import Reliable as Reliable
from rps_jax.channels import Schedule as Schedule
from rps_jax.channels import Trace as Trace
from rps_jax.channels import register_channel as register_channel
from rps_jax.channels import sample_links as sample_links
from rps_jax.channels import walk_links as walk_links
from rps_jax.delivery import Delivery as Delivery
from rps_jax.draw import draw_exchange as draw_exchange
from rps_jax.links import LinkCounts as LinkCounts
from rps_jax.mesh import WorkerMesh as WorkerMesh
from rps_jax.mesh import worker_mesh as worker_mesh
from rps_jax.metrics import DeliveredFraction as DeliveredFraction
from rps_jax.metrics import consensus_distance as consensus_distance
from rps_jax.metrics import delivered_fraction as delivered_fraction
from rps_jax.metrics import distance_from_mean as distance_from_mean
from rps_jax.metrics import exchange_bytes as exchange_bytes
from rps_jax.metrics import mean_model as mean_model
from rps_jax.optimizer import AverageModelsState as AverageModelsState
from rps_jax.optimizer import ExchangeState as ExchangeState
from rps_jax.optimizer import optax_average_gradients as optax_average_gradients
from rps_jax.optimizer import optax_average_models as optax_average_models
from rps_jax.optimizer import optax_diloco as optax_diloco
from rps_jax.overlapped_step import OverlappedStep as OverlappedStep
from rps_jax.rules import RULES as RULES
from rps_jax.rules import Rule as Rule
from rps_jax.servers import RECEIVED as RECEIVED
from rps_jax.servers import Server as Server
from rps_jax.train_state import Arrivals as Arrivals
from rps_jax.train_state import StepMetrics as StepMetrics
from rps_jax.train_state import TrainState as TrainState
from rps_jax.train_state import init_train_state as init_train_state
from rps_jax.train_step import make_step as make_step
from rps_jax.train_step import make_train_step as make_train_step
from rps_jax.updates import UpdateProducts as UpdateProducts
from rps_jax.updates import UpdateSketches as UpdateSketches
from rps_jax.updates import remember_updates as remember_updates
from rps_jax.updates import update_products as update_products

__version__ = "0.1.0"
