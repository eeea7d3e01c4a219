"""Averaging over a network that drops messages: what a worker holds after one exchange.

Yu et al., "Distributed Learning over Unreliable Networks", ICML 2019, algorithm RPS. At every step

1. worker i takes a local SGD step, v_i = x_i - lr * g_i, and cuts v_i into n blocks;
2. reduce-scatter: it sends each block to the block's server, which averages what arrives;
3. all-gather: each server sends its average to every worker; a worker that receives it replaces
   its block, and one that does not keeps its own.

`average_models` is 2 and 3. `average_gradients`, the baseline, sends g_i instead of v_i through the
same two phases. Each function is written for one worker and runs inside `jax.shard_map`,
`jax.pmap`, `jax.vmap`, or a vmap inside a shard_map, over the axis that it is given by name.
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from rps_jax.axis import AxisName, axis_names, axis_size, kinds
from rps_jax.blocks import to_pieces
from rps_jax.checks import check_integer
from rps_jax.delivery import Delivery, in_packets, with_own
from rps_jax.exchange import Masks, exchange
from rps_jax.servers import RECEIVED, Server
from rps_jax.sums import mean_of_sum, summands

OnMiss = Literal["own", "zero"]
ON_MISS: tuple[OnMiss, ...] = ("own", "zero")


def average_models(
    params: Any, delivery: Delivery, axis_name: AxisName, shift: jax.Array | int = 0
) -> Any:
    """RPS: averages the workers' models block by block; what is missed stays the worker's own.

    Args:
        params: this worker's pytree of arrays, floating, complex or integer, of any shapes. Between
            devices, each dtype costs one reduce-scatter and one all-gather, and all of them
            together one small all-reduce of counts; for TPUs, XLA makes an all-reduce and a slice
            of every reduce-scatter. Workers that share a device are averaged leaf by leaf. A worker
            that is itself cut over devices gives its local shards, in a shard_map that is manual
            over those axes too: the shards are exchanged as they lie, and never gathered.
        delivery: what arrived, as this worker sees it: masks `[num_workers]` or
            `[num_workers, packets]`, bool.
        axis_name: the worker axis, or a tuple of axes, outermost first.
        shift: int32 scalar, the same on every worker, added to `delivery.shift`: block j is served
            by worker (j + shift) mod num_workers. May be traced.

    Returns:
        The same structure, shapes and dtypes: every coordinate is the average of those that arrived
        at its server, or this worker's own.

    Raises:
        ValueError: an unbound axis, a delivery or shift of the wrong shape or dtype, or a leaf that
            lies over an axis of `AxisType.Explicit`.
        TypeError: a leaf that has no average (a boolean, a PRNG key).

    >>> params = {"w": jnp.arange(4.0)}  # one scalar each
    >>> everything = Delivery(*[jnp.ones((4, 4), bool)] * 3)  # of each worker
    >>> average = lambda p, d: average_models(p, d, "workers")
    >>> jax.vmap(average, axis_name="workers")(params, everything)["w"]
    Array([1.5, 1.5, 1.5, 1.5], dtype=float32)
    """
    return average_or_else(params, params, delivery, axis_name, shift)


def average_gradients(
    grads: Any,
    delivery: Delivery,
    axis_name: AxisName,
    on_miss: OnMiss = "own",
    shift: jax.Array | int = 0,
) -> Any:
    """The baseline: averages the workers' gradients through the same two lossy phases.

    The models are never re-synchronised: replicas that miss different gradients drift apart.

    Args:
        grads: this worker's pytree of arrays, by params of its own: of params that a shard_map
            holds replicated, `jax.grad` gives the sum over all workers already.
        delivery: as for `average_models`.
        axis_name: the worker axis, or a tuple of axes, outermost first.
        on_miss: what stands in for an average that did not arrive: the worker's "own" gradient, or
            "zero".
        shift: as for `average_models`.

    Returns:
        The same structure, shapes and dtypes.

    Raises:
        ValueError, TypeError: as `average_models`, or an unknown `on_miss`.
    """
    if on_miss not in ON_MISS:
        raise ValueError(f"on_miss={on_miss!r}: expected one of {', '.join(ON_MISS)}")
    otherwise = grads if on_miss == "own" else jax.tree.map(jnp.zeros_like, grads)
    return average_or_else(grads, otherwise, delivery, axis_name, shift)


def all_reduce(params: Any, axis_name: AxisName) -> Any:
    """The reliable baseline: `jax.lax.pmean` that keeps every leaf's dtype.

    Args:
        params: this worker's pytree of arrays.
        axis_name: the worker axis, or a tuple of axes.

    Returns:
        The same structure, shapes and dtypes, equal on every worker.

    Raises:
        ValueError: an unbound axis.
        TypeError: a leaf that has no average (a boolean, a PRNG key).
    """
    num_workers = axis_size(axis_name)
    check_leaves(params)

    def mean(leaf: Any) -> jax.Array:
        leaf = jnp.asarray(leaf)
        if not leaf.size:
            return jnp.zeros(leaf.shape, leaf.dtype)  # the same on all workers to JAX, too
        total = jax.lax.psum(summands(leaf), axis_names(axis_name))
        return mean_of_sum(total, num_workers, leaf.dtype)

    return jax.tree.map(mean, params)


def average_or_else(
    tree: Any,
    otherwise: Any,
    delivery: Delivery,
    axis_name: AxisName,
    shift: jax.Array | int = 0,
    server: Server = RECEIVED,
) -> Any:
    """Averages `tree` through one lossy exchange; what is missed comes from `otherwise`.

    The common core of the rules; `otherwise` is a pytree like `tree`. Of integers, a server
    averages what it received, whatever its policy.
    """
    num_workers = axis_size(axis_name)
    delivery = in_packets(delivery, num_workers)
    check_integer("shift", shift)
    check_leaves(tree)
    _check_not_explicit(tree)
    if server.name == "stale":
        last: Any = jax.tree.structure(server.last)
        if last != jax.tree.structure(tree):
            raise ValueError(f"server.last is {last}: expected a pytree like what is averaged")
    me = jax.lax.axis_index(axis_names(axis_name))
    sent, gathered, myself = _in_blocks(delivery, me, shift)
    # All numbers to everybody: they are few, and all-reduces are exact wherever there are any.
    arrivals = jax.lax.psum(sent.astype(jnp.int32), axis_names(axis_name))
    weight = None
    if server.drop_rate is not None:
        arriving = 1 - jnp.asarray(server.drop_rate, jnp.float32)
        weight = jnp.where(myself, jnp.float32(1), 1 / arriving)
        weight = jnp.broadcast_to(weight, sent.shape)
    masks = Masks(sent, gathered, arrivals, weight)
    return exchange(tree, otherwise, masks, server, axis_name)


def sent_or_last(tree: Any, last: Any, delivery: Delivery, worker: jax.Array) -> Any:
    """Returns what the servers have of this worker: what reached them now, or `last` of it.

    Args:
        tree: what was averaged.
        last: what they had before, a pytree like it.
        delivery: what arrived.
        worker: int32 scalar, this worker's index.
    """
    sent, _, _ = _in_blocks(in_packets(delivery, len(delivery.sent)), worker, 0)
    alike = kinds(tree, worker)
    (pieces, from_pieces), (lasts, _) = (
        to_pieces(each, *sent.shape, kinds=alike) for each in (tree, last)
    )
    return from_pieces(
        [
            jnp.where(sent.ravel()[now.packets, None], now.rows, before.rows)
            for now, before in zip(pieces, lasts, strict=True)
        ]
    )


def _in_blocks(
    delivery: Delivery, worker: jax.Array, shift: jax.Array | int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns `sent`, `gathered`, and whether this worker is the server, a row a block."""
    # Of itself at least: no server is left without a single term.
    delivery = with_own(delivery, worker)
    myself = jnp.arange(len(delivery.sent), dtype=jnp.int32)[:, None] == worker
    # From the order of servers to that of blocks: block j is served by worker j + shift.
    shift = jnp.asarray(shift, jnp.int32)
    if delivery.shift is not None:
        shift = shift + delivery.shift
    masks = (delivery.sent, delivery.gathered, myself)
    sent, gathered, mine = (jnp.roll(mask, -shift, axis=0) for mask in masks)
    return sent, gathered, mine


def _check_not_explicit(tree: Any) -> None:
    """Raises `ValueError` for a leaf that lies over an axis of `AxisType.Explicit`."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        # JAX does not know how packets of it would lie.
        kind = jax.typeof(leaf)
        if any(kind.sharding.spec):
            raise ValueError(
                f"leaf {jax.tree_util.keystr(path) or 'params'} has type {kind}, over an explicit "
                "axis: expected a mesh with axis_types of AxisType.Auto, or a shard_map that is "
                "manual over that axis, too"
            )


def check_leaves(tree: Any) -> None:
    """Raises `TypeError` for a leaf that has no average: a boolean, a PRNG key."""
    for path, leaf in jax.tree.leaves_with_path(tree):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.number):
            raise TypeError(
                f"leaf {jax.tree_util.keystr(path) or 'params'} has dtype {dtype}: expected a "
                "floating, complex or integer dtype, of which there is an average"
            )
