"""Functions of many models at once: a `jax.vmap` over weights, as fast as the processor is."""

from collections.abc import Callable
from typing import Any, Literal

import jax
from jax import lax

ManyModels = Literal["auto", "loop", "vmap"]
"""How a vmap over models is computed: one model after the other, or all in one operation."""


def member_by_member(
    function: Callable[..., Any],
    many_models: ManyModels = "auto",
    *,
    in_loop: Callable[..., Any] | None = None,
    together: Callable[..., Any] | None = None,
) -> Callable[..., Any]:
    """Returns the function with a rule of its own for vmaps over all of its arguments.

    Args:
        function: of arrays.
        many_models: "loop" calls it for one member of the vmap after the other, each with its
            weights in the cache; "vmap" is one operation for all; "auto" is "loop" on CPUs and
            "vmap" elsewhere. Where an argument is the same for all members, JAX does what it does.
        in_loop: the same function, as it is best written inside a loop.
        together: the same function, as it is best written under a vmap.
    """
    apply = jax.custom_batching.custom_vmap(function)
    # By itself again: there may be another vmap around this one.
    of_member = jax.custom_batching.custom_vmap(in_loop) if in_loop else apply

    def loop(*batched: jax.Array) -> Any:
        return lax.map(lambda member: of_member(*member), batched)

    def at_once(*batched: jax.Array) -> Any:
        return jax.vmap(together or function)(*batched)

    def rule(size: int, is_batched: list[bool], *arrays: jax.Array) -> tuple[Any, Any]:
        del size
        if not all(is_batched):
            axes = tuple(0 if batched else None for batched in is_batched)
            result = jax.vmap(function, in_axes=axes)(*arrays)
        elif many_models == "auto":
            result = lax.platform_dependent(*arrays, cpu=loop, default=at_once)
        else:
            result = (loop if many_models == "loop" else at_once)(*arrays)
        return result, jax.tree.map(lambda _: True, result)

    apply.def_vmap(rule)
    of_member.def_vmap(rule)
    return apply


def varying_like(weights: jax.Array, inputs: jax.Array) -> jax.Array:
    """Returns weights that vary over the mesh axes that the inputs vary over.

    Under `jax.shard_map`, so that the gradient of weights that the devices share is summed over
    them: a `jax.custom_vjp` has to return gradients that vary as its arguments do.
    """
    return jax.numpy.where(True, weights, jax.numpy.zeros_like(inputs, weights.dtype, shape=()))
