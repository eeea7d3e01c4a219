"""The worker axis: a named axis of vmap, pmap or shard_map, or a tuple of them, outermost first."""

import math
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp

AxisName = str | tuple[str, ...]


def axis_names(axis_name: AxisName) -> tuple[str, ...]:
    """Returns the axes as a tuple, outermost first."""
    return axis_name if isinstance(axis_name, tuple) else (axis_name,)


def axis_sizes(axis_name: AxisName) -> tuple[int, ...]:
    """Returns the size of each axis, outermost first.

    Raises:
        ValueError: an axis that no surrounding vmap, pmap or shard_map has named.
    """
    sizes = []
    if isinstance(axis_name, (list, set, dict)):
        raise ValueError(f"axis_name={axis_name!r}: expected a name, or a tuple of names")
    for name in axis_names(axis_name):
        try:
            sizes.append(jax.lax.axis_size(name))
        except NameError:
            raise ValueError(
                f"axis_name={axis_name!r}: {name!r} is not bound here; expected the axis_name of a "
                "surrounding jax.vmap or jax.pmap, or an axis of the mesh of jax.shard_map"
            ) from None
    return tuple(sizes)


def axis_size(axis_name: AxisName) -> int:
    """Returns the number of workers; raises as `axis_sizes` does."""
    return math.prod(axis_sizes(axis_name))


def device_axes(axis_name: AxisName) -> dict[str, int]:
    """Returns the axes over which a collective goes from device to device, and their places.

    Those are axes of more than one that belong to a shard_map or a pmap. Over the others a
    collective is a sum or a copy within arrays, or nothing.
    """
    vmapped = vmapped_axes(axis_name)
    sizes = zip(axis_names(axis_name), axis_sizes(axis_name), strict=True)
    return {name: i for i, (name, size) in enumerate(sizes) if size > 1 and name not in vmapped}


def vmapped_axes(axis_name: AxisName) -> tuple[str, ...]:
    """Returns those of the axes that are of a vmap, outermost first."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in axis_names(axis_name) if name not in manual)


def kinds(tree: Any, worker: jax.Array) -> list[Hashable]:
    """Returns of each leaf what differs where they vary over different axes beside the workers'.

    In a shard_map that is manual over the axis of a worker's own devices, too: JAX takes what was
    joined of leaves that are cut over them and leaves that are whole on each for cut.

    Args:
        tree: a pytree of arrays.
        worker: int32 scalar, this worker's index.
    """

    def varies_alike(leaf: jax.Array, worker: jax.Array) -> jax.Array:
        return jnp.any(leaf) & (worker < 0)

    return [jax.eval_shape(varies_alike, leaf, worker) for leaf in jax.tree.leaves(tree)]


def as_own(values: Any, worker: jax.Array) -> Any:
    """Returns values unchanged, to JAX each worker's own.

    In a shard_map, what is the same on all workers is of another type than what is not, and neither
    a scan nor a cond takes one for the other.

    Args:
        values: a pytree of arrays.
        worker: int32 scalar, this worker's index.
    """
    return jax.tree.map(lambda x: jnp.where(worker < 0, jnp.zeros_like(x), x), values)
