"""What workers' local steps do differently, remembered in a few numbers a step.

Drops set workers apart by what their local steps did differently since they last agreed. To say how
far, one has to know how much that is, and how much of it the next steps repeat: momentum repeats
steps, and so do data that differ between the workers. Both are inner products of updates, so a
sketch of each update does. Some coordinates of each leaf, lines of the cache that are spread evenly
over it, get a sign, a bucket, and a weight, by how many each stands for; what falls into a bucket
is summed. Sketches are linear, so that those of different workers and steps may be subtracted and
added, and the inner product of two sketches is that of the updates in expectation over the signs.

Charikar, Chen and Farach-Colton, "Finding Frequent Items in Data Streams", ICALP 2002; the
estimator is that of Alon, Matias and Szegedy, STOC 1996.
"""

import zlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rps_jax.axis import AxisName, axis_names

BUCKETS = 64
"""Numbers that stand for an update."""
INTERVALS = 16
"""Intervals between exchanges of which a worker remembers what it has changed."""
_ROWS = 128
"""About as many coordinates there are to a bucket: of each leaf at least one, equally many."""
_LINE = 16
"""Coordinates next to each other that are looked at together, as many as in a line of the cache."""


class UpdateSketches(NamedTuple):
    """What one worker remembers of its updates.

    Attributes:
        count: int32 scalar, local steps taken; `()` where there is an exchange in every step, as
            each array that a step is given costs time.
        sketches: float32 `[INTERVALS, BUCKETS]`, the sums over the steps of each interval, from one
            exchange to the next, the newest first.
    """

    count: Any
    sketches: jax.Array


class UpdateProducts(NamedTuple):
    """Inner products of what the workers have changed, interval by interval, the newest first.

    Attributes:
        apart: float32 `[INTERVALS, INTERVALS]`, mean over the workers of <u_i - mean u, v_i - mean
            v>, for the changes u and v of two intervals; 0 where one is not remembered.
        together: the same of <mean u, mean v>.
    """

    apart: jax.Array
    together: jax.Array


def remember_updates(every: int = 1) -> optax.GradientTransformation:
    """Returns a transformation that changes nothing and remembers sketches of the updates.

    To be the last of an `optax.chain`, behind what makes the local step:

    >>> optimizer = optax.chain(optax.sgd(0.1, momentum=0.9), remember_updates())

    Args:
        every: local steps to an exchange.
    """

    def init(params: Any) -> UpdateSketches:
        del params
        count = jnp.int32(0) if every > 1 else ()
        return UpdateSketches(count, jnp.zeros((INTERVALS, BUCKETS), jnp.float32))

    def update(
        updates: Any, state: UpdateSketches, params: Any = None
    ) -> tuple[Any, UpdateSketches]:
        del params
        count, now, before = state.count, sketch(updates)[None], state.sketches
        sketches = jnp.concatenate([now, before[:-1]])
        if every > 1:
            goes_on = jnp.concatenate([before[:1] + now, before[1:]])
            sketches = jnp.where(count % every == 0, sketches, goes_on)
            count = count + 1
        return updates, UpdateSketches(count, sketches)

    return optax.GradientTransformation(init, update)


def update_products(state: UpdateSketches, axis_name: AxisName) -> UpdateProducts:
    """Returns the inner products of what the workers remember, the same on every worker.

    Args:
        state: this worker's; its first interval may be one that has not ended.
        axis_name: the worker axis, or a tuple of axes.
    """
    mean = jax.lax.pmean(state.sketches, axis_names(axis_name))
    apart = jax.lax.pmean(_products(state.sketches - mean), axis_names(axis_name))
    return UpdateProducts(apart, _products(mean))


def sketch(tree: Any) -> jax.Array:
    """Returns the sketch of a pytree of numbers, float32 `[BUCKETS]`."""
    leaves = [
        (path, _real(leaf)) for path, leaf in jax.tree.leaves_with_path(tree) if jnp.size(leaf)
    ]
    rows = [
        row
        for path, leaf in leaves
        for row in _sampled(leaf, max(1, _ROWS // len(leaves)), jax.tree_util.keystr(path))
    ]
    # Of slices and sums alone, XLA makes one kernel; of too many, a slow one.
    sums = [sum(rows[first : first + _ROWS]) for first in range(0, len(rows), _ROWS)]
    return sum(jax.lax.optimization_barrier(sums), start=jnp.zeros(BUCKETS, jnp.float32))


def _real(leaf: Any) -> jax.Array:
    """Returns a leaf of real numbers; complex ones have two coordinates each."""
    leaf = jnp.asarray(leaf)
    return jnp.stack([leaf.real, leaf.imag]) if jnp.iscomplexobj(leaf) else leaf


def _sampled(leaf: jax.Array, most: int, name: str) -> Iterator[jax.Array]:
    """Returns coordinates of a leaf with their signs and weights, in rows `[BUCKETS]`.

    Args:
        leaf: of any shape, not empty.
        most: how many rows at most.
        name: decides the signs.
    """
    values = leaf.astype(jnp.float32).ravel()
    taken = min(values.size, most * BUCKETS)
    if taken < values.size:
        # An odd stride comes by every column of a matrix: most have an even number of them.
        lines = taken // _LINE
        stride = max(_LINE, values.size // lines - 1 | 1)
        values = values[: lines * stride].reshape(lines, stride)[:, :_LINE]
    signs = np.random.default_rng(zlib.crc32(name.encode())).choice((-1, 1), taken)
    weights = (signs * (leaf.size / taken) ** 0.5).astype(np.float32)
    for first in range(0, taken, BUCKETS):
        last = min(first + BUCKETS, taken)
        row = values[first:last] if values.ndim == 1 else values[first // _LINE : last // _LINE]
        yield jnp.pad(row.ravel() * weights[first:last], (0, BUCKETS - (last - first)))


def _products(sketches: jax.Array) -> jax.Array:
    return jnp.matmul(sketches, sketches.T, precision=jax.lax.Precision.HIGHEST)
