"""Sums over the workers that share a device, of what has arrived."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rps_jax.axis import AxisName, axis_names, device_axes, vmapped_axes


class Term(NamedTuple):
    """What a worker adds to a sum; leading axes are those of several workers.

    Attributes:
        values: `[..., K, packets, elements]`.
        arrived: bool, `[..., packets]`; of the others, whatever they hold, nothing is added.
    """

    values: jax.Array
    arrived: jax.Array

    def masked(self) -> jax.Array:
        """Returns the values, zeros for what did not arrive."""
        # Select, never multiply by the mask: a NaN that was dropped must not reach the sum.
        return jnp.where(self.arrived[..., None, :, None], self.values, 0)


def device_sums(terms: Sequence[Term], axis_name: AxisName) -> list[jax.Array]:
    """Sums each term over the workers that share a device.

    Args:
        terms: this worker's.
        axis_name: the worker axis, or a tuple of axes, outermost first.

    Returns:
        `[K, packets, elements]` of each, the same on all of these workers.
    """
    vmapped, stacked = vmapped_axes(axis_name), list(terms)
    for axis in reversed(vmapped):
        # That is what there is already: nothing is copied.
        stacked = jax.lax.all_gather(stacked, axis)
    if vmapped:
        stacked = [Term(*(x.reshape(-1, *x.shape[len(vmapped) :]) for x in t)) for t in stacked]
        sums = jax.lax.platform_dependent(stacked, cpu=_reduced_in_pairs, default=_reduced)
    else:
        sums = [term.masked() for term in stacked]
    # Over an axis of one device nothing is added, but JAX takes the sum for the same on all of it.
    apart = {*vmapped, *device_axes(axis_name)}
    if of_one := tuple(axis for axis in axis_names(axis_name) if axis not in apart):
        sums = jax.lax.psum(sums, of_one)
    return sums


def _reduced(stacked: list[Term]) -> list[jax.Array]:
    return [term.masked().sum(0) for term in stacked]


def _reduced_in_pairs(stacked: list[Term]) -> list[jax.Array]:
    """Reduces pairs of a value and whether it has arrived.

    XLA on CPUs hands a plain sum to a library, for which it writes out what is to be summed first:
    one more copy of all models. A reduction of pairs is its own, and reads the values where they
    lie.
    """
    return [_sum_of_pairs(term) for term in stacked]


@jax.custom_jvp
def _sum_of_pairs(term: Term) -> jax.Array:
    def add(one: Any, other: Any) -> Any:
        return one[0] + other[0], one[1] | other[1]

    values = term.masked()
    arrived = jnp.broadcast_to(term.arrived[:, None, :, None], values.shape)
    nothing = jnp.zeros((), values.dtype), jnp.zeros((), bool)
    total, anything = jax.lax.reduce((values, arrived), nothing, add, (0,))
    # Both are used: XLA takes a pair of which one is not for a plain sum.
    return jnp.where(anything, total, 0)


@_sum_of_pairs.defjvp
def _sum_of_pairs_jvp(primals: tuple[Term], tangents: tuple[Term]) -> tuple[jax.Array, jax.Array]:
    # JAX does not differentiate a reduction of pairs.
    (term,), (moved,) = primals, tangents
    return _sum_of_pairs(term), Term(moved.values, term.arrived).masked().sum(0)
