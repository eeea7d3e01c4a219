"""The training loop."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

import rps_jax as rps
from launch.trainer.hook import Hook
from launch.trainer.setup import Setup


def train_loop(
    setup: Setup,
    state: rps.TrainState,
    first_step: int,
    received: Callable[[], int],
    hooks: Sequence[Hook],
) -> None:
    """Trains to the end.

    Args:
        setup: The training.
        state: The workers' state; its buffers are given up.
        first_step: Steps that were taken to it.
        received: Returns the signal that this process has received, 0 for none.
        hooks: Metrics, checkpoints, progress; what one raises ends the loop.
    """
    schedule, arrays = setup.schedule, setup.train.arrays
    signals = _Signals(setup.network.mesh)
    step, pending = first_step, None
    epoch, order = _epoch(setup, step)
    setup.train_step.compile(setup.run, state, arrays, order, signals.of(0))
    for hook in hooks:
        hook.begin()
    while step < schedule.total_steps:
        if step // schedule.steps_per_epoch != epoch:
            epoch, order = _epoch(setup, step)
        previous = pending
        signal = signals.of(received())
        with jax.profiler.StepTraceAnnotation("train_step", step_num=step):
            state, *pending = setup.train_step(setup.run, state, arrays, order, signal)
        state, step = setup.network.catch_up(state, step + 1)
        at = schedule.after(step)
        # The metrics of a step are waited for while the next one runs, unless they are due.
        signal_number = _take(previous, hooks)
        if at.logs or signal_number:
            signal_number = max(signal_number, _take(pending, hooks))
            pending = None
        for hook in hooks:
            hook.after_step(at, state, signal_number)


def _epoch(setup: Setup, step: int) -> tuple[int, jax.Array]:
    """Returns the epoch of a step, and the order of its examples."""
    epoch = step // setup.schedule.steps_per_epoch
    return epoch, setup.train_step.order(setup.data_key, setup.train.arrays, epoch)


def _take(pending: Any, hooks: Sequence[Hook]) -> int:
    """Waits for a step and gives its metrics to the hooks; returns the signal of any process."""
    if pending is None:
        return 0
    metrics, signal_number = jax.device_get(pending)
    for hook in hooks:
        hook.on_metrics(metrics)
    return int(signal_number)


class _Signals:
    """What the workers of this process pass on to all: the number of a signal, or 0."""

    def __init__(self, mesh: rps.WorkerMesh) -> None:
        self._mesh = mesh
        self._on_devices: dict[int, jax.Array] = {}

    def of(self, number: int) -> jax.Array:
        """Returns the number for each worker; put on the devices once, not at every step."""
        if number not in self._on_devices:
            rows = np.full(len(self._mesh.local_workers), number, np.int32)
            self._on_devices[number] = self._mesh.put(rows)
        return self._on_devices[number]
