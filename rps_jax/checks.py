"""Checks of arguments: errors that name the argument, its value and what was expected."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

BELOW_ONE = math.nextafter(1, 0)
"""The greatest number in [0, 1)."""


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
    """Raises `ValueError` if a number is an array, as under a forgotten vmap."""
    if jnp.ndim(value):
        raise ValueError(f"{name} has shape {jnp.shape(value)}: expected a scalar")


def is_integer(value: Any) -> bool:
    """Returns whether this is an integer, which a bool is not; known before anything is traced."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def check_count(name: str, value: Any, expected: str = "an integer of at least 1") -> None:
    """Raises `ValueError` if this is no integer of at least 1, known before anything is traced."""
    if not (is_integer(value) and value >= 1):
        raise ValueError(f"{name}={value!r}: expected {expected}")


def check_packets(packets: Any) -> None:
    """Raises `ValueError` if this is no number of packets; None is none."""
    if packets is not None:
        check_count("packets", packets, "None or an integer of at least 1")


def check_integer(name: str, value: Any) -> None:
    """Raises `ValueError` if this is no integer scalar; it may be traced."""
    dtype = jax.dtypes.result_type(value) if hasattr(value, "dtype") else np.result_type(value)
    if jnp.shape(value) != () or not jnp.issubdtype(dtype, jnp.integer):
        has = f" has shape {jnp.shape(value)} and dtype {dtype}"
        shown = has if hasattr(value, "dtype") else f"={value!r}"
        raise ValueError(f"{name}{shown}: expected an integer scalar")


def check_channel(name: str, value: Any) -> None:
    """Raises `TypeError` if this is no channel."""
    if isinstance(value, type) or not callable(getattr(value, "sample", None)):
        raise TypeError(f"{name}={value!r}: expected a channel, with init and sample")


def check_optimizer(name: str, value: Any) -> None:
    """Raises `TypeError` if this is no optax optimizer."""
    if not callable(getattr(value, "update", None)):
        raise TypeError(f"{name}={value!r}: expected an optax.GradientTransformation")
