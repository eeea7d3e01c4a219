"""The fields of channels: what JAX may trace of them."""

import dataclasses
from typing import Any, TypeVar

import jax

Kind = TypeVar("Kind", bound=type)


def register_channel(kind: Kind) -> Kind:
    """Makes a frozen dataclass a pytree of its fields, but for those whose metadata say `static`.

    It is restored unchecked: a pytree of its shape may hold gradients, or no numbers at all.
    """
    names = [field.name for field in dataclasses.fields(kind)]
    static = [field.name for field in dataclasses.fields(kind) if field.metadata.get("static")]
    traced = [name for name in names if name not in static]

    def flatten(channel: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple(getattr(channel, name) for name in traced), tuple(
            getattr(channel, name) for name in static
        )

    def unflatten(fixed: tuple[Any, ...], values: Any) -> Any:
        channel: Any = object.__new__(kind)
        for name, value in zip((*traced, *static), (*values, *fixed), strict=True):
            object.__setattr__(channel, name, value)
        return channel

    jax.tree_util.register_pytree_node(kind, flatten, unflatten)
    return kind


def packet_shape(packets: int | None) -> tuple[int, ...]:
    """Returns the shape of what is drawn for one message."""
    return () if packets is None else (packets,)
