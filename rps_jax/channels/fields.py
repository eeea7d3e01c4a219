"""The fields of channels: numbers that may be traced, checked where they are known."""

import dataclasses
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

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


def check_number(
    name: str, value: Any, low: float = 0.0, high: float = 1.0, expected: str | None = None
) -> None:
    """Raises `ValueError` if a number, or one of an array, is not in [low, high].

    Traced numbers pass: they are not known yet.

    Args:
        name: of the argument.
        value: a number or an array of them.
        low: the least that it may be.
        high: the greatest.
        expected: what was expected, for people; a probability by default.
    """
    if isinstance(value, jax.core.Tracer):
        return
    numbers = np.asarray(value)
    kinds = (jnp.floating, jnp.integer)
    real = any(jnp.issubdtype(numbers.dtype, kind) for kind in kinds)
    if not (real and ((numbers >= low) & (numbers <= high)).all()):
        shown = repr(value) if isinstance(value, str) else value
        if real and numbers.ndim:
            shown = numbers[~((numbers >= low) & (numbers <= high))][0]
        raise ValueError(f"{name}={shown}: expected {expected or 'a probability in [0, 1]'}")


def check_scalar(name: str, value: Any) -> None:
    """Raises `ValueError` if a number is an array, as under a forgotten vmap; for `sample`."""
    if jnp.ndim(value):
        raise ValueError(f"{name} has shape {jnp.shape(value)}: expected a scalar")


def check_packets(packets: Any) -> None:
    """Raises `ValueError` if this is no number of packets; None is none."""
    whole = isinstance(packets, int | np.integer) and not isinstance(packets, bool)
    if packets is not None and not (whole and packets >= 1):
        raise ValueError(f"packets={packets!r}: expected None or an integer of at least 1")


def packet_shape(packets: int | None) -> tuple[int, ...]:
    """Returns the shape of what is drawn for one message."""
    return () if packets is None else (packets,)
