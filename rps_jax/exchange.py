"""One exchange of one worker: a masked reduce-scatter and all-gather over a named axis.

Rows are blocks: row w is summed on worker w's device. That is a matter of placement alone; whose
drops a block suffers, those of its server, is in the masks.
Dimensions: W workers, and as many blocks; P packets of a block; E elements of a packet.
"""

from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rps_jax.axis import AxisName, axis_names, axis_size, between_devices
from rps_jax.blocks import Piece, to_blocks, to_pieces
from rps_jax.collectives import all_gather, reduce_scatter
from rps_jax.servers import RECEIVED, Server
from rps_jax.sums import mean_of_sum, summands


class Masks(NamedTuple):
    """What happens to each packet, `[W, P]`, a row a block.

    Attributes:
        sent: bool; it reaches its server from this worker.
        gathered: bool; it reaches this worker from its server.
        arrivals: int32, of how many workers it reaches its server.
        weight: float32, what this worker's values are multiplied by; None for 1.
    """

    sent: jax.Array
    gathered: jax.Array
    arrivals: jax.Array
    weight: jax.Array | None = None

    def of(self, packets: slice) -> "Masks":
        """Returns those of some packets, `[packets]`, of all W * P in order."""
        return jax.tree.map(lambda mask: mask.ravel()[packets], self)


def exchange(tree: Any, otherwise: Any, masks: Masks, server: Server, axis_name: AxisName) -> Any:
    """Averages `tree` over the workers; what does not arrive comes from `otherwise`.

    Args:
        tree: this worker's pytree of numbers.
        otherwise: a pytree like it.
        masks: what arrives, and with what weight.
        server: what servers make of what arrives; of integers, they average what they received.
        axis_name: the worker axis, or a tuple of axes, outermost first.

    Returns:
        A pytree like `tree`. Floats of 16 bits or fewer are summed in float32 and rounded once;
        integers are rounded to the nearest.
    """
    route = _between_devices if between_devices(axis_name) else _within_arrays
    return route(tree, otherwise, masks, server, axis_name)


def _between_devices(
    tree: Any, otherwise: Any, masks: Masks, server: Server, axis_name: AxisName
) -> Any:
    """Sends blocks: for each dtype, one reduce-scatter and one all-gather."""
    (blocks, from_blocks), (fallbacks, _), (lasts, _) = (
        to_blocks(each, *masks.sent.shape) for each in (tree, otherwise, server.last)
    )
    me = jax.lax.axis_index(axis_names(axis_name))

    def average(block: jax.Array, fallback: jax.Array, last: jax.Array | None) -> jax.Array:
        policy = _policy(server, block.dtype)
        total = reduce_scatter(_terms(block, last, masks, policy), axis_name)
        mean = _mean(total, masks.arrivals[me], block.dtype, policy, axis_name)
        means = all_gather(mean, axis_name).reshape(block.shape)
        return jnp.where(masks.gathered[..., None], means, fallback)

    return from_blocks([average(*each) for each in zip_longest(blocks, fallbacks, lasts)])


def _within_arrays(
    tree: Any, otherwise: Any, masks: Masks, server: Server, axis_name: AxisName
) -> Any:
    """Sums every leaf where it lies: nothing is to be sent, so nothing is joined into blocks."""
    (pieces, from_pieces), (fallbacks, _), (lasts, _) = (
        to_pieces(each, *masks.sent.shape) for each in (tree, otherwise, server.last)
    )

    def average(piece: Piece, fallback: Piece, last: Piece | None) -> jax.Array:
        policy, here = _policy(server, piece.rows.dtype), masks.of(piece.packets)
        terms = _terms(piece.rows, last and last.rows, here, policy)
        total = jax.lax.psum(terms, axis_names(axis_name))
        mean = _mean(total, here.arrivals, piece.rows.dtype, policy, axis_name)
        return jnp.where(here.gathered[:, None], mean, fallback.rows)

    return from_pieces([average(*each) for each in zip_longest(pieces, fallbacks, lasts)])


def _policy(server: Server, dtype: Any) -> Server:
    return server if jnp.issubdtype(dtype, jnp.inexact) else RECEIVED


def _terms(values: jax.Array, last: jax.Array | None, masks: Masks, server: Server) -> jax.Array:
    """Returns what is summed of this worker's packets: `[..., E]`, by masks `[...]`."""
    terms, instead = summands(values), jnp.zeros(())
    if server.name == "unbiased" and masks.weight is not None:
        terms = terms * masks.weight[..., None].astype(terms.dtype)
    if server.name == "stale" and last is not None:
        instead = summands(last)
    # Select, never multiply by the mask: a NaN that was dropped must not reach the sum.
    return jnp.where(masks.sent[..., None], terms, instead.astype(terms.dtype))


def _mean(
    total: jax.Array, arrivals: jax.Array, dtype: Any, server: Server, axis_name: AxisName
) -> jax.Array:
    """Returns what a server makes of sums `[..., E]` of packets of which `[...]` arrived."""
    divisor = arrivals[..., None] if server.name == "received" else axis_size(axis_name)
    return mean_of_sum(total, divisor, dtype)
