"""Where a run begins: at its start, or where its newest checkpoint has left it."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

import rps_jax as rps
from launch.cli.command_line import UsageError
from launch.config_file import CONFIG_FILE, check_unchanged, deciding
from launch.distributed.consistency import check_shared
from launch.json_objects import is_count, is_number
from launch.trainer.checkpoints import Checkpoints, Saved
from launch.trainer.resize import resized
from launch.trainer.setup import Setup


class Start(NamedTuple):
    """Where a run begins or goes on.

    Attributes:
        step: Steps taken.
        state: The workers' state.
        window: Of each step since the last line of metrics, as in `Window`.
        wall_seconds: How long the run has taken so far.
        averages: Over the steps of the last line of metrics, as `Window` has them; none before.
    """

    step: int
    state: rps.TrainState
    window: list[list[float | None]]
    wall_seconds: float
    averages: Mapping[str, float] = MappingProxyType({})


def progress_of(
    setup: Setup,
    window: list[list[float | None]],
    wall_seconds: float,
    averages: Mapping[str, float],
) -> dict[str, Any]:
    """Returns what a checkpoint holds beside the state, as JSON values.

    Args:
        setup: The training.
        window: As in `Start`.
        wall_seconds: As in `Start`.
        averages: As in `Start`.
    """
    return {
        "num_workers": setup.config.num_workers,
        "steps_per_epoch": setup.schedule.steps_per_epoch,
        "window": window,
        "wall_seconds": wall_seconds,
        "averages": dict(averages),
        "data_digest": setup.data_digest,
        "deciding": deciding(setup.config),
    }


def is_progress(values: dict[str, Any]) -> bool:
    """Returns whether these are values of `progress_of`, or what an earlier version wrote."""
    window, earlier = values.get("window"), "deciding" not in values
    averages = _averages_in(values)
    return (
        all(is_count(values.get(key)) and values[key] for key in ("num_workers", "steps_per_epoch"))
        and isinstance(values.get("data_digest"), str)
        and is_number(values.get("wall_seconds"))
        and isinstance(averages, dict)
        and all(map(is_number, averages.values()))
        and (earlier or isinstance(values["deciding"], dict))
        and (earlier or (isinstance(window, list) and all(map(_is_step, window))))
    )


def _is_step(value: Any) -> bool:
    if not isinstance(value, list) or len(value) not in (2, 3):
        return False
    loss, delivered, *seconds = value
    return all(map(is_number, (loss, *seconds))) and (delivered is None or is_number(delivered))


def begin(setup: Setup) -> Start:
    """Writes down what was asked for, and begins at the first step."""
    if setup.first_process:
        setup.directory.create(setup.config)
    check_shared(setup.directory.path / CONFIG_FILE)
    return Start(0, setup.initial, [], 0.0)


def resume(setup: Setup, checkpoints: Checkpoints, say: Callable[[str], None]) -> Start:
    """Goes back to the newest checkpoint, or to the start if there is none.

    Args:
        setup: The training.
        checkpoints: The run's checkpoints.
        say: Told, in a line each, of damage, and where the run goes on.

    Raises:
        UsageError: The checkpoint is of other data or flags, or of an earlier version.
        CheckpointError: It cannot be read.
    """
    saved = checkpoints.newest(report=say)
    start = Start(0, setup.initial, [], 0.0)
    if saved is not None:
        _check_same_run(setup, saved)
        before = saved.progress["num_workers"]
        if before == setup.config.num_workers:
            state = checkpoints.restore(saved.step, setup.initial)
            window = saved.progress["window"]
            start = Start(saved.step, state, window, *_so_far(saved))
        else:
            start = _resized(setup, checkpoints, saved)
            say(
                f"{setup.config.num_workers} workers go on with what {before} have learned in "
                f"{start.step // setup.schedule.steps_per_epoch} epochs"
            )
    say(f"resuming at step {start.step:,} of {setup.schedule.total_steps:,}")
    if setup.first_process:
        if setup.config.allow_resize:
            setup.directory.create(setup.config)
        setup.directory.rewind(start.step / setup.schedule.steps_per_epoch, report=say)
    return start


def _so_far(saved: Saved) -> tuple[float, Mapping[str, float]]:
    """Returns `wall_seconds` and `averages` of a `Start`."""
    return saved.progress["wall_seconds"], _averages_in(saved.progress)


def _averages_in(values: dict[str, Any]) -> Any:
    earlier = {"delivered_fraction": values.get("delivered", 1.0)}
    return values.get("averages", earlier)


def _check_same_run(setup: Setup, saved: Saved) -> None:
    path, config = setup.directory.path, setup.config
    if saved.progress["data_digest"] != setup.data_digest:
        raise UsageError(f"--data-path: expected the data that {path} began with")
    if "deciding" not in saved.progress:
        raise UsageError(
            f"--output-dir {path}: expected a run of this version of rps-jax, found checkpoints of "
            "an earlier one"
        )
    check_unchanged(config, saved.progress["deciding"], f"the checkpoint in {path}")
    before = saved.progress["num_workers"]
    if before != config.num_workers and not config.allow_resize:
        raise UsageError(
            f"--num-workers {config.num_workers}: expected {before}, as the checkpoint of step "
            f"{saved.step} has it (--allow-resize goes on with another number)"
        )
    total = setup.schedule.epochs * saved.progress["steps_per_epoch"]
    if before != config.num_workers and saved.step >= total:
        raise UsageError(
            f"--num-workers {config.num_workers}: expected {before}, as the run in {path} has it, "
            "which is done"
        )


def _resized(setup: Setup, checkpoints: Checkpoints, saved: Saved) -> Start:
    """Goes back to the beginning of the epoch of a checkpoint of another number of workers."""
    before = saved.progress["num_workers"]
    epochs = saved.step // saved.progress["steps_per_epoch"]
    step = epochs * setup.schedule.steps_per_epoch
    like = jax.tree.map(lambda leaf: np.zeros((before, *leaf.shape[1:]), leaf.dtype), setup.initial)
    # What is remembered and counted of links between so many workers begins anew.
    links = rps.LinkCounts.zero(before) if setup.initial.links else ()
    of_channel, of_links = jax.tree.map(
        lambda leaf: np.zeros((before, *np.shape(leaf)), np.asarray(leaf).dtype),
        (setup.run.channel.init(before), links),
    )
    like = like._replace(channel_state=of_channel, links=of_links)
    whole = checkpoints.restore(saved.step, like)
    local = whole._replace(channel_state=(), links=())
    state = setup.network.mesh.put(resized(local, setup.network.workers, step))
    initial = setup.initial
    state = state._replace(channel_state=initial.channel_state, links=initial.links)
    # At the same step, one that is whole would have to go first: it stays until the next is saved.
    if step != saved.step:
        checkpoints.save_alone(step, state, progress_of(setup, [], *_so_far(saved)))
    return Start(step, state, [], *_so_far(saved))
