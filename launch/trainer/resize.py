"""A run goes on with another number of workers than it has begun with.

The rule: workers that are still there go on as they are; new ones start from the mean of all that
there were, so that growing leaves the mean model where it is. The learning-rate schedule goes on at
the same place of the run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import rps_jax as rps


def resized(state: rps.TrainState, workers: Sequence[int], step: int) -> rps.TrainState:
    """Returns the state of some workers of the new number.

    Args:
        state: State of all workers that there were: NumPy arrays `[workers before, ...]`.
        workers: Numbers of the workers that are wanted.
        step: Steps that the new number of workers would have taken to be where the run is.

    Returns:
        NumPy arrays `[len(workers), ...]`.
    """

    def rows(leaf: np.ndarray) -> np.ndarray:
        before = len(leaf)
        kept = [leaf[worker] for worker in workers if worker < before]
        return np.stack(kept + [_mean(leaf)] * (len(workers) - len(kept)))

    of_workers: rps.TrainState = jax.tree.map(rows, state)
    return at_step(of_workers, lambda: np.full(len(workers), step, np.int32))


def at_step(state: rps.TrainState, step: Callable[[], Any]) -> rps.TrainState:
    """Returns a state with another step, in all that counts steps.

    Args:
        state: The workers' state.
        step: Returns the step of every worker, to be called for each place that has it.
    """

    def counted(path: Any, leaf: Any) -> Any:
        # Schedules, and what else optax counts; not a parameter that has this name.
        return step() if path[-1:] == (jax.tree_util.GetAttrKey("count"),) else leaf

    opt_state = jax.tree.map_with_path(counted, state.opt_state)
    return state._replace(step=step(), opt_state=opt_state)


def _mean(leaf: np.ndarray) -> np.ndarray:
    if (leaf == leaf[0]).all():
        return leaf[0]  # A key, or a count.
    mean = leaf.mean(axis=0, dtype=np.float64)
    return (np.rint(mean) if np.issubdtype(leaf.dtype, np.integer) else mean).astype(leaf.dtype)
