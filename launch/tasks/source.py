"""The data of a preset: found and checked against the rest of the configuration, not loaded yet."""

from typing import Any

import jax

from data import DataError, Source
from launch.cli.command_line import UsageError
from launch.config import TrainConfig
from launch.tasks import TASKS, make_task


def find_source(config: TrainConfig) -> Source:
    """Finds the data of a run, in a second or so; with --packets, reads it for the model's size.

    Raises:
        UsageError: There is none, it is damaged, it is too small for the run, or the model is.
    """
    try:
        source = TASKS[config.preset].find(config.data_path, config.download)
    except DataError as error:
        raise of_flag(config, error) from error
    check_fits(config, source.num_train)
    if config.packets is not None:
        check_packets(config, config.packets, shapes_of(config, source))
    return source


def shapes_of(config: TrainConfig, source: Source) -> Any:
    """Returns the shapes of a run's model, once its data are read.

    Raises:
        UsageError: They are damaged.
    """
    try:
        task = make_task(config, source.load())
    except DataError as error:
        raise of_flag(config, error) from error
    # The shapes alone: nothing is computed, and JAX does not start.
    params, _ = jax.eval_shape(task.init, jax.eval_shape(lambda: jax.random.key(0)))
    return params


def check_packets(config: TrainConfig, packets: int, params: Any) -> None:
    """Raises `UsageError` if a message is cut into more packets than it has elements.

    Args:
        config: The run's configuration.
        packets: Number of packets of a message.
        params: Pytree of arrays or shapes, those of the model.
    """
    block = sum(leaf.size for leaf in jax.tree.leaves(params)) // config.num_workers
    flag = f"--packets {packets}" if config.trace is None else f"--trace {config.trace}"
    if packets > block:
        raise UsageError(f"{flag}: expected at most {block} packets, a block's elements")


def check_fits(config: TrainConfig, num_train: int) -> None:
    """Raises `UsageError` if there are too few training examples for a run, or too many."""
    if config.num_workers > num_train:
        raise UsageError(
            f"--num-workers {config.num_workers}: expected at most {num_train}, the number of "
            "training examples"
        )
    smallest = num_train // config.num_workers
    if config.batch_size > smallest:
        raise UsageError(
            f"--batch-size {config.batch_size}: expected at most {smallest}, the training examples "
            f"of each of {config.num_workers} workers"
        )
    most = 2**31 // num_train  # Steps are counted in 32 bits.
    if config.epochs > most:
        raise UsageError(f"--epochs {config.epochs}: expected at most {most}")


def of_flag(config: TrainConfig, error: DataError) -> UsageError:
    """Returns the error of a data file as one of the flag that names it."""
    return UsageError(f"--data-path {error}" if config.data_path else str(error))
