"""Where drops come from: one channel a file."""

from rps_jax.channels.bernoulli import Bernoulli as Bernoulli
from rps_jax.channels.channel import Channel as Channel
from rps_jax.channels.channel import sample_links as sample_links
from rps_jax.channels.channel import walk_links as walk_links
from rps_jax.channels.combinations import AllOrNothing as AllOrNothing
from rps_jax.channels.combinations import Either as Either
from rps_jax.channels.combinations import Schedule as Schedule
from rps_jax.channels.deadline import Deadline as Deadline
from rps_jax.channels.fields import register_channel as register_channel
from rps_jax.channels.gilbert_elliott import GilbertElliott as GilbertElliott
from rps_jax.channels.outage import Outage as Outage
from rps_jax.channels.per_link import PerLink as PerLink
from rps_jax.channels.reliable import Reliable as Reliable
from rps_jax.channels.trace import Trace as Trace

CHANNELS: dict[str, type] = {
    "bernoulli": Bernoulli,
    "gilbert-elliott": GilbertElliott,
    "per-link": PerLink,
    "deadline": Deadline,
    "outage": Outage,
    "reliable": Reliable,
    "trace": Trace,
}
"""Every channel by its name; the laws are tested for each of them."""
