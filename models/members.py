"""Functions of many models at once: a `jax.vmap` over weights, as fast as the processor is."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax import lax

ManyModels = Literal["auto", "loop", "vmap"]
"""How a vmap over models is computed: one model after the other, or all in one operation."""


def member_by_member(
    function: Callable[..., Any], many_models: ManyModels = "auto"
) -> Callable[..., Any]:
    """Returns the function with a rule of its own for vmaps over all of its arguments.

    Args:
        function: of arrays.
        many_models: "loop" calls it for one member of the vmap after the other, each with its
            weights in the cache; "vmap" is what JAX does; "auto" is "loop" on CPUs and "vmap"
            elsewhere. Where an argument is the same for all members, JAX does what it does.
    """
    apply = jax.custom_batching.custom_vmap(function)

    def loop(*batched: jax.Array) -> Any:
        # By itself again: there may be another vmap around this one.
        return lax.map(lambda member: apply(*member), batched)

    def together(*batched: jax.Array) -> Any:
        return jax.vmap(function)(*batched)

    @apply.def_vmap
    def _(size: int, is_batched: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        del size
        if not all(is_batched):
            axes = tuple(0 if batched else None for batched in is_batched)
            result = jax.vmap(function, in_axes=axes)(*arrays)
        elif many_models == "auto":
            result = lax.platform_dependent(*arrays, cpu=loop, default=together)
        else:
            result = (loop if many_models == "loop" else together)(*arrays)
        return result, jax.tree.map(lambda _: True, result)

    return apply


def varying_like(weights: jax.Array, inputs: jax.Array) -> jax.Array:
    """Returns weights that vary over the mesh axes that the inputs vary over.

    Under `jax.shard_map`, so that the gradient of weights that the devices share is summed over
    them: a `jax.custom_vjp` has to return gradients that vary as its arguments do.
    """
    return jax.numpy.where(True, weights, jax.numpy.zeros_like(inputs, weights.dtype, shape=()))
