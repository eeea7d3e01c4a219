"""One exchange of one worker: a masked reduce-scatter and all-gather over a named axis.

Block w is summed on worker w's device. That is a matter of placement alone; whose drops a block
suffers, those of its server, is in the masks.
Dimensions: W workers, and as many blocks; P packets of a block; E elements of a packet.
"""

from itertools import zip_longest
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rps_jax.axis import AxisName, axis_names, axis_size, device_axes, kinds
from rps_jax.blocks import Piece, to_blocks, to_pieces
from rps_jax.collectives import all_gather, own_blocks, reduce_scatter
from rps_jax.device_sums import Term, device_sums
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
    # Computed once, and not by the kernels of every leaf, as XLA would: a barrier a mask, as JAX
    # takes all that pass one for varying alike.
    masks = jax.tree.map(jax.lax.optimization_barrier, masks)
    route = _between_devices if device_axes(axis_name) else _within_arrays
    alike = kinds(tree, jax.lax.axis_index(axis_names(axis_name)))
    (pieces, from_pieces), (fallbacks, _), (lasts, _) = (
        to_pieces(each, *masks.sent.shape, kinds=alike) for each in (tree, otherwise, server.last)
    )
    terms = [
        _term(piece.rows, last and last.rows, masks.of(piece.packets), server)
        for piece, last in zip_longest(pieces, lasts)
    ]
    means = route(pieces, device_sums(terms, axis_name), masks, server, axis_name)
    return from_pieces(
        [
            jnp.where(masks.of(piece.packets).gathered[:, None], mean, fallback.rows)
            for piece, mean, fallback in zip(pieces, means, fallbacks, strict=True)
        ]
    )


def _between_devices(
    pieces: list[Piece],
    sums: list[jax.Array],
    masks: Masks,
    server: Server,
    axis_name: AxisName,
) -> list[jax.Array]:
    """Sends blocks: for each dtype (and kind), one reduce-scatter and one all-gather."""
    arrivals = own_blocks(masks.arrivals, axis_name)
    means: dict[int, jax.Array] = {}
    for group in dict.fromkeys(piece.group for piece in pieces):
        members = [place for place, piece in enumerate(pieces) if piece.group == group]
        dtype = pieces[members[0]].rows.dtype
        # Joined when what is dropped is zero already: one pass over the model less.
        halves = zip(*(sums[place] for place in members), strict=True)
        joined = [to_blocks(list(half), *masks.sent.shape) for half in halves]
        total = reduce_scatter(jnp.stack([blocks for (blocks,), _ in joined]), axis_name)
        mean = _mean(total, arrivals, dtype, server, axis_name)
        _, from_blocks = joined[0]
        means |= zip(members, from_blocks([all_gather(mean, axis_name)]), strict=True)
    return [means[place] for place in range(len(pieces))]


def _within_arrays(
    pieces: list[Piece],
    sums: list[jax.Array],
    masks: Masks,
    server: Server,
    axis_name: AxisName,
) -> list[jax.Array]:
    """Keeps every leaf where it lies: nothing is to be sent, so nothing is joined into blocks."""
    return [
        _mean(total, masks.of(piece.packets).arrivals, piece.rows.dtype, server, axis_name)
        for piece, total in zip(pieces, sums, strict=True)
    ]


def _policy(server: Server, dtype: Any) -> Server:
    return server if jnp.issubdtype(dtype, jnp.inexact) else RECEIVED


def _term(values: jax.Array, last: jax.Array | None, masks: Masks, server: Server) -> Term:
    """Returns what is summed of this worker's packets: `summands` of `[P, E]`, masks `[P]`."""
    server = _policy(server, values.dtype)
    terms = summands(values)
    if server.name == "unbiased":
        assert masks.weight is not None
        terms = terms * masks.weight[None, :, None].astype(terms.dtype)
    if server.name == "stale":
        assert last is not None
        terms = jnp.where(masks.sent[None, :, None], terms, summands(last))
        return Term(terms, jnp.ones_like(masks.sent))
    return Term(terms, masks.sent)


def _mean(
    total: jax.Array, arrivals: jax.Array, dtype: Any, server: Server, axis_name: AxisName
) -> jax.Array:
    """Returns what a server makes of sums of packets `[..., E]` of which `[...]` arrived."""
    server = _policy(server, dtype)
    divisor = arrivals[..., None] if server.name == "received" else axis_size(axis_name)
    return mean_of_sum(total, divisor, dtype)
