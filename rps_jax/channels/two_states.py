"""A chain of two states, as of a link that goes bad and good again, by its stays in one of them.

A chain that is in a state for a share s of the time stays there for s / (1 - s) moves at least, on
average: it is in the other for one move or more in between.
"""

import jax
import jax.numpy as jnp
import numpy as np


def transitions(share: jax.Array, mean_stay: jax.Array | float) -> tuple[jax.Array, jax.Array]:
    """Returns the probabilities to enter the state and to leave it, at each move.

    Args:
        share: float32 scalar, the share of time in the state in the long run; 1 is for ever.
        mean_stay: how many moves a stay lasts, on average; as few as can be, if it is fewer.
    """
    odds = share / jnp.where(share < 1, 1 - share, 1)
    leaves = jnp.where(share < 1, 1 / jnp.maximum(jnp.float32(mean_stay), odds), 0)
    return jnp.where(share < 1, odds * leaves, 1), leaves


def check_stay(name: str, mean_stay: np.ndarray, share: np.ndarray, why: str) -> None:
    """Raises `ValueError` for a stay that is shorter than any can be.

    Args:
        name: of the argument.
        mean_stay: its value, a number or an array of them.
        share: as of `transitions`.
        why: what decides the share, for people.
    """
    shortest = share / np.where(share < 1, 1 - share, np.inf)
    if (mean_stay < shortest * (1 - 1e-6)).any():
        raise ValueError(f"{name}={mean_stay}: expected at least {np.max(shortest):.4g}, for {why}")
